"""Where a head's maps come from: the mapped store, or memory that holds them all."""

import os

import numpy as np
import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from shared.clip_array import ClipArray

HOLD_SHARE = 0.6  # of the memory that is free
FILL_CLIPS = 1024


class StoredMaps:
    """Maps, or waveforms, read from the store batch by batch; pinned on their way to a GPU."""

    def __init__(self, maps: ClipArray, device: torch.device) -> None:
        self._maps, self._pinned = maps, device.type == "cuda"

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

    def __init__(self, maps: ClipArray, device: torch.device) -> None:
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


def choose_source(maps: ClipArray, device: torch.device, *, readers: int = 1) -> MapSource:
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
