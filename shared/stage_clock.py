"""How long each stage of a pipeline was busy, summed over threads."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class StageClock:
    """Seconds of work by stage; waiting for another stage is not work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def measured(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def add(self, stage: str, seconds: float) -> None:
        """Add seconds to a stage."""
        with self._lock:
            self._seconds[stage] += seconds

    def seconds(self) -> dict[str, float]:
        """Return the busy seconds of every stage."""
        with self._lock:
            return dict(self._seconds)
