"""The trained part: embedding maps (B, C, F, T) to frame-wise and clip-wise logits."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from trainer.config import HeadConfig

KERNELS = (2, 4, 8)
NUM_BLOCKS = 3
PROBABILITY_MARGIN = 1e-6

# MKL's first vector logarithm in a process differs now and then in its last bits from all that follow, on a
# busy machine in 2 of 100 starts: a resumed training would end in others. So the first one is nobody's.
torch.logit(torch.full((64,), 0.5))


class HeadOutput(NamedTuple):
    """Logits per frame (B, T, K) and per clip (B, K)."""

    frame_wise: Tensor
    clip_wise: Tensor


class Standardise(nn.Module):
    """Maps as a head's inputs per frame, each with a mean of 0 and a deviation of 1 over the training clips.

    The inputs are the channels' means over frequency, or every channel at every frequency row ("rows":
    the mean throws absolute pitch away). Fixed before training: in contrast to a batch norm, a
    clip's output does not depend on its batch.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, num_channels: int, num_rows: int, frequency: str) -> None:
        super().__init__()
        self._frequency = frequency
        self.num_inputs = num_channels * (num_rows if frequency == "rows" else 1)
        self.register_buffer("mean", torch.zeros(self.num_inputs, 1))
        self.register_buffer("std", torch.ones(self.num_inputs, 1))

    def set_from(self, maps: Float[Tensor, "b c f t"]) -> None:
        """Take mean and deviation over clips and frames."""
        inputs = self._inputs(maps.float())
        self.mean.copy_(inputs.mean(dim=(0, 2)).unsqueeze(1))
        self.std.copy_(inputs.std(dim=(0, 2)).unsqueeze(1).clamp_min(1e-6))

    def _inputs(self, maps: Float[Tensor, "b c f t"]) -> Float[Tensor, "b d t"]:
        match self._frequency:
            case "mean":
                return maps.mean(dim=2)
            case "rows":
                return maps.flatten(1, 2)
            case _:
                raise ValueError(f"head.frequency must be rows or mean, got {self._frequency!r}")

    def forward(self, maps: Float[Tensor, "b c f t"]) -> Float[Tensor, "b d t"]:
        """Return the standardised inputs."""
        return (self._inputs(maps) - self.mean) / self.std


class Inception(nn.Module):
    """Parallel 1-D convolutions of kernels 2, 4, 8, concatenated (Roy et al. 2019, figure 1c).

    Even kernels pad one frame more on the right, so that stride 1 keeps the length.
    """

    def __init__(self, num_inputs: int, num_filters: int, stride: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv1d(num_inputs, num_filters, kernel, stride=stride) for kernel in KERNELS
        )

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b d u"]:
        """Return (B, 3 * filters, ceil(T / stride))."""
        outputs = [
            branch(F.pad(x, ((kernel - 1) // 2, kernel // 2)))
            for branch, kernel in zip(self.branches, KERNELS, strict=True)
        ]
        return F.relu(torch.cat(outputs, dim=1))


class ChronoNet(nn.Module):
    """Three inception blocks, then four densely connected GRUs.

    The third GRU sees the first two's outputs, the fourth the first three's; the last returns
    the sequence, not its end. Strides default to 1: the paper's 2 per block would leave one or
    two of our ten frames. Source: Roy, Kiral-Kornek, Harrer 2019, arXiv 1802.00308.
    """

    def __init__(self, num_inputs: int, config: HeadConfig) -> None:
        super().__init__()
        wide, units = len(KERNELS) * config.filters, config.gru_units
        sizes = [num_inputs, *[wide] * (NUM_BLOCKS - 1)]
        self.inceptions = nn.Sequential(*(Inception(size, config.filters, config.strides) for size in sizes))
        self.grus = nn.ModuleList(
            nn.GRU(size, units, batch_first=True) for size in (wide, units, 2 * units, 3 * units)
        )
        self.dropout = nn.Dropout1d(config.dropout)

    def forward(self, x: Float[Tensor, "b c t"]) -> Float[Tensor, "b u d"]:
        """Return one vector per frame, (B, U, gru_units) with U = T for strides of 1."""
        x = self.dropout(self.inceptions(x)).transpose(1, 2)
        first = self.grus[0](x)[0]
        second = self.grus[1](first)[0]
        third = self.grus[2](torch.cat([first, second], dim=2))[0]
        fourth: Tensor = self.grus[3](torch.cat([first, second, third], dim=2))[0]
        return fourth


def attention_pool(
    probabilities: Float[Tensor, "b t k"],
    attention: Float[Tensor, "b t k"],
    mask: Bool[Tensor, "b t"],
) -> Float[Tensor, "b k"]:
    """Weighted mean over frames, one set of weights per class.

    The weights of a class sum to 1 over the unmasked frames, so the result lies between its
    lowest and its highest frame. Source: Kong et al. 2020 (PANNs), the attention block.
    """
    scores = attention.masked_fill(~mask.unsqueeze(2), -torch.inf)
    return (probabilities * scores.softmax(dim=1)).sum(dim=1)


def start_at_prior(classify: nn.Linear, *, from_zero: bool) -> None:
    """Start training at a probability of 1 / K for every class.

    With another bias the many negatives drown the first steps (Lin et al. 2017, section 4.1).

    from_zero: for a classifier that sees the maps themselves. With chance weights, what few recordings
        say nothing about stays in them as noise. Not behind a ChronoNet, which would learn nothing
        (both in docs/experiments.md).
    """
    if from_zero:
        nn.init.zeros_(classify.weight)
    nn.init.constant_(classify.bias, -math.log(max(classify.out_features - 1, 1)))


def at_least_fp32(x: Tensor) -> Tensor:
    """Return half-precision values as float32, and others as they are."""
    return x.float() if x.dtype.itemsize < 4 else x


class AttentionBlock(nn.Module):
    """Frame-wise classification and attention over frames, per class, always in fp32."""

    def __init__(self, num_inputs: int, num_classes: int, *, from_zero: bool) -> None:
        super().__init__()
        self.classify = nn.Linear(num_inputs, num_classes)
        self.attend = nn.Linear(num_inputs, num_classes)
        start_at_prior(self.classify, from_zero=from_zero)

    def forward(self, x: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> HeadOutput:
        """Return the frame-wise logits and the logit of the pooled probability."""
        with torch.autocast(x.device.type, enabled=False):
            x = at_least_fp32(x)
            logits = self.classify(x)
            pooled = attention_pool(logits.sigmoid(), self.attend(x).clamp(-10, 10), mask)
            clamped = pooled.clamp(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
            return HeadOutput(logits, torch.logit(clamped))


class Head(nn.Module):
    """Maps and the mask of frames that hold audio, to logits. `config.name` says which body.

    Dropout takes an input away from all frames of a clip at once: frame by frame, what is missing in one is
    there in the next. Source: Tompson et al. 2015, arXiv 1411.4280.
    """

    def __init__(self, num_channels: int, num_rows: int, num_classes: int, config: HeadConfig) -> None:
        super().__init__()
        self.name = config.name
        self.standardise = Standardise(num_channels, num_rows, config.frequency)
        num_inputs = self.standardise.num_inputs
        match config.name:
            case "chrononet":
                self.body: nn.Module = ChronoNet(num_inputs, config)
                self.block = AttentionBlock(config.gru_units, num_classes, from_zero=False)
            case "attention":
                self.body = nn.Dropout1d(config.dropout)
                self.block = AttentionBlock(num_inputs, num_classes, from_zero=True)
            case "linear":
                self.body = nn.Dropout1d(config.dropout)
                self.classify = nn.Linear(num_inputs, num_classes)
                start_at_prior(self.classify, from_zero=True)
            case _:
                raise ValueError(f"head.name must be chrononet, attention or linear: {config.name!r}")

    def forward(self, maps: Float[Tensor, "b c f t"], mask: Bool[Tensor, "b t"]) -> HeadOutput:
        """Return logits per frame (of the head's own frames) and per clip."""
        x = self.standardise(maps)
        if self.name == "chrononet":
            x = self.body(x.masked_fill(~mask.unsqueeze(1), 0))
            return HeadOutput(*self.block(x, shrink_mask(mask, x.shape[1])))
        x = self.body(x).transpose(1, 2)
        if self.name == "attention":
            return HeadOutput(*self.block(x, mask))
        with torch.autocast(x.device.type, enabled=False):  # half-precision scores would tie
            logits = self.classify(at_least_fp32(x))
            held = mask.unsqueeze(2).to(logits.dtype)
            return HeadOutput(logits, (logits * held).sum(dim=1) / held.sum(dim=1))


def shrink_mask(mask: Bool[Tensor, "b t"], num_frames: int) -> Bool[Tensor, "b u"]:
    """Return the mask for fewer frames: one holds audio where any frame it covers does."""
    stride = math.ceil(mask.shape[1] / num_frames)
    padded = F.pad(mask, (0, num_frames * stride - mask.shape[1]))
    return padded.view(mask.shape[0], num_frames, stride).any(dim=2)
