"""Rows that a store has committed already, found by their cause: audio sha256 and start."""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from shared.audio import Finding
from shared.clip_array import ClipArray
from shared.commit import Commit
from shared.store_writer import StoreWriter
from shared.zarr_files import ZarrFiles


@dataclass(frozen=True)
class StoredRow:
    """A committed row: where it is, and what its commit says of it."""

    generation: int
    row: int
    gain: float
    valid_samples: int
    finding: Finding


@dataclass(frozen=True)
class _Generation:
    """Shards that belong together: those in place, or those that they replaced."""

    commits: dict[int, Commit]
    arrays: dict[str, ClipArray]

    @classmethod
    def of(cls, files: ZarrFiles, names: list[str], commits: dict[int, Commit]) -> "_Generation | None":
        """Return them with their files mapped; None where they cannot be."""
        num_rows = max((commit.rows[1] for commit in commits.values()), default=0)
        arrays = {name: files.array(name, num_rows) for name in names if num_rows}
        if len(commits) > files.max_mapped() or not all(array.is_mapped for array in arrays.values()):
            return None
        for array in arrays.values():
            array.read(np.array([commit.rows[0] for commit in commits.values()], np.int64))
        return cls(commits, arrays)


class StoredRows:
    """The rows of the shards that are about to be made again, so that nothing known is computed twice.

    Their files are mapped before anything is replaced: a mapped file stays readable.
    """

    def __init__(self, generations: list[_Generation], shard_clips: int, hop_samples: int) -> None:
        self._generations, self._shard_clips, self._hop_samples = generations, shard_clips, hop_samples
        self._runs: dict[str, list[tuple[int, int, int, int]]] = {}
        for number, generation in enumerate(generations):
            for commit in generation.commits.values():
                row = commit.rows[0]
                for sha256, start, count in commit.runs:
                    self._runs.setdefault(sha256, []).append((start, count, row, number))
                    row += count

    @classmethod
    def none(cls) -> "StoredRows":
        """Return no rows."""
        return cls([], 1, 1)

    @classmethod
    def of(cls, writer: StoreWriter, commits: dict[int, Commit], hop_samples: int) -> "StoredRows":
        """Return the rows of these shards, and of those that a killed build replaced.

        None at all where not all can be held while they are replaced.
        """
        names, old = list(writer.arrays), writer.old_files
        generations = [
            _Generation.of(writer.files, names, commits),
            _Generation.of(old, names, _old_commits(writer)),
        ]
        found = [generation for generation in generations if generation is not None]
        return cls(found, writer.shard_clips, hop_samples) if len(found) == len(generations) else cls.none()

    @property
    def can_be_read(self) -> bool:
        """Whether there is anything to read from."""
        return any(generation.arrays for generation in self._generations)

    def find(self, sha256: str, start: int) -> StoredRow | None:
        """Return the row made from these samples, None where there is none."""
        for first, count, row, generation in self._runs.get(sha256, ()):
            place, rest = divmod(start - first, self._hop_samples)
            if 0 <= place < count and not rest:
                number = row + place
                commit = self._generations[generation].commits[number // self._shard_clips]
                local = number - commit.rows[0]
                finding = commit.recordings[sha256]
                return StoredRow(generation, number, commit.gain[local], commit.valid_samples[local], finding)
        return None

    def has(self, name: str) -> bool:
        """Tell whether there is such an array to read from."""
        return any(name in generation.arrays for generation in self._generations)

    def read(self, name: str, rows: list[StoredRow]) -> np.ndarray:
        """Return these rows of an array."""
        parts = [
            self._generations[row.generation].arrays[name].read(np.array([row.row], np.int64)) for row in rows
        ]
        return np.concatenate(parts)


def _old_commits(writer: StoreWriter) -> dict[int, Commit]:
    """Return the commits of replaced shards whose files are all there."""
    files, found = writer.old_files, {}
    for document in sorted(files.path.glob("commits/*/zarr.json")):
        shard = int(document.parent.name)
        shapes = {name: spec.row_shape for name, spec in writer.arrays.items()}
        if all(files.shard_file(name, shard, shape).is_file() for name, shape in shapes.items()):
            with suppress(ValueError):  # a damaged commit names nothing
                commit = files.commit(shard)
                if commit is not None:
                    found[shard] = commit
    return found
