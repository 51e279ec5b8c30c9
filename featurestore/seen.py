"""What was read of audio files before: a file of the same size and time stamp is not hashed again."""

import sqlite3
import time
from pathlib import Path
from typing import Any

from shared.audio import AudioHeader

RECENT_S = 3.0  # a file changed this recently may change again within the clock's resolution
SAVE_EVERY = 256


class SeenFiles:
    """A small database beside the store; losing it costs reading the files once more.

    Keys are the files' absolute paths. Used from one thread; `find` and `note` per file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._database = sqlite3.connect(":memory:")
        try:
            self._reopen(path)
        except sqlite3.DatabaseError:
            self._begin_anew()
        self._unsaved = 0

    def _begin_anew(self) -> None:
        """Forget everything; without a place on the disk, remember in memory only."""
        try:
            self._path.unlink(missing_ok=True)
            self._reopen(self._path)
        except (OSError, sqlite3.DatabaseError):
            self._reopen(Path(":memory:"))

    def _tried(self, statement: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        """Return what a statement finds; nothing, and a new database, where this one is damaged."""
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.DatabaseError:
            self._begin_anew()
            return []

    def _reopen(self, path: Path) -> None:
        self._database.close()
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY, num_bytes INTEGER, changed_ns INTEGER,"
            " num_frames INTEGER, sample_rate_hz INTEGER, sha256 TEXT)"
        )

    def find(self, path: Path) -> tuple[AudioHeader, str] | None:
        """Return header and sha256 of a file that has not changed since it was noted."""
        try:
            stat = path.stat()
        except OSError:
            return None
        found = self._tried(
            "SELECT num_frames, sample_rate_hz, sha256 FROM seen"
            " WHERE path = ? AND num_bytes = ? AND changed_ns = ?",
            (str(path.absolute()), stat.st_size, stat.st_mtime_ns),
        )
        row = found[0] if found else None
        return (AudioHeader(row[0], row[1]), str(row[2])) if row else None

    def note(self, path: Path, header: AudioHeader, sha256: str) -> None:
        """Remember what was read of a file."""
        stat = path.stat()
        if time.time() - stat.st_mtime < RECENT_S:
            return
        row = (
            str(path.absolute()), stat.st_size, stat.st_mtime_ns,
            header.num_frames, header.sample_rate_hz, sha256,
        )  # fmt: skip
        self._tried("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?, ?)", row)
        self._unsaved += 1
        if self._unsaved >= SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write to the disk."""
        try:
            self._database.commit()
        except sqlite3.DatabaseError:
            self._begin_anew()
        self._unsaved = 0

    def close(self) -> None:
        """Write to the disk and close."""
        self.save()
        self._database.close()


def seen_path(store: Path) -> Path:
    """Return where a store's database lies: beside it, hidden."""
    return store.with_name(f".{store.name}.seen")
