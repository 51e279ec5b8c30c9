"""One shard file of a Zarr v3 array: written as a stream, and where its rows lie.

The standard `sharding_indexed` codec with one row per inner chunk, inner codecs bytes (little
endian) and crc32c, and the index (offset and length of every chunk, then its own crc32c) at the
end of the file. Any Zarr v3 reader opens it. Rows begin at multiples of 512 bytes, with zeros
between them, which the index leaves out: copying from a cache line's start is up to a third faster.
"""

import ctypes
import errno
import hashlib
import os
import struct
import sys
from collections import deque
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
ALIGNMENT = 512  # bytes: whole cache lines, and few enough cells to a huge page (see AddressSpace)
SYNC_FILE_RANGE_WRITE = 2
PIECE_BYTES = 1 << 20
NUM_PIECES = 4  # one is filled while the others are hashed


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


def reserve(descriptor: int, num_bytes: int) -> None:
    """Have the disk set the room aside: writing is faster, and a full disk shows before the work.

    Raises:
        OSError: there is not enough.
    """
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # disks that cannot: not needed
            raise


def start_writing(descriptor: int, first: int, num_bytes: int) -> None:
    """Have the disk begin with these bytes of a file now, so that the flush at its end waits less."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.sync_file_range(
            descriptor, ctypes.c_int64(first), ctypes.c_int64(num_bytes), SYNC_FILE_RANGE_WRITE
        )


class _ShardIndex:
    """Where the rows of a shard file begin, as they are written one after the other."""

    def __init__(self, shard_clips: int, row_bytes: int) -> None:
        self.row_bytes = row_bytes
        self._places = np.full((shard_clips, 2), ABSENT, dtype="<u8")
        self._num_rows = 0

    def fill(self, cells: UInt8[np.ndarray, "n cell"], rows: np.ndarray) -> None:
        """Write rows (n, ...) and their crc32c into cells, whose ends are zeros, and note them."""
        little = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("<"), copy=False))
        values = little.view(np.uint8).reshape(len(rows), -1)
        chunk_bytes = self.row_bytes + CRC_BYTES
        cells[:, : self.row_bytes] = values
        checksums = np.array([google_crc32c.value(row) for row in values], "<u4")
        cells[:, self.row_bytes : chunk_bytes] = checksums.view(np.uint8).reshape(-1, CRC_BYTES)
        places = self._places[self._num_rows : self._num_rows + len(rows)]
        numbers = np.arange(self._num_rows, self._num_rows + len(rows), dtype=np.uint64)
        places[:, 0] = numbers * np.uint64(cell_bytes(self.row_bytes))
        places[:, 1] = chunk_bytes
        self._num_rows += len(rows)

    def to_bytes(self) -> bytes:
        """Return the index and its crc32c: the end of the file."""
        index = self._places.tobytes()
        return index + struct.pack("<I", google_crc32c.value(index))


def digest_of_rows(batches: Iterable[np.ndarray], shard_clips: int) -> ShardDigest:
    """Return the digest of the shard file that these rows would make."""
    index: _ShardIndex | None = None
    state, num_bytes = hashlib.sha256(), 0
    for rows in batches:
        index = index or _ShardIndex(shard_clips, rows[0].nbytes)
        cells = np.zeros((len(rows), cell_bytes(index.row_bytes)), np.uint8)
        index.fill(cells, rows)
        state.update(cells.data)
        num_bytes += cells.size
    end = (index or _ShardIndex(shard_clips, 0)).to_bytes()
    state.update(end)
    return ShardDigest(num_bytes + len(end), state.hexdigest())


class ShardWriter:
    """Streams rows into `path`; `finish` adds the index and makes the file durable.

    Rows are gathered into pieces: the fewer writes, the larger the pages in which the system holds
    the file. The sha256 is computed in a thread beside the writing.
    """

    def __init__(self, path: Path, *, shard_clips: int, row_bytes: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("wb", buffering=0)
        try:
            reserve(self._file.fileno(), shard_bytes(shard_clips, row_bytes))
        except OSError:
            self._file.close()
            raise
        self._index = _ShardIndex(shard_clips, row_bytes)
        cell = cell_bytes(row_bytes)
        rows_per_piece = min(shard_clips, max(1, PIECE_BYTES // cell))
        self._pieces = [np.zeros((rows_per_piece, cell), np.uint8) for _ in range(NUM_PIECES)]
        self._num_in_piece = 0
        self._sha256 = hashlib.sha256()
        self._num_bytes = 0
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._being_hashed: deque[Future[None]] = deque()

    def append(self, rows: np.ndarray) -> None:
        """Write rows (n, ...) after those already there."""
        while len(rows):
            piece = self._pieces[0]
            some = rows[: len(piece) - self._num_in_piece]
            self._index.fill(piece[self._num_in_piece : self._num_in_piece + len(some)], some)
            self._num_in_piece += len(some)
            rows = rows[len(some) :]
            if self._num_in_piece == len(piece):
                self._write_piece()

    def _write_piece(self) -> None:
        self._write(self._pieces[0][: self._num_in_piece].data)
        self._num_in_piece = 0
        self._pieces.append(self._pieces.pop(0))
        if len(self._being_hashed) == NUM_PIECES:  # the next piece's last content must be done with
            self._being_hashed.popleft().result()

    def _write(self, data: memoryview) -> None:
        left = data = data.cast("B")
        self._being_hashed.append(self._hasher.submit(self._sha256.update, data))
        while left:
            left = left[self._file.write(left) :]
        start_writing(self._file.fileno(), self._num_bytes, len(data))
        self._num_bytes += len(data)

    def finish(self) -> ShardDigest:
        """Write the index, flush to the disk, close."""
        if self._num_in_piece:
            self._write_piece()
        self._write(memoryview(self._index.to_bytes()))
        self._file.truncate(self._num_bytes)  # a partly filled shard takes no more room than it needs
        os.fsync(self._file.fileno())  # the last pieces are hashed meanwhile
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
