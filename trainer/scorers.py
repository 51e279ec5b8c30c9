"""What scores windows: heads behind a backbone, or an exported graph."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int16
from torch import Tensor, nn

from shared.config import as_sections, digest
from shared.embedder import Embedder
from shared.engines import OpenvinoModel
from shared.features import FeatureConfig
from shared.images import ImageMaker
from shared.mel import MelConfig
from shared.onnx_graph import need_package, onnx_session
from shared.stage_clock import StageClock
from trainer.data import frame_mask
from trainer.exported import Exported
from trainer.whole_model import INPUT_SAMPLES


@dataclass(frozen=True)
class Logits:
    """clip_wise (B, K), frame_wise (B, T, K), float32."""

    clip_wise: Float32[np.ndarray, "b k"]
    frame_wise: Float32[np.ndarray, "b t k"]


@runtime_checkable
class Scorer(Protocol):
    """One backbone with the heads behind it.

    sides: for every head, the number of the path (of those the ensemble was opened with) it is from.
    front_end: a digest of what decides an image; scorers of one front end share the images.
    batch_clips: how many windows a batch has. streams: how many threads may call it at once.
    """

    sides: list[int]
    frame_hop: int
    front_end: str
    batch_clips: int
    streams: int
    clock: StageClock
    mel: MelConfig

    def images(self, waveforms: Int16[np.ndarray, "b s"]) -> Tensor:
        """Return the images of at most a batch, filled up to a whole one (batch_clips, 3, M, N)."""
        ...

    def __call__(self, images: Tensor, valid: np.ndarray) -> list[Logits]:
        """Return every head's logits for the images of `valid` (B,) samples of audio."""
        ...


class HeadsOnBackbone:
    """Heads of runs behind the backbone that their features were made with, or that was trained with them.

    Maps are not rounded to float16 as stored ones are.
    """

    def __init__(self, embedder: Embedder, stage: str, heads: list[nn.Module], sides: list[int]) -> None:
        self.embedder, self.stage, self.sides = embedder, stage, sides
        self.batch_clips, self.streams, self.clock = embedder.batch_clips, embedder.streams, embedder.clock
        self.mel = embedder.config.mel
        self.front_end = front_end_of(embedder.config, embedder.device)
        self.images = embedder.images
        self.heads = [head.to(embedder.device).eval() for head in heads]
        self.map_hop = embedder.frame_hops[stage]
        probe = self(embedder.images(np.zeros((1, embedder.grid.clip_samples), np.int16)), np.ones(1))[0]
        map_frames = embedder.map_shapes[stage][2]
        self.frame_hop = self.map_hop * -(-map_frames // probe.frame_wise.shape[1])

    @torch.inference_mode()
    def __call__(self, images: Tensor, valid: np.ndarray) -> list[Logits]:
        """Return every head's logits."""
        maps = self.embedder.maps_of_images(images, len(valid))[self.stage]
        mask = frame_mask(valid, frame_hop=self.map_hop, num_frames=maps.shape[3])
        given = torch.from_numpy(mask).to(maps.device)
        outputs = [head(maps, given) for head in self.heads]
        return [
            Logits(one.clip_wise.float().cpu().numpy(), one.frame_wise.float().cpu().numpy())
            for one in outputs
        ]


def front_end_of(config: FeatureConfig, device: torch.device) -> str:
    """Return a digest of what decides a window's image and the size of a batch."""
    sections = as_sections(config)
    sizes = [config.backbone.batch_clips, device.type]
    return digest({"mel": sections["mel"], "clips": sections["clips"], "b": sizes})


class GraphScorer:
    """An exported model's graph, by ONNX Runtime or OpenVINO on the CPU; the log-mel before it is ours."""

    def __init__(self, model: Exported, engine: str, precision: str, streams: int, side: int) -> None:
        self.sides, self.streams, self.clock = [side], streams, StageClock()
        self.batch_clips, self.mel = model.features.backbone.batch_clips, model.features.mel
        device = torch.device("cpu")
        self.front_end, self.frame_hop = front_end_of(model.features, device), model.frame_hop
        self.images = ImageMaker(model.features, device, streams, self.clock)
        self._run = _graph_runner(model.graph(engine), engine, precision, streams, self.images.shape)

    def __call__(self, images: Tensor, valid: np.ndarray) -> list[Logits]:
        """Return the logits before calibration."""
        samples = np.ones(self.batch_clips, np.int64)
        samples[: len(valid)] = valid
        with self.clock.measured("model"):
            clip_wise, frame_wise = self._run(images.numpy(), samples)
            return [Logits(clip_wise[: len(valid)].copy(), frame_wise[: len(valid)].copy())]


def _graph_runner(
    path: Path, engine: str, precision: str, streams: int, shape: tuple[int, ...]
) -> Callable[[np.ndarray, np.ndarray], Sequence[np.ndarray]]:
    """Return what turns images and valid samples into clip-wise and frame-wise logits.

    Raises:
        ValueError: the engine is not installed, cannot compute so, or cannot read the file.
    """
    need_package(engine, f"engine {engine}", f"pip install {engine}, or use --engine torch")
    if engine == "onnxruntime":
        if precision != "fp32":
            raise ValueError(
                f"--engine onnxruntime computes in fp32, not in {precision}; give --precision fp32."
            )
        session = onnx_session(path, 1 if streams > 1 else torch.get_num_threads())
        return lambda images, valid: session.run(
            ["clip_logits", "frame_logits"], {"image": images, INPUT_SAMPLES: valid}
        )
    import openvino

    try:
        graph = openvino.Core().read_model(path)
        graph.reshape({"image": list(shape), INPUT_SAMPLES: [shape[0]]})
    except RuntimeError as error:
        raise ValueError(f"openvino cannot read {path}: {str(error).splitlines()[0]}") from error
    compiled = OpenvinoModel(graph, precision, streams)
    return lambda images, valid: compiled(images, valid)[2:]
