"""A run's backbones, heads and calibration as one module: images or waveforms to probabilities."""

from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from shared.backbone import Backbone
from shared.features import FeatureConfig
from shared.mel import LogMelImage
from trainer.calibration import Calibration
from trainer.heads import HeadOutput

INPUT_SAMPLES = "valid_samples"
OUTPUTS = ("clip_wise", "frame_wise", "clip_logits", "frame_logits")


class WholeOutput(NamedTuple):
    """Calibrated probabilities per clip (B, K) and frame (B, T, K), and the logits before calibration."""

    clip_wise: Tensor
    frame_wise: Tensor
    clip_logits: Tensor
    frame_logits: Tensor


class WholeModel(nn.Module):
    """Every head's logits averaged, then calibrated.

    backbones: with folded batch norms, one for all heads, or one each.
    map_hop: samples between frames of their maps (B, C, F, T); num_map_frames: T.
    """

    begins: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(
        self, backbones: list[Backbone], heads: list[nn.Module], calibration: Calibration,
        *, map_hop: int, num_map_frames: int,
    ) -> None:  # fmt: skip
        super().__init__()
        if len(backbones) not in (1, len(heads)):
            raise ValueError(f"{len(heads)} heads need one backbone, or one each; got {len(backbones)}.")
        self.backbones, self.heads = nn.ModuleList(backbones), nn.ModuleList(heads)
        self.register_buffer("begins", torch.arange(num_map_frames) * map_hop)
        self.register_buffer("slope", torch.from_numpy(calibration.slope))
        self.register_buffer("offset", torch.from_numpy(calibration.offset))
        self.requires_grad_(False).eval()

    def groups(self) -> list[tuple[Backbone, list[nn.Module]]]:
        """Return every backbone with the heads behind it."""
        heads = list(self.heads)
        behind = [heads] if len(self.backbones) == 1 else [[head] for head in heads]
        return [(cast(Backbone, one), group) for one, group in zip(self.backbones, behind, strict=True)]

    def forward(self, image: Float[Tensor, "b 3 m n"], valid_samples: Int64[Tensor, " b"]) -> WholeOutput:
        """Return probabilities and logits of windows with `valid_samples` samples of audio, zeros behind."""
        mask = (self.begins < valid_samples.unsqueeze(1)) | (self.begins == 0)
        outputs: list[HeadOutput] = []
        for backbone, heads in self.groups():
            maps = backbone(image)[0]
            outputs += [head(maps, mask) for head in heads]
        clip_logits = torch.stack([one.clip_wise for one in outputs]).mean(dim=0)
        frame_logits = torch.stack([one.frame_wise for one in outputs]).mean(dim=0)
        return WholeOutput(
            torch.sigmoid(clip_logits * self.slope + self.offset),
            torch.sigmoid(frame_logits * self.slope + self.offset),
            clip_logits, frame_logits,
        )  # fmt: skip


class WaveformModel(nn.Module):
    """The same behind nnAudio's log-mel: waveforms (B, S) of -1..1 at the working sample rate."""

    def __init__(self, model: WholeModel, features: FeatureConfig) -> None:
        super().__init__()
        self.model = model
        self.image = LogMelImage(
            features.mel, features.clips.grid(), torch.device("cpu"), always_nnaudio=True
        )

    def forward(self, waveform: Float[Tensor, "b s"], valid_samples: Int64[Tensor, " b"]) -> WholeOutput:
        """Return probabilities and logits; each waveform is scaled to its peak first, as stored clips are."""
        peak = waveform.abs().amax(dim=1, keepdim=True)
        loudest = waveform / torch.where(peak > 0, peak, 1.0)
        output: WholeOutput = self.model(self.image(loudest), valid_samples)
        return output
