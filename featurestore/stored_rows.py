"""Rows that a store has committed already, found by their cause: audio sha256 and start."""

from dataclasses import dataclass

import numpy as np

from shared.audio import Finding
from shared.clip_array import ClipArray
from shared.commit import Commit
from shared.store_writer import StoreWriter
from shared.zarr_files import MAX_MAPPED_SHARDS


@dataclass(frozen=True)
class StoredRow:
    """A committed row: its number, and what its commit says of it."""

    row: int
    gain: float
    valid_samples: int
    finding: Finding


class StoredRows:
    """The rows of the shards that are about to be made again, so that nothing known is computed twice.

    Their files are mapped before anything is replaced: a mapped file stays readable.
    """

    def __init__(self, commits: dict[int, Commit], shard_clips: int, hop_samples: int) -> None:
        self._commits, self._shard_clips, self._hop_samples = commits, shard_clips, hop_samples
        self._runs: dict[str, list[tuple[int, int, int]]] = {}
        self._arrays: dict[str, ClipArray] = {}
        for commit in commits.values():
            row = commit.rows[0]
            for sha256, start, count in commit.runs:
                self._runs.setdefault(sha256, []).append((start, count, row))
                row += count

    @classmethod
    def none(cls) -> "StoredRows":
        """Return no rows."""
        return cls({}, 1, 1)

    @classmethod
    def of(cls, writer: StoreWriter, commits: dict[int, Commit], hop_samples: int) -> "StoredRows":
        """Return the rows of these shards; none where not all can be held while they are replaced."""
        num_rows = max((commit.rows[1] for commit in commits.values()), default=0)
        arrays = {name: writer.files.array(name, num_rows) for name in writer.arrays if num_rows}
        if len(commits) > MAX_MAPPED_SHARDS or not all(array.is_mapped for array in arrays.values()):
            return cls.none()
        rows = cls(commits, writer.shard_clips, hop_samples)
        rows._arrays = arrays
        for array in arrays.values():
            array.read(np.array([commit.rows[0] for commit in commits.values()], np.int64))
        return rows

    @property
    def can_be_read(self) -> bool:
        """Whether there is anything to read from."""
        return bool(self._arrays)

    def find(self, sha256: str, start: int) -> StoredRow | None:
        """Return the row made from these samples, None where there is none."""
        for first, count, row in self._runs.get(sha256, ()):
            place, rest = divmod(start - first, self._hop_samples)
            if 0 <= place < count and not rest:
                number = row + place
                commit = self._commits[number // self._shard_clips]
                local = number - commit.rows[0]
                finding = commit.recordings[sha256]
                return StoredRow(number, commit.gain[local], commit.valid_samples[local], finding)
        return None

    def has(self, name: str) -> bool:
        """Tell whether there is such an array to read from."""
        return name in self._arrays

    def read(self, name: str, rows: list[int]) -> np.ndarray:
        """Return these rows of an array."""
        return self._arrays[name].read(np.array(rows, np.int64))
