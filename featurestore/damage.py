"""What verify finds and repair mends."""

from dataclasses import dataclass

# What reading damaged bytes may raise, in libraries that expect sound ones.
UNREADABLE = (ValueError, KeyError, TypeError, IndexError, OSError, RuntimeError, LookupError)


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    what: the file, array or recording. shard: the one that has to be made again, if any.
    """

    what: str
    detail: str
    shard: int | None = None
