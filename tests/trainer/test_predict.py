"""Predictions as a job: ensembles, kills, recordings that cannot be read."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from click.testing import Result
from predictions import assert_near, mean_of, predicted, rows_of
from scipy.special import expit, logit
from tones import tone

from shared.taxonomy import Taxonomy
from trainer.calibration import Calibration, write_calibration
from trainer.frame_files import read_frames
from trainer.opening import Opening, open_ensemble
from trainer.run import load_run

Run = Callable[..., Result]
CPU = torch.device("cpu")


def test_runs_are_averaged_as_logits_and_folds_count_as_one_run(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    def of(*paths: Path) -> dict[str, np.ndarray]:
        return predicted(run_program, tmp_path / "s.csv", *paths, "--audio", scapes)

    folds = [of(path) for path in sorted((runs / "all").glob("fold*"))]
    assert len(folds) == 3
    assert_near(of(runs / "all"), mean_of(folds))
    one, tuned = of(runs / "one"), of(runs / "tuned")
    assert_near(of(runs / "all", runs / "one", runs / "tuned"), mean_of([mean_of(folds), one, tuned]))
    assert max(np.abs(one[row] - folds[0][row]).max() for row in one) > 0.01  # else nothing was shown


def test_heads_of_one_backbone_share_it_and_a_tuned_network_has_its_own(runs: Path) -> None:
    ensemble = open_ensemble([runs / "all", runs / "one", runs / "tuned"], Opening(CPU))
    assert [scorer.sides for scorer in ensemble.scorers] == [[0, 0, 0, 1], [2]]


def test_engines_agree_and_overlap_keeps_the_rows(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    command = [runs / "one", "--audio", scapes]
    plain = predicted(run_program, tmp_path / "s.csv", *command)
    for engine in ("onnxruntime", "openvino"):  # no part of the job: each into a file of its own
        found = predicted(run_program, tmp_path / f"{engine}.csv", *command, "--engine", engine)
        assert_near(found, plain, 2e-3)
        assert any(not np.array_equal(found[row], plain[row]) for row in plain)
    found = predicted(run_program, tmp_path / "s.csv", *command, "--overlap", 0.5)
    assert list(found) == list(plain)
    assert max(np.abs(found[row] - plain[row]).max() for row in plain) > 1e-3


def test_another_precision_is_another_job(runs: Path, scapes: Path, run_program: Run, tmp_path: Path) -> None:
    command = ["predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv"]
    run_program("trainer", *command)
    said = run_program("trainer", *command, "--precision", "fp32", status=2).output
    assert "precision" in said
    assert "--overwrite" in said


def test_another_overlap_than_whole_frames_is_refused_with_those_there_are(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    result = run_program("trainer", "predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv",
                         "--overlap", 0.33, status=2)  # fmt: skip
    assert "one of 0, 0.5" in result.output
    assert not (tmp_path / "s.csv").exists()


def test_smoothing_is_a_weighted_mean_of_neighbours(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    plain = predicted(run_program, tmp_path / "a.csv", runs / "one", "--audio", scapes / "s0.wav")
    smooth = predicted(
        run_program, tmp_path / "b.csv", runs / "one", "--audio", scapes / "s0.wav", "--smoothing", 0.5
    )
    values = np.stack(list(plain.values()))
    assert len(values) >= 4
    around = np.pad(values, ((1, 1), (0, 0)))
    weights = np.pad(np.ones(len(values)), 1)
    sums = 0.5 * around[:-2] + values + 0.5 * around[2:]
    expected = sums / (0.5 * weights[:-2] + 1 + 0.5 * weights[2:])[:, None]
    assert np.abs(np.stack(list(smooth.values())) - expected).max() < 1e-5


def test_a_calibration_in_the_run_is_used_and_its_thresholds_too(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    plain = predicted(run_program, tmp_path / "a.csv", runs / "one", "--audio", scapes)
    taxonomy = load_run(runs / "one").taxonomy
    slope, offset = np.array([0.5, 1.0, 2.0], np.float32), np.array([0.1, -1.0, 0.0], np.float32)
    threshold = np.array([0.2, 0.999, 0.4], np.float32)
    write_calibration(
        Calibration(slope, offset, threshold, {"note": 1}), taxonomy, runs / "one" / "calibration.json"
    )
    found = predicted(run_program, tmp_path / "b.csv", runs / "one", "--audio", scapes, "--events", "csv")
    assert_near(found, {row: expit(logit(values) * slope + offset) for row, values in plain.items()})
    events = (tmp_path / "b.events.csv").read_text()
    assert taxonomy.species[1] not in events
    assert taxonomy.species[2] in events
    assert_near(
        predicted(run_program, tmp_path / "c.csv", runs / "one", "--audio", scapes, "--uncalibrated"), plain
    )


def test_members_with_other_species_or_clips_are_refused(
    runs: Path, store: Path, scapes: Path, run_program: Run, tmp_path: Path, tiny_config: Path
) -> None:
    taxonomy = tmp_path / "t.csv"
    taxonomy.write_text("primary_label\nlow\nhigh\n")
    run_program("trainer", "fit", "--features", store, "--config", tiny_config, "--out", runs / "two",
                "--taxonomy", taxonomy)  # fmt: skip
    result = run_program("trainer", "predict", runs / "one", runs / "two", "--audio", scapes,
                         "--out", tmp_path / "s.csv", status=2)  # fmt: skip
    assert "other species" in result.output


def test_species_in_another_order_are_put_into_the_first_runs(
    runs: Path, store: Path, scapes: Path, run_program: Run, tmp_path: Path, tiny_config: Path
) -> None:
    taxonomy = tmp_path / "t.csv"
    taxonomy.write_text("primary_label\nmiddle\nlow\nhigh\n")
    run_program("trainer", "fit", "--features", store, "--config", tiny_config,
                "--out", runs / "other", "--taxonomy", taxonomy, "--set", "fit.epochs=30")  # fmt: skip
    audio = ["--audio", scapes]
    one = predicted(run_program, tmp_path / "1.csv", runs / "one", *audio)
    other = predicted(run_program, tmp_path / "2.csv", runs / "other", *audio)
    both = predicted(run_program, tmp_path / "3.csv", runs / "one", runs / "other", *audio)
    order = [["middle", "low", "high"].index(code) for code in load_run(runs / "one").taxonomy.species]
    assert_near(both, mean_of([one, {row: values[order] for row, values in other.items()}]))


def test_what_is_done_is_not_done_again_and_what_came_since_is(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    out = tmp_path / "s.csv"
    command = ["predict", runs / "one", "--audio", scapes, "--out", out, "--events", "csv"]
    run_program("trainer", *command)
    first, events = out.read_bytes(), (tmp_path / "s.events.csv").read_bytes()
    assert "6 of them done before" in run_program("trainer", *command).output
    assert out.read_bytes() == first
    assert (tmp_path / "s.events.csv").read_bytes() == events
    soundfile.write(scapes / "s00.wav", tone(500, 2.0), 8000)
    soundfile.write(scapes / "s2.wav", tone(500, 1.0), 8000)  # another one now
    assert "7 recordings, 5 of them done before" in run_program("trainer", *command).output
    rows = rows_of(out)
    assert [row for row in rows if row.startswith(("s00_", "s2_"))] == ["s00_1", "s00_2", "s2_1"]
    run_program("trainer", *command, "--overwrite")
    assert_near(rows_of(out), rows, 1e-5)


def test_what_could_not_be_read_is_tried_again_and_names_stay_with_their_rows(
    runs: Path, tmp_path: Path, run_program: Run
) -> None:
    folder, out = tmp_path / "f", tmp_path / "s.csv"
    (folder / "y").mkdir(parents=True)
    (folder / "z").mkdir()
    (folder / "gone.wav").symlink_to(folder / "nowhere.wav")
    soundfile.write(folder / "y" / "x.wav", tone(500, 2.001), 8000)  # ends with less than a segment
    sample = tmp_path / "sample.csv"
    sample.write_text("row_id,low,middle,high\n")
    command = ["predict", runs / "one", "--audio", folder, "--out", out, "--sample-submission", sample]
    said = run_program("trainer", *command, "--budget-minutes", 0.00001).output
    assert "1 recordings were not reached in time" in said
    assert [*rows_of(out)] == ["x_1", "x_2"]
    assert "gone.wav" in run_program("trainer", *command).output
    assert "1 of them done before" in run_program("trainer", *command).output
    soundfile.write(folder / "nowhere.wav", tone(500, 1.0), 8000)
    run_program("trainer", *command)
    assert {"gone_1", "nowhere_1", "x_1", "x_2"} == {*rows_of(out)}
    soundfile.write(folder / "z" / "x.wav", tone(500, 1.0), 8000)
    run_program("trainer", *command)
    assert {"gone_1", "nowhere_1", "y/x_1", "y/x_2", "z/x_1"} == {*rows_of(out)}


def test_an_output_of_other_settings_or_of_somebody_else_is_kept(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    out = tmp_path / "s.csv"
    out.write_text("mine")
    command = ["predict", runs / "one", "--audio", scapes, "--out", out]
    assert "exists; give another --out" in run_program("trainer", *command, status=2).output
    assert out.read_text() == "mine"
    run_program("trainer", *command, "--overwrite")
    said = run_program("trainer", *command, "--smoothing", 0.3, status=2).output
    assert "begun with other settings (smoothing)" in said


@pytest.mark.parametrize("name", ["sigkill", "sigterm"])
def test_a_kill_leaves_a_whole_submission_and_the_same_command_goes_on(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path, name: str
) -> None:
    for number in range(40):
        soundfile.write(scapes / f"more{number}.wav", tone(500 + 50 * number, 6.0), 8000)
    given = [runs / "one", "--audio", scapes, "--overlap", "0.5", "--events", "csv", "--threshold", "0.3"]
    whole = predicted(run_program, tmp_path / "whole.csv", *given, "--frames", tmp_path / "whole")
    out = tmp_path / "s.csv"
    frames = ["--frames", tmp_path / "frames"]
    command = [Path(sys.executable).with_name("trainer"), "predict", *given, "--out", out, *frames]
    index = tmp_path / ".s.csv.parts" / "done.jsonl"
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while child.poll() is None and not (index.exists() and index.read_bytes().count(b"\n") > 5):
        time.sleep(0.002)
    child.send_signal(getattr(signal, name.upper()))
    status = child.wait()
    assert status == (-signal.SIGKILL if name == "sigkill" else 128 + signal.SIGTERM)
    num_done = index.read_bytes().count(b"\n")
    assert 5 < num_done < 46
    half = rows_of(out)
    assert list(half) == list(whole)
    assert all(len(values) == 3 and np.isfinite(values).all() for values in half.values())
    with index.open("ab") as file:
        file.write(b'{"recording": "s')  # and a line that the machine did not finish
    said = run_program("trainer", *command[1:]).output
    assert f"{num_done} of them done before" in said
    assert_near(rows_of(out), whole, 1e-5)
    found, expected = (dict(read_frames(tmp_path / name).recordings()) for name in ("frames", "whole"))
    assert {*found} == {*expected}
    assert len(found) == 46
    assert max(np.abs(found[one].astype(float) - expected[one]).max() for one in found) < 2e-3
    events, expected_events = (pd.read_csv(tmp_path / f"{name}.events.csv") for name in ("s", "whole"))
    assert len(events) > 20
    pd.testing.assert_frame_equal(events, expected_events, atol=2e-3)


def test_every_kind_of_broken_recording_gets_the_prior_and_a_line(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    whole = (scapes / "s0.wav").read_bytes()
    (scapes / "empty.wav").write_bytes(b"")
    (scapes / "page.ogg").write_bytes(b"<html>" * 50)
    (scapes / "cut.wav").write_bytes(whole[: len(whole) // 2])
    (scapes / "folder.wav").mkdir()
    soundfile.write(scapes / "nan.wav", np.full(16_000, np.nan), 8000, subtype="FLOAT")
    soundfile.write(scapes / "stereo.flac", np.zeros((16_000, 2)), 8000)
    soundfile.write(scapes / "short.wav", np.zeros(10), 8000)
    sample = tmp_path / "sample.csv"
    names = [f"{stem}_{end}" for stem in ("empty", "page", "cut", "folder", "s0") for end in (1, 2, 3, 4)]
    sample.write_text("row_id,low,high\n" + "".join(f"{name},0.5,0.5\n" for name in names))
    out = tmp_path / "s.csv"
    said = run_program("trainer", "predict", runs / "one", "--audio", scapes, "--out", out,
                       "--sample-submission", sample, "--events", "raven").output  # fmt: skip
    rows = rows_of(out)
    assert {*names} <= {*rows}
    for stem in ("empty", "page", "folder"):
        assert np.allclose([rows[f"{stem}_{end}"] for end in (1, 2, 3, 4)], 1 / 3, atol=1e-6)
        assert f"{stem}." in said
    assert np.allclose(rows["cut_4"], 1 / 3, atol=1e-6)
    assert np.abs(rows["cut_1"] - rows["s0_1"]).max() < 1e-4
    assert "cut.wav" in said
    assert all(np.isfinite(values).all() for values in rows.values())


def test_memory_does_not_grow_with_a_recordings_length(runs: Path) -> None:
    """What a long recording leaves behind in the stitcher is taken away as it goes."""
    from trainer.stitching import Stitcher

    grid = open_ensemble([runs / "one"], Opening(CPU)).grid
    stitcher = Stitcher(grid, 1000, 3)
    for place in range(5000):
        start = place * grid.clip_samples
        stitcher.add(start, grid.clip_samples, np.zeros(3, np.float32), np.zeros((8, 3), np.float32))
        stitcher.take(start + grid.clip_samples)
    assert len(stitcher._frames._sums) <= 64
    assert len(stitcher._segments._sums) <= 64
    assert not stitcher._heard_to


def test_the_prior_is_the_share_of_the_recordings_with_one_more_of_each(runs: Path) -> None:
    from trainer.run import species_prior

    prior = species_prior(runs / "one", Taxonomy(("low", "zebra", "high")))
    assert prior.tolist() == pytest.approx([5 / 15, 1 / 15, 5 / 15])


def test_frames_that_are_gone_are_made_again_and_those_of_another_prediction_kept(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    frames = tmp_path / "frames"
    command = ["predict", runs / "one", "--audio", scapes, "--frames", frames]
    run_program("trainer", *command, "--out", tmp_path / "s.csv")
    before = {path.name: path.read_bytes() for path in frames.rglob("*.npy")}
    assert len(before) == 6
    (frames / "deep" / "s1.npy").unlink()
    said = run_program("trainer", *command, "--out", tmp_path / "s.csv").output
    assert "6 recordings, 5 of them done before" in said
    assert {path.name: path.read_bytes() for path in frames.rglob("*.npy")} == before
    another = [*command, "--out", tmp_path / "t.csv", "--overlap", 0.5]
    said = run_program("trainer", *another, status=2).output
    assert "frames of another prediction" in said
    assert {path.name: path.read_bytes() for path in frames.rglob("*.npy")} == before
    run_program("trainer", *another, "--overwrite")
    after = {path.name: path.read_bytes() for path in frames.rglob("*.npy")}
    assert {*after} == {*before}
    assert all(after[name] != before[name] for name in after)
