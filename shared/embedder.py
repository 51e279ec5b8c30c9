"""Stored int16 clips into embedding maps: the log-mel and the backbone as one step."""

import importlib
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from shared.backbone import Backbone, load_backbone
from shared.config import digest
from shared.engines import make_engine
from shared.features import FeatureConfig
from shared.images import ImageMaker, Waveforms
from shared.stage_clock import StageClock

FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Embedded:
    """Maps (B, C, F, T) float16 by stage, and per clip how many values were cut to float16's range."""

    maps: dict[str, np.ndarray]
    overflows: np.ndarray


class Embedder:
    """Waveforms (B, S), int16 or float32, to float16 maps, in batches of one fixed size.

    The last batch of a call is padded, so that a row's bits depend on its place in the batch
    grid and never on how many rows came with it.

    backbone: one that was trained, in place of the config's own.
    streams: how many threads may call `embed` at once, each on one core. With one, the engine
        itself uses all cores.
    """

    def __init__(
        self,
        config: FeatureConfig,
        device: torch.device,
        *,
        streams: int = 1,
        backbone: Backbone | None = None,
    ) -> None:
        self.config = config
        self.device = device
        self.streams = streams
        self.batch_clips = config.backbone.batch_clips
        self.grid = config.clips.grid()
        self.clock = StageClock()
        self.images = ImageMaker(config, device, streams, self.clock)
        self.backbone = backbone or load_backbone(config.backbone, device)
        self.engine = make_engine(self.backbone, config.backbone, self.images.shape, device, streams)
        probe = self.embed(np.zeros((1, self.grid.clip_samples), np.int16)).maps
        self.stages = self.backbone.asked_stages
        self.map_shapes = {stage: probe[stage].shape[1:] for stage in self.stages}
        strides = dict(zip(self.backbone.stages, self.backbone.time_strides, strict=True))
        self.frame_hops = {stage: strides[stage] * config.mel.hop_length for stage in self.stages}

    @property
    def fingerprint_of(self) -> dict[str, object]:
        """Everything that decides a feature's value, engine and precision included."""
        return self.config.fingerprint_of(
            stages=list(self.stages),
            weights_sha256=self.backbone.weights_sha256,
            engine=self.engine.name,
        )

    @property
    def fingerprint(self) -> str:
        """Digest of `fingerprint_of`."""
        return digest(self.fingerprint_of)

    @property
    def numerics(self) -> dict[str, object]:
        """What decides the last bits of a feature beside the config and the processor."""
        gpu = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else ""
        engine = {} if self.engine.name == "torch" else {self.engine.name: _version_of(self.engine.name)}
        return {"device": gpu or self.device.type, "torch": torch.__version__, **engine}

    def embed(self, waveforms: Waveforms) -> Embedded:
        """Return the maps of any number of clips: int16 as stored, or -1..1 on the device."""
        parts = [
            self._embed_batch(waveforms[start : start + self.batch_clips])
            for start in range(0, len(waveforms), self.batch_clips)
        ]
        maps = {stage: np.concatenate([part.maps[stage] for part in parts]) for stage in self.backbone.stages}
        return Embedded(maps, np.concatenate([part.overflows for part in parts]))

    def _embed_batch(self, batch: Waveforms) -> Embedded:
        return self.embed_images(self.images(batch), len(batch))

    @torch.inference_mode()
    def maps_of_images(self, images: Tensor, num_clips: int) -> dict[str, Float[Tensor, "b c f t"]]:
        """Return the maps of the first `num_clips` images as they are, on the device.

        They are the caller's until its next call.
        """
        with self.clock.measured("backbone"):
            found = [values[:num_clips].float() for values in self.engine(images)]
            return dict(zip(self.backbone.stages, found, strict=True))

    @torch.inference_mode()
    def embed_images(self, images: Tensor, num_clips: int) -> Embedded:
        """Return the maps of the first `num_clips` images of a whole batch."""
        with self.clock.measured("backbone"):
            found = self.engine(images)
            halves, overflows = zip(*(_to_float16(values[:num_clips]) for values in found), strict=True)
            maps = {
                stage: half.contiguous().cpu().numpy()
                for stage, half in zip(self.backbone.stages, halves, strict=True)
            }
            return Embedded(maps, sum(overflows).cpu().numpy())


def _to_float16(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return maps cut to float16's range, and how many values of each clip were cut."""
    overflows = (values.abs() > FLOAT16_MAX).sum(dim=(1, 2, 3))
    return values.clamp(-FLOAT16_MAX, FLOAT16_MAX).half(), overflows


def _version_of(engine: str) -> str:
    try:
        return version(engine)
    except PackageNotFoundError:  # the package has another name, as onnxruntime-gpu
        return str(importlib.import_module(engine).__version__)


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
