"""The training loop, and its counterpart that only looks."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from trainer.config import FitConfig, LossConfig
from trainer.heads import Head, HeadOutput
from trainer.loss import detection_loss
from trainer.mixup import Batch


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


@dataclass
class Training:
    """A head with everything that moves its weights."""

    head: Head
    optimiser: torch.optim.Optimizer
    schedule: LambdaLR
    precision: Precision
    loss: LossConfig
    clip_norm: float

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
            ValueError: a loss that is not finite, before it reaches the weights.
        """
        self.head.train()
        total, counted = 0.0, 0.0
        for number, batches in enumerate(steps, 1):
            mixed = [mix(to_device(batch, self.precision.device)) for batch in batches]
            weight = max(1.0, sum(float(batch.weights.sum()) for batch in mixed))
            for batch in mixed:
                loss = self._loss(batch, number)
                self.precision.scaler.scale(loss / weight).backward()  # type: ignore[no-untyped-call]
                total += loss.item()
            self._step()
            counted += weight
            step_done(1)
        return total / max(counted, 1.0)

    def _loss(self, batch: Batch, number: int) -> Tensor:
        with self.precision.autocast():
            output = self.head(batch.maps, batch.mask)
        loss = detection_loss(output, batch.targets, batch.weights, batch.mask, self.loss)
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss became {loss.item()} at step {number} of the epoch; lower "
                "fit.learning_rate or check the features with `featurestore info`."
            )
        return loss

    def _step(self) -> None:
        self.precision.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.head.parameters(), self.clip_norm)
        self.precision.scaler.step(self.optimiser)
        self.precision.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.schedule.step()


def make_optimiser(head: Head, config: FitConfig) -> torch.optim.AdamW:
    """Return AdamW; biases and other vectors are not decayed."""
    parameters = list(head.parameters())
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )


def warmup_cosine(optimiser: torch.optim.Optimizer, num_steps: int, warmup: float) -> LambdaLR:
    """Return the schedule: linear up over the first share `warmup` of all steps, cosine to zero."""
    rising = max(1, round(num_steps * warmup))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, num_steps - rising)))

    return LambdaLR(optimiser, factor)


@torch.inference_mode()
def score_clips(head: Head, batches: Iterable[Batch], precision: Precision) -> np.ndarray:
    """Return the clip-wise logits (rows, K), float32."""
    head.eval()
    logits: list[Tensor] = []
    for batch in batches:
        moved = to_device(batch, precision.device)
        with precision.autocast():
            output: HeadOutput = head(moved.maps, moved.mask)
        logits.append(output.clip_wise.float().cpu())
    return torch.cat(logits).numpy()


def recording_scores(clip_logits: np.ndarray, recording: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the recordings that occur, sorted, and the mean of their clips' logits (R, K)."""
    recordings, place = np.unique(recording, return_inverse=True)
    sums = np.zeros((len(recordings), clip_logits.shape[1]))
    np.add.at(sums, place, clip_logits)
    return recordings, sums / np.bincount(place)[:, None]
