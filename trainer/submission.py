"""submission.csv: a row of probabilities per segment, and always a whole one on disk."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from shared.taxonomy import Taxonomy
from trainer.recordings import Recording


@dataclass(frozen=True)
class SampleSubmission:
    """A sample submission: its species columns in order, and its rows as written."""

    species: tuple[str, ...]
    rows: dict[str, list[str]]


def read_sample_submission(path: Path) -> SampleSubmission:
    """Read header and rows.

    Raises:
        ValueError: the first column is not row_id, or the file is no UTF-8 CSV.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if header[:1] != ["row_id"]:
                raise ValueError("its first column must be row_id")
            if len(header) < 2:
                raise ValueError("it has no column for a species")
            return SampleSubmission(tuple(header[1:]), {row[0]: row[1:] for row in rows if row})
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no sample submission: {error}.") from error


Row = tuple[str, bytes]  # the id, and the whole line


class Layout:
    """Columns and rows of a submission: whose probability stands where, and which rows there are.

    The columns are the sample's, or the taxonomy's. Every segment has a row, but a trailing part
    of one only where the sample has it, if there is a sample. Rows that the sample has for a recording
    beyond those are there too.

    prior: a line behind its row id, where nothing was heard.
    remarks: what the sample asks for and the taxonomy has not, and the other way round.
    """

    def __init__(
        self, taxonomy: Taxonomy, prior: np.ndarray, segment_seconds: float, sample: SampleSubmission | None
    ) -> None:
        self.species = sample.species if sample else taxonomy.species
        self._columns = np.array([taxonomy.column.get(code, -1) for code in self.species])
        self._sample, self._seconds = sample, segment_seconds
        self.prior = self._text(prior)
        self._of_name: dict[str, list[str]] = {}
        for row_id in sample.rows if sample else ():
            self._of_name.setdefault(row_id.rpartition("_")[0], []).append(row_id)
        absent = [code for code in self.species if code not in taxonomy.column]
        unasked = [code for code in taxonomy.species if code not in {*self.species}]
        self.remarks: list[str] = []
        if absent:
            self.remarks.append(f"the run knows nothing of {', '.join(absent)}: 0 in every row")
        if unasked:
            self.remarks.append(f"not in the sample submission, left out: {', '.join(unasked)}")

    @property
    def sample_digest(self) -> str:
        """Tells one sample submission from another; "" where there is none."""
        if not self._sample:
            return ""
        return hashlib.sha256("\n".join(self._sample.rows).encode()).hexdigest()

    @property
    def header(self) -> bytes:
        """The first line."""
        return _line(["row_id", *self.species])

    def rows(
        self, recording: Recording, first_segment: int, probabilities: Float32[np.ndarray, "n k"],
        valid_samples: np.ndarray, clip_samples: int,
    ) -> list[Row]:  # fmt: skip
        """Return the rows of consecutive segments; nan where nothing was heard becomes the prior."""
        rows = []
        for place, (values, valid) in enumerate(zip(probabilities, valid_samples, strict=True)):
            row_id = recording.row_id(first_segment + place, self._seconds)
            if 0 < valid < clip_samples and self._sample and row_id not in self._sample.rows:
                continue
            rows.append((row_id, _cell(row_id) + (self.prior if np.isnan(values[0]) else self._text(values))))
        return rows

    def prior_rows(
        self, recording: Recording, written: set[str], num_segments: int, *, tail: bool
    ) -> list[Row]:
        """Return the prior for every row of a recording that is not written.

        num_segments: how many the recording has, as far as its header tells; tail: the last one is not whole.
        """
        wanted = [recording.row_id(segment, self._seconds) for segment in range(num_segments)]
        asked = self._of_name.get(recording.name, [])
        if self._sample and tail and wanted and wanted[-1] not in self._sample.rows:
            wanted.pop()
        missing = dict.fromkeys(row_id for row_id in (*wanted, *asked) if row_id not in written)
        return [(row_id, _cell(row_id) + self.prior) for row_id in missing]

    def sample_rows(self) -> list[bytes]:
        """Return the sample's rows as they are."""
        rows = self._sample.rows if self._sample else {}
        return [_line([row_id, *values]) for row_id, values in rows.items()]

    def unheard_of(self, recordings: Sequence[Recording]) -> list[bytes]:
        """Return the prior for the sample's rows of recordings that are not there."""
        known = {recording.name for recording in recordings}
        gone = [row for name, rows in self._of_name.items() if name not in known for row in rows]
        return [_cell(row_id) + self.prior for row_id in gone]

    def _text(self, probabilities: np.ndarray) -> bytes:
        values = np.where(self._columns >= 0, probabilities[self._columns], 0.0)
        return "".join(f",{value:.6g}" for value in values.tolist()).encode() + b"\n"


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode()


def _cell(text: str) -> bytes:
    return _line([text])[:-1]
