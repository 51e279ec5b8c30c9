"""fit, evaluate and predict as programs, on a tiny store."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from click.testing import Result
from tones import tone

from shared.store import FeatureStore
from trainer.run import load_run

Run = Callable[..., Result]
BuildTiny = Callable[..., Path]


@pytest.fixture
def fit_tiny(build_tiny: BuildTiny, tiny_config: Path, run_program: Run) -> Callable[..., Path]:
    """Build the tiny store and fit a head on it; return the run folder."""
    store = build_tiny()

    def fit(name: str = "run", *more: object) -> Path:
        out = store.parent / name
        run_program("trainer", "fit", "--features", store, "--config", tiny_config, "--out", out, *more)
        return out

    return fit


def read_submission(path: Path) -> tuple[list[str], dict[str, list[float]]]:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], {row[0]: [float(value) for value in row[1:]] for row in rows[1:]}


def test_a_run_folder_holds_everything_in_open_formats(fit_tiny: Callable[..., Path]) -> None:
    run = fit_tiny()
    assert sorted(path.name for path in run.iterdir()) == [
        "config.toml", "head.safetensors", "leakage.json", "metrics.jsonl", "out_of_fold.csv",
        "per_class.csv", "run.json", "split.csv", "taxonomy.csv",
    ]  # fmt: skip
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2, 3]
    assert all(0 <= line["macro_roc_auc"] <= 1 for line in metrics)
    split = pd.read_csv(run / "split.csv")
    assert set(split["side"]) == {"training", "validation"}
    assert set(pd.read_csv(run / "per_class.csv")["primary_label"]) == {"high", "low", "middle"}


def test_the_same_fit_gives_the_same_bytes(fit_tiny: Callable[..., Path]) -> None:
    one, two = fit_tiny("one"), fit_tiny("two")
    assert (one / "head.safetensors").read_bytes() == (two / "head.safetensors").read_bytes()
    other = fit_tiny("three", "--set", "fit.seed=1")
    assert (one / "head.safetensors").read_bytes() != (other / "head.safetensors").read_bytes()


@pytest.mark.parametrize("head", ["chrononet", "attention", "linear"])
def test_every_head_learns_three_tones(fit_tiny: Callable[..., Path], head: str, run_program: Run) -> None:
    run = fit_tiny("run", "--set", f"head.name={head}", "--set", "fit.epochs=40")
    facts = json.loads(run_program("trainer", "evaluate", run, "--json").output)
    assert facts["macro_roc_auc"] > 0.9
    assert facts["macro_roc_auc_low"] <= facts["macro_roc_auc"] <= facts["macro_roc_auc_high"]
    assert facts["classes_scored"] == 3
    assert not any(isinstance(value, dict | list) for value in facts.values())


def test_evaluate_repeats_what_fit_reported_last(fit_tiny: Callable[..., Path], run_program: Run) -> None:
    run = fit_tiny()
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    facts = json.loads(run_program("trainer", "evaluate", run, "--json").output)
    assert facts["macro_roc_auc"] == pytest.approx(last["macro_roc_auc"])


def test_no_recording_is_on_both_sides_and_none_held_out_is_trained_on(
    fit_tiny: Callable[..., Path],
) -> None:
    from shared.config import parse_config, read_sections
    from shared.taxonomy import Taxonomy
    from trainer.config import TrainConfig
    from trainer.jobs import Fitter, Job

    run = load_run(fit_tiny())
    config = parse_config(TrainConfig, read_sections(None, ["split.folds=3", "split.duplicates=0"]))
    fitter = Fitter(Path(run.facts["features"]), Taxonomy(("high", "low", "middle")), torch.device("cpu"))
    prepared = fitter.prepare(Job(run.path, config, (1,)))
    drawn = prepared.sampler.draw_epoch(50, 100, np.random.default_rng(0)).ravel()
    recording = prepared.data.recording_of_row
    assert not set(recording[drawn]) & set(recording[prepared.validation_rows])
    assert set(recording[drawn]) == set(recording[prepared.training_rows])


def test_a_store_of_three_species_trains_a_model_of_a_longer_taxonomy(
    fit_tiny: Callable[..., Path], tmp_path: Path, run_program: Run
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("row_id,zebra,low,aardvark,high,middle\nx_1,0.2,0.2,0.2,0.2,0.2\n")
    run = fit_tiny("run", "--taxonomy", sample)
    assert load_run(run).taxonomy.species == ("zebra", "low", "aardvark", "high", "middle")
    facts = json.loads(run_program("trainer", "evaluate", run, "--json").output)
    assert (facts["classes_scored"], facts["classes_left_out"]) == (3, 2)


def test_fold_none_trains_on_everything_and_has_nothing_to_evaluate(
    fit_tiny: Callable[..., Path], run_program: Run
) -> None:
    run = fit_tiny("run", "--fold", "none")
    assert "nothing held out" in run_program("trainer", "evaluate", run, status=2).output


def test_several_runs_are_compared_in_one_table(fit_tiny: Callable[..., Path], run_program: Run) -> None:
    one, two = fit_tiny("one"), fit_tiny("two", "--set", "head.name=linear")
    lines = run_program("trainer", "evaluate", one, two).output.splitlines()
    assert "macro ROC-AUC" in lines[0]
    assert "attention" in lines[2]
    assert "linear" in lines[3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "mel.hop_length=100"], r"mel.hop_length: 125 -> 100"),
        (["--set", "fit.epoch=3"], "did you mean 'epochs'"),
        (["--fold", "7"], "there are folds 1, 2, 3"),
    ],
)
def test_fit_refuses_what_does_not_fit_the_store(
    build_tiny: BuildTiny, tiny_config: Path, run_program: Run, arguments: list[str], message: str
) -> None:
    store = build_tiny()
    result = run_program("trainer", "fit", "--features", store, "--config", tiny_config,
                         "--out", store.parent / "r", *arguments, status=2)  # fmt: skip
    assert message in result.output
    assert not (store.parent / "r").exists()


def test_a_store_of_one_species_is_refused_and_a_single_recording_is_named(
    build_tiny: BuildTiny, tiny_data: Path, tiny_config: Path, run_program: Run
) -> None:
    table = pd.read_csv(tiny_data / "metadata.csv")
    fit = ["trainer", "fit", "--config", tiny_config, "--features"]
    table[table["primary_label"] == "low"].to_csv(tiny_data / "metadata.csv", index=False)
    result = run_program(*fit, build_tiny("one.zarr"), status=2)
    assert "recordings of low only" in result.output
    rare = (table["primary_label"] != "high") | (table["filename"] == "high/XC102.wav")
    table[rare].to_csv(tiny_data / "metadata.csv", index=False)
    result = run_program(*fit, build_tiny("two.zarr"), "--out", tiny_data / "r")
    assert "not in the held-out fold: high" in result.output


def test_an_existing_run_is_not_overwritten(
    fit_tiny: Callable[..., Path], tiny_config: Path, run_program: Run
) -> None:
    run = fit_tiny()
    store = load_run(run).facts["features"]
    result = run_program(
        "trainer", "fit", "--features", store, "--config", tiny_config, "--out", run, status=2
    )
    assert "give another --out" in result.output


@pytest.fixture
def soundscapes(tmp_path: Path) -> Path:
    """Ten seconds: low, then high from 5 s on; and a second one with a tail of 0.6 s."""
    folder = tmp_path / "soundscapes"
    folder.mkdir()
    rng = np.random.default_rng(1)
    scapes = np.concatenate([tone(500, 5), tone(3000, 5)]), tone(1500, 3.6)
    for number, samples in enumerate(scapes, 1):
        noise = 0.02 * rng.standard_normal(len(samples))
        soundfile.write(folder / f"scape_{number}.wav", samples + noise, 8000)
    return folder


def test_predict_writes_a_row_per_segment_that_names_its_end(
    fit_tiny: Callable[..., Path], soundscapes: Path, run_program: Run, tmp_path: Path
) -> None:
    run = fit_tiny("run", "--set", "fit.epochs=40")
    out = tmp_path / "submission.csv"
    run_program("trainer", "predict", run, "--audio", soundscapes, "--out", out)
    header, rows = read_submission(out)
    assert header == ["row_id", "high", "low", "middle"]
    assert list(rows) == [f"scape_1_{n}" for n in range(1, 11)] + [f"scape_2_{n}" for n in (1, 2, 3)]
    assert all(0 <= value <= 1 for values in rows.values() for value in values)
    assert all(rows[f"scape_1_{n}"][1] > rows[f"scape_1_{n}"][0] for n in range(1, 6))
    assert all(rows[f"scape_1_{n}"][0] > rows[f"scape_1_{n}"][1] for n in range(6, 11))


def test_columns_follow_the_sample_submission_and_unknown_species_are_named(
    fit_tiny: Callable[..., Path], soundscapes: Path, run_program: Run, tmp_path: Path
) -> None:
    sample = tmp_path / "sample.csv"
    sample.write_text("row_id,middle,zebra,low\nscape_2_9,0.1,0.2,0.3\n")
    out = tmp_path / "submission.csv"
    result = run_program("trainer", "predict", fit_tiny(), "--audio", soundscapes, "--out", out,
                         "--sample-submission", sample)  # fmt: skip
    header, rows = read_submission(out)
    assert header == ["row_id", "middle", "zebra", "low"]
    assert rows["scape_2_9"] == pytest.approx([1 / 3, 0, 1 / 3], abs=1e-6)  # nobody heard it: the prior
    assert {values[1] for name, values in rows.items() if name != "scape_2_9"} == {0.0}
    assert "knows nothing of zebra" in result.output
    assert "left out: high" in result.output


def test_a_dry_run_writes_the_samples_rows(
    fit_tiny: Callable[..., Path], run_program: Run, tmp_path: Path
) -> None:
    sample, empty, out = tmp_path / "sample.csv", tmp_path / "empty", tmp_path / "s.csv"
    sample.write_text("row_id,low,high,middle\na_5,0.25,0.5,0.25\na_10,0,1,0\n")
    empty.mkdir()
    run_program(
        "trainer", "predict", fit_tiny(), "--audio", empty, "--out", out, "--sample-submission", sample
    )
    assert read_submission(out) == read_submission(sample)


def test_an_empty_folder_without_a_sample_is_a_clear_line(
    fit_tiny: Callable[..., Path], run_program: Run, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    result = run_program("trainer", "predict", fit_tiny(), "--audio", tmp_path / "empty",
                         "--out", tmp_path / "s.csv", status=2)  # fmt: skip
    assert "holds no recordings" in result.output


def test_an_unreadable_soundscape_is_named_and_the_others_are_predicted(
    fit_tiny: Callable[..., Path], soundscapes: Path, run_program: Run, tmp_path: Path
) -> None:
    (soundscapes / "scape_0.ogg").write_bytes(b"<html>" * 50)
    out = tmp_path / "submission.csv"
    result = run_program("trainer", "predict", fit_tiny(), "--audio", soundscapes, "--out", out)
    assert "scape_0.ogg: libsndfile cannot read it" in result.output
    assert len(read_submission(out)[1]) == 13


def test_a_segments_prediction_is_what_the_store_gives_for_the_same_clip(
    fit_tiny: Callable[..., Path], tiny_data: Path, run_program: Run, tmp_path: Path
) -> None:
    from trainer.data import ClipData, all_batches
    from trainer.loop import Precision, score_clips

    run = load_run(fit_tiny())
    store = FeatureStore(Path(run.facts["features"]))
    data = ClipData(store, run.taxonomy, run.train.labels)
    rows = np.flatnonzero(data.recording_of_row == 3)
    logits = score_clips(run.model, all_batches(data, rows), Precision(torch.device("cpu")))
    out = tmp_path / "s.csv"
    path = tiny_data / "audio" / str(store.recordings["filename"][3])
    run_program("trainer", "predict", run.path, "--audio", path, "--out", out)
    predicted = np.array(list(read_submission(out)[1].values()))
    assert np.abs(predicted - 1 / (1 + np.exp(-logits[: len(predicted)]))).max() < 2e-3


def test_soundscapes_are_scored_against_their_truth(
    fit_tiny: Callable[..., Path], soundscapes: Path, run_program: Run, tmp_path: Path
) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text(
        "filename,species,start,stop\nscape_1.wav,low,0,5\nscape_1.wav,high,5,10\nscape_2.wav,middle,0,3.6\n"
    )
    run = fit_tiny("run", "--set", "fit.epochs=40")
    result = run_program("trainer", "evaluate", run, "--audio", soundscapes, "--truth", truth, "--json")
    facts = json.loads(result.output)
    assert facts["segment_rows_scored"] == 13
    assert facts["segment_macro_roc_auc"] > 0.9


def test_a_picture_shows_the_recording(
    fit_tiny: Callable[..., Path], soundscapes: Path, run_program: Run, tmp_path: Path
) -> None:
    run_program("trainer", "predict", fit_tiny(), "--audio", soundscapes / "scape_1.wav",
                "--out", tmp_path / "s.csv", "--png", tmp_path / "png")  # fmt: skip
    assert (tmp_path / "png" / "scape_1.png").read_bytes()[:4] == b"\x89PNG"


def test_a_run_of_other_weights_is_refused_for_prediction(
    fit_tiny: Callable[..., Path], soundscapes: Path, run_program: Run, tmp_path: Path
) -> None:
    run = fit_tiny()
    config = (run / "config.toml").read_text().replace('weights = "pretrained"', 'weights = "random"')
    (run / "config.toml").write_text(config)
    result = run_program(
        "trainer", "predict", run, "--audio", soundscapes, "--out", tmp_path / "s.csv", status=2
    )
    assert "backbone.weights" in result.output
    assert "--weights FILE" in result.output


def test_another_stores_features_are_refused(
    fit_tiny: Callable[..., Path], build_tiny: BuildTiny, run_program: Run
) -> None:
    other = build_tiny("other.zarr", "--set", "mel.channels=deltas")
    result = run_program("trainer", "evaluate", fit_tiny(), "--features", other, status=2)
    assert "mel.channels: 'repeat' -> 'deltas'" in result.output
