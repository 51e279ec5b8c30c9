"""Events: frames over their species' threshold, joined, long enough, padded."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from shared.taxonomy import Taxonomy


@dataclass(frozen=True)
class Event:
    """A species from `start` to `stop` (seconds), and its highest probability in between."""

    species: str
    start: float
    stop: float
    confidence: float


@dataclass(frozen=True, kw_only=True)
class EventRules:
    """What makes an event of frames, in seconds.

    join: gaps up to this are closed. shortest: what is shorter after that is left out. pad: is
    added on both sides last; events that then overlap are one.
    """

    join: float = 0.0
    shortest: float = 0.0
    pad: float = 0.0

    def __post_init__(self) -> None:
        if min(self.join, self.shortest, self.pad) < 0:
            raise ValueError("--event-join, --event-min and --event-pad are seconds, 0 or more.")


@dataclass
class _Run:
    start: int
    stop: int
    peak: float


class EventFinder:
    """One recording's frames, as they come, into events.

    threshold: (K,) probabilities; a frame counts from its own on.
    """

    def __init__(
        self, taxonomy: Taxonomy, threshold: np.ndarray, frame_seconds: float, rules: EventRules
    ) -> None:
        self._species, self._threshold = taxonomy.species, threshold
        self._seconds, self._rules = frame_seconds, rules
        self._open: dict[int, _Run] = {}
        self._runs: list[tuple[int, _Run]] = []

    def add(self, first_frame: int, frames: Float32[np.ndarray, "m k"]) -> None:
        """Take the next frames' probabilities."""
        above = frames >= self._threshold
        for column in np.flatnonzero(above.any(axis=0)):
            edges = np.flatnonzero(np.diff(above[:, column], prepend=False, append=False))
            for start, stop in edges.reshape(-1, 2).tolist():
                peak = float(frames[start:stop, column].max())
                self._extend(int(column), _Run(first_frame + start, first_frame + stop, peak))

    def _extend(self, column: int, run: _Run) -> None:
        before = self._open.get(column)
        if before is not None and (run.start - before.stop) * self._seconds <= self._rules.join + 1e-9:
            before.stop, before.peak = run.stop, max(before.peak, run.peak)
            return
        if before is not None:
            self._runs.append((column, before))
        self._open[column] = run

    def events(self, duration_seconds: float) -> list[Event]:
        """Return the events by start, within the recording; call it behind the last frame."""
        found: list[Event] = []
        last: dict[str, int] = {}
        for column, run in sorted(
            [*self._runs, *self._open.items()], key=lambda one: (one[1].start, one[1].stop, one[0])
        ):
            start, stop = run.start * self._seconds, min(run.stop * self._seconds, duration_seconds)
            if stop - start + 1e-9 < self._rules.shortest or stop <= start:
                continue
            start, stop = max(0.0, start - self._rules.pad), min(duration_seconds, stop + self._rules.pad)
            species = self._species[column]
            place = last.get(species)
            if place is not None and found[place].stop >= start:
                before = found[place]
                peak = max(before.confidence, run.peak)
                found[place] = Event(species, before.start, max(before.stop, stop), peak)
                continue
            last[species] = len(found)
            found.append(Event(species, start, stop, run.peak))
        return found
