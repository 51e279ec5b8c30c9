"""One shard file of a Zarr v3 array: written as a stream, read by mapping it.

The standard `sharding_indexed` codec with one row per inner chunk, inner codecs bytes (little
endian) and crc32c, and the index (offset and length of every chunk, then its own crc32c) at the
end of the file. Any Zarr v3 reader opens it.
"""

import hashlib
import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np

ABSENT = 2**64 - 1  # offset and length of a chunk that was left out: all fill value
CRC_BYTES = 4


@dataclass(frozen=True)
class ShardDigest:
    """Size and sha256 of a finished shard file."""

    num_bytes: int
    sha256: str


class ShardWriter:
    """Streams rows into `path`; `finish` adds the index and makes the file durable."""

    def __init__(self, path: Path, *, shard_clips: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("wb")
        self._sha256 = hashlib.sha256()
        self._index = np.full((shard_clips, 2), ABSENT, dtype="<u8")
        self._num_rows = 0
        self._num_bytes = 0

    def append(self, rows: np.ndarray) -> None:
        """Write rows (n, ...) after those already there; chunk = row bytes and their crc32c."""
        little = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
        for row in little:
            chunk = np.ascontiguousarray(row).tobytes()
            self._index[self._num_rows] = (self._num_bytes, len(chunk) + CRC_BYTES)
            self._num_rows += 1
            self._write(chunk + struct.pack("<I", google_crc32c.value(chunk)))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._num_bytes += len(data)

    def finish(self) -> ShardDigest:
        """Write the index, flush to the disk, close."""
        index = self._index.tobytes()
        self._write(index + struct.pack("<I", google_crc32c.value(index)))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return ShardDigest(self._num_bytes, self._sha256.hexdigest())

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class MappedShard:
    """A shard file mapped into memory; rows are read at the offsets of its own index."""

    def __init__(self, path: Path, *, shard_clips: int, row_shape: tuple[int, ...], dtype: np.dtype) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        index_bytes = 16 * shard_clips
        if len(self._map) < index_bytes + CRC_BYTES:
            raise ValueError(f"{path} is shorter than its index: the shard is damaged.")
        tail = self._map[-index_bytes - CRC_BYTES :]
        if struct.unpack("<I", tail[index_bytes:])[0] != google_crc32c.value(tail[:index_bytes]):
            raise ValueError(f"{path}: the index does not match its checksum; the shard is damaged.")
        index = np.frombuffer(tail[:index_bytes], dtype="<u8").reshape(shard_clips, 2)
        self._present = index[:, 0] != ABSENT
        self._offsets = index[:, 0].astype(np.int64)
        self._row_shape, self._dtype = row_shape, dtype
        self._dense = self._strided_view()

    def _strided_view(self) -> np.ndarray | None:
        """Return all rows as one array (rows, ...) where they lie one after the other."""
        row_bytes = int(np.prod(self._row_shape)) * self._dtype.itemsize
        num_rows = int(self._present.sum())
        in_line = np.arange(num_rows, dtype=np.int64) * (row_bytes + CRC_BYTES)
        if not self._present[:num_rows].all() or (self._offsets[:num_rows] != in_line).any():
            return None
        flat = np.ndarray((num_rows, *self._row_shape), self._dtype, self._map, strides=None)
        strides = (row_bytes + CRC_BYTES, *flat.strides[1:])
        return np.ndarray((num_rows, *self._row_shape), self._dtype, self._map, 0, strides)

    def read(self, rows: np.ndarray, out: np.ndarray, places: np.ndarray) -> None:
        """Copy the shard's `rows` (numbers within the shard) to `out[places]`."""
        if self._dense is not None:
            out[places] = self._dense[rows]
            return
        for row, place in zip(rows, places, strict=True):
            if self._present[row]:
                offset = int(self._offsets[row])
                out[place] = np.ndarray(self._row_shape, self._dtype, self._map, offset)
            else:
                out[place] = 0
