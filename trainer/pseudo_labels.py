"""Confident segments of unlabelled recordings as metadata: soft labels to train on beside the real ones.

A row says: in `filename`, for a clip from `clip_start_time` on (seconds), `primary_label` has the target
`label_value`, and counts `label_weight` in the loss. `featurestore build --external` reads it.
"""

import csv
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.recordings import Recording

COLUMNS = ("filename", "primary_label", "clip_start_time", "label_value", "label_weight")
FLOOR = 0.05  # a species below it gets no row: its target is 0
SUREST = 0.999  # a label of 1 would be a person's: such recordings are held out and scored by


@dataclass(frozen=True)
class PseudoLabels:
    """How many there are: recordings and segments with one, rows, and segments that were looked at."""

    recordings: int
    segments: int
    rows: int
    looked_at: int


def write_pseudo_labels(
    path: Path,
    recordings: Iterable[Recording],
    rows_of: Callable[[Recording], Iterator[bytes]],
    species: tuple[str, ...],
    prior: bytes,
    segment_seconds: float,
    at_least: float,
) -> PseudoLabels:
    """Write a row for every species that is heard in a segment whose best species is sure enough.

    rows_of: a recording's lines of the submission; those of `prior` are nobody's.
    at_least: what the best species of a segment must have. A segment's rows weigh as much as its best
        species is sure; the surest row comes first.
    """
    num_recordings = num_segments = num_rows = looked_at = 0
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(COLUMNS)
        for recording in recordings:
            before = num_rows
            for row_id, values in _segments(b"".join(rows_of(recording)), prior):
                looked_at += 1
                best = max(values)
                if best < at_least:
                    continue
                start = float(row_id.rpartition("_")[2]) - segment_seconds
                found = sorted(zip(values, species, strict=True), key=lambda pair: -pair[0])
                rows = [
                    (recording.relative, code, f"{start:g}", _text(value), _text(best))
                    for value, code in found
                    if value >= FLOOR
                ]
                out.writerows(rows)
                num_segments, num_rows = num_segments + 1, num_rows + len(rows)
            num_recordings += num_rows > before
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return PseudoLabels(num_recordings, num_segments, num_rows, looked_at)


def _text(value: float) -> str:
    return f"{min(value, SUREST):.4g}"


def _segments(lines: bytes, prior: bytes) -> Iterator[tuple[str, list[float]]]:
    """Yield the segments that were heard."""
    for line in lines.splitlines(keepends=True):
        if not line.endswith(prior):
            (row,) = csv.reader([line.decode()])
            yield row[0], [float(value) for value in row[1:]]
