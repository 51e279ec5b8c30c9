"""Every store that a released format version made is still read, by us and without us."""

import importlib.util
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from featurestore.verify import verify_store
from shared.features import FORMAT_VERSION
from shared.store import FeatureStore

FOLDER = Path(__file__).parent.parent / "old_stores"
STORES = [FOLDER / f"version_{version}.{suffix}" for version in (1,) for suffix in ("zarr", "h5")]

spec = importlib.util.spec_from_file_location("old_stores_make", FOLDER / "make.py")
assert spec is not None
assert spec.loader is not None
make = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make)


def test_the_current_version_is_among_them() -> None:
    assert FOLDER / f"version_{FORMAT_VERSION}.zarr" in STORES


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.name)
def test_a_store_of_an_old_version_reads_as_it_did(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert json.loads(json.dumps(make.content(path))) == expected


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.name)
def test_a_store_of_an_old_version_is_mapped_and_sound(path: Path) -> None:
    assert FeatureStore(path).maps.is_mapped
    assert verify_store(path, []) == []


def test_rows_begin_at_cache_lines_in_both_containers(tmp_path: Path) -> None:
    """What the format promises, seen from outside: by the shard's index and by HDF5's chunks."""
    zarr_store, hdf5_store = STORES
    shard = (zarr_store / "waveforms" / "c" / "0" / "0").read_bytes()
    index = np.frombuffer(shard[-4 * 16 - 4 : -4], "<u8").reshape(4, 2)
    assert (index[:, 0] % 512 == 0).all()
    assert (index[:, 1] == 2 * 2000 + 4).all()
    with h5py.File(hdf5_store, "r") as file:
        offsets = [file["waveforms"].id.get_chunk_info(n).byte_offset for n in range(6)]
    assert {offset % 512 for offset in offsets} == {0}


def test_ordinary_readers_open_it(tmp_path: Path) -> None:
    zarr_store, hdf5_store = STORES
    group = zarr.open_group(zarr_store, mode="r")
    found = FeatureStore(zarr_store)
    assert found.waveforms is not None
    samples = found.waveforms.read(np.arange(6))
    assert np.array_equal(np.asarray(group["waveforms"][:]), samples)  # type: ignore[index]
    with h5py.File(hdf5_store, "r") as file:
        assert np.array_equal(file["waveforms"][:], samples)


def test_a_build_goes_on_with_an_old_store(tmp_path: Path) -> None:
    """Its commits and tables are understood: with the same audio there is nothing to compute."""
    from featurestore.build import Builder
    from featurestore.store_plan import plan_of_tables
    from shared.store_writer import ArraySpec, StoreWriter

    path = tmp_path / "s.zarr"
    shutil.copytree(STORES[0], path)
    store = FeatureStore(path)
    specs = {
        name: ArraySpec(array.row_shape, array.dtype.name, array.attributes)
        for name in store.files.array_names()
        for array in [store.array(name)]
    }
    tables = {"clips": store.clips, "recordings": store.recordings, "labels": store.labels}
    plan = plan_of_tables(tables, store.attributes, [None] * len(store.recordings))
    writer = StoreWriter(path, {}, specs, store.attributes["shard_clips"])
    assert Builder.pending(Builder.__new__(Builder), writer, plan) == []
