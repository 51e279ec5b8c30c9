"""What every section of the benchmark measures and shows with."""

import statistics
import time
from collections.abc import Callable

from shared.command_line import text_table

Numbers = dict[str, float]
REPEATS = 5


def median_seconds(
    works: dict[str, Callable[[], object]], before: Callable[[], object] | None = None
) -> Numbers:
    """Return each work's median wall time; taken in turns, so that a slow minute hits all alike.

    before: called before every work, not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(REPEATS + 1):
        for name, work in works.items():
            if before is not None:
                before()
            start = time.perf_counter()
            work()
            if repeat:  # the first is warm-up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print one section's table."""
    print(f"\n{title}\n{text_table(header, rows)}", flush=True)
