"""Random rows of a clip array, a whole batch at once, from a Zarr or an HDF5 store alike.

Where rows lie is the container's business (`RowPlaces`); what cannot be mapped (compressed,
foreign layouts, other systems) is read by the ordinary library, which is said once.
"""

import mmap
import os
import warnings
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
    def origin(self) -> int | None:
        """What every row's offset leaves over when divided by the cell; None if they differ."""
        ...

    def offsets_of(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Return the offset of every row in `space`, mapping what is not mapped yet."""
        ...


Ordinary = Callable[[np.ndarray], np.ndarray]


class ClipArray:
    """One array of a store: R rows, one per clip.

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
        places = self._opened()
        if places is None:
            out[...] = self._read_ordinarily(rows)
            return out
        offsets = places.offsets_of(rows)
        cells = self._cells_of(out)
        if cells is not None and places.origin is not None:
            places.space.take_cells(cells, offsets, places.origin)
        elif out.flags.c_contiguous and out.size:
            places.space.gather_into(out.reshape(len(rows), -1).view(np.uint8), offsets)
        else:
            out[...] = places.space.gather(offsets, self.row_bytes).view(self.dtype).reshape(shape)
        return out

    def empty(self, num_rows: int) -> np.ndarray:
        """Return an array to read into, laid out as the files are: what is read is copied once."""
        cell = cell_bytes(self.row_bytes)
        memory = np.empty(num_rows * cell + mmap.PAGESIZE, np.uint8)
        first = -memory.ctypes.data % mmap.PAGESIZE
        cells = memory[first : first + num_rows * cell].reshape(num_rows, cell)
        return cells[:, : self.row_bytes].view(self.dtype).reshape(num_rows, *self.row_shape)

    def _cells_of(self, out: np.ndarray) -> np.ndarray | None:
        """Return the memory of an array made by `empty`, or of its first rows; None for any other."""
        cell, memory = cell_bytes(self.row_bytes), out.base
        if not (len(out) and isinstance(memory, np.ndarray) and memory.dtype == np.uint8):
            return None
        first = out.ctypes.data - memory.ctypes.data
        is_within = memory.ndim == 1 and memory.flags.c_contiguous and first + len(out) * cell <= memory.size
        in_cells = (len(out) == 1 or out.strides[0] == cell) and out[0].flags.c_contiguous
        if not (is_within and in_cells):
            return None
        return np.asarray(memory[first : first + len(out) * cell]).reshape(len(out), cell)

    def will_need(self, rows: Int64[np.ndarray, " b"]) -> None:
        """Have rows read ahead in the background; costs a system call, not a wait."""
        self._check(rows)
        places = self._opened()
        if places is not None and len(rows):
            places.space.will_need(places.offsets_of(rows), self.row_bytes)

    @property
    def is_mapped(self) -> bool:
        """Whether rows come straight from mapped files."""
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
        return self.__dict__ | {"_places": None, "_is_open": False}


def num_processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
