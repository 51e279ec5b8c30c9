"""Where a head's maps come from: the mapped store, its views as well, or memory that holds them all."""

import os

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from shared.clip_array import ClipArray
from shared.store import FeatureStore

HOLD_SHARE = 0.6  # of the memory that is free
FILL_CLIPS = 1024


def views_of(store: FeatureStore, asked: int) -> int:
    """Return how many views to draw from; asked: -1 for all.

    Raises:
        ValueError: the store has fewer.
    """
    if asked > store.num_views:
        raise ValueError(
            f"sampler.views = {asked}, and {store.path} holds {store.num_views}: from its waveforms, "
            f"`featurestore embed {store.path} --views {asked} --out OTHER.zarr` makes a store that has them."
        )
    return store.num_views if asked < 0 else asked


class ViewedMaps:
    """The maps of a store's R clips, then those of its views: row r of view v is row v * R + r."""

    def __init__(self, store: FeatureStore, num_views: int) -> None:
        self._arrays = [store.view(number) for number in range(num_views + 1)]
        self._num_clips = store.num_rows
        self.num_rows = store.num_rows * len(self._arrays)
        self.row_shape, self.row_bytes = store.maps.row_shape, store.maps.row_bytes

    @property
    def is_mapped(self) -> bool:
        """Whether rows come straight from mapped files."""
        return all(array.is_mapped for array in self._arrays)

    def read(self, rows: Int64[np.ndarray, " b"]) -> np.ndarray:
        """Return rows (B, C, F, T) in the order asked for; fastest in the order of views."""
        views = rows // self._num_clips
        order = np.argsort(views, kind="stable")
        out = self._arrays[0].empty(len(rows))
        bounds = np.searchsorted(views[order], np.arange(len(self._arrays) + 1))
        for array, first, stop in zip(self._arrays, bounds, bounds[1:], strict=False):
            array.read(rows[order[first:stop]] % self._num_clips, out[first:stop])
        if np.array_equal(order, np.arange(len(rows))):
            return out
        back = np.empty_like(order)
        back[order] = np.arange(len(rows))
        return out[back]

    def will_need(self, rows: Int64[np.ndarray, " b"]) -> None:
        """Have rows read ahead in the background."""
        views = rows // self._num_clips
        for number, array in enumerate(self._arrays):
            array.will_need(rows[views == number] % self._num_clips)


Maps = ClipArray | ViewedMaps


class StoredMaps:
    """Maps, or waveforms, read from the store batch by batch; pinned on their way to a GPU."""

    def __init__(self, maps: Maps, device: torch.device) -> None:
        self._maps, self._pinned = maps, device.type == "cuda"
        self.num_rows = maps.num_rows

    def read(self, rows: Int64[np.ndarray, " b"]) -> Shaped[Tensor, "b ..."]:
        """Return maps (B, C, F, T), or waveforms (B, S), in the memory of the processor."""
        maps = torch.from_numpy(self._maps.read(rows))
        if not self._pinned:
            return maps
        return torch.empty(maps.shape, dtype=maps.dtype, pin_memory=True).copy_(maps)

    def will_need(self, rows: Int64[np.ndarray, " b"]) -> None:
        """Have the disk read ahead."""
        self._maps.will_need(rows)


class HeldMaps:
    """All maps of the store in the device's memory, read once."""

    def __init__(self, maps: Maps, device: torch.device) -> None:
        self.num_rows = maps.num_rows
        shape = (maps.num_rows, *maps.row_shape)
        self._maps = torch.empty(shape, dtype=torch.float16, device=device)
        for first in range(0, maps.num_rows, FILL_CLIPS):
            rows = np.arange(first, min(first + FILL_CLIPS, maps.num_rows))
            self._maps[first : first + len(rows)] = torch.from_numpy(maps.read(rows)).to(device)

    def read(self, rows: Int64[np.ndarray, " b"]) -> Float[Tensor, "b c f t"]:
        """Return maps (B, C, F, T) on the device.

        On a processor by numpy: torch's index_select waits for threads that the training step uses.
        """
        if self._maps.device.type == "cpu":
            return torch.from_numpy(self._maps.numpy().take(rows, axis=0))
        return self._maps[torch.from_numpy(rows).to(self._maps.device)]

    def will_need(self, rows: Int64[np.ndarray, " b"]) -> None:
        """Nothing to do: they are here."""


MapSource = StoredMaps | HeldMaps


def choose_source(maps: Maps, device: torch.device, *, readers: int = 1) -> MapSource:
    """Hold the maps where that is faster and they fit, else read them from the store.

    On a GPU in its memory. On a CPU the page cache holds a mapped store already; one that cannot be
    mapped (compressed, foreign) is held in memory. They fit in HOLD_SHARE of what is free, where
    `readers` processes hold them each.
    """
    needed = maps.num_rows * maps.row_bytes
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = 0 if maps.is_mapped else _free_memory()
    if needed * readers <= HOLD_SHARE * free:
        return HeldMaps(maps, device)
    return StoredMaps(maps, device)


def _free_memory() -> int:
    """Return the machine's free bytes; 0 where the system does not tell."""
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return 0
