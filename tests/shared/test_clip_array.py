"""A batch of rows by every way there is into memory, in this process and in others."""

import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from shared.address_space import AddressSpace
from shared.clip_array import ClipArray, ReadsSlowly
from shared.hdf5_files import Hdf5Files
from shared.zarr_files import ZarrFiles

NUM_ROWS, SHARD_CLIPS = 23, 8
ROWS = np.array([22, 0, 7, 8, 8, 15, 3])


def values_of(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-32767, 32768, (NUM_ROWS, 5, 10)).astype(np.int16)


def ours(folder: Path) -> ClipArray:
    """Write shards with rows on a grid of cells, as builds do."""
    from shared.shards import ShardWriter
    from shared.store_writer import ArraySpec, StoreWriter

    values = values_of()
    writer = StoreWriter(folder / "s.zarr", {}, {"waveforms": ArraySpec((5, 10), "int16", {})}, SHARD_CLIPS)
    for shard in range(3):
        path = writer.files.shard_file("waveforms", shard, (5, 10))
        with ShardWriter(path, shard_clips=SHARD_CLIPS, row_bytes=100) as shard_writer:
            shard_writer.append(values[shard * SHARD_CLIPS : (shard + 1) * SHARD_CLIPS])
            shard_writer.finish()
    return ZarrFiles(folder / "s.zarr").array("waveforms", NUM_ROWS)


def zarr_pythons(folder: Path) -> ClipArray:
    """Write the same with zarr-python, which packs rows tightly."""
    array = zarr.create_array(
        folder / "z.zarr" / "waveforms", shape=(NUM_ROWS, 5, 10), dtype="int16", fill_value=0,
        chunks=(1, 5, 10), shards=(SHARD_CLIPS, 5, 10), compressors=[zarr.codecs.Crc32cCodec()],
    )  # fmt: skip
    array[:] = values_of()
    return ZarrFiles(folder / "z.zarr").array("waveforms", NUM_ROWS)


def h5pys(folder: Path) -> ClipArray:
    """Write the same with h5py, which puts chunks anywhere."""
    with h5py.File(folder / "s.h5", "w") as file:
        file.create_dataset("waveforms", data=values_of(), chunks=(1, 5, 10))
        file["waveforms"].attrs["x"] = "1"
    return Hdf5Files(folder / "s.h5").array("waveforms", NUM_ROWS)


WRITERS = [ours, zarr_pythons, h5pys]


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("kind", ["none", "empty", "part of empty", "packed", "strided", "big endian order"])
def test_rows_are_the_same_whatever_they_are_read_into(tmp_path: Path, write: object, kind: str) -> None:
    array = write(tmp_path)  # type: ignore[operator]
    shape = (len(ROWS), 5, 10)
    outs = {
        "none": None,
        "empty": array.empty(len(ROWS)),
        "part of empty": array.empty(40)[: len(ROWS)],
        "packed": np.empty(shape, np.int16),
        "strided": np.empty((2 * len(ROWS), 5, 20), np.int16)[::2, :, ::2],
        "big endian order": np.empty(shape[::-1], np.int16).T,
    }
    out = outs[kind]
    found = array.read(ROWS, out)
    assert array.is_mapped
    assert out is None or found is out
    assert np.array_equal(found, values_of()[ROWS])


@pytest.mark.parametrize("write", WRITERS)
def test_nothing_is_written_behind_the_rows_asked_for(tmp_path: Path, write: object) -> None:
    array = write(tmp_path)  # type: ignore[operator]
    batch = array.empty(len(ROWS) + 1)
    batch[:] = 7
    array.read(ROWS, batch[: len(ROWS)])
    assert (batch[len(ROWS)] == 7).all()
    packed = np.full((len(ROWS) + 1, 5, 10), 7, np.int16)
    array.read(ROWS, packed[: len(ROWS)])
    assert (packed[len(ROWS)] == 7).all()


def test_ours_are_on_the_grid_and_others_need_not_be(tmp_path: Path) -> None:
    arrays = [write(tmp_path) for write in WRITERS]
    for array in arrays:
        array.read(ROWS)
    assert arrays[0]._places is not None
    assert arrays[0]._places.origin == 0
    assert arrays[1]._places is not None
    assert arrays[1]._places.origin is None


def test_a_row_of_somebody_elses_array_is_all_that_is_written(tmp_path: Path) -> None:
    """One row of any flat memory looks like a cell; the next row is not ours."""
    array = ours(tmp_path)
    for place in (0, 1):
        pool = np.full(12 * 100, 255, np.uint8).view(np.int16).reshape(12, 5, 10)
        array.read(np.array([9]), pool[place : place + 1])
        assert np.array_equal(pool[place], values_of()[9])
        assert (np.delete(pool, place, axis=0) == -1).all()
    spaced = np.full((3, 512), 255, np.uint8)
    array.read(np.array([9, 10, 11]), spaced[:, :100].view(np.int16).reshape(3, 5, 10))
    assert (spaced[:, 100:] == 255).all()


@pytest.mark.parametrize("num_places", [2, 8])
def test_threads_that_read_at_once_get_their_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_places: int
) -> None:
    """The shards are mapped while others read, and given up too where not all may be mapped."""
    monkeypatch.setattr("shared.zarr_files.MAX_MAPPED_SHARDS", num_places)
    values = values_of()

    def wrong(seed: int) -> int:
        rng, faults = np.random.default_rng(seed), 0
        for array in arrays:
            for _ in range(20):
                first = rng.integers(0, NUM_ROWS, 1)
                rows = first // SHARD_CLIPS * SHARD_CLIPS + rng.integers(0, NUM_ROWS % SHARD_CLIPS, 5)
                faults += not np.array_equal(array.read(rows), values[rows])
        return faults

    ours(tmp_path)
    arrays = [ZarrFiles(tmp_path / "s.zarr").array("waveforms", NUM_ROWS) for _ in range(20)]
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(wrong, range(4))) == 0


def test_batches_of_many_shards_are_read_while_few_may_be_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.zarr_files.MAX_MAPPED_SHARDS", 2)
    array = ours(tmp_path)
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = np.concatenate([shard * 8 + rng.integers(0, 7, 3) for shard in rng.permutation(3)[:2]])
        assert np.array_equal(array.read(rows), values_of()[rows])
    with pytest.raises(ValueError, match="lie in 3 shards, and 2 may be mapped"):
        array.read(np.array([0, 8, 16]))
    assert np.array_equal(array.read(ROWS[:1]), values_of()[ROWS[:1]])


def test_opening_and_announcing_again_and_again_takes_no_more_descriptors(tmp_path: Path) -> None:
    ours(tmp_path).will_need(ROWS)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        ZarrFiles(tmp_path / "s.zarr").array("waveforms", NUM_ROWS).will_need(ROWS)
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_rows_are_an_empty_batch(tmp_path: Path) -> None:
    assert ours(tmp_path).read(np.zeros(0, np.int64)).shape == (0, 5, 10)


@pytest.mark.parametrize("out", [np.empty((3, 5, 10), np.int16), np.empty((7, 5, 10), np.int32)])
def test_an_out_of_another_shape_or_type_is_refused(tmp_path: Path, out: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"out must be \(7, 5, 10\) of int16, got"):
        ours(tmp_path).read(ROWS, out)


def test_without_room_for_addresses_the_ordinary_library_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(12, "cannot map into memory: Cannot allocate memory")

    array = zarr_pythons(tmp_path)
    monkeypatch.setattr(AddressSpace, "_mapped", refused)
    with pytest.warns(ReadsSlowly, match="addresses cannot be had"):
        assert np.array_equal(array.read(ROWS), values_of()[ROWS])


def right_here(array: ClipArray) -> bool:
    array.will_need(ROWS)
    return bool(np.array_equal(array.read(ROWS), values_of()[ROWS]))


@pytest.mark.parametrize("write", WRITERS)
def test_a_spawned_process_reads_the_same(tmp_path: Path, write: object) -> None:
    array = write(tmp_path)  # type: ignore[operator]
    assert right_here(array)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(right_here, (array,))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("write", WRITERS)
def test_a_forked_process_reads_the_same(tmp_path: Path, write: object) -> None:
    array = write(tmp_path)  # type: ignore[operator]
    assert right_here(array)
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if right_here(array) else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
