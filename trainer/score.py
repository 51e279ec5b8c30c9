"""Events, and frames, against strong labels: the field's segment-based and event-based figures.

Definitions and names as in Mesaros, Heittola, Virtanen 2016, "Metrics for polyphonic sound event detection",
and in its reference implementation, sed_eval.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

EPSILON = 1e-9  # seconds: times that a computation moved by their last bits are the same


@dataclass(frozen=True)
class Counts:
    """Per class (K,): right ones, and how many there are in the truth and in the estimate."""

    right: np.ndarray
    truth: np.ndarray
    found: np.ndarray

    def table(self, name: str) -> dict[str, float]:
        """Return F1, precision and recall over all, and the mean F1 over the classes in the truth."""
        right, truth, found = (int(part.sum()) for part in (self.right, self.truth, self.found))
        own = 2 * self.right / np.maximum(self.truth + self.found, 1)
        there = self.truth > 0
        return {
            f"{name}_f1": _ratio(2 * right, truth + found),
            f"{name}_precision": _ratio(right, found),
            f"{name}_recall": _ratio(right, truth),
            f"{name}_f1_macro": float(own[there].mean()) if there.any() else float("nan"),
        }


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def segment_counts(
    truth: pd.DataFrame, found: pd.DataFrame, species: Sequence[str], seconds: float
) -> Counts:
    """Count segments of a fixed length in which a species is active, in part or throughout.

    truth, found: columns recording, species, start, stop (s).
    """
    column = {code: place for place, code in enumerate(species)}
    active = [_active_segments(table, column, seconds) for table in (truth, found)]
    both = active[0] & active[1]
    return Counts(*(_per_class(one, len(species)) for one in (both, *active)))


def _active_segments(
    table: pd.DataFrame, column: dict[str, int], seconds: float
) -> set[tuple[str, int, int]]:
    active: set[tuple[str, int, int]] = set()
    rows = zip(table["recording"], table["species"], table["start"], table["stop"], strict=True)
    for recording, code, start, stop in rows:
        first, last = int(np.floor(start / seconds + EPSILON)), int(np.ceil(stop / seconds - EPSILON))
        active.update((recording, column[code], segment) for segment in range(first, last))
    return active


def _per_class(active: set[tuple[str, int, int]], num_classes: int) -> np.ndarray:
    return np.bincount([column for _, column, _ in active], minlength=num_classes)


@dataclass(frozen=True)
class Collar:
    """How far an event may lie from the true one.

    seconds: of its start, and of its stop. share: of the true event's length, for its stop, where that is
    more; both_ends False looks at the start only.
    """

    seconds: float
    share: float = 0.5
    both_ends: bool = True


def event_counts(truth: pd.DataFrame, found: pd.DataFrame, species: Sequence[str], collar: Collar) -> Counts:
    """Count events that match a true one of their species; as many pairs as there can be, each in one."""
    right = np.zeros(len(species), np.int64)
    there = [_by_class(table) for table in (truth, found)]
    for column, code in enumerate(species):
        for recording in there[0].get(code, {}):
            pairs = there[0][code][recording], there[1].get(code, {}).get(recording)
            if pairs[1] is not None:
                right[column] += _matched(pairs[0], pairs[1], collar)
    counts = [
        table["species"].value_counts().reindex(list(species), fill_value=0) for table in (truth, found)
    ]
    return Counts(right, *(np.asarray(one, np.int64) for one in counts))


def _by_class(table: pd.DataFrame) -> dict[str, dict[str, np.ndarray]]:
    found: dict[str, dict[str, np.ndarray]] = {}
    for (code, recording), rows in table.groupby(["species", "recording"]):
        found.setdefault(str(code), {})[str(recording)] = rows[["start", "stop"]].to_numpy(float)
    return found


def _matched(truth: np.ndarray, found: np.ndarray, collar: Collar) -> int:
    """Return the size of the largest matching of true events (n, 2) and estimated ones (m, 2)."""
    fits = np.abs(truth[:, None, 0] - found[None, :, 0]) <= collar.seconds + EPSILON
    if collar.both_ends:
        allowed = np.maximum(collar.seconds, collar.share * (truth[:, 1] - truth[:, 0]))[:, None]
        fits &= np.abs(truth[:, None, 1] - found[None, :, 1]) <= allowed + EPSILON
    return int((maximum_bipartite_matching(csr_array(fits), perm_type="column") >= 0).sum())


def frame_truth(
    truth: pd.DataFrame, species: Sequence[str], num_frames: int, frame_seconds: float
) -> np.ndarray:
    """Return (m, K): 1 where a species' event covers the middle of a frame of one recording."""
    active = np.zeros((num_frames, len(species)), np.float32)
    column = {code: place for place, code in enumerate(species)}
    for code, start, stop in zip(truth["species"], truth["start"], truth["stop"], strict=True):
        if code in column:
            first = int(np.ceil(start / frame_seconds - 0.5 - EPSILON))
            last = int(np.floor(stop / frame_seconds - 0.5 + EPSILON))
            active[max(0, first) : last + 1, column[code]] = 1
    return active


def recording_keys(table: pd.DataFrame) -> pd.Series:
    """Return what recordings are known by: the path without its ending."""
    return pd.Series([Path(name).with_suffix("").as_posix() for name in table["filename"].astype(str)])
