import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from shared.store import FeatureStore, parts_of

BuildTiny = Callable[..., Path]
Run = Callable[..., object]


def file_digests(store: Path) -> dict[str, str]:
    files = [store] if store.is_file() else sorted(path for path in store.rglob("*") if path.is_file())
    return {str(f.relative_to(store)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def assert_same_content(one: FeatureStore, two: FeatureStore) -> None:
    rows = np.random.default_rng(0).permutation(one.num_rows)
    assert np.array_equal(one.maps.read(rows), two.maps.read(rows))
    assert one.waveforms is not None
    assert two.waveforms is not None
    assert np.array_equal(one.waveforms.read(rows), two.waveforms.read(rows))
    for name in ("clips", "recordings", "labels"):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(two, name))
    assert one.frame_hop == two.frame_hop
    only_folders = {"seal", "sha256"}
    assert {k: v for k, v in one.attributes.items() if k not in only_folders} == {
        k: v for k, v in two.attributes.items() if k not in only_folders
    }


def test_an_hdf5_store_holds_what_the_zarr_store_holds(build_tiny: BuildTiny) -> None:
    zarr, hdf5 = FeatureStore(build_tiny()), FeatureStore(build_tiny("tiny.h5"))
    assert_same_content(zarr, hdf5)
    assert hdf5.maps.is_mapped
    assert not parts_of(hdf5.path).exists()
    assert not list(hdf5.path.parent.glob(".*.removed"))


def test_h5py_reads_the_same_without_our_code(build_tiny: BuildTiny) -> None:
    store = FeatureStore(build_tiny("tiny.h5"))
    rows = np.arange(store.num_rows)
    with h5py.File(store.path, "r") as file:
        assert np.array_equal(file["maps/blocks.6"][:], store.maps.read(rows))
        assert file["maps/blocks.6"].fletcher32
        assert [name.decode() for name in file[store.attributes["tables"]]["recordings/filename"][:]] == list(
            store.recordings["filename"]
        )


def test_converting_there_and_back_is_the_same_bytes(
    build_tiny: BuildTiny, run_program: Run, tmp_path: Path
) -> None:
    zarr, hdf5 = build_tiny(), build_tiny("tiny.h5")
    run_program("featurestore", "convert", zarr, tmp_path / "made.h5")
    assert (tmp_path / "made.h5").read_bytes() == hdf5.read_bytes()
    run_program("featurestore", "convert", hdf5, tmp_path / "made.zarr")
    assert file_digests(tmp_path / "made.zarr") == file_digests(zarr)
    run_program("featurestore", "convert", hdf5, tmp_path / "made.zarr", status=2)
    run_program("featurestore", "convert", hdf5, tmp_path / "other.h5", status=2)


@pytest.mark.parametrize("name", ["tiny.zarr", "tiny.h5"])
def test_a_rebuild_with_nothing_new_changes_no_byte(build_tiny: BuildTiny, name: str) -> None:
    before = file_digests(build_tiny(name))
    assert file_digests(build_tiny(name)) == before


def test_labels_and_recordings_are_corrected_and_added_in_hdf5_too(
    build_tiny: BuildTiny, tiny_data: Path
) -> None:
    table = pd.read_csv(tiny_data / "metadata.csv", keep_default_na=False)
    table[:9].to_csv(tiny_data / "metadata.csv", index=False)
    for name in ("tiny.zarr", "tiny.h5"):
        build_tiny(name)
    table.assign(primary_label=["high", *table["primary_label"][1:]]).to_csv(
        tiny_data / "metadata.csv", index=False
    )
    zarr, hdf5 = FeatureStore(build_tiny()), FeatureStore(build_tiny("tiny.h5"))
    assert len(hdf5.recordings) == 12
    assert hdf5.labels["species"][0] == "high"
    assert_same_content(zarr, hdf5)


def test_compressed_hdf5_goes_through_h5py_and_says_so(build_tiny: BuildTiny, tmp_path: Path) -> None:
    from shared.clip_array import ReadsSlowly

    store = FeatureStore(build_tiny("tiny.h5"))
    rows = np.array([5, 5, 0, 7])
    expected = store.maps.read(rows)
    with h5py.File(store.path, "r+") as file:
        data = file["maps/blocks.6"][:]
        attributes = dict(file["maps/blocks.6"].attrs)
        del file["maps/blocks.6"]
        packed = file.create_dataset(
            "maps/blocks.6", data=data, chunks=(1, *data.shape[1:]), compression="gzip"
        )
        packed.attrs.update(attributes)
    again = FeatureStore(store.path)
    with pytest.warns(ReadsSlowly, match="compressed or filtered .gzip."):
        assert np.array_equal(again.maps.read(rows), expected)


def test_a_store_of_another_name_is_refused(build_tiny: BuildTiny) -> None:
    build_tiny("tiny.npz", status=2)
