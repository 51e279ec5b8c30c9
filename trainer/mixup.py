"""Mixup in feature space."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from trainer.config import MixupConfig


class Batch(NamedTuple):
    """Embedding maps with what the loss sees of them, and which frames hold audio.

    maps: or waveforms (B, S), or images (B, 3, M, N), for a whole network.
    valid_samples: of each clip, how many of its samples are audio.
    """

    maps: Shaped[Tensor, "b ..."]
    targets: Float[Tensor, "b k"]
    weights: Float[Tensor, "b k"]
    mask: Bool[Tensor, "b t"]
    valid_samples: Int64[Tensor, " b"]


def mixup(batch: Batch, config: MixupConfig, rng: np.random.Generator) -> Batch:
    """Mix each clip, with a probability, with another one of the batch.

    Maps are mixed by a share, drawn per clip from Beta(alpha, alpha) and folded to at least one half.
    Convex: so are targets and weights; a label that is unknown (weight 0) in one part is unknown in the
    mix. Additive, as if both were heard at once: the greater target counts, with its weight; where
    neither part has the label, it is known to be absent only if it is in both. A frame holds audio where
    it does in either clip. The same generator state gives the same bits.

    Sources: Zhang et al. 2018, arXiv 1710.09412 (convex); Tokozume et al. 2018, arXiv 1711.10282
    (mixing sounds). That the weighted mean of two maps is the nearest simple guess of the mixed
    sound's map was measured (docs/decisions.md).
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
    targets, weights = batch.targets[other], batch.weights[other]
    match config.kind:
        case "convex":
            both_known = (batch.weights > 0) & (weights > 0)
            targets, weights = mixed(batch.targets), mixed(batch.weights) * both_known
        case "additive":
            targets, weights = union(batch.targets, batch.weights, targets, weights)
        case _:
            raise ValueError(f"mixup.kind must be convex or additive, got {config.kind!r}")
    return batch._replace(
        maps=mixed(batch.maps),
        targets=torch.where(is_mixed, targets, batch.targets),
        weights=torch.where(is_mixed, weights, batch.weights),
        mask=batch.mask | (batch.mask[other] & is_mixed),
    )


def union(
    targets: Float[Tensor, "b k"],
    weights: Float[Tensor, "b k"],
    other_targets: Float[Tensor, "b k"],
    other_weights: Float[Tensor, "b k"],
) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b k"]]:
    """Return targets and weights of two sounds heard at once.

    The greater target counts with its own weight, equal ones with the smaller weight, but where both
    parts have the label with the greater one. What is unknown (weight 0) is no target.
    """
    one, two = targets * (weights > 0), other_targets * (other_weights > 0)
    least, most = torch.minimum(weights, other_weights), torch.maximum(weights, other_weights)
    equal = torch.where(one > 0, most, least)
    weight = torch.where(one > two, weights, torch.where(two > one, other_weights, equal))
    return torch.maximum(one, two), weight
