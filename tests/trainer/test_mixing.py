import numpy as np
import pytest
import torch

from trainer.config import MixingConfig
from trainer.mixing import add, combine, mix_and_draw
from trainer.mixup import Batch

NUM, SAMPLES = 64, 400


def numbered() -> Batch:
    """Clips of one constant each; the label says which one it is, the second one of all is unknown."""
    waveforms = (torch.arange(NUM) + 1.0).unsqueeze(1).expand(-1, SAMPLES).clone()
    weights = torch.ones(NUM, NUM)
    weights[:, 1] = 0
    weights[1, 1] = 1
    mask = torch.ones(NUM, 10, dtype=torch.bool)
    mask[::2, 4:] = False
    return Batch(waveforms, torch.eye(NUM), weights, mask, torch.full((NUM,), SAMPLES))


def test_combined_clips_are_halves_of_two_with_the_labels_of_both() -> None:
    before = numbered()
    mixed = combine(before, 0.75, np.random.default_rng(0))
    first, second = mixed.maps[:, 0].long() - 1, mixed.maps[:, -1].long() - 1
    assert torch.equal(first, torch.arange(NUM))
    changed = second != first
    assert float(changed.float().mean()) == pytest.approx(0.75, abs=0.15)
    for row in range(NUM):
        assert set(mixed.maps[row, : SAMPLES // 2].tolist()) == {row + 1.0}
        assert set(mixed.maps[row, SAMPLES // 2 :].tolist()) == {float(second[row]) + 1}
        assert set(mixed.targets[row].nonzero().flatten().tolist()) == {row, int(second[row])}
        assert mixed.mask[row, :5].tolist() == before.mask[row, :5].tolist()
        assert mixed.mask[row, 5:].tolist() == before.mask[second[row], 5:].tolist()
    assert torch.equal(before.maps, numbered().maps)


def test_added_clips_are_heard_at_a_level_within_the_range_with_the_labels_of_both() -> None:
    rng = np.random.default_rng(0)
    time = torch.arange(SAMPLES) / SAMPLES
    waveforms = torch.stack([torch.sin(2 * torch.pi * (n + 2) * time) * (1 + n % 3) for n in range(NUM)])
    before = numbered()._replace(maps=waveforms)
    mixed = add(before, 1.0, 6.0, rng)
    levels = []
    for row in range(NUM):
        spectrum = torch.fft.rfft(mixed.maps[row]).abs()[2 : NUM + 2] / (SAMPLES / 2)
        heard = set((spectrum > 0.01).nonzero().flatten().tolist())
        assert heard == set(mixed.targets[row].nonzero().flatten().tolist())
        assert row in heard
        other = next(iter(heard - {row}), None)
        if other is not None:
            levels.append(20 * float(torch.log10(spectrum[other] / spectrum[row])))
            assert torch.equal(mixed.mask[row], before.mask[row] | before.mask[other])
    assert -6.01 <= min(levels) < -4
    assert 4 < max(levels) <= 6.01


def test_a_label_known_in_one_part_only_is_unknown_but_where_it_is_there() -> None:
    mixed = add(numbered(), 1.0, 0.0, np.random.default_rng(0))
    has_second = mixed.targets[:, 1] > 0
    assert (mixed.weights[has_second, 1] == 1).all()
    assert (mixed.weights[~has_second, 1] == 0).all()


def test_silence_is_added_and_added_to_without_harm() -> None:
    batch = numbered()
    batch.maps[::2] = 0
    mixed = add(batch, 1.0, 6.0, np.random.default_rng(0))
    for row in range(NUM):
        value = float(mixed.maps[row, 0])
        labels = mixed.targets[row].nonzero().flatten().tolist()
        heard = [float(batch.maps[label, 0]) for label in labels]
        assert value == pytest.approx(sum(heard), abs=1e-3) or min(heard) > 0


@pytest.mark.parametrize("name", ["combine", "add"])
def test_a_probability_of_0_changes_nothing_and_the_same_seed_gives_the_same_bits(name: str) -> None:
    def mixed(probability: float, seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        return (
            combine(numbered(), probability, rng)
            if name == "combine"
            else add(numbered(), probability, 3.0, rng)
        )

    assert all(torch.equal(a, b) for a, b in zip(mixed(0.0, 0), numbered(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(mixed(0.5, 1), mixed(0.5, 1), strict=True))
    assert not torch.equal(mixed(0.5, 1).maps, mixed(0.5, 2).maps)


def squares(waveforms: torch.Tensor) -> torch.Tensor:
    return waveforms.square()


def test_mixup_is_where_the_config_says() -> None:
    def drawn(mixup: str) -> Batch:
        config = MixingConfig(mixup=mixup, mixup_probability=1.0)
        return mix_and_draw(numbered(), squares, config, np.random.default_rng(0))

    on_images, on_waveforms, unmixed = (drawn(name) for name in ("images", "waveforms", "none"))
    number = torch.arange(NUM) + 1.0
    assert torch.equal(unmixed.maps[:, 0], number.square())
    expected = on_images.targets @ number.square()
    assert torch.allclose(on_images.maps[:, 0], expected, rtol=1e-4)
    assert torch.allclose(on_waveforms.maps[:, 0], (on_waveforms.targets @ number).square(), rtol=1e-4)
    assert not torch.allclose(on_waveforms.maps[:, 0], expected, rtol=1e-2)
