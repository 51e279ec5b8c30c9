"""Focal loss for several labels at once, with labels that do not count."""

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from trainer.config import LossConfig
from trainer.heads import HeadOutput, at_least_fp32, shrink_mask


def focal_loss(
    logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"], *, alpha: float, gamma: float
) -> Float[Tensor, "b k"]:
    """Return y α (1-p)^γ softplus(-z) + (1-y) (1-α) p^γ softplus(z), per element.

    Targets may be soft. Source: Lin et al. 2017, equation 5, for independent classes.
    """
    p = logits.sigmoid()
    positive = alpha * (1 - p).pow(gamma) * F.softplus(-logits)
    negative = (1 - alpha) * p.pow(gamma) * F.softplus(logits)
    return targets * positive + (1 - targets) * negative


def detection_loss(
    output: HeadOutput,
    targets: Float[Tensor, "b k"],
    weights: Float[Tensor, "b k"],
    mask: Bool[Tensor, "b t"],
    config: LossConfig,
) -> Float[Tensor, ""]:
    """Weighted sum over clips and classes: on the clip-wise logits, and on the best frame's by its share.

    A weight of 0 takes a label out. The sum, not the mean: the loop divides by the weights of
    the whole step, so that accumulation equals the large batch.
    """
    frames = output.frame_wise
    outside = ~shrink_mask(mask, frames.shape[1])
    best_frame = frames.masked_fill(outside.unsqueeze(2), -1e4).amax(dim=1)
    of_clip, of_frame = (
        focal_loss(at_least_fp32(logits), targets, alpha=config.alpha, gamma=config.gamma)
        for logits in (output.clip_wise, best_frame)
    )
    return (weights * ((1 - config.frame_share) * of_clip + config.frame_share * of_frame)).sum()
