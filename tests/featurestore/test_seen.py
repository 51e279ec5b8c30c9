import os
import time
from pathlib import Path

import pytest

from featurestore.seen import RECENT_S, SeenFiles
from shared.audio import AudioHeader

HEADER = AudioHeader(8000, 8000)


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    return path


def test_a_file_of_the_same_size_and_time_is_known_in_the_next_build(tmp_path: Path, old_file: Path) -> None:
    first = SeenFiles(tmp_path / "seen")
    assert first.find(old_file) is None
    first.note(old_file, HEADER, "abc")
    first.close()
    second = SeenFiles(tmp_path / "seen")
    assert second.find(old_file) == (HEADER, "abc")
    assert second.find(tmp_path / "nowhere.wav") is None
    second.close()


@pytest.mark.parametrize("change", ["size", "time"])
def test_a_changed_file_is_not_known(tmp_path: Path, old_file: Path, change: str) -> None:
    seen = SeenFiles(tmp_path / "seen")
    seen.note(old_file, HEADER, "abc")
    stat = old_file.stat()
    if change == "size":
        old_file.write_bytes(b"sounds")
        os.utime(old_file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    else:
        os.utime(old_file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert seen.find(old_file) is None
    seen.close()


def test_a_file_that_changed_just_now_is_not_noted(tmp_path: Path) -> None:
    """It may change once more within the clock's resolution, at the same size."""
    path = tmp_path / "new.wav"
    path.write_bytes(b"sound")
    assert time.time() - path.stat().st_mtime < RECENT_S
    seen = SeenFiles(tmp_path / "seen")
    seen.note(path, HEADER, "abc")
    assert seen.find(path) is None
    seen.close()


def test_a_damaged_database_is_made_anew(tmp_path: Path, old_file: Path) -> None:
    (tmp_path / "seen").write_bytes(b"no database at all" * 100)
    seen = SeenFiles(tmp_path / "seen")
    assert seen.find(old_file) is None
    seen.note(old_file, HEADER, "abc")
    assert seen.find(old_file) == (HEADER, "abc")
    seen.close()
