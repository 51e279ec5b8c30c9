"""All folds, grids, nested selection, comparing and going on: as programs, on a tiny store."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from click.testing import Result

from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.config import SamplerConfig, SplitConfig, TrainConfig
from trainer.jobs import Fitter, Job
from trainer.metrics import score_table
from trainer.out_of_fold import read_out_of_fold
from trainer.prepare import split_report
from trainer.run import load_run

Run = Callable[..., Result]
Fit = Callable[..., Result]

GRID = """
[[try]]
head.name = ["linear", "attention"]
fit.seed = [0, 1]

[[try]]
head.name = "linear"
fit.learning_rate = 1e-30
fit.seed = [0, 1]
"""


@pytest.fixture
def fit(build_tiny: Callable[..., Path], tiny_config: Path, run_program: Run) -> Fit:
    """Run `trainer fit` on the tiny store, into the folder of that name."""
    store = build_tiny()

    def run(name: str, *more: object, status: int = 0) -> Result:
        given = ["--features", store, "--config", tiny_config, "--out", store.parent / name]
        return run_program("trainer", "fit", *given, "--set", "head.name=linear", *more, status=status)

    return run


@pytest.fixture
def out(tiny_data: Path) -> Path:
    """Where the runs are."""
    return tiny_data.parent


def test_all_folds_in_one_command_predict_every_recording_once(fit: Fit, out: Path, run_program: Run) -> None:
    said = fit("run", "--folds", 3).output
    run = out / "run"
    table = read_out_of_fold(run)
    assert sorted(table.recordings["filename"]) == sorted(pd.read_csv(run / "split.csv")["filename"])
    assert table.folds == [1, 2, 3]
    assert sorted(p.name for p in run.iterdir()) == [
        "config.toml", "fold1", "fold2", "fold3", "leakage.json", "out_of_fold.csv", "per_class.csv",
        "run.json", "split.csv", "taxonomy.csv",
    ]  # fmt: skip
    for fold in table.folds:
        split = pd.read_csv(run / f"fold{fold}" / "split.csv")
        held = set(split[split["side"] == "validation"]["filename"])
        assert held == set(table.of_folds(fold).recordings["filename"])
    facts = json.loads(run_program("trainer", "evaluate", run, "--json").output)
    scores = table.scores()
    expected = score_table(scores.scores, scores.truth, scores.counted)
    assert {name: facts[name] for name in expected} == pytest.approx(expected)
    assert facts["rows_scored"] == 12
    assert f"macro_roc_auc: {facts['macro_roc_auc']:.4f}" in said
    text = run_program("trainer", "evaluate", run, run / "fold1").output
    assert "3 folds" in text
    classes = pd.read_csv(run / "per_class.csv")
    assert classes["positives"].tolist() == [4, 4, 4]
    assert classes["counted"].tolist() == [12, 12, 12]


def test_the_number_of_workers_changes_no_byte(fit: Fit, out: Path) -> None:
    fit("one", "--folds", 3, "--workers", 1)
    fit("two", "--folds", 3, "--workers", 2)
    for file in ("fold1/head.safetensors", "fold3/head.safetensors", "out_of_fold.csv"):
        assert (out / "one" / file).read_bytes() == (out / "two" / file).read_bytes()


def test_a_grid_tables_its_settings_and_nested_selection_never_sees_the_fold(
    fit: Fit, out: Path, tmp_path: Path, run_program: Run
) -> None:
    grid = tmp_path / "heads.toml"
    grid.write_text(GRID)
    said = fit("grid", "--folds", 3, "--grid", grid, "--nested", "--set", "fit.epochs=8").output
    lines = said.splitlines()
    table = pd.read_csv(out / "grid" / "grid.csv")
    assert table["run"].tolist() == list(range(6))
    assert table["fit.seed"].tolist() == [0, 1] * 3
    start = next(n for n, line in enumerate(lines) if "setting  " in line)
    assert len([line for line in lines[start:] if line.startswith("head.name=")]) == 3
    assert "learning_rate=1e-30" in lines[start + 4]  # that one learns nothing: the last
    for fold in (1, 2, 3):
        for other in {1, 2, 3} - {fold}:
            pair = "-".join(map(str, sorted((fold, other))))
            split = pd.read_csv(out / "grid" / "inner" / "000" / pair / "split.csv")
            assert set(split[split["side"] == "training"]["fold"]) == {1, 2, 3} - {fold, other}
    chosen = read_out_of_fold(out / "grid" / "chosen" / "seed1")
    assert len(chosen.recordings) == 12
    remarks = json.loads((out / "grid" / "chosen" / "seed1" / "run.json").read_text())["remarks"]
    assert [line[:8] for line in remarks] == ["fold 1: ", "fold 2: ", "fold 3: "]
    assert not any("1e-30" in line for line in remarks)
    compared = run_program("trainer", "compare", out / "grid" / "004", out / "grid" / "chosen", "--json")
    first = json.loads(compared.stdout.splitlines()[0])
    assert first["figure"] == "macro_roc_auc"
    assert first["low"] <= first["b"] - first["a"] <= first["high"]
    facts = json.loads(run_program("trainer", "evaluate", out / "grid/chosen/seed1", "--json").output)
    assert facts["rows_scored"] == 12
    for more in (["evaluate", "--features", "s.zarr"], ["predict", "--audio", out, "--out", out / "s.csv"]):
        said = run_program("trainer", more[0], out / "grid" / "chosen" / "seed1", *more[1:], status=2).output
        assert "holds predictions of several heads" in said or "holds no head of its own" in said


def test_a_setting_that_diverges_does_not_stop_the_others(fit: Fit, out: Path, tmp_path: Path) -> None:
    grid = tmp_path / "heads.toml"
    grid.write_text("[[try]]\nfit.learning_rate = [0.01, 1e30]\n")
    said = fit("grid", "--folds", 3, "--grid", grid, status=2).output
    assert "fit.learning_rate=0.01 " in said
    assert "3 fits failed and are left out" in said
    assert "fold1: " in said
    assert pd.read_csv(out / "grid" / "grid.csv")["run"].tolist() == [0]


def test_nested_selection_with_early_stopping_never_watches_what_it_scores(
    fit: Fit, out: Path, tmp_path: Path
) -> None:
    grid = tmp_path / "heads.toml"
    grid.write_text("[[try]]\nfit.learning_rate = [0.01, 0.003]\n")
    more = ["--nested", "--grid", grid, "--set", "fit.patience=2"]
    assert "no fold is left to train on" in fit("grid", "--folds", 3, *more, status=2).output
    fit("grid", "--folds", 4, *more)
    for pair in ("1-2", "1-4", "3-4"):
        split = pd.read_csv(out / "grid" / "inner" / "000" / pair / "split.csv")
        assert {str(fold) for fold in split[split["side"] == "validation"]["fold"]} == {*pair.split("-")}
        assert {*split["side"]} == {"training", "validation", "watched"}


def test_nested_selection_needs_the_same_seeds_for_all(fit: Fit, tmp_path: Path) -> None:
    grid = tmp_path / "heads.toml"
    grid.write_text("[[try]]\nfit.seed = [0, 1]\n[[try]]\nfit.epochs = 2\n")
    assert "same fit.seed values" in fit("g", "--folds", 3, "--nested", "--grid", grid, status=2).output


def test_a_grid_over_one_fold_is_a_table_too(fit: Fit, tmp_path: Path) -> None:
    grid = tmp_path / "heads.toml"
    grid.write_text('[[try]]\nhead.name = ["linear", "attention"]\n')
    said = fit("grid", "--grid", grid, "--fold", 2).output
    assert "head.name=attention" in said
    assert "a little too good" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("head.name = 'linear'", r"must hold \[\[try\]\] tables"),
        ("[[try]]\nhead.nme = 'linear'", "did you mean 'name'"),
        ("[[try]]\nsplit.seed = 1", "split.seed cannot differ"),
        ("[[try]]\nmel.n_fft = 1", "mel.n_fft cannot differ"),
        ("[[try]]\nhead.name = ['linear', 'linear']", "names one setting twice"),
        ("[[try]", "not valid TOML"),
        ("try = [1]", r"must hold \[\[try\]\] tables"),
        ("[[try]]\nhead.name = []", "one of its lists is empty"),
    ],
)
def test_a_grid_that_cannot_be_run_is_refused_before_anything_is(
    fit: Fit, out: Path, tmp_path: Path, text: str, message: str
) -> None:
    import re

    grid = tmp_path / "heads.toml"
    grid.write_text(text)
    assert re.search(message, fit("grid", "--grid", grid, status=2).output)
    assert not (out / "grid").exists()


def test_compare_names_what_cannot_be_compared(fit: Fit, out: Path, tmp_path: Path, run_program: Run) -> None:
    fit("one", "--fold", 1)
    fit("two", "--fold", 2)
    said = run_program("trainer", "compare", out / "one", out / "two", status=2).output
    assert "none of the same recordings" in said
    said = run_program("trainer", "compare", out / "one", out / "one").output
    assert said.count("not told apart") == 3
    assert "+0.0000" in said


def test_a_clear_difference_is_told(fit: Fit, out: Path, run_program: Run) -> None:
    fit("bad", "--folds", 3, "--set", "fit.learning_rate=1e-30")
    fit("good", "--folds", 3, "--set", "fit.epochs=30")
    assert "B is better" in run_program("trainer", "compare", out / "bad", out / "good").output
    assert "A is better" in run_program("trainer", "compare", out / "good", out / "bad").output


def test_early_stopping_watches_another_fold_and_keeps_its_best_epoch(fit: Fit, out: Path) -> None:
    fit("run", "--set", "fit.patience=2", "--set", "fit.epochs=30", "--set", "fit.learning_rate=0.03")
    split = pd.read_csv(out / "run" / "split.csv")
    assert set(split["side"]) == {"training", "validation", "watched"}
    assert set(split[split["side"] == "watched"]["fold"]) == {2}
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    facts = load_run(out / "run").facts
    watched = [line["watched_macro_roc_auc"] for line in lines]
    assert len(lines) == facts["best_epoch"] + 2 < 30
    assert watched[facts["best_epoch"] - 1] == max(watched)
    table = read_out_of_fold(out / "run").scores()
    assert score_table(table.scores, table.truth, table.counted)["macro_roc_auc"] == pytest.approx(
        lines[facts["best_epoch"] - 1]["macro_roc_auc"], abs=1e-6
    )


def test_a_recording_weighs_in_the_drawing_or_in_the_loss_and_never_in_both(
    tiny_data: Path, build_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pd.read_csv(tiny_data / "metadata.csv")
    table["rating"] = np.arange(len(table)) % 5 + 1.0
    table.to_csv(tiny_data / "metadata.csv", index=False)
    store = build_tiny()
    taxonomy = Taxonomy(("high", "low", "middle"))
    prepared = {}
    for weigh in ("draws", "loss"):
        config = TrainConfig(sampler=SamplerConfig(weigh=weigh), split=SplitConfig(folds=3))
        fitter = Fitter(store, taxonomy, torch.device("cpu"))
        prepared[weigh] = fitter.prepare(Job(tmp_path, config, (1,)))
    data, loss_weights = prepared["loss"].data, prepared["loss"].loss_weights
    assert prepared["draws"].loss_weights is None
    assert loss_weights is not None
    times = {}
    for weigh, one in prepared.items():
        rows = one.sampler.draw_epoch(100, 100, np.random.default_rng(0)).ravel()
        times[weigh] = np.bincount(data.recording_of_row[rows], minlength=12)
    trained = times["loss"] > 0
    assert np.ptp(times["loss"][trained]) <= 1
    share = times["draws"][trained] / times["draws"].sum()
    assert np.allclose(share, loss_weights[trained] / loss_weights[trained].sum(), atol=2e-4)
    rows = np.arange(data.store.num_rows)
    weighed = data.batch(rows, loss_weights).weights / data.batch(rows).weights
    assert np.allclose(weighed[:, 0], loss_weights[data.recording_of_row])
    seen = []
    monkeypatch.setattr("trainer.fit.training_steps", lambda *given: seen.append(given[2]) or iter([]))
    config = TrainConfig(sampler=SamplerConfig(weigh="loss"), split=SplitConfig(folds=3))
    fitter.fit(Job(tmp_path / "run", config, (1,)), resume=False)
    assert all(np.array_equal(given, loss_weights) for given in seen)
    assert len(seen) == config.fit.epochs


def command(store: Path, config: Path, run: Path, *more: object) -> list[str]:
    code = "from trainer.cli import main; main()"
    arguments = ["fit", "--features", store, "--config", config, "--out", run, *more]
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.mark.parametrize("settings", [[], ["fit.ema=0.9", "fit.patience=25", "fit.accumulate=2"]])
def test_killed_and_resumed_it_ends_in_the_same_bits(
    build_tiny: Callable[..., Path], tiny_config: Path, tmp_path: Path, settings: list[str]
) -> None:
    store = build_tiny()
    more = ["--set", "fit.epochs=30", *(part for text in settings for part in ("--set", text))]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(store, tiny_config, whole, *more), check=True, capture_output=True)
    rng = np.random.default_rng(0)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(command(store, tiny_config, killed, *more, "--resume"),
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        before = epochs_done(killed)
        while process.poll() is None and epochs_done(killed) < before + 4:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.05)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 3
    assert 4 <= epochs_done(killed) < 30
    subprocess.run(command(store, tiny_config, killed, *more, "--resume"), check=True, capture_output=True)
    same = ["head.safetensors", "out_of_fold.csv", "per_class.csv", "split.csv", "run.json"]
    for name in same:
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    assert sorted(p.name for p in whole.iterdir()) == sorted(p.name for p in killed.iterdir())
    losses = [
        [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, killed)
    ]
    assert losses[0] == losses[1]


def epochs_done(run: Path) -> int:
    try:
        return len((run / "metrics.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


def test_resuming_another_training_is_refused_and_a_finished_one_is_left_alone(fit: Fit, out: Path) -> None:
    fit("run")
    before = (out / "run" / "head.safetensors").stat().st_mtime_ns
    assert "finished already" in fit("run", "--resume").output
    assert (out / "run" / "head.safetensors").stat().st_mtime_ns == before
    assert "another config" in fit("run", "--resume", "--set", "fit.seed=7", status=2).output
    assert "a run of head, not of folds" in fit("run", "--resume", "--folds", 3, status=2).output
    (out / "thesis").mkdir()
    (out / "thesis" / "thesis.tex").write_text("x")
    assert "no run folder" in fit("thesis", "--resume", status=2).output
    assert [path.name for path in (out / "thesis").iterdir()] == ["thesis.tex"]
    assert load_run(out / "run").facts["epochs_done"] == 3


def test_a_clip_whose_map_is_damaged_is_named(
    build_tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build_tiny()
    fitter = Fitter(store, Taxonomy(("high", "low", "middle")), torch.device("cpu"))
    config = TrainConfig(split=SplitConfig(folds=3, duplicates=0))
    job = Job(tmp_path / "run", config, (1,))
    row = int(fitter.prepare(job).training_rows[5])
    maps = fitter.data(config).store.maps
    whole = maps.read

    def damaged(rows: np.ndarray) -> np.ndarray:
        return np.where((rows == row)[:, None, None, None], np.float16(np.nan), whole(rows))

    monkeypatch.setattr(maps, "read", damaged)
    monkeypatch.setattr("trainer.heads.Standardise.set_from", lambda *_: None)
    clip = fitter.data(config).store.clips.iloc[row]
    name = fitter.data(config).store.recordings["filename"][int(clip["recording"])]
    seconds = clip["start"] / 8000
    with pytest.raises(ValueError, match=f"epoch 1, step 1: .*map of {name} at {seconds:g} s is not"):
        fitter.fit(job, resume=False)


def test_copies_are_found_and_held_out_together(
    tiny_data: Path, build_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Each recording again, at half its level and under another name and id."""
    table = pd.read_csv(tiny_data / "metadata.csv")
    again = table.assign(filename=[name.replace("XC1", "XC2") for name in table["filename"]])
    for one, other in zip(table["filename"], again["filename"], strict=True):
        samples, rate = soundfile.read(tiny_data / "audio" / one)
        soundfile.write(tiny_data / "audio" / other, 0.5 * samples, rate)
    pd.concat([table, again]).to_csv(tiny_data / "metadata.csv", index=False)
    store = build_tiny()
    config = TrainConfig(split=SplitConfig(folds=3, duplicates=0.999))
    fitter = Fitter(store, Taxonomy(("high", "low", "middle")), torch.device("cpu"))
    folds = fitter.find_folds(config)
    names = FeatureStore(store).recordings["filename"].tolist()
    for name in table["filename"]:
        assert folds.fold[names.index(name)] == folds.fold[names.index(name.replace("XC1", "XC2"))]
    assert len(folds.pairs) >= 12
    report = split_report(fitter.prepare(Job(tmp_path, config, (1,))))
    assert report["near_duplicates"]["recordings"] == 0
    apart = Fitter(store, fitter.taxonomy, torch.device("cpu"), replace(folds, fold=np.arange(24) // 12 + 1))
    assert split_report(apart.prepare(Job(tmp_path, config, (1,))))["near_duplicates"]["recordings"] > 0


def test_a_killed_run_of_all_folds_goes_on(
    build_tiny: Callable[..., Path], tiny_config: Path, tmp_path: Path
) -> None:
    store = build_tiny()
    more = ["--folds", 3, "--set", "head.name=linear", "--workers", 2, "--set", "fit.epochs=40"]
    subprocess.run(command(store, tiny_config, tmp_path / "whole", *more), check=True, capture_output=True)
    process = subprocess.Popen(command(store, tiny_config, tmp_path / "killed", *more),
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while not epochs_done(tmp_path / "killed" / "fold1") and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not (tmp_path / "killed" / "out_of_fold.csv").exists()
    time.sleep(1)  # the workers leave with their parent
    subprocess.run(command(store, tiny_config, tmp_path / "killed", *more, "--resume"), check=True,
                   capture_output=True)  # fmt: skip
    for name in ("out_of_fold.csv", "fold1/head.safetensors", "fold3/head.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
