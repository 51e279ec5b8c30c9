"""What is known of a finished shard; its presence makes the shard count."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shared.audio import Finding

Run = tuple[str, int, int]  # sha256 of the audio, first clip's start in samples, number of clips


@dataclass(frozen=True)
class Commit:
    """One shard's commit.

    rows: first row and one past the last.
    runs: what the rows are made from, in order: clips of one recording, one clip hop apart.
    files: array name to size and sha256 of the shard file.
    gain, valid_samples: per row.
    recordings: audio sha256 to what this shard found of it.
    """

    rows: tuple[int, int]
    runs: tuple[Run, ...]
    files: dict[str, dict[str, Any]]
    gain: list[float]
    valid_samples: list[int]
    recordings: dict[str, Finding]

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Commit":
        """Make a commit from its attributes: JSON knows lists where we have tuples."""
        first, stop = document["rows"]
        runs = tuple((sha256, start, count) for sha256, start, count in document["runs"])
        recordings = {
            sha256: Finding(found["status"], tuple(found["reasons"]))
            for sha256, found in document["recordings"].items()
        }
        return cls(**(document | {"rows": (first, stop), "runs": runs, "recordings": recordings}))

    def to_json(self) -> str:
        """Return the commit as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)


def first_runs(runs: tuple[Run, ...], count: int) -> tuple[Run, ...]:
    """Return the runs of the first `count` rows."""
    found: list[Run] = []
    for name, start, length in runs:
        if count <= 0:
            break
        found.append((name, start, min(length, count)))
        count -= length
    return tuple(found)


def runs_of(sha256: Sequence[str], start: np.ndarray, hop_samples: int) -> tuple[Run, ...]:
    """Return rows, given by their audio's sha256 and start, as runs of clips that follow each other."""
    runs: list[Run] = []
    for name, first in zip(sha256, start.tolist(), strict=True):
        if runs and runs[-1][0] == name and first == runs[-1][1] + runs[-1][2] * hop_samples:
            runs[-1] = (name, runs[-1][1], runs[-1][2] + 1)
        else:
            runs.append((name, first, 1))
    return tuple(runs)
