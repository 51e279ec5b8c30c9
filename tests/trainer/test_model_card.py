"""Model cards: who made the training recordings, what was held out, what was not finished."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import Result

from trainer.run import load_run
from trainer.training_data import training_data

Run = Callable[..., Result]


def export(run_program: Run, run: Path, out: Path, *more: object, status: int = 0) -> Result:
    return run_program("trainer", "export", run, "--out", out, *more, status=status)


@pytest.fixture
def licensed(tiny_data: Path, build_tiny: Callable[..., Path], tiny_config: Path, run_program: Run) -> Path:
    """A run on recordings with authors and licences, one of them without."""
    table = pd.read_csv(tiny_data / "metadata.csv")
    table["author"] = ["A. One", "B. Two", "A. One"] * 4
    table["license"] = ["Creative Commons Attribution-NonCommercial 4.0"] * 5 + ["CC0"] * 6 + [""]
    table.to_csv(tiny_data / "metadata.csv", index=False)
    out = tiny_data / "run"
    run_program("trainer", "fit", "--features", build_tiny(), "--config", tiny_config, "--out", out,
                "--set", "split.by_author=false")  # fmt: skip
    return out


def test_the_card_counts_licences_and_authors_of_what_was_trained_on(
    licensed: Path, run_program: Run, tmp_path: Path, no_graphs: None
) -> None:
    split = pd.read_csv(licensed / "split.csv")
    trained = set(split["filename"][split["side"] == "training"])
    assert 0 < len(trained) < 12
    export(run_program, licensed, tmp_path / "model")
    written = pd.read_csv(tmp_path / "model" / "attribution.csv", keep_default_na=False)
    assert set(written["filename"]) == trained
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"{len(trained)} recordings" in card
    for name, count in written["license"].replace("", "not given").value_counts().items():
        assert f"| {name} | {count} |" in card
    for name, count in written["author"].value_counts().items():
        assert f"| {name} | {count} |" in card
    num = written["license"].str.contains("NonCommercial").sum()
    assert num
    assert f"{num} training recordings are licensed for non-commercial use only" in card


def test_a_store_that_is_gone_is_said_and_another_can_be_named(
    licensed: Path, tiny_data: Path, store: Path, run_program: Run, tmp_path: Path, no_graphs: None
) -> None:
    (tiny_data.parent / "tiny.zarr").rename(tmp_path / "moved.zarr")
    said = export(run_program, licensed, tmp_path / "1").output
    assert "licences and authors not counted" in said
    assert "could not be counted" in (tmp_path / "1" / "README.md").read_text()
    assert not (tmp_path / "1" / "attribution.csv").exists()
    export(run_program, licensed, tmp_path / "2", "--features", tmp_path / "moved.zarr")
    assert "| A. One |" in (tmp_path / "2" / "README.md").read_text()
    facts = json.loads((licensed / "split.csv").with_name("run.json").read_text())
    assert training_data([load_run(licensed)], tmp_path / "moved.zarr").num_clips == facts["training_clips"]
    missing = export(run_program, licensed, tmp_path / "3", "--features", tmp_path / "no.zarr", status=2)
    assert "no.zarr" in missing.output
    shorter = tmp_path / "split"
    shutil.copytree(licensed, shorter)
    table = pd.read_csv(shorter / "split.csv", dtype=str)
    table["sha256"] = "0" + table["sha256"].str[1:]
    table.loc[0, "sha256"] = "f"
    table.to_csv(shorter / "split.csv", index=False)
    said = export(run_program, shorter, tmp_path / "4", "--features", store, status=2).output
    assert "training recordings" in said
    assert not (tmp_path / "4").exists()


def test_a_training_that_was_not_finished_and_what_folds_have_in_common_are_said(
    runs: Path, run_program: Run, tmp_path: Path, no_graphs: None
) -> None:
    said = export(run_program, runs / "all", tmp_path / "1").output
    assert "not finished" not in said
    card = (tmp_path / "1" / "README.md").read_text()
    leakage = json.loads((runs / "all" / "leakage.json").read_text())
    num = sum(one["near_duplicates"]["recordings"] for one in leakage.values())
    assert f"the same author 0, a near duplicate {num}." in card
    assert "not finished" not in card
    facts = json.loads((runs / "all" / "fold2" / "run.json").read_text())
    (runs / "all" / "fold2" / "run.json").write_text(json.dumps(facts | {"finished": False}))
    assert "the training is not finished" in export(run_program, runs / "all", tmp_path / "2").output
    assert "The training was not finished" in (tmp_path / "2" / "README.md").read_text()
