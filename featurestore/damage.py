"""What verify finds and repair mends."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Damage:
    """Something that is not as it was written.

    what: the file, array or recording. shard: the one that has to be made again, if any.
    """

    what: str
    detail: str
    shard: int | None = None


UNFINISHED = Damage("zarr.json", "an unfinished build: run the same `featurestore build` again")
