"""Random rows of a clip array, a whole batch at once, from a Zarr or an HDF5 store alike.

Where rows lie is the container's business (`RowPlaces`); what cannot be mapped (compressed,
foreign layouts, other systems) is read by the ordinary library, which is said once.
"""

import os
import warnings
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64

from shared.address_space import AddressSpace


class ReadsSlowly(UserWarning):
    """An array cannot be mapped and is read through the ordinary library."""


@runtime_checkable
class RowPlaces(Protocol):
    """Where the rows of an array lie in mapped memory; the files behind it, opened when needed."""

    space: AddressSpace

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

        A loop that reads batch after batch does best with an `out` of its own: a new array of
        megabytes now and then costs as much as filling it.

        Raises:
            IndexError: a row outside 0..num_rows - 1.
            ValueError: `out` has another shape or type.
        """
        self._check(rows)
        places = self._opened()
        shape = (len(rows), *self.row_shape)
        if out is not None and (out.shape != shape or out.dtype != self.dtype):
            raise ValueError(f"out must be {shape} of {self.dtype}, got {out.shape} of {out.dtype}.")
        if places is None:
            found = self._read_ordinarily(rows)
        elif out is not None and out.flags.c_contiguous and self.row_bytes:
            as_bytes = out.reshape(len(rows), -1).view(np.uint8)
            places.space.gather_into(as_bytes, places.offsets_of(rows))
            return out
        else:
            found = places.space.gather(places.offsets_of(rows), self.row_bytes)
            found = found.view(self.dtype).reshape(shape)
        if out is None:
            return found
        out[...] = found
        return out

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
