"""What may come between: kills, signals, a full disk, a lost file, another build, a reader."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from featurestore.verify import verify_store
from shared.audio import ClipDecoder
from shared.embedder import Embedder
from shared.lock import locked
from shared.store import FeatureStore

BuildTiny = Callable[..., Path]
Run = Callable[..., object]
CAMPAIGN = Path(__file__).parent.parent / "campaigns" / "kills.py"


def test_kills_at_random_moments_lose_and_double_nothing() -> None:
    """Five of each kind in both containers, from nothing and over a store; the campaign is --kills 50."""
    command = [sys.executable, str(CAMPAIGN), "--kills", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 faults") == 12


@pytest.mark.parametrize("name", ["tiny.zarr", "tiny.h5"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_build_soon_and_leaves_a_sound_store(
    build_tiny: BuildTiny, monkeypatch: pytest.MonkeyPatch, name: str, number: signal.Signals
) -> None:
    """Long before the end, with what is finished, and the status that shells expect."""
    embed, calls = Embedder.embed, []

    def embed_slowly(self: Embedder, waveforms: np.ndarray) -> object:
        calls.append(len(waveforms))
        if len(calls) == 4:
            os.kill(os.getpid(), number)
        time.sleep(0.2)
        return embed(self, waveforms)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", embed_slowly)
        path = build_tiny(name, "--workers", 2, status=128 + number)
    store = FeatureStore(path)
    assert store.num_rows < 24
    assert store.num_rows % 8 == 0
    assert any("stopped:" in problem for problem in store.attributes["problems"])
    assert verify_store(path, []) == []
    assert FeatureStore(build_tiny(name)).num_rows == 33


def test_a_second_build_stops_at_once_and_names_the_first(build_tiny: BuildTiny, tmp_path: Path) -> None:
    with locked(tmp_path / "tiny.zarr"):
        build_tiny(status=2)
        with (
            pytest.raises(ValueError, match=f"worked on by process {os.getpid()} on host"),
            locked(tmp_path / "tiny.zarr"),
        ):
            pass
    assert not (tmp_path / "tiny.zarr").exists()
    build_tiny()


def test_a_dead_process_of_this_host_leaves_no_lock_and_another_hosts_must_be_broken(
    build_tiny: BuildTiny, tmp_path: Path
) -> None:
    path = tmp_path / ".tiny.zarr.lock"
    path.write_text(json.dumps({"host": socket.gethostname(), "process": 2**22 - 1}))
    build_tiny()
    assert not path.exists()
    path.write_text(json.dumps({"host": "elsewhere", "process": 1}))
    build_tiny(status=2)
    build_tiny("tiny.zarr", "--break-lock")
    assert not path.exists()


@pytest.mark.parametrize("name", ["tiny.zarr", "tiny.h5"])
def test_a_full_disk_is_one_line_and_the_build_goes_on_when_there_is_room(
    build_tiny: BuildTiny, name: str
) -> None:
    """A limit on the size of a file stands for the full disk: the write fails in the same place."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        build_tiny(name, status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert verify_store(build_tiny(name), []) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to be")
def test_a_folder_that_cannot_be_written_to_is_one_line(
    build_tiny: BuildTiny, tiny_data: Path, tmp_path: Path
) -> None:
    """Root may write anywhere: be nobody for a while, with everything imported already."""
    build_tiny("warm.zarr")
    for folder in (tmp_path, *tmp_path.parents[:3], tiny_data):
        folder.chmod(folder.stat().st_mode | 0o055)
    (tmp_path / "closed").mkdir(mode=0o555)
    os.seteuid(65534)
    try:
        build_tiny("closed/tiny.zarr", status=2)
    finally:
        os.seteuid(0)
    assert not list((tmp_path / "closed").iterdir())


def test_a_file_that_disappears_in_mid_build_is_named_and_nothing_else_is_lost(
    build_tiny: BuildTiny, tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tiny_data / "audio" / "high" / "XC108.wav"
    decode = ClipDecoder.__iter__

    def vanish(self: ClipDecoder) -> object:
        victim.unlink(missing_ok=True)
        return decode(self)

    monkeypatch.setattr(ClipDecoder, "__iter__", vanish)
    store = FeatureStore(build_tiny())
    assert list(store.recordings["filename"][store.recordings["status"] != "ok"]) == ["high/XC108.wav"]
    assert verify_store(store.path, []) == []


def test_a_reader_sees_a_consistent_store_while_a_build_appends(
    build_tiny: BuildTiny, tiny_data: Path
) -> None:
    table = pd.read_csv(tiny_data / "metadata.csv", keep_default_na=False)
    table[:4].to_csv(tiny_data / "metadata.csv", index=False)
    path = build_tiny()
    first = FeatureStore(path)
    assert first.waveforms is not None
    truth = first.waveforms.read(np.arange(first.num_rows))
    faults: list[str] = []
    sizes: set[int] = set()
    stop = threading.Event()

    def train() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            store = FeatureStore(path)
            assert store.waveforms is not None
            sizes.add(store.num_rows)
            rows = rng.integers(0, len(truth), 16)
            for reader in (first, store):
                assert reader.waveforms is not None
                if not np.array_equal(reader.waveforms.read(rows), truth[rows]):
                    faults.append("other samples")
            last = store.waveforms.read(np.arange(store.num_rows - 1, store.num_rows))
            if not last.any() or store.maps.read(np.array([store.num_rows - 1])).shape[0] != 1:
                faults.append("an empty last row")

    reader = threading.Thread(target=train)
    reader.start()
    try:
        for count in (6, 9, 12):
            table[:count].to_csv(tiny_data / "metadata.csv", index=False)
            build_tiny()
    finally:
        stop.set()
        reader.join()
    assert not faults
    assert len(sizes) >= 2
    assert FeatureStore(path).num_rows > first.num_rows


def test_a_thousand_shards_larger_than_memory_are_read_with_few_descriptors(tmp_path: Path) -> None:
    """Sparse files: a store of 66 GB that takes a few MB of disk, read under `ulimit -n 256`."""
    script = Path(__file__).parent.parent / "campaigns" / "huge_store.py"
    command = ["bash", "-c", f"ulimit -n 256; exec {sys.executable} {script} {tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(done.stdout)
    assert facts["shards"] == 1000
    assert facts["bytes"] > 60e9
    assert facts["descriptors"] < 64
    assert facts["anonymous_mb_grown"] < 200
    assert facts["rows_as_written"]
