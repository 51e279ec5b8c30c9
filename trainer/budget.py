"""Minutes that a prediction may take: how fast it goes, and what has to be left out to be done in time."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from trainer.predict import Level, Piece

SAFETY = 0.93  # of the time that is left; recordings differ
ENOUGH_WINDOWS = 64  # before them a rate is chance


class Budget:
    """Levels from the fullest to the least, and at every moment the one that time allows.

    lengths: samples of every recording; cost: what a window costs at each level, in any unit. It goes down
        the levels and never up again, and keeps what it said.
    """

    def __init__(
        self, seconds: float, levels: Sequence[Level], lengths: Sequence[int], sample_rate_hz: int,
        cost: Callable[[Level], float], began: float, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._levels, self._cost, self._clock = levels, cost, clock
        self._seconds, self._end, self._rate = seconds, began + seconds, sample_rate_hz
        self._lengths = np.asarray(lengths, np.int64)
        self._rest = self._lengths.copy()  # samples that no window was made of yet
        self._started: float | None = None
        self._done: dict[Level, int] = {}
        self._in_flight: dict[int, int] = {}  # windows of a recording that are decoded and not yet done
        self._place = 0
        self._lock = threading.Lock()
        self.said: list[str] = []
        self.reserve_seconds = 0.0

    def level(self, number: int, start: int, num_windows: int) -> Level:
        """Return what to spend on a recording from sample `start` on; called from any thread.

        num_windows: how many were made of it since this was asked last.
        """
        with self._lock:
            if self._started is None:
                self._started = self._clock()
            self._in_flight[number] = self._in_flight.get(number, 0) + num_windows
            self._rest[number] = max(0, int(self._lengths[number]) - start)
            while self._place + 1 < len(self._levels) and self._is_too_slow():
                self._place += 1
                self.said.append(self._shed_line(number, start))
            return self._levels[self._place]

    def note(self, piece: Piece) -> None:
        """Count windows that are done."""
        with self._lock:
            self._done[piece.level] = self._done.get(piece.level, 0) + piece.num_windows
            self._in_flight[piece.number] = self._in_flight.get(piece.number, 0) - piece.num_windows
            if piece.finding is not None:
                self._rest[piece.number] = 0
                del self._in_flight[piece.number]

    def is_over(self) -> bool:
        """Tell whether there is only the time left that writing the end takes."""
        return self._clock() > self._end - self.reserve_seconds

    def _is_too_slow(self) -> bool:
        """Tell whether the rest at this level would take longer than there is; False while unknown."""
        if sum(self._done.values()) < ENOUGH_WINDOWS or self._started is None:
            return False
        now = self._clock()
        done = sum(num * self._cost(level) for level, num in self._done.items())
        rate = (now - self._started) / done
        here = self._levels[self._place]
        num_windows = int(np.ceil(self._rest / here.hop_samples).sum())
        num_windows += max(0, sum(self._in_flight.values()))
        rest = num_windows * self._cost(here) * rate
        return rest > SAFETY * (self._end - self.reserve_seconds - now)

    def _shed_line(self, number: int, start: int) -> str:
        before, after = self._levels[self._place - 1], self._levels[self._place]
        what = (
            "windows no longer overlap"
            if after.hop_samples != before.hop_samples
            else f"{after.num_scorers} of {self._levels[0].num_scorers} backbones"
        )
        where = f"recording {number + 1} of {len(self._lengths)}"
        if start:
            where += f", {start / self._rate:.0f} s,"
        return f"to be done within {self._seconds / 60:g} minutes, from {where} on: {what}"


def levels_from(full: Level, clip_samples: int) -> list[Level]:
    """Return the full level, that without overlap, then with one scorer less each."""
    levels = [full]
    if full.hop_samples < clip_samples:
        levels.append(Level(clip_samples, full.num_scorers))
    levels += [Level(clip_samples, num) for num in range(full.num_scorers - 1, 0, -1)]
    return levels
