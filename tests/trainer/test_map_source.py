from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from shared.store import FeatureStore
from trainer import map_source
from trainer.map_source import HeldMaps, StoredMaps, choose_source

CPU = torch.device("cpu")


def test_held_and_stored_maps_are_the_same(build_tiny: Callable[..., Path]) -> None:
    store = FeatureStore(build_tiny())
    rows = np.array([5, 0, 5, store.num_rows - 1])
    stored, held = StoredMaps(store.maps, CPU), HeldMaps(store.maps, CPU)
    assert torch.equal(stored.read(rows), held.read(rows))
    assert np.array_equal(held.read(rows).numpy(), store.maps.read(rows))


def test_mapped_maps_are_read_from_the_page_cache_and_others_held_where_they_fit(
    build_tiny: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore(build_tiny())
    assert isinstance(choose_source(store.maps, CPU), StoredMaps)
    monkeypatch.setattr(type(store.maps), "is_mapped", property(lambda _: False))
    assert isinstance(choose_source(store.maps, CPU), HeldMaps)
    needed = store.num_rows * store.maps.row_bytes
    monkeypatch.setattr(map_source, "_free_memory", lambda: int(1.5 * needed / map_source.HOLD_SHARE))
    assert isinstance(choose_source(store.maps, CPU), HeldMaps)
    assert isinstance(choose_source(store.maps, CPU, readers=2), StoredMaps)
