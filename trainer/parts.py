"""What a prediction has done so far: rows and events of finished recordings, beside the submission."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from shared.documents import UNREADABLE
from trainer.events import Event
from trainer.recordings import Recording
from trainer.run import write_json

FORMAT = 1


@dataclass(frozen=True)
class Done:
    """A recording that is done.

    recording: its path below the audio folder; name: in front of its row ids.
    size, mtime_ns: of the file as it was begun, to tell another one.
    rows, events: where they are in their files, in bytes; num_rows: of them.
    status, reasons: what was found; seconds: how long it is.
    whole: False where time ran out before its end.
    """

    recording: str
    name: str
    size: int
    mtime_ns: int
    rows: tuple[int, int]
    num_rows: int
    events: tuple[int, int]
    status: str
    reasons: tuple[str, ...]
    seconds: float
    whole: bool = True


class Parts:
    """The folder .NAME.parts beside a submission: rows.csv, events.jsonl, and done.jsonl, written last.

    What stands behind the last whole line of done.jsonl is cut off when the folder is opened.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.with_name(f".{out.name}.parts")
        self.done: dict[str, Done] = {}
        self._files: dict[str, BinaryIO] = {}
        self._begun: dict[str, int] = {}
        self._stamp = (0, 0)

    def open(self, job: dict[str, Any], out: Path, *, overwrite: bool) -> None:
        """Begin, or go on with what was begun with the same job.

        job: everything that decides a row or an event.

        Raises:
            ValueError: what is there was begun otherwise, and is not to be overwritten.
        """
        wanted = json.loads(json.dumps({"format": FORMAT, **job}))
        known = self._known_job()
        if known != wanted:
            if known is not None and not overwrite:
                changed = sorted(key for key in {*known, *wanted} if known.get(key) != wanted.get(key))
                raise ValueError(
                    f"{out} was begun with other settings ({', '.join(changed)}); give another --out, or "
                    "begin anew with --overwrite."
                )
            if out.exists() and not overwrite:
                raise ValueError(f"{out} exists; give another --out, or replace it with --overwrite.")
            self._begin_anew(wanted)
        for name in ("rows.csv", "events.jsonl", "done.jsonl"):
            (self.folder / name).touch()
            self._files[name] = (self.folder / name).open("r+b")
        self._read_done()

    def _begin_anew(self, job: dict[str, Any]) -> None:
        """Forget everything; what a job that cannot be read has left is nobody's."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        write_json(self.folder / "job.json", job)

    def _known_job(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        except UNREADABLE:  # none, or the machine died while it was written: nothing can be used
            return None
        return found if isinstance(found, dict) else None

    def _read_done(self) -> None:
        """Read what is done; cut off what a kill left behind it."""
        index = self._files["done.jsonl"]
        end = {"rows.csv": 0, "events.jsonl": 0, "done.jsonl": 0}
        size = {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}
        for line in index:
            try:
                given: dict[str, Any] = json.loads(line)
                lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
                one = Done(**{**given, **lists})
                fits = one.rows[1] <= size["rows.csv"] and one.events[1] <= size["events.jsonl"]
            except UNREADABLE:
                break
            if not fits or not line.endswith(b"\n"):
                break
            self.done[one.recording] = one
            end = {"rows.csv": one.rows[1], "events.jsonl": one.events[1], "done.jsonl": index.tell()}
        for name, file in self._files.items():
            file.truncate(end[name])
            file.seek(end[name])

    def knows(self, recording: Recording) -> bool:
        """Tell whether this file is done, whole, readable and still the same."""
        one = self.done.get(recording.relative)
        if one is None or not one.whole or one.status == "unreadable" or one.name != recording.name:
            return False
        return (one.size, one.mtime_ns) == _stamp(recording.path)

    def begin(self, recording: Recording) -> None:
        """Note where the next recording's rows and events begin, and which file it is."""
        self._stamp = _stamp(recording.path)
        self._begun = {name: self._files[name].tell() for name in ("rows.csv", "events.jsonl")}

    def add_rows(self, rows: bytes) -> None:
        """Append lines of the recording that was begun."""
        self._files["rows.csv"].write(rows)

    def finish(
        self, recording: Recording, events: list[Event], num_rows: int, status: str,
        reasons: tuple[str, ...], seconds: float, *, whole: bool,
    ) -> None:  # fmt: skip
        """Make the recording that was begun a done one, on the disk before it returns."""
        for event in events:
            line = json.dumps([event.species, event.start, event.stop, event.confidence])
            self._files["events.jsonl"].write(line.encode() + b"\n")
        ranges = {name: (start, self._files[name].tell()) for name, start in self._begun.items()}
        for name in ranges:
            _sync(self._files[name])
        one = Done(
            recording.relative, recording.name, *self._stamp, ranges["rows.csv"], num_rows,
            ranges["events.jsonl"], status, reasons, seconds, whole,
        )  # fmt: skip
        self._files["done.jsonl"].write(json.dumps(asdict(one)).encode() + b"\n")
        _sync(self._files["done.jsonl"])
        self.done[recording.relative] = one

    def rows_of(self, recording: Recording) -> Iterator[bytes]:
        """Yield the lines of a recording that is done."""
        self._files["rows.csv"].flush()
        yield from self._read("rows.csv", self.done[recording.relative].rows)

    def events_of(self, recording: Recording) -> list[Event]:
        """Return the events of a recording; none where it is not done."""
        one = self.done.get(recording.relative)
        if one is None:
            return []
        self._files["events.jsonl"].flush()
        lines = b"".join(self._read("events.jsonl", one.events)).splitlines()
        return [Event(*json.loads(line)) for line in lines]

    def _read(self, name: str, span: tuple[int, int], block: int = 1 << 20) -> Iterator[bytes]:
        with (self.folder / name).open("rb") as file:
            file.seek(span[0])
            left = span[1] - span[0]
            while left and (found := file.read(min(block, left))):
                left -= len(found)
                yield found

    def close(self) -> None:
        """Close the files; what was not finished is cut off by the next `open`."""
        for file in self._files.values():
            file.close()


def _stamp(path: Path) -> tuple[int, int]:
    """Return size and time of a file, zeros where it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
