"""Kills builds at random moments and resumes them: nothing is lost, doubled or left over.

`python tests/campaigns/kills.py --kills 50` runs the whole campaign and prints a table; the tests
run a few kills of each kind. Children are forked from this process, which has imported everything
and computed nothing, so that a kill falls into the build and not into the start of Python.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

CONFIG = """
[clips]
sample_rate_hz = 8000
clip_seconds = 1.0
hop_seconds = 1.0
min_tail_seconds = 0.25
[mel]
n_fft = 256
hop_length = 125
num_mels = 32
fmax_hz = 4000.0
channels = "repeat"
[backbone]
name = "tf_efficientnet_lite0"
engine = "torch"
batch_clips = 4
[store]
shard_clips = 4
"""
NUM_RECORDINGS = 40


@dataclass
class Outcome:
    """What a campaign found: how the kills ended, and everything that was wrong."""

    endings: Counter[str]
    faults: list[str]

    @property
    def stopped(self) -> int:
        """How many builds a signal ended."""
        return sum(count for ending, count in self.endings.items() if ending != "exit 0")


def write_data(folder: Path) -> None:
    """Write recordings of one to four seconds, one of them unreadable, and their metadata."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    lines = ["filename,primary_label"]
    for number in range(NUM_RECORDINGS):
        samples = 0.1 * rng.standard_normal(8000 + 800 * (number % 31))
        soundfile.write(folder / "audio" / f"{number}.ogg", samples, 8000)
        lines.append(f"{number}.ogg,{'abc'[number % 3]}")
    (folder / "audio" / "7.ogg").write_bytes(b"no audio")
    (folder / "meta.csv").write_text("\n".join(lines) + "\n")
    (folder / "config.toml").write_text(CONFIG)


def change_data(folder: Path) -> None:
    """Let the first recording grow, which moves all rows; take two away with their audio; add six."""
    rng = np.random.default_rng(1)
    soundfile.write(folder / "audio" / "0.ogg", 0.1 * rng.standard_normal(8000 * 6), 8000)
    lines = (folder / "meta.csv").read_text().splitlines()
    for number in (5, NUM_RECORDINGS - 3):
        (folder / "audio" / f"{number}.ogg").unlink()
        lines = [line for line in lines if not line.startswith(f"{number}.ogg")]
    for number in range(NUM_RECORDINGS, NUM_RECORDINGS + 6):
        soundfile.write(folder / "audio" / f"{number}.ogg", 0.1 * rng.standard_normal(15000), 8000)
        lines.append(f"{number}.ogg,a")
    (folder / "meta.csv").write_text("\n".join(lines) + "\n")


def copy_store(source: Path, out: Path) -> None:
    """Copy a store in a folder or a file."""
    if source.is_dir():
        shutil.copytree(source, out)
    else:
        shutil.copy(source, out)


def digests(store: Path) -> dict[str, str]:
    """Return the sha256 of every file of a store, and of what lies beside it under its name."""
    beside = [path for path in store.parent.glob(f"*{store.name}*") if not path.name.endswith(".seen")]
    files = [path for top in beside for path in (top.rglob("*") if top.is_dir() else [top])]
    return {
        str(path.relative_to(store.parent)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file()
    }


def build(data: Path, out: Path) -> int:
    """Run `featurestore build` in this process; return its exit status."""
    from featurestore.cli import main

    arguments = ["build", "--config", data / "config.toml", "--metadata", data / "meta.csv"]
    arguments += ["--audio", data / "audio", "--out", out, "--workers", 2]
    try:
        main([str(argument) for argument in arguments], prog_name="featurestore")
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def forked(work: Callable[[], int], kill: int | None = None, after_s: float = 0.0) -> int:
    """Run `work` in a child, send it a signal after a while, return its status as the shell sees it."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        status = 70
        try:
            status = work()
        finally:
            os._exit(status)
    if kill is not None:
        time.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, kill)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def verify(store: Path) -> int:
    """Return how much of a store is damaged."""
    from featurestore.verify import verify_store

    return min(len(verify_store(store, [])), 100)


def campaign(folder: Path, suffix: str, kind: int, kills: int, seed: int, *, rebuild: bool) -> Outcome:
    """Kill `kills` builds, each at a random moment, and resume them.

    rebuild: of a store that is there already, from changed data; else from nothing.
    """
    data, base = folder / "data", folder / f"base{suffix}"
    write_data(data)
    whole = folder / f"whole{suffix}"
    if rebuild:
        assert forked(lambda: build(data, base)) == 0
        change_data(data)
        copy_store(base, whole)
    assert forked(lambda: build(data, whole)) == 0
    again = folder / "runs" / "timed" / f"s{suffix}"
    again.parent.mkdir(parents=True)
    if rebuild:
        copy_store(base, again)
    start = time.monotonic()
    assert forked(lambda: build(data, again)) == 0
    seconds = time.monotonic() - start
    expected = {name.replace("whole", "s"): digest for name, digest in digests(whole).items()}
    outcome = Outcome(Counter(), [])
    rng = np.random.default_rng(seed)
    for number in range(kills):
        out = folder / "runs" / str(number) / f"s{suffix}"
        out.parent.mkdir(parents=True)
        if rebuild:
            copy_store(base, out)
        delay = float(rng.uniform(0.3, 1.05)) * seconds
        status = forked(lambda out=out: build(data, out), kind, delay)  # type: ignore[misc]
        outcome.endings[f"exit {status}"] += 1
        where = f"{signal.Signals(kind).name} {number} after {delay:.2f} s"
        begun = out.exists() or out.with_name(f"{out.name}.parts").exists()
        if kind != signal.SIGKILL and begun and (damaged := forked(lambda out=out: verify(out))):  # type: ignore[misc]
            outcome.faults.append(f"{where}: {damaged} damaged right after it")
        if forked(lambda out=out: build(data, out)) != 0:  # type: ignore[misc]
            outcome.faults.append(f"{where}: could not be resumed")
        elif digests(out) != expected:
            odd = {*digests(out).items()} ^ {*expected.items()}
            outcome.faults.append(f"{where}: differs in {sorted({name for name, _ in odd})[:4]}")
        shutil.rmtree(out.parent)
    return outcome


def warm_up() -> None:
    """Import everything that a build needs, and compute nothing: threads do not survive a fork."""
    import featurestore.session
    import featurestore.verify
    from shared.timm_door import import_timm

    import_timm()
    assert featurestore.session
    assert featurestore.verify


def main() -> None:
    """Run the campaign and print what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--signals", nargs="+", default=["SIGKILL", "SIGTERM", "SIGINT"])
    options = parser.parse_args()
    warm_up()
    failed = False
    kinds = [signal.Signals[name] for name in options.signals]
    for rebuild, suffix, kind in itertools.product((False, True), (".zarr", ".h5"), kinds):
        with tempfile.TemporaryDirectory() as name:
            found = campaign(Path(name), suffix, kind, options.kills, options.seed, rebuild=rebuild)
        if not found.stopped:
            found.faults.append("no signal came before the build was over: nothing was tried")
        endings = ", ".join(f"{count} x {ending}" for ending, count in found.endings.items())
        what = "rebuild" if rebuild else "build"
        print(f"{what} {suffix} {kind.name}: {endings}; {len(found.faults)} faults", flush=True)
        for fault in found.faults:
            print(f"  {fault}")
        failed |= bool(found.faults)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
