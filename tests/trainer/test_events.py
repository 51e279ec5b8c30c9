"""Frames into events, and events into the tables of other programs."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from shared.taxonomy import Taxonomy
from trainer.clip_files import write_clips
from trainer.event_tables import Band, Detections, write_audacity, write_events_csv, write_raven
from trainer.events import Event, EventFinder, EventRules
from trainer.recordings import Recording, find_recordings

TAXONOMY = Taxonomy(("a", "b"))


def found(frames: list[tuple[float, float]], cuts: tuple[int, ...] = (), **rules: float) -> list[Event]:
    """Events of half-second frames over 0.5 for a and 0.8 for b, given in pieces."""
    finder = EventFinder(TAXONOMY, np.array([0.5, 0.8]), 0.5, EventRules(**rules))
    values = np.array(frames, np.float32)
    edges = [0, *sorted({min(cut, len(values)) for cut in cuts}), len(values)]
    for start, stop in itertools.pairwise(edges):
        finder.add(start, values[start:stop])
    return finder.events(len(frames) / 2)


QUIET = (0.0, 0.0)


def test_frames_over_their_species_threshold_are_events() -> None:
    events = found([QUIET, (0.6, 0.7), (0.9, 0.0), QUIET, (0.0, 0.8)])
    assert [(e.species, e.start, e.stop) for e in events] == [("a", 0.5, 1.5), ("b", 2.0, 2.5)]
    assert [event.confidence for event in events] == pytest.approx([0.9, 0.8])


def test_gaps_are_closed_then_short_ones_left_out_then_padded() -> None:
    frames = [(0.6, 0), QUIET, (0.6, 0), QUIET, QUIET, QUIET, (0.7, 0), QUIET]
    assert [(e.start, e.stop) for e in found(frames, join=0.5)] == [(0, 1.5), (3, 3.5)]
    assert [(e.start, e.stop) for e in found(frames, join=0.5, shortest=1)] == [(0, 1.5)]
    assert [(e.start, e.stop) for e in found(frames, join=0.5, pad=0.5)] == [(0, 2.0), (2.5, 4.0)]
    assert [(e.start, e.stop) for e in found(frames, join=0.5, pad=1)] == [(0, 4.0)]


@given(
    st.lists(st.tuples(st.sampled_from([0.0, 0.6, 0.9]), st.sampled_from([0.0, 0.9])), min_size=1),
    st.lists(st.integers(0, 30), max_size=4), st.sampled_from([0, 0.5, 1.0]), st.sampled_from([0, 0.5, 1.5]),
)  # fmt: skip
def test_pieces_change_no_event(
    frames: list[tuple[float, float]], cuts: list[int], join: float, pad: float
) -> None:
    rules = {"join": join, "pad": pad, "shortest": 1.0}
    whole = found(frames, **rules)
    assert found(frames, tuple(cuts), **rules) == whole
    for species in TAXONOMY.species:
        mine = [event for event in whole if event.species == species]
        assert all(one.stop < two.start for one, two in itertools.pairwise(mine))
        assert all(0 <= event.start < event.stop <= len(frames) / 2 for event in mine)


def test_an_event_ends_with_its_recording() -> None:
    finder = EventFinder(TAXONOMY, np.array([0.5, 0.5]), 0.5, EventRules(pad=1))
    finder.add(0, np.array([[0.9, 0.0]], np.float32))
    assert [(event.start, event.stop) for event in finder.events(0.3)] == [(0, 0.3)]


def test_rules_are_not_negative() -> None:
    with pytest.raises(ValueError, match="--event-pad"):
        EventRules(pad=-1)


@pytest.fixture
def detections(tmp_path: Path) -> list[Detections]:
    """Two recordings of one name in two folders, the first 10 s long; and one without events."""
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "dawn.wav", np.arange(160_000) / 320_000, 16_000)
    soundfile.write(tmp_path / "north" / "noon.wav", np.zeros(16_000), 16_000)
    north, noon, south = find_recordings(tmp_path)
    assert [one.name for one in (north, noon, south)] == ["north/dawn", "north/noon", "south/dawn"]
    return [
        Detections(north, 10.0, [Event("a", 1.0, 2.5, 0.7), Event("b", 2.0, 3.0, 0.9)]),
        Detections(noon, 1.0, []),
        Detections(south, 10.0, [Event("a", 4.0, 5.0, 0.8)]),
    ]


BAND = Band(50.0, 16_000.0)


def test_ravens_table_runs_on_over_the_recordings(detections: list[Detections], tmp_path: Path) -> None:
    out = tmp_path / "all.raven.txt"
    write_raven(detections, out, BAND)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [row["Selection"] for row in rows] == ["1", "2", "3"]
    assert [float(row["Begin Time (s)"]) for row in rows] == [1, 2, 15]
    assert [float(row["End Time (s)"]) for row in rows] == [2.5, 3, 16]
    assert [float(row["File Offset (s)"]) for row in rows] == [1, 2, 4]
    assert [Path(row["Begin Path"]).relative_to(tmp_path).as_posix() for row in rows] == [
        "north/dawn.wav", "north/dawn.wav", "south/dawn.wav"
    ]  # fmt: skip
    assert all(Path(row["Begin Path"]).is_absolute() for row in rows)
    assert {(row["Low Freq (Hz)"], row["High Freq (Hz)"]) for row in rows} == {("50.0", "16000.0")}
    assert [row["Species"] for row in rows] == ["a", "b", "a"]


def test_audacity_has_exactly_three_columns_in_a_file_per_recording(
    detections: list[Detections], tmp_path: Path
) -> None:
    write_audacity(detections, tmp_path / "labels", BAND)
    lines = (tmp_path / "labels" / "north" / "dawn.txt").read_text().splitlines()
    assert [line.split("\t") for line in lines] == [
        ["1.000000", "2.500000", "a"], ["2.000000", "3.000000", "b"]
    ]  # fmt: skip
    assert (tmp_path / "labels" / "north" / "noon.txt").read_text() == ""


def test_the_csv_has_the_columns_of_a_truth_file(detections: list[Detections], tmp_path: Path) -> None:
    from trainer.evaluate import read_events

    write_events_csv(detections, tmp_path / "e.csv", BAND)
    events = read_events(tmp_path / "e.csv")
    assert events["filename"].tolist() == ["north/dawn.wav", "north/dawn.wav", "south/dawn.wav"]
    assert events["confidence"].tolist() == [0.7, 0.9, 0.8]


def test_clips_are_the_best_detections_best_first_in_their_sub_folders(
    detections: list[Detections], tmp_path: Path
) -> None:
    out = tmp_path / "clips"
    assert write_clips(detections, out, 1, lambda n: None) == (2, [])
    assert write_clips(detections, out, 5, lambda n: None) == (3, [])
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.wav"))
    assert files == ["a/north/0002_0.700_dawn_1.0s.wav", "a/south/0001_0.800_dawn_4.0s.wav",
                     "b/north/0001_0.900_dawn_2.0s.wav"]  # fmt: skip
    own = out / "a" / "mine.wav"
    own.write_bytes(b"")
    others = out / "a" / "north" / "0001_0.500_dusk_1.0s.wav"  # of a recording of another week
    others.write_bytes(b"")
    assert write_clips(detections, out, 1, lambda n: None) == (2, [])  # those of other ranks are no more
    assert sorted(out.rglob("*.wav")) == sorted([*(out / file for file in files[1:]), own, others])
    samples, rate = soundfile.read(out / files[1])
    assert (len(samples), rate) == (16_000, 16_000)
    assert samples[0] == pytest.approx(64_000 / 320_000, abs=1e-4)


def test_a_long_event_is_cut_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.clip_files.BLOCK_FRAMES", 1000)
    samples = np.random.default_rng(0).uniform(-1, 1, (30_000, 2))
    soundfile.write(tmp_path / "r.wav", samples, 8000)
    recording = Recording(tmp_path / "r.wav", "r.wav", "r")
    event = Event("a", 0.5, 3.5, 0.9)
    assert write_clips([Detections(recording, 3.75, [event])], tmp_path / "c", 1, lambda n: None) == (1, [])
    found, rate = soundfile.read(tmp_path / "c" / "a" / "0001_0.900_r_0.5s.wav")
    assert (found.shape, rate) == ((24_000, 2), 8000)
    assert np.abs(found - samples[4000:28_000]).max() < 1e-3


def test_a_recording_that_is_gone_is_named_and_the_others_are_cut(
    detections: list[Detections], tmp_path: Path
) -> None:
    (tmp_path / "north" / "dawn.wav").unlink()
    num, problems = write_clips(detections, tmp_path / "clips", 5, lambda n: None)
    assert num == 1
    assert len(problems) == 2
    assert "no clip of north/dawn.wav at 1 s" in problems[0]


def test_two_recordings_of_one_name_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("a.wav", "a.ogg"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="would get the same row ids"):
        find_recordings(tmp_path)
    assert Recording(tmp_path / "a.wav", "a.wav", "a").row_id(1, 5.0) == "a_10"
