from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from shared.augment_policy import DEFAULT_STEPS, AugmentConfig, Policy
from shared.config import as_sections, read_sections, write_toml
from shared.features import FeatureConfig

NUM_CLIPS, NUM_SAMPLES = 2000, 64


def policy(*steps: dict[str, Any]) -> Policy:
    return Policy(AugmentConfig(steps=steps), 32_000, NUM_SAMPLES)


def louder(waveforms: Tensor, rng: Generator, *, by: float = 2.0) -> Tensor:
    """A transform of somebody else's."""
    return waveforms * by


def test_a_step_is_for_as_many_clips_as_its_probability_says() -> None:
    ones = torch.ones(NUM_CLIPS, NUM_SAMPLES)
    found = policy({"apply": "gain", "gain_db": [20.0, 20.0], "probability": 0.3})(ones, Generator())
    changed = found[:, 0] > 2
    assert float(changed.float().mean()) == pytest.approx(0.3, abs=0.04)
    assert torch.equal(found[~changed], ones[~changed])
    assert torch.equal(ones, torch.ones_like(ones))


def test_one_of_a_group_is_drawn_by_weight() -> None:
    steps = {
        "one_of": [
            {"apply": "gain", "gain_db": [20.0, 20.0], "weight": 3},
            {"apply": "gain", "gain_db": [-20.0, -20.0]},
        ],
        "probability": 0.8,
    }
    found = policy(steps)(torch.ones(NUM_CLIPS, NUM_SAMPLES), Generator())[:, 0]
    shares = [float((abs(found - size) < 1e-4).float().mean()) for size in (10.0, 0.1, 1.0)]
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.04)


def test_steps_follow_one_another_in_order() -> None:
    steps = [{"apply": "peak_normalise"}, {"apply": "gain", "gain_db": [-6.0206, -6.0206]}]
    clip = torch.full((1, NUM_SAMPLES), 0.2)
    assert policy(*steps)(clip, Generator()).numpy() == pytest.approx(0.5, rel=1e-4)
    assert policy(*reversed(steps))(clip, Generator()).numpy() == pytest.approx(1.0)


def test_a_callable_of_the_same_form_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    found = policy({"apply": "test_augment_policy:louder", "by": 3.0})(torch.ones(2, 8), Generator())
    assert (found == 3).all()
    with pytest.raises(ValueError, match="has no loudness; it takes by"):
        policy({"apply": "test_augment_policy:louder", "loudness": 3.0})
    with pytest.raises(ValueError, match="cannot be imported"):
        policy({"apply": "no_such_module:louder"})


def two(waveforms: Tensor, rng: Generator) -> Tensor:
    """A transform that loses samples."""
    return waveforms[:, :2]


def test_a_config_is_read_without_importing_what_it_names_and_shapes_must_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    AugmentConfig(steps=({"apply": "no_such_module:louder", "by": 3.0},))
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(ValueError, match="shapes must stay"):
        policy({"apply": "test_augment_policy:two"})(torch.ones(2, 8), Generator())


def test_the_same_seed_gives_the_same_bits() -> None:
    waveforms = torch.randn(8, 32_000, generator=Generator().manual_seed(0)) * 0.1
    whole = Policy(AugmentConfig(), 32_000, 32_000)
    one, two, other = (whole(waveforms, Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("step", "what"),
    [
        ({"apply": "pink_nois"}, "unknown transform 'pink_nois'; known: background_noise, circular_shift"),
        ({"apply": "pink_noise", "snr": [1, 2]}, "pink_noise has no snr; it takes snr_db"),
        ({"apply": "pink_noise", "snr_db": 5}, r"must be a range, as in \[5.0, 30.0\]; got 5"),
        ({"apply": "pink_noise", "snr_db": [9, 5]}, r"must rise, got \[9, 5\]"),
        ({"apply": "time_stretch", "rate": [0, 2]}, "must be above 0"),
        ({"apply": "gain", "gain_db": [float("nan"), 1.0]}, "must be a range"),
        ({"apply": "circular_shift", "share": [-1, 5]}, "must be in 0..1"),
        ({"apply": "frequency_mask", "sample_rate_hz": 5}, "has no sample_rate_hz; it takes width_hz"),
        ({"apply": ["gain"]}, "each step names its transform"),
        ({"apply": ".x:y"}, "unknown transform"),
        ({"apply": "gain", "weight": 2}, "a weight is for a table of one_of"),
        ({"apply": "background_noise"}, "background_noise needs source"),
        ({"apply": "background_noise", "source": 5}, "must be a folder or a store"),
        ({"apply": "gain", "probability": 1.5}, "probability must be in 0..1, got 1.5"),
        ({"probability": 0.5}, "each step names its transform"),
        ({"one_of": []}, "one_of must be a list of tables"),
        ({"one_of": [{"apply": "gain"}], "apply": "gain"}, "one_of must be"),
        ({"one_of": [{"apply": "gain", "probability": 0.1}]}, "a weight in place of a probability"),
        ({"one_of": [{"apply": "gain", "weight": 0}]}, "weight must be above 0"),
    ],
)
def test_a_bad_step_is_named_with_the_remedy(step: dict[str, Any], what: str) -> None:
    with pytest.raises(ValueError, match=rf"steps\[2\]: .*{what}"):
        AugmentConfig(steps=({"apply": "gain"}, step))


def test_a_policy_goes_through_toml_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    write_toml(as_sections(FeatureConfig()) | {"augment": {"steps": list(DEFAULT_STEPS)}}, path)
    assert tuple(read_sections(path)["augment"]["steps"]) == DEFAULT_STEPS


def test_a_policy_can_be_given_on_the_command_line() -> None:
    text = 'augment.steps=[{apply = "gain", gain_db = [1, 2]}]'
    assert read_sections(None, [text])["augment"]["steps"] == [{"apply": "gain", "gain_db": [1, 2]}]


def test_default_ranges_are_used_where_none_are_given() -> None:
    found = policy({"apply": "gain"})(torch.ones(NUM_CLIPS, NUM_SAMPLES), Generator())[:, 0]
    decibels = 20 * np.log10(found.numpy())
    assert (decibels.min(), decibels.max()) == pytest.approx((-12, 12), abs=0.1)
