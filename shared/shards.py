"""One shard file of a Zarr v3 array: written as a stream, and where its rows lie.

The standard `sharding_indexed` codec with one row per inner chunk, inner codecs bytes (little
endian) and crc32c, and the index (offset and length of every chunk, then its own crc32c) at the
end of the file. Any Zarr v3 reader opens it. Rows begin at multiples of 64 bytes, with zeros
between them, which the index leaves out: copying from a cache line's start is up to a third faster.
"""

import hashlib
import os
import struct
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import google_crc32c
import numpy as np
from jaxtyping import Int64, UInt8

ABSENT = 2**64 - 1  # offset and length of a chunk that was left out: all fill value
CRC_BYTES = 4
ALIGNMENT = 64  # bytes of a cache line
MAX_UNHASHED = 4  # pieces


@dataclass(frozen=True)
class ShardDigest:
    """Size and sha256 of a finished shard file."""

    num_bytes: int
    sha256: str


def cell_bytes(row_bytes: int) -> int:
    """Return what a row takes: its bytes, its checksum, and zeros up to the next row."""
    return -(-(row_bytes + CRC_BYTES) // ALIGNMENT) * ALIGNMENT


def shard_bytes(shard_clips: int, row_bytes: int) -> int:
    """Return the size of a full shard file, index included."""
    return shard_clips * (cell_bytes(row_bytes) + 16) + CRC_BYTES


class _ShardBytes:
    """Makes the bytes of a shard file, piece by piece, from its rows."""

    def __init__(self, shard_clips: int) -> None:
        self._index = np.full((shard_clips, 2), ABSENT, dtype="<u8")
        self._num_rows = 0
        self._num_bytes = 0

    def cells_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the cells of rows (n, ...): their bytes, crc32c, and zeros."""
        little = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("<"), copy=False))
        values = little.view(np.uint8).reshape(len(rows), -1)
        row_bytes = values.shape[1]
        chunk_bytes = row_bytes + CRC_BYTES
        cells = np.empty((len(rows), cell_bytes(row_bytes)), np.uint8)
        cells[:, :row_bytes] = values
        checksums = np.array([google_crc32c.value(row) for row in values], "<u4")
        cells[:, row_bytes:chunk_bytes] = checksums.view(np.uint8).reshape(-1, CRC_BYTES)
        cells[:, chunk_bytes:] = 0
        index = self._index[self._num_rows : self._num_rows + len(rows)]
        index[:, 0] = self._num_bytes + np.arange(len(rows), dtype=np.uint64) * np.uint64(cells.shape[1])
        index[:, 1] = chunk_bytes
        self._num_rows += len(rows)
        self._num_bytes += cells.size
        return cells

    def index(self) -> bytes:
        """Return the index and its crc32c: the end of the file."""
        index = self._index.tobytes()
        return index + struct.pack("<I", google_crc32c.value(index))


def digest_of_rows(batches: Iterable[np.ndarray], shard_clips: int) -> ShardDigest:
    """Return the digest of the shard file that these rows would make."""
    maker, state, num_bytes = _ShardBytes(shard_clips), hashlib.sha256(), 0
    for rows in batches:
        cells = maker.cells_of(rows)
        state.update(cells.data)
        num_bytes += cells.size
    index = maker.index()
    state.update(index)
    return ShardDigest(num_bytes + len(index), state.hexdigest())


class ShardWriter:
    """Streams rows into `path`; `finish` adds the index and makes the file durable.

    The sha256 is computed in a thread beside the writing.
    """

    def __init__(self, path: Path, *, shard_clips: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("wb", buffering=0)
        self._bytes = _ShardBytes(shard_clips)
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._unhashed: list[Future[None]] = []

    def append(self, rows: np.ndarray) -> None:
        """Write rows (n, ...) after those already there."""
        self._write(self._bytes.cells_of(rows).data)

    def _write(self, data: memoryview) -> None:
        data = data.cast("B")
        self._unhashed.append(self._hasher.submit(self._sha256.update, data))
        self._num_bytes += len(data)
        while data:
            data = data[self._file.write(data) :]
        while len(self._unhashed) > MAX_UNHASHED:
            self._unhashed.pop(0).result()

    def finish(self) -> ShardDigest:
        """Write the index, flush to the disk, close."""
        self._write(memoryview(self._bytes.index()))
        os.fsync(self._file.fileno())
        self._close()
        return ShardDigest(self._num_bytes, self._sha256.hexdigest())

    def _close(self) -> None:
        self._hasher.shutdown()
        self._file.close()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()


def row_offsets(file: UInt8[np.ndarray, " n"], shard_clips: int, row_bytes: int) -> Int64[np.ndarray, " r"]:
    """Return where each row's bytes begin in a shard file, -1 for absent rows (all zeros).

    Raises:
        ValueError: the index is damaged, or chunks are not of this size.
    """
    index_bytes = 16 * shard_clips
    if len(file) < index_bytes + CRC_BYTES:
        raise ValueError("the file is shorter than its index")
    tail = file[-index_bytes - CRC_BYTES :].tobytes()
    if struct.unpack("<I", tail[index_bytes:])[0] != google_crc32c.value(tail[:index_bytes]):
        raise ValueError("the index does not match its checksum")
    index = np.frombuffer(tail[:index_bytes], dtype="<u8").reshape(shard_clips, 2)
    present = index[:, 0] != ABSENT
    ends = index[present].sum(axis=1)
    sizes = index[present, 1]
    if (sizes != row_bytes + CRC_BYTES).any() or (ends > len(file) - index_bytes - CRC_BYTES).any():
        raise ValueError(f"the index names chunks that are not {row_bytes + CRC_BYTES} bytes within the file")
    return np.where(present, index[:, 0].astype(np.int64), -1)


def damaged_rows(file: UInt8[np.ndarray, " n"], shard_clips: int, row_bytes: int, num_rows: int) -> list[int]:
    """Return the rows of a shard file whose chunk does not match its checksum.

    Raises:
        ValueError: as `row_offsets`.
    """
    bad = []
    for row, offset in enumerate(row_offsets(file, shard_clips, row_bytes)[:num_rows].tolist()):
        chunk = file[offset : offset + row_bytes + CRC_BYTES]
        if offset < 0 or google_crc32c.value(chunk[:row_bytes]) != int(chunk[row_bytes:].view("<u4")[0]):
            bad.append(row)
    return bad
