"""What the two command lines have in common: errors in one line, exit status 2, tables."""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import click

P = ParamSpec("P")
R = TypeVar("R")

SET_HELP = "Override one config value, as in --set fit.epochs=3. May be repeated."


class UserError(click.ClickException):
    """A mistake of the user's: shown as one line, exit status 2."""

    exit_code = 2


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn ValueError and OSError of a command into a line on the screen and exit status 2."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise UserError(str(error)) from error

    return wrapped


@contextmanager
def stoppable_exit() -> Iterator[None]:
    """End with the status that shells expect of a program that a signal stopped."""
    from shared.stopping import Stopped

    try:
        yield
    except Stopped as stopped:
        sys.exit(stopped.exit_status)


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return rows as aligned columns: the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [
            row[0].ljust(widths[0]),
            *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def size_text(num_bytes: float) -> str:
    """Return a number of bytes for people, as in 3.1 GB (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
