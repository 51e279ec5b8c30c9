"""Predictions under a budget: what is shed, where, and what is on the disk then."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
from click.testing import Result
from predictions import assert_near, predicted, rows_of
from tones import tone

from trainer.opening import Opening, open_ensemble
from trainer.predict import Level, Piece, Predictor

Run = Callable[..., Result]
CPU = torch.device("cpu")


def test_a_budget_that_is_too_short_leaves_priors_and_says_so(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path
) -> None:
    out = tmp_path / "s.csv"
    command = ["predict", runs / "one", "--audio", scapes, "--out", out]
    said = run_program("trainer", *command, "--budget-minutes", 0.0001).output
    assert "not reached in time and have the prior" in said or "the time was over" in said
    rows = rows_of(out)
    assert len(rows) == 6 * 4  # of 4.5 s: what is left is less than a second
    assert np.allclose(rows["s5_1"], 1 / 3, atol=1e-3)
    whole = predicted(run_program, tmp_path / "w.csv", runs / "one", "--audio", scapes)
    run_program("trainer", *command)
    assert_near(rows_of(out), whole, 1e-5)


def test_a_run_of_two_networks_sheds_one_when_it_must(
    runs: Path, scapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The level is taken recording by recording, and what is left of the ensemble is what is scored."""
    ensemble = open_ensemble([runs / "one", runs / "tuned"], Opening(CPU))
    predictor = Predictor(ensemble, 0.5)
    paths = sorted(scapes.rglob("*.wav"))
    least = Level(ensemble.grid.clip_samples, 1)

    def all_of(pieces: Iterator[Piece]) -> list[np.ndarray]:
        return [np.concatenate([p.segments for p in found]) for found in by_recording(pieces, len(paths))]

    shed = all_of(predictor.pieces(paths, lambda number, *_: predictor.full if number < 3 else least))
    full = all_of(predictor.pieces(paths))
    alone = all_of(Predictor(open_ensemble([runs / "one"], Opening(CPU))).pieces(paths))
    for number, found in enumerate(shed):
        expected = full[number] if number < 3 else alone[number]
        assert np.abs(found - expected).max() < 1e-4
        assert found.shape == full[number].shape
    assert max(np.abs(one - other).max() for one, other in zip(full, alone, strict=True)) > 1e-3


def test_a_backbone_costs_its_seconds_for_each_window_that_it_was_asked_for(runs: Path) -> None:
    ensemble = open_ensemble([runs / "one", runs / "tuned"], Opening(CPU))
    assert ensemble.costs() == [1.0, 1.0]
    waveforms = np.zeros((2, ensemble.grid.clip_samples), np.int16)
    valid = np.full(2, ensemble.grid.clip_samples)
    for num_scorers in (1, 1, 1, 2):
        ensemble.score(waveforms, valid, num_scorers)
    for scorer in ensemble.scorers:
        scorer.clock.add("test", 8e6)
    assert ensemble.costs() == pytest.approx([1e6, 4e6], rel=1e-3)


def test_a_long_recording_is_shed_where_a_segment_begins(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.predict.CHUNK_WINDOWS", 7)  # the eighth begins a second on
    rng = np.random.default_rng(4)
    samples = np.concatenate([tone(float(f), 1.0) for f in rng.choice([500, 1500, 3000], 40)])
    soundfile.write(tmp_path / "long.wav", samples + 0.02 * rng.standard_normal(len(samples)), 8000)
    asked = []

    def pace(number: int, start: int, num_windows: int) -> Level:
        asked.append((number, start, num_windows))
        return predictor.full if start < 16_000 * 5 else least

    predictor = Predictor(open_ensemble([runs / "one", runs / "tuned"], Opening(CPU)), 0.5)
    least = Level(predictor.ensemble.grid.clip_samples, 1)

    def all_of(pieces: Iterator[Piece]) -> tuple[np.ndarray, np.ndarray]:
        (found,) = by_recording(pieces, 1)
        return np.concatenate([p.segments for p in found]), np.concatenate([p.frames for p in found])

    path = tmp_path / "long.wav"
    shed = all_of(predictor.pieces([path], pace))
    full = all_of(predictor.recording(path))
    alone = all_of(Predictor(open_ensemble([runs / "one"], Opening(CPU))).recording(path))
    changed = next(start for _, start, _ in asked if start >= 16_000 * 5) // 8000
    assert 10 <= changed < 20
    hops = [(start, num) for _, start, num in asked]
    assert hops[:3] == [(0, 0), (32_000, 8), (64_000, 8)]
    assert hops[-1][1] == 7
    assert hops[-1][0] - hops[-2][0] == 56_000  # seven windows of a second
    frames = len(full[1]) // 40
    for one, before, after, per_second in zip(shed, full, alone, (1, frames), strict=True):
        assert one.shape == before.shape
        assert np.abs(one - before)[: (changed - 1) * per_second].max() < 1e-4
        assert np.abs(one - after)[(changed + 1) * per_second :].max() < 1e-4
    assert np.abs(full[0] - alone[0])[changed + 1 :].max() > 1e-3


def test_chunks_are_small_whatever_the_windows_hop(runs: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", tone(500, 60.0), 8000)
    predictor = Predictor(open_ensemble([runs / "one"], Opening(CPU)))
    odd = Level(7001, 1)  # beside a segment's 8000: together again only after 8000 windows
    asked = []

    def pace(number: int, start: int, num_windows: int) -> Level:
        asked.append(start)
        return odd

    chunks = list(predictor._decode(0, tmp_path / "long.wav", pace))
    assert max(len(chunk.waveforms) for chunk in chunks) == 8
    assert sum(len(chunk.waveforms) for chunk in chunks) > 60
    assert asked == [0]


def by_recording(pieces: Iterator[Piece], num: int) -> list[list[Piece]]:
    found: list[list[Piece]] = [[] for _ in range(num)]
    for one in pieces:
        found[one.number].append(one)
    assert all(parts[-1].finding is not None for parts in found)
    return found


def test_a_budget_sheds_from_the_command_line_and_says_so(
    runs: Path, run_program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a margin of nothing every estimate is over time, as soon as there is one."""
    monkeypatch.setattr("trainer.budget.SAFETY", 1e-9)
    rng = np.random.default_rng(4)
    samples = np.concatenate([tone(float(f), 1.0) for f in rng.choice([500, 1500, 3000], 300)])
    audio = tmp_path / "long"
    audio.mkdir()
    soundfile.write(audio / "long.wav", samples + 0.02 * rng.standard_normal(len(samples)), 8000)
    given = [runs / "one", runs / "tuned", "--audio", audio, "--overlap", 0.5]
    out = tmp_path / "s.csv"
    said = run_program("trainer", "predict", *given, "--out", out, "--budget-minutes", 60).output
    assert "from recording 1 of 1, " in said
    assert "on: windows no longer overlap" in said
    assert "on: 1 of 2 backbones" in said
    found = rows_of(out)
    whole = predicted(run_program, tmp_path / "whole.csv", *given)
    alone = predicted(run_program, tmp_path / "alone.csv", runs / "one", "--audio", audio)
    assert list(found) == list(whole) == list(alone)
    names = list(found)
    assert_near({name: found[name] for name in names[:16]}, {name: whole[name] for name in names[:16]})
    assert_near({name: found[name] for name in names[-40:]}, {name: alone[name] for name in names[-40:]})


def test_ravens_time_runs_over_recordings_that_were_not_reached(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["predict", runs / "one", "--audio", scapes, "--events", "raven", "--threshold", 0.2]
    run_program("trainer", *command, "--out", tmp_path / "s.csv")
    for number in range(8):
        name = ("s0", "s2")[number % 2]
        (scapes / f"a{number}.wav").write_bytes((scapes / f"{name}.wav").read_bytes())
    run_program("trainer", *command, "--out", tmp_path / "whole.csv")
    monkeypatch.setattr("trainer.budget.Budget.is_over", lambda self: True)
    said = run_program("trainer", *command, "--out", tmp_path / "s.csv", "--budget-minutes", 5).output
    assert "not reached in time" in said
    tables = [
        pd.read_csv(tmp_path / f"{name}.raven.txt", sep="\t").assign(
            offset=lambda t: t["Begin Time (s)"] - t["File Offset (s)"]
        )
        for name in ("whole", "s")
    ]
    whole, part = (table.groupby("Begin Path")["offset"].mean() for table in tables)
    assert 6 <= len(part) < len(whole) == 14
    assert np.allclose(part, whole[part.index])


def test_pictures_and_clips_end_with_the_budget(
    runs: Path, scapes: Path, run_program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.prediction_job.PredictionJob.time_is_over", lambda self: True)
    said = run_program("trainer", "predict", runs / "one", "--audio", scapes, "--out", tmp_path / "s.csv",
                       "--png", tmp_path / "png", "--clips", tmp_path / "clips").output  # fmt: skip
    assert "no time is left for the picture of deep/s1.wav and the rest" in said
    assert f"no time is left for {tmp_path / 'clips'}" in said
    assert not list(tmp_path.glob("png/*"))
