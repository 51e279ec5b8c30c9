"""Writes an array of 1,000 sparse shards, 66 GB in all, reads rows of every shard, prints what it took."""

import json
import os
import sys
from pathlib import Path

import google_crc32c
import numpy as np
import zarr

from shared.zarr_files import ZarrFiles

NUM_SHARDS, SHARD_CLIPS, ROW_BYTES = 1000, 1024, 64_000


def write(store: Path) -> None:
    """Write shards of holes, with a full index and one row of data each: its number, over and over."""
    zarr.create_array(
        store / "waveforms", shape=(NUM_SHARDS * SHARD_CLIPS, ROW_BYTES // 2), dtype="int16",
        chunks=(1, ROW_BYTES // 2), shards=(SHARD_CLIPS, ROW_BYTES // 2),
        compressors=[zarr.codecs.Crc32cCodec()], fill_value=0,
    )  # fmt: skip
    index = np.empty((SHARD_CLIPS, 2), "<u8")
    index[:, 0] = np.arange(SHARD_CLIPS) * (ROW_BYTES + 4)
    index[:, 1] = ROW_BYTES + 4
    tail = index.tobytes()
    tail += google_crc32c.value(tail).to_bytes(4, "little")
    for shard in range(NUM_SHARDS):
        path = store / "waveforms" / "c" / str(shard) / "0"
        path.parent.mkdir(parents=True)
        with path.open("wb") as file:
            row = shard % SHARD_CLIPS
            file.seek(row * (ROW_BYTES + 4))
            file.write(np.full(ROW_BYTES // 2, shard, "<i2").tobytes())
            file.seek(SHARD_CLIPS * (ROW_BYTES + 4))
            file.write(tail)


def anonymous_mb() -> float:
    """Return this process's anonymous memory: what is not a page of a file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1000


def main() -> None:
    """Write, read in random batches, print one JSON object."""
    store = Path(sys.argv[1])
    write(store)
    array = ZarrFiles(store).array("waveforms", NUM_SHARDS * SHARD_CLIPS)
    before = anonymous_mb()
    shards = np.random.default_rng(0).permutation(NUM_SHARDS)
    as_written = True
    for first in range(0, NUM_SHARDS, 64):
        some = shards[first : first + 64]
        rows = array.read(some * SHARD_CLIPS + some % SHARD_CLIPS)
        as_written &= bool((rows == some[:, None]).all())
        as_written &= not array.read(some * SHARD_CLIPS + (some + 1) % SHARD_CLIPS).any()
    facts = {
        "shards": NUM_SHARDS,
        "bytes": NUM_SHARDS * SHARD_CLIPS * (ROW_BYTES + 4),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "anonymous_mb_grown": anonymous_mb() - before,
        "rows_as_written": as_written,
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
