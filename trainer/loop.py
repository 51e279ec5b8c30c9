"""The training loop, and its counterpart that only looks."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainer.config import FitConfig, LossConfig
from trainer.heads import HeadOutput
from trainer.loss import detection_loss
from trainer.mixup import Batch

MIN_SCALE = 1.0  # of the gradients in fp16, below which it is no scale that is wrong


class Precision:
    """Mixed precision where the device has it: bf16, or fp16 with a scaler, on CUDA; fp32 on CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.enabled = device.type == "cuda"
        bf16 = self.enabled and torch.cuda.is_bf16_supported()
        self.dtype = torch.bfloat16 if bf16 or not self.enabled else torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.enabled and not bf16)

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.enabled)

    @property
    def name(self) -> str:
        """The name of the format that matrix products run in."""
        return str(self.dtype).removeprefix("torch.") if self.enabled else "float32"


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch, maps as float32."""
    maps, *rest = (part.to(device, non_blocking=True) for part in batch)
    return Batch(maps.float(), *rest)


class NotFiniteError(ValueError):
    """A number that is not finite, before it reached the weights. step: of the epoch, from 1."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"step {step}: {what}")
        self.step = step


class AveragedWeights:
    """An exponential moving average of a model's weights, a model itself.

    The decay rises with the steps, min(decay, (1 + n) / (10 + n)), so that the first weights are
    forgotten soon. Source: Polyak and Juditsky 1992; the warm-up is TensorFlow's
    ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights after step number `step`, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for mean, value in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(value, 1 - decay)
        for kept, found in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(found)


class AnchoredWeights:
    """Weights on the straight line from those at the beginning to the trained ones, a model itself.

    Source: Wortsman et al. 2022, arXiv 2109.01903 (weight-space ensembling, alpha).
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self._start = {name: value.clone() for name, value in model.state_dict().items()}
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._share = share

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Follow the trained weights."""
        trained = model.state_dict()
        for name, kept in self.model.state_dict().items():
            if kept.is_floating_point():
                torch.lerp(self._start[name], trained[name], self._share, out=kept)
            else:
                kept.copy_(trained[name])


@dataclass
class Training:
    """A model, from a batch's maps and mask to HeadOutput, with everything that moves its weights.

    rate: the learning rate's factor at a step, counted from 0 over all epochs.
    averaged: the weights that are scored and kept, where they are not the head's own.
    """

    model: nn.Module
    optimiser: torch.optim.Optimizer
    rate: Callable[[int], float]
    precision: Precision
    loss: LossConfig
    clip_norm: float
    averaged: AveragedWeights | AnchoredWeights | None = None
    steps_done: int = 0

    def __post_init__(self) -> None:
        self._full_rates = [group["lr"] for group in self.optimiser.param_groups]

    @property
    def scored_model(self) -> nn.Module:
        """The model whose weights are scored and kept."""
        return self.averaged.model if self.averaged else self.model

    def run(
        self,
        steps: Iterable[list[Batch]],
        mix: Callable[[Batch], Batch],
        step_done: Callable[[int], object],
    ) -> float:
        """Run optimiser steps and return the mean loss per counted label.

        A step's gradient is that of its batches' losses summed and divided by the weights of
        the whole step, whatever the number of batches it came in.

        Raises:
            NotFiniteError: a loss or a gradient that is not finite, before it reaches the weights.
        """
        self.model.train()
        total, counted = 0.0, 0.0
        for number, batches in enumerate(steps, 1):
            mixed = [mix(to_device(batch, self.precision.device)) for batch in batches]
            weight = max(1e-6, sum(float(batch.weights.sum()) for batch in mixed))
            for batch in mixed:
                loss = self._loss(batch, number)
                self.precision.scaler.scale(loss / weight).backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            self._step(number)
            counted += weight
            step_done(1)
        return total / max(counted, 1e-6)

    def _loss(self, batch: Batch, number: int) -> Tensor:
        with self.precision.autocast():
            output: HeadOutput = self.model(batch.maps, batch.mask)
        loss = detection_loss(output, batch.targets, batch.weights, batch.mask, self.loss)
        if not math.isfinite(loss.item()):
            raise NotFiniteError(
                number,
                f"the loss became {loss.item()}: {_where_not_finite(batch.maps, output)}; lower "
                "learning_rate, or check the features with `featurestore verify`.",
            )
        return loss

    def _step(self, number: int) -> None:
        for group, full in zip(self.optimiser.param_groups, self._full_rates, strict=True):
            group["lr"] = full * self.rate(self.steps_done)
        self.precision.scaler.unscale_(self.optimiser)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        if not (self.precision.scaler.is_enabled() or torch.isfinite(norm)):
            names = [n for n, p in self.model.named_parameters() if not _is_finite(p.grad)]
            raise NotFiniteError(
                number, f"the gradient of {', '.join(names[:3])} is not finite; lower learning_rate."
            )
        self.precision.scaler.step(self.optimiser)
        self.precision.scaler.update()
        if self.precision.scaler.is_enabled() and self.precision.scaler.get_scale() < MIN_SCALE:
            raise NotFiniteError(number, "gradients overflow at every scale; lower learning_rate.")
        self.optimiser.zero_grad(set_to_none=True)
        if self.averaged:
            self.averaged.update(self.model, self.steps_done)
        self.steps_done += 1


def _is_finite(values: Tensor | None) -> bool:
    return values is None or bool(torch.isfinite(values).all())


def _where_not_finite(maps: Tensor, output: HeadOutput) -> str:
    for name, values in (("the maps", maps), ("the frame-wise logits", output.frame_wise)):
        bad = (~torch.isfinite(values)).flatten(1).any(dim=1)
        if bad.any():
            return f"{name} of clip {int(bad.nonzero()[0])} of the batch are not finite"
    return "maps and logits are finite, the loss is not"


def make_optimiser(model: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    """Return AdamW; biases and other vectors are not decayed."""
    parameters = list(model.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )


def warmup_cosine(step: int, *, num_steps: int, warmup: float) -> float:
    """Return the rate's factor: linear up over the first share `warmup` of all steps, cosine to zero."""
    rising = max(1, round(num_steps * warmup))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, num_steps - rising)))


@torch.inference_mode()
def score_clips(model: nn.Module, batches: Iterable[Batch], precision: Precision) -> np.ndarray:
    """Return the clip-wise logits (rows, K), float32."""
    model.eval()
    logits: list[Tensor] = []
    for batch in batches:
        moved = to_device(batch, precision.device)
        with precision.autocast():
            output: HeadOutput = model(moved.maps, moved.mask)
        logits.append(output.clip_wise.float().cpu())
    return torch.cat(logits).numpy()


def recording_scores(clip_logits: np.ndarray, recording: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the recordings that occur, sorted, and the mean of their clips' logits (R, K)."""
    recordings, place = np.unique(recording, return_inverse=True)
    sums = np.zeros((len(recordings), clip_logits.shape[1]))
    np.add.at(sums, place, clip_logits)
    return recordings, sums / np.bincount(place)[:, None]
