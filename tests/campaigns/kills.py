"""Kills builds at random moments and resumes them: nothing is lost, doubled or left over.

`python tests/campaigns/kills.py --kills 50` runs the whole campaign and prints a table; the tests
run a few kills of each kind. Children are forked from this process, which has imported everything
and computed nothing, so that a kill falls into the build and not into the start of Python.
"""

import argparse
import contextlib
import hashlib
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


def campaign(folder: Path, suffix: str, kind: int, kills: int, seed: int) -> Outcome:
    """Kill `kills` builds, each at a random moment, and resume them."""
    data = folder / "data"
    if not data.exists():
        write_data(data)
    whole = folder / f"whole{suffix}"
    shutil.rmtree(folder / "runs", ignore_errors=True)
    assert forked(lambda: build(data, whole)) == 0
    again = folder / "runs" / "timed" / f"s{suffix}"
    again.parent.mkdir(parents=True)
    start = time.monotonic()
    assert forked(lambda: build(data, again)) == 0
    seconds = time.monotonic() - start
    expected = {name.replace("whole", "s"): digest for name, digest in digests(whole).items()}
    outcome = Outcome(Counter(), [])
    rng = np.random.default_rng(seed)
    for number in range(kills):
        out = folder / "runs" / str(number) / f"s{suffix}"
        out.parent.mkdir(parents=True)
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
    for path in folder.glob(f"*whole{suffix}*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
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
    with tempfile.TemporaryDirectory() as name:
        for suffix in (".zarr", ".h5"):
            for kind in (signal.Signals[name] for name in options.signals):
                found = campaign(Path(name), suffix, kind, options.kills, options.seed)
                endings = ", ".join(f"{count} x {ending}" for ending, count in found.endings.items())
                print(f"{suffix} {kind.name}: {endings}; {len(found.faults)} faults", flush=True)
                for fault in found.faults:
                    print(f"  {fault}")
                failed |= bool(found.faults)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
