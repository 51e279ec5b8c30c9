import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from featurestore.views import ViewSections
from shared.config import as_sections, differences, digest, parse_config, read_sections
from shared.features import FeatureConfig
from trainer.config import TrainConfig, TuneConfig


def test_an_unknown_key_suggests_the_near_one() -> None:
    with pytest.raises(ValueError, match=r"unknown key mel\.hop_lenght; did you mean 'hop_length'"):
        parse_config(FeatureConfig, {"mel": {"hop_lenght": 320}})


def test_all_errors_of_a_file_come_at_once() -> None:
    sections: dict[str, Any] = {"mel": {"chanels": 1, "n_fft": "big"}, "bakbone": {}, "clips": 3}
    with pytest.raises(ValueError, match="the config has errors") as caught:
        parse_config(FeatureConfig, sections)
    for part in (
        "chanels",
        "n_fft must be int",
        "[bakbone]; did you mean 'backbone'",
        "[clips] must",
    ):
        assert part in str(caught.value)


def test_a_value_out_of_range_names_its_section_and_value() -> None:
    with pytest.raises(ValueError, match=r"\[head\] name must be one of .*'chronnet'"):
        parse_config(TrainConfig, {"head": {"name": "chronnet"}})


def test_sections_of_the_other_program_are_passed_over() -> None:
    config = parse_config(FeatureConfig, {"head": {"anything": 1}}, foreign=["head"])
    assert config == FeatureConfig()


def test_overrides_win_over_the_file_and_need_no_quotes(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[head]\nname = 'linear'\n[fit]\nepochs = 3\n")
    sections = read_sections(path, ["head.name=attention", "fit.epochs=5"])
    assert sections == {"head": {"name": "attention"}, "fit": {"epochs": 5}}


@pytest.mark.parametrize("override", ["epochs=3", "fit.epochs", "=3", "fit.=3"])
def test_a_malformed_override_says_the_form(override: str) -> None:
    with pytest.raises(ValueError, match="--set takes section.key=value"):
        read_sections(None, [override])


def test_an_int_is_taken_where_a_float_is_wanted() -> None:
    assert parse_config(FeatureConfig, {"clips": {"clip_seconds": 5}}).clips.clip_seconds == 5.0


def _settings() -> list[tuple[str, str]]:
    sections = get_type_hints(FeatureConfig)
    return [
        (section, field.name)
        for section, kind in sections.items()
        if section != "store"
        for field in dataclasses.fields(kind)
        if (section, field.name)
        not in {("backbone", "stages"), ("backbone", "weights"), ("backbone", "engine")}
    ]


@pytest.mark.parametrize(("section", "key"), _settings())
def test_every_setting_changes_the_fingerprint(section: str, key: str) -> None:
    config = FeatureConfig()
    part = getattr(config, section)
    value = getattr(part, key)
    other = {"channels": "repeat", "name": "tf_efficientnet_lite0", "hop_seconds": 2.5,
             "clip_seconds": 6.0, "fmax_hz": 15_000.0, "min_tail_seconds": 0.5, "precision": "bf16"}.get(
        key, value * 2 if value else 50.0
    )  # fmt: skip
    changed = dataclasses.replace(config, **{section: dataclasses.replace(part, **{key: other})})
    one, two = (
        c.fingerprint_of(stages=["blocks.6"], weights_sha256="a", engine="torch") for c in (config, changed)
    )
    assert digest(one) != digest(two)
    assert [line.split(":")[0] for line in differences(one, two)] == [f"{section}.{key}"]


def test_weights_stages_and_engine_change_the_fingerprint_and_the_file_name_does_not() -> None:
    config = FeatureConfig()
    facts: dict[str, Any] = {"stages": ["blocks.6"], "weights_sha256": "a", "engine": "torch"}
    base = digest(config.fingerprint_of(**facts))
    assert base != digest(config.fingerprint_of(**facts | {"weights_sha256": "b"}))
    assert base != digest(config.fingerprint_of(**facts | {"stages": ["blocks.4"]}))
    assert base != digest(config.fingerprint_of(**facts | {"engine": "openvino"}))
    moved = dataclasses.replace(
        config, backbone=dataclasses.replace(config.backbone, weights="/elsewhere/w.pth")
    )
    assert base == digest(moved.fingerprint_of(**facts))


def test_the_featurestore_knows_exactly_the_trainers_sections() -> None:
    from featurestore.cli import TRAINER_SECTIONS

    trainers = set(get_type_hints(TrainConfig)) | set(get_type_hints(TuneConfig))
    assert set(TRAINER_SECTIONS) == trainers - {"augment"}  # which makes the store's views too


@pytest.mark.parametrize("name", ["demo", "baseline"])
def test_the_committed_configs_parse(name: str) -> None:
    sections = read_sections(Path("configs") / f"{name}.toml")
    feature_sections = get_type_hints(FeatureConfig)
    training, tuning = get_type_hints(TrainConfig), get_type_hints(TuneConfig)
    viewing = get_type_hints(ViewSections)
    parse_config(FeatureConfig, dict(sections), foreign=[*training, *tuning, *viewing])
    parse_config(ViewSections, dict(sections), foreign=[*feature_sections, *training, *tuning])
    parse_config(TrainConfig, dict(sections), foreign=[*feature_sections, *tuning, *viewing])
    parse_config(TuneConfig, dict(sections), foreign=[*feature_sections, *training, *viewing])


def test_the_baseline_config_is_what_the_programs_do_without_one() -> None:
    sections = read_sections(Path("configs/baseline.toml"))
    for kind in (FeatureConfig, ViewSections, TrainConfig, TuneConfig):
        assert parse_config(kind, dict(sections), foreign=sections) == kind()


def test_the_baseline_config_shows_every_key() -> None:
    defaults = as_sections(FeatureConfig()) | {"views": as_sections(ViewSections())["views"]}
    defaults |= as_sections(TrainConfig()) | as_sections(TuneConfig())
    shown = read_sections(Path("configs/baseline.toml"))
    assert {name: list(values) for name, values in shown.items()} == {
        name: list(values) for name, values in defaults.items()
    }
