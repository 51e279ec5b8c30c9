"""Random rows of a clip array, a whole batch at once, from a Zarr or an HDF5 store alike.

Where rows lie is the container's business (`RowPlaces`); what cannot be mapped (compressed,
foreign layouts, other systems) is read by the ordinary library, which is said once.
"""

import mmap
import os
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from shared.address_space import AddressSpace
from shared.shards import cell_bytes


class ReadsSlowly(UserWarning):
    """An array cannot be mapped and is read through the ordinary library."""


@runtime_checkable
class RowPlaces(Protocol):
    """Where the rows of an array lie in mapped memory; the files behind it, opened when needed."""

    space: AddressSpace

    @property
    def may_move(self) -> bool:
        """Whether an offset may stop being a row's when other rows are asked for."""
        ...

    @property
    def origin(self) -> int | None:
        """What every row's offset leaves over when divided by the cell; None if they differ."""
        ...

    def offsets_of(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Return the offset of every row in `space`, mapping what is not mapped yet."""
        ...


Ordinary = Callable[[np.ndarray], np.ndarray]


class ClipArray:
    """One array of a store: R rows, one per clip; any number of threads may read it at once.

    open_places: opens the files; called once per process, and again after unpickling. Raises
        LookupError with the reason where the array cannot be mapped.
    ordinary: reads sorted, unique rows through the container's own library.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        attributes: dict[str, Any],
        open_places: Callable[[], RowPlaces],
        ordinary: Ordinary,
    ) -> None:
        self.name = name
        self.num_rows, self.row_shape = shape[0], shape[1:]
        self.dtype = dtype.newbyteorder("<")
        self.attributes = attributes
        self.row_bytes = int(np.prod(self.row_shape)) * dtype.itemsize
        self._open_places, self._ordinary = open_places, ordinary
        self._places: RowPlaces | None = None
        self._is_open = False
        self._lock: threading.Lock
        _renew_lock(self)

    def read(self, rows: Int64[np.ndarray, " b"], out: np.ndarray | None = None) -> np.ndarray:
        """Return rows (B, ...) in the order asked for, into `out` where it is given.

        Rows of the result lie at cache lines, a little apart. A loop that reads batch after batch
        does best with one `out = array.empty(batch_size)` of its own: a new array of megabytes
        now and then costs as much as filling it.

        Raises:
            IndexError: a row outside 0..num_rows - 1.
            ValueError: `out` has another shape or type.
        """
        self._check(rows)
        if out is None:
            out = self.empty(len(rows))
        shape = (len(rows), *self.row_shape)
        if out.shape != shape or out.dtype != self.dtype:
            raise ValueError(f"out must be {shape} of {self.dtype}, got {out.shape} of {out.dtype}.")
        with self._lock:
            places = self._opened()
            if places is not None:
                offsets = places.offsets_of(rows)
                if places.may_move:
                    self._copy(places, offsets, out)
                    return out
        if places is None:
            out[...] = self._read_ordinarily(rows)
        else:
            self._copy(places, offsets, out)
        return out

    def _copy(self, places: RowPlaces, offsets: np.ndarray, out: np.ndarray) -> None:
        cells = _cells_of(out, cell_bytes(self.row_bytes))
        if cells is not None and places.origin is not None:
            places.space.take_cells(cells, offsets, places.origin)
        elif out.flags.c_contiguous and out.size:
            places.space.gather_into(out.reshape(len(offsets), -1).view(np.uint8), offsets)
        else:
            out[...] = places.space.gather(offsets, self.row_bytes).view(self.dtype).reshape(out.shape)

    def empty(self, num_rows: int) -> np.ndarray:
        """Return an array to read into, laid out as the files are: what is read is copied once."""
        cell = cell_bytes(self.row_bytes)
        memory = np.empty(num_rows * cell + mmap.PAGESIZE, np.uint8)
        first = -memory.ctypes.data % mmap.PAGESIZE
        cells = memory[first : first + num_rows * cell].reshape(num_rows, cell).view(_Cells)
        rows = cells[:, : self.row_bytes].view(np.ndarray)
        return rows.view(self.dtype).reshape(num_rows, *self.row_shape)

    def will_need(self, rows: Int64[np.ndarray, " b"]) -> None:
        """Have rows read ahead in the background; costs a system call, not a wait."""
        self._check(rows)
        with self._lock:
            places = self._opened()
            if places is not None and len(rows):
                places.space.will_need(places.offsets_of(rows), self.row_bytes)

    @property
    def is_mapped(self) -> bool:
        """Whether rows come straight from mapped files."""
        with self._lock:
            return self._opened() is not None

    def _check(self, rows: np.ndarray) -> None:
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.num_rows):
            raise IndexError(f"{self.name} has rows 0..{self.num_rows - 1}, asked for {rows}.")

    def _opened(self) -> RowPlaces | None:
        if not self._is_open:
            try:
                self._places = self._open_places()
            except LookupError as reason:
                warnings.warn(
                    f"{self.name} is read through the ordinary library, many times slower: {reason.args[0]}",
                    ReadsSlowly,
                    stacklevel=3,
                )
            self._is_open = True
        return self._places

    def _read_ordinarily(self, rows: np.ndarray) -> np.ndarray:
        unique, places = np.unique(rows, return_inverse=True)
        return self._ordinary(unique)[places] if len(rows) else np.empty((0, *self.row_shape), self.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_places": None, "_is_open": False, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        _renew_lock(self)


_arrays: "weakref.WeakSet[ClipArray]" = weakref.WeakSet()


def _renew_lock(array: ClipArray) -> None:
    array._lock = threading.Lock()
    _arrays.add(array)


def _renew_all_locks() -> None:
    """Another thread may have held a lock when this process was forked, and is not here to free it."""
    for array in list(_arrays):
        _renew_lock(array)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all_locks)


class _Cells(np.ndarray):
    """Memory that `ClipArray.empty` made: whole cells may be written to it."""


def _cells_of(out: np.ndarray, cell: int) -> np.ndarray | None:
    """Return the cells (B, cell) behind an array made by `empty`, or a part of one; None for any other."""
    if not (len(out) and out.flags.writeable and out[0].flags.c_contiguous):
        return None
    memory = out.base
    while isinstance(memory, np.ndarray) and not (isinstance(memory, _Cells) and memory.shape[1:] == (cell,)):
        memory = memory.base
    if not isinstance(memory, np.ndarray):
        return None
    first, rest = divmod(out.ctypes.data - memory.ctypes.data, cell)
    if rest or (len(out) > 1 and out.strides[0] != cell) or not 0 <= first <= len(memory) - len(out):
        return None
    return np.asarray(memory[first : first + len(out)])


def num_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
