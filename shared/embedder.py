"""Stored int16 clips into embedding maps: the log-mel and the backbone as one step."""

import numpy as np
import torch
from jaxtyping import Float16, Int16

from shared.backbone import Backbone, load_backbone
from shared.config import digest
from shared.features import FeatureConfig
from shared.mel import LogMelImage

FLOAT16_MAX = float(np.finfo(np.float16).max)


class Embedder:
    """int16 waveforms (B, S) to float16 maps (B, C, F, T), in batches of one fixed size.

    The last batch of a call is padded, so that a row's bits depend on its place in the batch
    grid and never on how many rows came with it.
    """

    def __init__(self, config: FeatureConfig, device: torch.device) -> None:
        self.config = config
        self.device = device
        self.batch_clips = config.backbone.batch_clips
        self.grid = config.clips.grid()
        self.image = LogMelImage(config.mel, self.grid, device)
        self.backbone: Backbone = load_backbone(config.backbone, device)
        probe = self.embed(np.zeros((1, self.grid.clip_samples), np.int16))[0]
        self.map_shape: tuple[int, int, int] = probe.shape[1:]
        self.frame_hop = self.backbone.time_stride * config.mel.hop_length

    @property
    def fingerprint_of(self) -> dict[str, object]:
        """Everything that decides a feature's value, engine and precision included."""
        return self.config.fingerprint_of(
            stage=self.backbone.stage, weights_sha256=self.backbone.weights_sha256
        )

    @property
    def fingerprint(self) -> str:
        """Digest of `fingerprint_of`."""
        return digest(self.fingerprint_of)

    def embed(self, waveforms: Int16[np.ndarray, "b s"]) -> tuple[Float16[np.ndarray, "b c f t"], np.ndarray]:
        """Return the maps, and per clip how many values passed float16's range and were cut."""
        maps, overflows = [], []
        for start in range(0, len(waveforms), self.batch_clips):
            batch = waveforms[start : start + self.batch_clips]
            num_clips = len(batch)
            if num_clips < self.batch_clips:
                batch = np.concatenate(
                    [batch, np.zeros((self.batch_clips - num_clips, batch.shape[1]), np.int16)]
                )
            values = self._forward(batch)[:num_clips]
            overflows.append((np.abs(values) > FLOAT16_MAX).sum(axis=(1, 2, 3)))
            maps.append(values.clip(-FLOAT16_MAX, FLOAT16_MAX).astype(np.float16))
        return np.concatenate(maps), np.concatenate(overflows)

    @torch.inference_mode()
    def _forward(self, batch: Int16[np.ndarray, "b s"]) -> np.ndarray:
        waveforms = torch.from_numpy(batch).to(self.device).float() / 32768
        # On a GPU torch lets convolutions round their inputs to TF32: off by decibels in a log-mel.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            maps = self.backbone(self.image(waveforms))
        return np.asarray(maps.float().cpu().contiguous().numpy())


def choose_device(name: str) -> torch.device:
    """Return the device for auto, cpu or cuda; auto takes a GPU when there is one.

    Raises:
        ValueError: cuda was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no CUDA device; use --device cpu or auto.")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
