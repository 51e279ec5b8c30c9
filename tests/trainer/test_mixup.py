import numpy as np
import pytest
import torch

from trainer.config import MIXTURES, MixupConfig
from trainer.mixup import Batch, mixup, union


def batch(num: int = 16) -> Batch:
    generator = torch.manual_seed(0)
    mask = torch.ones(num, 10, dtype=torch.bool)
    mask[::2, 4:] = False
    return Batch(
        torch.rand(num, 4, 2, 10, generator=generator),
        (torch.rand(num, 3, generator=generator) < 0.4).float(),
        (torch.rand(num, 3, generator=generator) < 0.9).float(),
        mask,
        torch.full((num,), 100),
    )


def numbered(num: int) -> Batch:
    """Clips whose constant map and label both say which one it is: a share can be read off a mix."""
    eye = torch.eye(num)
    maps = eye.view(num, num, 1, 1).expand(-1, -1, 2, 10)
    return Batch(
        maps, eye, torch.ones(num, num), torch.ones(num, 10, dtype=torch.bool), torch.full((num,), 100)
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
    plain = numbered(num)
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


def test_weights_are_mixed_by_the_share_of_the_maps() -> None:
    num = 32
    weights = (1 + torch.arange(num)).float().unsqueeze(1).expand(-1, num)
    plain = numbered(num)._replace(weights=weights)
    mixed = mixup(plain, MixupConfig(probability=1.0, alpha=1.0), np.random.default_rng(0))
    assert torch.allclose(mixed.weights, mixed.maps[:, :, 0, 0] @ plain.weights)


def test_an_additive_mix_has_the_labels_of_both_parts() -> None:
    num = 32
    plain = numbered(num)
    config = MixupConfig(kind="additive", probability=1.0, alpha=1.0)
    mixed = mixup(plain, config, np.random.default_rng(0))
    assert torch.equal(mixed.targets, (mixed.maps[:, :, 0, 0] > 0).float())
    assert mixed.targets.sum() > 1.5 * num


def test_a_union_knows_what_either_part_has_and_what_neither_can_have() -> None:
    """Targets and weights of one part, of the other, and of both at once."""
    cases = [
        ((1, 1), (0, 1), (1, 1)),  # there; not there
        ((1, 1), (0, 0), (1, 1)),  # there; unknown
        ((0, 1), (0, 0), (0, 0)),  # not there; unknown
        ((0, 1), (0, 1), (0, 1)),
        ((0, 0), (0, 0), (0, 0)),
        ((1, 0), (0, 1), (0, 0)),  # a target that does not count is unknown
        ((1, 0.5), (1, 1), (1, 1)),
        ((0.3, 1), (1, 0.5), (1, 0.5)),  # the stronger label speaks
    ]
    one, other, both = (torch.tensor(column).T.unsqueeze(2) for column in zip(*cases, strict=True))
    for a, b in ((one, other), (other, one)):
        targets, weights = union(a[0].float(), a[1].float(), b[0].float(), b[1].float())
        assert torch.equal(weights, both[1].float())
        assert torch.equal(targets * (weights > 0), both[0].float())


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_clip_that_is_not_mixed_stays_as_it_is(kind: str) -> None:
    mixed = mixup(batch(64), MixupConfig(kind=kind, probability=0.5), np.random.default_rng(1))
    same = (mixed.maps == batch(64).maps).flatten(1).all(dim=1)
    assert 10 < same.sum() < 54
    assert torch.equal(mixed.targets[same], batch(64).targets[same])
    assert torch.equal(mixed.weights[same], batch(64).weights[same])
