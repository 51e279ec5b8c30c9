"""What every section of the benchmark measures and shows with."""

import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from shared.command_line import text_table

Numbers = dict[str, float]
REPEATS = 5


def median_seconds(
    works: dict[str, Callable[[], object]],
    before: Callable[[], object] | None = None,
    *,
    repeats: int = REPEATS,
) -> Numbers:
    """Return each work's median wall time; taken in turns, so that a slow minute hits all alike.

    before: called before every work, not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            if before is not None:
                before()
            start = time.perf_counter()
            work()
            if repeat:  # the first is warm-up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def cpu_seconds_each(works: dict[str, tuple[Callable[[], object], int]]) -> Numbers:
    """Return each work's CPU seconds per clip, the median of five; with every work, how many it does."""
    found = {}
    for stage, (work, num_clips) in works.items():
        work()
        times = []
        for _ in range(REPEATS):
            used = time.process_time()
            work()
            times.append((time.process_time() - used) / num_clips)
        found[stage] = statistics.median(times)
    return found


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print one section's table."""
    print(f"\n{title}\n{text_table(header, rows)}", flush=True)


def peak_anonymous_mb(command: Sequence[str]) -> float:
    """Watch RssAnon of a program while it runs: page cache and mapped files do not count."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    peak = 0
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]))
        time.sleep(0.05)
    assert child.wait() == 0, child.stderr.read() if child.stderr else ""
    return peak / 1000
