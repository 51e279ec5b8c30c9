"""Many files as one array of bytes: each mapped at its own place of one reserved address range.

A batch of rows that lie in many files is then one numpy gather, with no Python per row or file,
and no file stays open: a mapping needs no descriptor. Pages are read when they are touched, so
files may be larger than memory. Mappings survive a fork; nothing here is pickled.
"""

import ctypes
import functools
import math
import mmap
import os
import sys
import weakref
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

HUGE_PAGE_BYTES = 1 << 21
MAX_RANGES = 1024  # of one process_madvise (IOV_MAX)

_MAP_FIXED, _MAP_NORESERVE = 0x10, 0x4000
_MADV_WILLNEED = 3
_SYS_PROCESS_MADVISE = 440  # the same number on every architecture since Linux 5.10
_FAILED = ctypes.c_void_p(-1).value


def can_map() -> bool:
    """Tell whether this system maps files at chosen addresses the way we ask for it."""
    return sys.platform == "linux" and ctypes.sizeof(ctypes.c_void_p) == 8


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


class AddressSpace:
    """`num_places` places of `place_bytes` each, behind a place of zeros at offset 0.

    Places begin at multiples of `cell_bytes`, so that rows in cells of that size, each file's from
    its start, lie on one grid: the whole range is one contiguous array of cells. They begin at
    huge pages, too, by which the system then maps the files where its page cache holds them so.

    Raises:
        LookupError: the process may not reserve that much (`ulimit -v`).
    """

    def __init__(self, num_places: int, place_bytes: int, cell_bytes: int = 1) -> None:
        self.num_places = num_places
        self.cell_bytes = cell_bytes
        unit = math.lcm(HUGE_PAGE_BYTES, cell_bytes)
        self._place_bytes = -(-place_bytes // unit) * unit
        self._num_bytes = (num_places + 1) * self._place_bytes
        self._libc = _libc()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        reserved_bytes = self._num_bytes + HUGE_PAGE_BYTES
        try:
            start = self._mapped(None, reserved_bytes, flags, -1)
        except OSError as error:
            raise LookupError(f"{reserved_bytes:.1e} bytes of addresses cannot be had: {error}") from error
        # Not when the program ends: a thread may still be copying.
        weakref.finalize(self, self._libc.munmap, start, reserved_bytes).atexit = False
        self._base = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        reserved = (ctypes.c_uint8 * self._num_bytes).from_address(self._base)
        self._bytes: np.ndarray = np.ctypeslib.as_array(reserved)

    def _mapped(self, address: int | None, num_bytes: int, flags: int, descriptor: int) -> int:
        found = self._libc.mmap(address, num_bytes, mmap.PROT_READ, flags, descriptor, 0)
        if found is None or found == _FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot map into memory: {os.strerror(number)}")
        return int(found)

    def offset_of(self, place: int) -> int:
        """Return where a place begins."""
        return (place + 1) * self._place_bytes

    def map(self, place: int, path: Path) -> UInt8[np.ndarray, " n"]:
        """Map a file into a place, over what was there, and return the file's bytes.

        Raises:
            ValueError: the file is empty or larger than a place.
        """
        start = self.offset_of(place)
        with path.open("rb") as file:
            num_bytes = os.fstat(file.fileno()).st_size
            if not 0 < num_bytes <= self._place_bytes:
                raise ValueError(f"{path} has {num_bytes} bytes, not 1 to {self._place_bytes}")
            self._mapped(self._base + start, num_bytes, mmap.MAP_SHARED | _MAP_FIXED, file.fileno())
        return np.asarray(self._bytes[start : start + num_bytes])

    def gather(self, offsets: Int64[np.ndarray, " b"], num_bytes: int) -> UInt8[np.ndarray, "b n"]:
        """Return `num_bytes` from each offset, as a new array. The offsets must be mapped."""
        # Overlapping items, one at every byte: a void item is copied as one block.
        item = np.dtype((np.void, num_bytes))
        anywhere = np.ndarray((self._num_bytes - num_bytes + 1,), item, self._bytes, strides=(1,))
        return np.asarray(anywhere[offsets].view(np.uint8)).reshape(len(offsets), num_bytes)

    def gather_into(self, out: UInt8[np.ndarray, "b n"], offsets: Int64[np.ndarray, " b"]) -> None:
        """Copy from each offset into a row of `out`, which is contiguous.

        numpy gathers into new arrays only; one block copy a row costs 0.3 us of Python each.
        """
        source, target, num_bytes = self._bytes.data, out.reshape(-1).data, out.shape[1]
        for row, offset in enumerate(offsets.tolist()):
            target[row * num_bytes : (row + 1) * num_bytes] = source[offset : offset + num_bytes]

    def take_cells(
        self, out: UInt8[np.ndarray, "b cell"], offsets: Int64[np.ndarray, " b"], origin: int
    ) -> None:
        """Copy whole cells into `out`, which is contiguous, without the interpreter's lock.

        origin: what all offsets leave over when divided by the cell.
        """
        cell = np.dtype((np.void, self.cell_bytes))
        num_cells = (self._num_bytes - origin) // self.cell_bytes
        grid = self._bytes[origin : origin + num_cells * self.cell_bytes].view(cell)
        # In any other mode numpy would fill a buffer of its own first; offsets are known to be good.
        grid.take(offsets // self.cell_bytes, out=out.reshape(-1).view(cell), mode="clip")

    def will_need(self, offsets: Int64[np.ndarray, " b"], num_bytes: int) -> None:
        """Ask the system to read these ranges ahead, all at once; returns without waiting."""
        first = (self._base + offsets) & ~np.int64(mmap.PAGESIZE - 1)
        lengths = self._base + offsets + num_bytes - first
        ranges = np.ascontiguousarray(np.stack([first, lengths], axis=1))
        for start in range(0, len(ranges), MAX_RANGES):
            some = ranges[start : start + MAX_RANGES]
            self._libc.syscall(
                ctypes.c_long(_SYS_PROCESS_MADVISE), ctypes.c_int(_own_pidfd()),
                ctypes.c_void_p(some.ctypes.data), ctypes.c_size_t(len(some)),
                ctypes.c_int(_MADV_WILLNEED), ctypes.c_uint(0),
            )  # fmt: skip


@functools.cache
def _pidfd_of(process: int) -> int:
    return os.pidfd_open(process)


def _own_pidfd() -> int:
    """Return a descriptor of this process, one for all; a forked child needs one of its own."""
    return _pidfd_of(os.getpid())
