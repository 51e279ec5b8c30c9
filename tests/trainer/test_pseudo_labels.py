"""Pseudo-labels: from a prediction into metadata, a store, the targets, and never into a score."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from shared.clips import ClipGrid
from shared.metadata import WHOLE, read_metadata
from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.config import LabelConfig
from trainer.pseudo_labels import PseudoLabels, write_pseudo_labels
from trainer.recordings import Recording
from trainer.targets import LabelledClips, make_targets

Run = Callable[..., Result]
GRID = ClipGrid(sample_rate_hz=8000, clip_samples=8000, hop_samples=8000, min_tail_samples=2000)


@pytest.fixture
def pseudo(runs: Path, scapes: Path, run_program: Run, tmp_path: Path) -> Path:
    path = tmp_path / "pseudo.csv"
    run_program("trainer", "predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv",
                "--as-metadata", path, "--pseudo-min", 0.75)  # fmt: skip
    return path


def test_sure_segments_become_rows_the_surest_species_first(pseudo: Path, tmp_path: Path) -> None:
    table = pd.read_csv(pseudo)
    submission = pd.read_csv(tmp_path / "s.csv", index_col=0)
    expected = []
    for row_id, values in submission.iterrows():
        name, _, end = str(row_id).rpartition("_")
        if values.max() >= 0.75:
            file = f"{name}.wav" if int(name[1]) % 2 == 0 else f"deep/{name}.wav"
            found = values[values >= 0.05].sort_values(ascending=False)
            expected += [(file, code, int(end) - 1, value, values.max()) for code, value in found.items()]
    assert 0 < len({row[:3:2] for row in expected}) < len(submission)
    assert {row[0] for row in expected} >= {"s0.wav", "deep/s1.wav"}
    given = list(table.itertuples(index=False, name=None))
    assert [row[:3] for row in given] == [row[:3] for row in expected]
    assert np.allclose([row[3:] for row in given], [row[3:] for row in expected], atol=2e-3)
    assert list(table) == ["filename", "primary_label", "clip_start_time", "label_value", "label_weight"]


def test_a_species_that_is_hardly_heard_gets_no_row_and_names_with_commas_come_back(tmp_path: Path) -> None:
    recording = Recording(tmp_path / "a,b.wav", "a,b.wav", "a,b")
    lines = b'"a,b_5",0.9,0.04,0.06\n"a,b_10",0.1,0.2,0.3\n"a,b_15",0.4,0.99997,0.01\n'
    found = write_pseudo_labels(
        tmp_path / "p.csv", [recording], lambda _: iter([lines]), ("x", "y", "z"), b",0.1,0.2,0.3\n", 5.0, 0.5
    )
    assert found == PseudoLabels(recordings=1, segments=2, rows=4, looked_at=2)
    rows = pd.read_csv(tmp_path / "p.csv").to_numpy().tolist()
    assert [row[1:] for row in rows] == [
        ["x", 0, 0.9, 0.9], ["z", 0, 0.06, 0.9], ["y", 10, 0.999, 0.999], ["x", 10, 0.4, 0.999],
    ]  # fmt: skip  # never 1: that would be a person's label
    assert {row[0] for row in rows} == {"a,b.wav"}


def test_what_nobody_heard_is_not_labelled(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    (scapes / "broken.wav").write_bytes(b"RIFF nothing")
    out = tmp_path / "all.csv"
    run_program("trainer", "predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv",
                "--as-metadata", out, "--pseudo-min", 1e-6)  # fmt: skip
    assert "broken.wav" not in set(pd.read_csv(out)["filename"])
    said = run_program("trainer", "predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv",
                       "--as-metadata", out, "--pseudo-min", 1).output  # fmt: skip
    assert "0 of 24 segments are sure enough (1), 0 labels in 0 recordings" in said
    alone = ["predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv", "--pseudo-min", 0.5]
    assert "give both" in run_program("trainer", *alone, status=2).output
    bad = ["--as-metadata", out, "--pseudo-min", 0]
    command = ["predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv", *bad]
    assert "--pseudo-min" in run_program("trainer", *command, status=2).output


def test_build_and_fit_take_them_beside_the_real_ones(
    pseudo: Path, scapes: Path, tiny_data: Path, tiny_config: Path, build_tiny: Callable[..., Path],
    run_program: Run, tmp_path: Path,
) -> None:  # fmt: skip
    store = build_tiny("more.zarr", "--external", f"{pseudo}={scapes}")
    given, opened = pd.read_csv(pseudo), FeatureStore(store)
    names = opened.recordings["filename"].to_numpy()
    labels = opened.labels.assign(filename=names[opened.labels["recording"]])
    labels = labels[labels["start"] != WHOLE]
    keys = list(zip(labels["filename"], labels["species"], labels["start"] / 8000, strict=True))
    wanted = zip(given["filename"], given["primary_label"], given["clip_start_time"], strict=True)
    assert sorted(keys) == sorted(wanted)
    by_key = dict(zip(keys, zip(labels["value"], labels["weight"], strict=True), strict=True))
    for row in given.itertuples():
        key = (row.filename, row.primary_label, row.clip_start_time)
        assert by_key[key] == pytest.approx((row.label_value, row.label_weight))
    out = tmp_path / "run"
    said = run_program("trainer", "fit", "--features", store, "--config", tiny_config, "--out", out,
                       "--folds", 3, "--workers", 1).output  # fmt: skip
    num = given["filename"].nunique()
    assert f"{num} recordings with soft labels are trained on and never scored" in said
    scored = pd.read_csv(out / "out_of_fold.csv")
    assert set(scored["source"]) == {"main"}
    assert len(scored) == 12
    for fold in sorted(out.glob("fold*")):
        split = pd.read_csv(fold / "split.csv")
        assert set(split["side"][split["source"] != "main"]) == {"training"}


def test_a_pseudo_labelled_copy_is_not_trained_on_where_its_original_is_held_out(
    pseudo: Path, scapes: Path, tiny_data: Path, tiny_config: Path, build_tiny: Callable[..., Path],
    run_program: Run, tmp_path: Path,
) -> None:  # fmt: skip
    original = tiny_data / "audio" / "low" / "XC100.wav"
    (scapes / "copy.wav").write_bytes(original.read_bytes())
    with pseudo.open("a") as file:
        file.write("copy.wav,low,0,0.9,0.9\n")
    store = build_tiny("more.zarr", "--external", f"{pseudo}={scapes}")
    out = tmp_path / "run"
    run_program("trainer", "fit", "--features", store, "--config", tiny_config, "--out", out,
                "--folds", 3, "--workers", 1)  # fmt: skip
    scored = pd.read_csv(out / "out_of_fold.csv")
    assert len(scored) == 12
    assert "copy.wav" not in set(scored["filename"])
    sides = []
    for fold in sorted(out.glob("fold*")):
        side = pd.read_csv(fold / "split.csv").set_index("filename")["side"]
        sides.append((side["low/XC100.wav"], side["copy.wav"]))
        leakage = json.loads((fold / "leakage.json").read_text())
        assert leakage["same_bytes"]["recordings"] == 0
    assert sorted(sides) == [("training", "training"), ("training", "training"), ("validation", "unused")]


def metadata_of(tmp_path: Path, text: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    path = tmp_path / "m.csv"
    path.write_text(text)
    found = read_metadata(path, GRID)
    return found.labels, found.problems


def test_values_and_weights_are_read_and_odd_ones_count_for_nothing(tmp_path: Path) -> None:
    labels, problems = metadata_of(
        tmp_path,
        "filename,primary_label,clip_start_time,label_value,label_weight\n"
        "a.ogg,x,0,0.25,0.5\na.ogg,y,0,,\na.ogg,z,5,1.5,1\na.ogg,z,10,0.5,lots\n",
    )
    rows = [tuple(row) for row in labels[["species", "start", "value", "weight"]].to_numpy().tolist()]
    assert rows == [
        ("x", 0, 0.25, 0.5), ("y", 0, 1.0, 1.0), ("z", 40_000, 1.0, 0.0), ("z", 80_000, 0.5, 0.0),
    ]  # fmt: skip
    assert any("label_value '1.5' is not in 0..1" in line for line in problems)
    assert any("label_weight 'lots' is not in 0..1" in line for line in problems)


def test_a_soft_label_is_its_clips_target_and_the_others_weigh_as_much_as_the_heaviest() -> None:
    labels = pd.DataFrame(
        [(0, "a", "primary", 0, 8000, 0.9, 0.8), (0, "b", "primary", 0, 8000, 0.2, 0.6),
         (1, "a", "primary", WHOLE, WHOLE, 1.0, 1.0)],
        columns=["recording", "species", "kind", "start", "stop", "value", "weight"],
    )  # fmt: skip
    clips = pd.DataFrame({"recording": [0, 0, 1], "start": [0, 8000, 0]})
    targets = make_targets(LabelledClips(2, clips, labels, 8000), Taxonomy(("a", "b", "c")), LabelConfig())
    values, weights = targets.of(np.arange(3))
    assert values == pytest.approx(np.array([[0.9, 0.2, 0], [0, 0, 0], [1, 0, 0]]))
    assert weights == pytest.approx(np.array([[0.8, 0.6, 0.8], [0, 0, 0], [1, 1, 1]]))
    assert targets.recording_truth.tolist() == [[1, 0, 0], [1, 0, 0]]


def test_a_clip_between_two_labels_has_the_surer_one_and_whole_labels_count_as_ever() -> None:
    labels = pd.DataFrame(
        [(0, "a", "primary", 0, 8000, 0.9, 0.9), (0, "a", "primary", 8000, 16000, 0.1, 0.8),
         (0, "a", "primary", 0, 8000, 1.0, 0.0),
         (1, "a", "primary", WHOLE, WHOLE, 1.0, 1.0), (1, "b", "primary", 0, 8000, 1.0, 0.0)],
        columns=["recording", "species", "kind", "start", "stop", "value", "weight"],
    )  # fmt: skip
    clips = pd.DataFrame({"recording": [0, 0, 0, 1], "start": [0, 4000, 8000, 0]})
    targets = make_targets(LabelledClips(2, clips, labels, 8000), Taxonomy(("a", "b")), LabelConfig())
    values, weights = targets.of(np.arange(4))
    assert values[:, 0] == pytest.approx([0.9, 0.9, 0.1, 1])
    assert weights == pytest.approx(np.array([[0.9, 0.9], [0.9, 0.9], [0.8, 0.8], [1, 0]]))
    assert targets.recording_truth.tolist() == [[1, 0], [1, 0]]


def test_a_recording_is_of_a_species_by_its_surest_label() -> None:
    labels = pd.DataFrame(
        [(0, "a", "primary", 0, 8000, 0.9, 1.0), (0, "a", "primary", 8000, 16000, 0.1, 1.0)],
        columns=["recording", "species", "kind", "start", "stop", "value", "weight"],
    )
    clips = pd.DataFrame({"recording": [0, 0], "start": [0, 8000]})
    targets = make_targets(LabelledClips(1, clips, labels, 8000), Taxonomy(("a", "b")), LabelConfig())
    assert targets.recording_truth.tolist() == [[1, 0]]
    assert targets.of(np.array([1]))[0].tolist() == [[pytest.approx(0.1), 0]]
