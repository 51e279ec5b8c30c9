"""Several clips into one, on waveforms: combined halves and sounds heard at once; labels are united."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shared.augment import SILENT_POWER, power
from trainer.config import MixingConfig, MixupConfig
from trainer.mixup import Batch, mixup, union


def combine(batch: Batch, probability: float, rng: np.random.Generator) -> Batch:
    """Replace a clip's second half by that of another, with a probability; the labels are both clips'."""
    other, chosen = _partners(batch, probability, rng)
    waveforms, mask = batch.maps.clone(), batch.mask.clone()
    half, frames = waveforms.shape[1] // 2, mask.shape[1] // 2
    waveforms[chosen, half:] = batch.maps[other[chosen], half:]
    mask[chosen, frames:] = batch.mask[other[chosen], frames:]
    return _with_labels_of_both(batch._replace(maps=waveforms, mask=mask), batch, other, chosen)


def add(batch: Batch, probability: float, range_db: float, rng: np.random.Generator) -> Batch:
    """Add another clip, with a probability; the labels are both clips'.

    The other one's power against the clip's own is drawn between minus and plus `range_db`; where
    either is silent, it is added as it is.
    """
    other, chosen = _partners(batch, probability, rng)
    levels = rng.uniform(-range_db, range_db, (len(batch.maps), 1))
    level = torch.from_numpy(levels).to(batch.maps.device, batch.maps.dtype)
    added, own = batch.maps[other], power(batch.maps)
    theirs = own[other]
    scale = torch.sqrt(own / theirs.clamp_min(SILENT_POWER)) * 10 ** (level / 20)
    scale = torch.where((own > SILENT_POWER) & (theirs > SILENT_POWER), scale, 1.0)
    waveforms = torch.where(chosen.unsqueeze(1), batch.maps + scale * added, batch.maps)
    mask = torch.where(chosen.unsqueeze(1), batch.mask | batch.mask[other], batch.mask)
    return _with_labels_of_both(batch._replace(maps=waveforms, mask=mask), batch, other, chosen)


def _partners(batch: Batch, probability: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Return another clip of the batch for each one, and which clips get it."""
    other = torch.from_numpy(rng.permutation(len(batch.maps))).to(batch.maps.device)
    chosen = torch.from_numpy(rng.random(len(batch.maps)) < probability).to(batch.maps.device)
    return other, chosen & (other != torch.arange(len(other), device=other.device))


def _with_labels_of_both(mixed: Batch, batch: Batch, other: Tensor, chosen: Tensor) -> Batch:
    targets, weights = union(batch.targets, batch.weights, batch.targets[other], batch.weights[other])
    is_mixed = chosen.unsqueeze(1)
    return mixed._replace(
        targets=torch.where(is_mixed, targets, batch.targets),
        weights=torch.where(is_mixed, weights, batch.weights),
    )


def mix_and_draw(
    batch: Batch, images_of: Callable[[Tensor], Tensor], config: MixingConfig, rng: np.random.Generator
) -> Batch:
    """Combine, add and mix waveforms (B, S), and turn them into images (B, 3, M, N)."""
    blend = MixupConfig(probability=config.mixup_probability, alpha=config.mixup_alpha)
    batch = combine(batch, config.combine, rng)
    batch = add(batch, config.add, config.add_range_db, rng)
    if config.mixup == "waveforms":
        batch = mixup(batch, blend, rng)
    batch = batch._replace(maps=images_of(batch.maps))
    return mixup(batch, blend, rng) if config.mixup == "images" else batch
