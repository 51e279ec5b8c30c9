"""Events as tables that other programs open: CSV, Raven selection tables, Audacity labels."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.events import Event
from trainer.recordings import Recording

CSV_COLUMNS = ["filename", "species", "start", "stop", "confidence"]
RAVEN_COLUMNS = [
    "Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)",
    "Begin Path", "File Offset (s)", "Species", "Confidence",
]  # fmt: skip


@dataclass(frozen=True)
class Detections:
    """A recording's events, and how long it is in seconds."""

    recording: Recording
    seconds: float
    events: list[Event]


@dataclass(frozen=True)
class Band:
    """The frequencies that a detector hears, in Hz: a selection table needs them."""

    low_hz: float
    high_hz: float


def write_events_csv(found: Sequence[Detections], path: Path, band: Band) -> None:
    """Write one CSV: filename (below the audio folder), species, start, stop (s), confidence."""
    rows = (
        [one.recording.relative, event.species, f"{event.start:.3f}", f"{event.stop:.3f}",
         f"{event.confidence:.4f}"]
        for one in found
        for event in one.events
    )  # fmt: skip
    _write(path, CSV_COLUMNS, rows, ",")


def write_raven(found: Sequence[Detections], path: Path, band: Band) -> None:
    """Write one selection table of all recordings, as Raven opens it with the sound files in this order.

    Begin and end times run on over the recordings, one behind the other; File Offset is the time
    within the recording, Begin Path where that lies.
    """
    _write(path, RAVEN_COLUMNS, _raven_rows(found, band), "\t")


def _raven_rows(found: Sequence[Detections], band: Band) -> Iterator[list[str]]:
    number, before = 0, 0.0
    for one in found:
        for event in one.events:
            number += 1
            times = f"{before + event.start:.3f}", f"{before + event.stop:.3f}"
            yield [
                str(number), "Spectrogram 1", "1", *times,
                f"{band.low_hz:.1f}", f"{band.high_hz:.1f}", str(one.recording.path.absolute()),
                f"{event.start:.3f}", event.species, f"{event.confidence:.4f}",
            ]  # fmt: skip
        before += one.seconds


def write_audacity(found: Sequence[Detections], folder: Path, band: Band) -> None:
    """Write one label file per recording, in its sub-folder: start, stop (s) and species between tabs.

    A recording without an event has an empty file; Audacity opens the file beside its recording.
    """
    for one in found:
        path = folder / Path(one.recording.relative).with_suffix(".txt")
        rows = ([f"{event.start:.6f}", f"{event.stop:.6f}", event.species] for event in one.events)
        _write(path, None, rows, "\t")


def _write(path: Path, header: list[str] | None, rows: Iterator[list[str]], delimiter: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        if header:
            writer.writerow(header)
        writer.writerows(rows)
    temporary.replace(path)


Writer = Callable[[Sequence[Detections], Path, Band], None]
FORMATS: dict[str, tuple[str, Writer]] = {
    "csv": (".events.csv", write_events_csv),
    "raven": (".raven.txt", write_raven),
    "audacity": (".audacity", write_audacity),
}


def event_path(out: Path, kind: str) -> Path:
    """Return where the events of a submission go: beside it."""
    return out.with_name(out.stem + FORMATS[kind][0])
