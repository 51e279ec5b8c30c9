"""Ctrl-C and SIGTERM: the work stops between two batches, what is done is kept.

An exception that a signal handler raises can come between any two instructions, and no code is
right at every one of them. So while a store is being written a signal only leaves a note, and
the loop looks at it where stopping is safe.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """The program was asked to stop; `exit_status` is what shells expect of it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped in the main thread as soon as SIGINT or SIGTERM comes: nothing is half done yet."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handling(stop):
        yield


@contextmanager
def stopping_only_at(where: str) -> Iterator[Callable[[], None]]:
    """Note SIGINT and SIGTERM, and yield the function that raises Stopped if one came.

    where: what is finished first, for the line that tells the user. A signal that came after the
    last look raises Stopped on the way out, unless another exception is on its way.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if not came:
            with suppress(OSError):
                os.write(2, f"\nstopping {where} ..\n".encode())  # print could be interrupted itself
        came.append(number)

    def look() -> None:
        if came:
            raise Stopped(came[0])

    with _handling(note):
        yield look
    look()


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    """Have a handler for both signals, and restore those before it behind."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
