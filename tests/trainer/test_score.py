"""`trainer score`, held to sed_eval's own figures (tests/sed_eval), and frames to their truth."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result

from shared.taxonomy import Taxonomy
from trainer.frame_files import FrameWriter, read_frames
from trainer.recordings import Recording
from trainer.score import Collar, event_counts, frame_truth

Run = Callable[..., Result]
REFERENCE = json.loads((Path(__file__).parents[1] / "sed_eval" / "reference.json").read_text())
COLUMNS = ["filename", "species", "start", "stop"]


def written(tmp_path: Path, name: str, events: list[dict[str, object]]) -> Path:
    path = tmp_path / f"{name}.csv"
    pd.DataFrame(events, columns=COLUMNS).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("number", range(len(REFERENCE["cases"])))
def test_segment_and_event_figures_are_sed_evals(number: int, tmp_path: Path, run_program: Run) -> None:
    case = REFERENCE["cases"][number]
    command = ["score", "--events", written(tmp_path, "e", case["found"]), "--json",
               "--truth", written(tmp_path, "t", case["truth"])]  # fmt: skip
    found = json.loads(run_program("trainer", *command).output)
    found |= json.loads(run_program("trainer", *command, "--segment", 0.5).output)
    expected = case["figures"]
    assert len(expected) == 16
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name


def events(*spans: tuple[float, float]) -> pd.DataFrame:
    rows = [("r", "a", start, stop) for start, stop in spans]
    return pd.DataFrame(rows, columns=["recording", "species", "start", "stop"])


def test_as_many_pairs_as_there_can_be_whatever_the_order() -> None:
    """The first true event fits both, the second only the first: taken greedily one pair is lost."""
    truth, found = events((1.0, 2.0), (1.3, 2.3)), events((1.15, 2.15), (0.85, 1.85))
    counts = event_counts(truth, found, ["a"], Collar(0.2))
    assert (counts.right[0], counts.truth[0], counts.found[0]) == (2, 2, 2)


def test_a_stop_may_lie_half_the_length_away_and_a_start_may_not() -> None:
    assert event_counts(events((0, 10)), events((0, 14.9)), ["a"], Collar(0.2)).right[0] == 1
    assert event_counts(events((0, 10)), events((0, 15.1)), ["a"], Collar(0.2)).right[0] == 0
    assert event_counts(events((0, 10)), events((0.3, 10)), ["a"], Collar(0.2)).right[0] == 0
    assert event_counts(events((0, 10)), events((0, 90)), ["a"], Collar(0.2, both_ends=False)).right[0] == 1


def test_a_frame_is_active_where_an_event_covers_its_middle() -> None:
    truth = frame_truth(events((0.25, 1.2), (2.3, 9)), ["a", "b"], 5, 0.5)
    assert truth[:, 0].tolist() == [1, 1, 0, 0, 0]
    assert not truth[:, 1].any()
    assert frame_truth(events((1.3, 2.25)), ["a"], 5, 0.5)[:, 0].tolist() == [0, 0, 0, 1, 1]


def test_frames_are_kept_by_recording_and_scored(tmp_path: Path, run_program: Run) -> None:
    writer = FrameWriter(tmp_path / "f", Taxonomy(("a", "b")), 0.5, "x", overwrite=False)
    truth = frame_truth(events((1, 3)), ["a", "b"], 20, 0.5)
    for name in ("deep/r.wav", "q.wav"):
        right = truth if name == "deep/r.wav" else 0 * truth
        writer.add((0.2 + 0.5 * right[:7]).astype(np.float32))
        writer.add((0.2 + 0.5 * right[7:]).astype(np.float32))
        writer.finish(Recording(tmp_path / name, name, Path(name).stem))
    writer.add(np.ones((1, 2), np.float32))
    writer.forget()
    read = dict(read_frames(tmp_path / "f").recordings())
    assert {*read} == {"deep/r", "q"}
    assert np.abs(read["deep/r"] - (0.2 + 0.5 * truth)).max() < 1e-3
    rows = [{"filename": "deep/r.wav", "species": "a", "start": 1, "stop": 3}]
    path = written(tmp_path, "t", rows)
    command = ["score", "--events", path, "--truth", path, "--frames", tmp_path / "f"]
    figures = json.loads(run_program("trainer", *command, "--json").output)
    assert figures["frame_macro_roc_auc"] == 1.0
    assert figures["frame_classes_scored"] == 1
    assert figures["event_0.2s_f1"] == figures["segment_1s_f1"] == 1.0
    assert "macro ROC-AUC 1.000" in run_program("trainer", *command).output


def test_no_event_found_has_a_recall_of_zero_and_no_precision(tmp_path: Path, run_program: Run) -> None:
    truth = written(tmp_path, "t", [{"filename": "r.wav", "species": "a", "start": 0, "stop": 1}])
    nothing = written(tmp_path, "e", [])
    figures = json.loads(
        run_program("trainer", "score", "--events", nothing, "--truth", truth, "--json").output
    )
    assert figures["event_0.2s_recall"] == 0
    assert figures["event_0.2s_f1"] == 0
    assert figures["event_0.2s_precision"] is None


def test_what_cannot_be_scored_is_a_clear_line(tmp_path: Path, run_program: Run) -> None:
    row: dict[str, object] = {"filename": "r.wav", "species": "a", "start": 0, "stop": 1}
    good, other = written(tmp_path, "t", [row]), written(tmp_path, "o", [row | {"filename": "x.wav"}])
    back, empty = written(tmp_path, "b", [row | {"start": 2}]), written(tmp_path, "n", [])

    def said(*more: object) -> str:
        return run_program("trainer", "score", *more, status=2).output

    assert "no recording in common" in said("--events", other, "--truth", good)
    assert "stops before it starts" in said("--events", back, "--truth", good)
    assert "holds no event" in said("--events", good, "--truth", empty)
    assert "no folder of frames" in said("--events", good, "--truth", good, "--frames", tmp_path)
    assert "must be positive" in said("--events", good, "--truth", good, "--segment", 0)
