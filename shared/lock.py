"""One build at a time: a lock beside the store that names its holder and dies with it."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(store: Path, *, break_lock: bool = False) -> Iterator[None]:
    """Hold the store's lock.

    The system drops the lock when its process dies, however it dies, so one left behind on this
    host is taken over. A lock file of another host (on a shared disk, where locks may not reach)
    is only taken with `break_lock`.

    Raises:
        ValueError: someone else holds it; names who.
    """
    real = store.resolve()  # one lock for a store, by whichever name
    path = real.with_name(f".{real.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _locked_file(path, store)
    except PermissionError as error:
        raise ValueError(f"{path.parent} cannot be written to ({error}); choose another place.") from error
    try:
        holder = _holder(descriptor)
        if holder.get("host", socket.gethostname()) != socket.gethostname() and not break_lock:
            raise ValueError(
                f"{store} is locked by {_name(holder)}. If that is no longer running, use --break-lock."
            )
        mine = json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode()
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, mine, 0)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _locked_file(path: Path, store: Path) -> int:
    """Open and lock the file; again where its last holder removed it in between."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            name = _name(_holder(descriptor))
            os.close(descriptor)
            raise ValueError(f"{store} is being worked on by {name}; wait for it, or stop it.") from error
        if path.exists() and path.stat().st_ino == os.fstat(descriptor).st_ino:
            return descriptor
        os.close(descriptor)


def _holder(descriptor: int) -> dict[str, object]:
    try:
        found = json.loads(os.pread(descriptor, 4096, 0))
    except ValueError:  # just made, or the machine died while it was written
        return {}
    return found if isinstance(found, dict) else {}


def _name(holder: dict[str, object]) -> str:
    if not holder:
        return "another process"
    return f"process {holder.get('process')} on host {holder.get('host')}"
