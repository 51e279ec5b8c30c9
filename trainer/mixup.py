"""Mixup in feature space."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from trainer.config import MixupConfig


class Batch(NamedTuple):
    """Embedding maps with what the loss sees of them, and which frames hold audio."""

    maps: Float[Tensor, "b c f t"]
    targets: Float[Tensor, "b k"]
    weights: Float[Tensor, "b k"]
    mask: Bool[Tensor, "b t"]


def mixup(batch: Batch, config: MixupConfig, rng: np.random.Generator) -> Batch:
    """Mix each clip, with a probability, with another one of the batch.

    Maps and targets are mixed by the same share, drawn per clip from Beta(alpha, alpha) and
    folded to at least one half. A label counts as much as in the clip where it counts less: what
    is unknown in one part is unknown in the mix. A frame holds audio where it does in either
    clip. The same generator state gives the same bits. Source: Zhang et al. 2018, arXiv
    1710.09412.
    """
    num_clips = len(batch.maps)
    shares = rng.beta(config.alpha, config.alpha, num_clips)
    shares = np.maximum(shares, 1 - shares)
    shares[rng.random(num_clips) >= config.probability] = 1.0
    other = torch.from_numpy(rng.permutation(num_clips)).to(batch.maps.device)
    share = torch.from_numpy(shares).to(batch.maps.device, batch.maps.dtype)

    def mixed(values: Tensor) -> Tensor:
        s = share.to(values.dtype).view(-1, *[1] * (values.ndim - 1))
        return s * values + (1 - s) * values[other]

    is_mixed = (share < 1).unsqueeze(1)
    weights = torch.minimum(batch.weights, batch.weights[other])
    return Batch(
        maps=mixed(batch.maps),
        targets=mixed(batch.targets),
        weights=torch.where(is_mixed, weights, batch.weights),
        mask=batch.mask | (batch.mask[other] & is_mixed),
    )
