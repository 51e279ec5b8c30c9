import numpy as np
import torch

from trainer.config import MixupConfig
from trainer.mixup import Batch, mixup


def batch(num: int = 16) -> Batch:
    generator = torch.manual_seed(0)
    mask = torch.ones(num, 10, dtype=torch.bool)
    mask[::2, 4:] = False
    return Batch(
        torch.rand(num, 4, 2, 10, generator=generator),
        (torch.rand(num, 3, generator=generator) < 0.4).float(),
        (torch.rand(num, 3, generator=generator) < 0.9).float(),
        mask,
    )


def test_the_same_generator_state_gives_the_same_bits() -> None:
    one, two = (mixup(batch(), MixupConfig(), np.random.default_rng(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_probability_0_changes_nothing() -> None:
    mixed = mixup(batch(), MixupConfig(probability=0.0), np.random.default_rng(3))
    assert all(torch.equal(a, b) for a, b in zip(mixed, batch(), strict=True))


def test_maps_and_targets_are_mixed_with_the_same_clip_by_the_same_share() -> None:
    """With clips numbered by a constant map, the share can be read off and must explain the rest."""
    num = 32
    eye = torch.eye(num)
    plain = Batch(
        eye.view(num, num, 1, 1).expand(-1, -1, 2, 10),
        eye,
        torch.ones(num, num),
        torch.ones(num, 10, dtype=torch.bool),
    )
    mixed = mixup(plain, MixupConfig(probability=1.0, alpha=1.0), np.random.default_rng(0))
    assert torch.allclose(mixed.maps[:, :, 0, 0], mixed.targets)
    assert (mixed.weights == 1).all()
    assert torch.allclose(mixed.targets.sum(dim=1), torch.ones(num))
    own = mixed.targets.diagonal()
    assert (own >= 0.5 - 1e-6).all()
    assert (own < 0.999).sum() > num / 2


def test_a_frame_holds_audio_where_it_does_in_either_clip() -> None:
    mixed = mixup(batch(), MixupConfig(probability=1.0), np.random.default_rng(0))
    assert (mixed.mask | ~batch().mask).all()
    assert mixed.mask.sum() > batch().mask.sum()


def test_what_is_unknown_in_one_part_is_unknown_in_the_mix() -> None:
    plain = batch(64)
    mixed = mixup(plain, MixupConfig(probability=1.0, alpha=1.0), np.random.default_rng(0))
    assert not mixed.weights[plain.weights == 0].any()
    assert (mixed.weights <= plain.weights).all()
    assert mixed.weights.sum() < plain.weights.sum()
