"""Rows of a store read at random, in order and from a cold disk, beside the other ways to do it."""

import hashlib
import importlib.util
import os
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import torch
import zarr
from measuring import Numbers, median_seconds, show

from shared.audio import Finding
from shared.clip_array import ClipArray
from shared.commit import Commit
from shared.hdf5_files import Hdf5Files, assemble
from shared.shards import ShardWriter
from shared.store_writer import ArraySpec, StoreWriter
from shared.zarr_files import ZarrFiles

SHARD_CLIPS, BATCH = 512, 64
SHAPES = {(320, 7, 10): 10_000, (1280, 7, 10): 3_000}
NAME = "maps/m"


def write_stores(folder: Path, values: np.ndarray) -> tuple[ZarrFiles, Hdf5Files]:
    """Write the rows as a Zarr store and as an HDF5 store."""
    zarr_files = write_zarr(folder / "s.zarr", {NAME: values})
    assemble(zarr_files, folder / "s.h5")
    return zarr_files, Hdf5Files(folder / "s.h5")


def write_zarr(path: Path, arrays: dict[str, np.ndarray]) -> ZarrFiles:
    """Write arrays of as many rows each as a Zarr store."""
    import pandas as pd

    num_rows = len(next(iter(arrays.values())))
    specs = {
        name: ArraySpec(values.shape[1:], "float16", {"frame_hop": 16_000}) for name, values in arrays.items()
    }
    writer = StoreWriter(path, {"stages": ["m"]}, specs, SHARD_CLIPS)
    for shard, first in enumerate(range(0, num_rows, SHARD_CLIPS)):
        rows = {name: values[first : first + SHARD_CLIPS] for name, values in arrays.items()}
        files = writer.write_shard(shard, iter([rows]))
        count = min(SHARD_CLIPS, num_rows - first)
        writer.commit(
            shard,
            Commit((first, first + count), (("a", first, count),), files, [1.0] * count, [1] * count,
                   {"a": Finding("ok")}),
        )  # fmt: skip
    clips = pd.DataFrame({"recording": np.zeros(num_rows, np.int64), "start": np.arange(num_rows)})
    writer.publish({"clips": clips, "recordings": clips[:0], "labels": clips[:0]})
    return ZarrFiles(path)


def write_pt_files(folder: Path, values: np.ndarray) -> list[Path]:
    """Write one .pt file a batch, as feature caches commonly are."""
    folder.mkdir()
    paths = []
    for first in range(0, len(values), BATCH):
        paths.append(folder / f"{first // BATCH}.pt")
        torch.save(torch.from_numpy(values[first : first + BATCH].copy()), paths[-1])
    return paths


def rows_of_pt_files(paths: list[Path], rows: np.ndarray, **how: bool) -> torch.Tensor:
    """Read rows at random from files of a batch each."""
    return torch.stack([torch.load(paths[row // BATCH], **how)[row % BATCH] for row in rows])


def seconds_per_clip(
    ways: dict[str, tuple[Callable[[np.ndarray], object], int]], num_rows: int
) -> dict[str, float]:
    """Return each way's median seconds per clip; a way comes with how many batches it reads a turn."""
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, num_rows, BATCH) for _ in range(max(count for _, count in ways.values()))]

    def read_all(read: Callable[[np.ndarray], object], count: int) -> None:
        for rows in batches[:count]:
            read(rows)

    seconds = median_seconds({name: partial(read_all, *way) for name, way in ways.items()})
    return {name: seconds[name] / (BATCH * count) for name, (_, count) in ways.items()}


def random_reads(shape: tuple[int, ...], num_rows: int) -> Numbers:
    """Random batches of 64 with a warm cache; 1 is the best that np.memmap does in this run.

    A file that was just written is held in pages as large as the writes were, and that alone makes
    10 % or more: an array written in one go would be compared with a store written row by row. So
    all begin on the disk, and come into memory as each way reads them.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = np.random.default_rng(1).standard_normal((num_rows, *shape), np.float32).astype(np.float16)
        zarr_files, hdf5_files = write_stores(folder, values)
        values.tofile(folder / "m.bin")
        pt_files = write_pt_files(folder / "pt", values)
        drop_pages(folder)  # see below: in memory is what the first, untimed turn reads
        memmap = np.memmap(folder / "m.bin", np.float16, "r", shape=values.shape)
        ours, ours_h5 = zarr_files.array(NAME, num_rows), hdf5_files.array(NAME, num_rows)
        in_zarr = zarr.open_array(folder / "s.zarr" / NAME, mode="r")
        in_h5 = h5py.File(folder / "s.h5", "r")[NAME]
        out, out_h5 = ours.empty(BATCH), ours_h5.empty(BATCH)
        memmap_out = _at_a_page((BATCH, *shape))

        per_turn = num_rows // BATCH
        ways: dict[str, tuple[Callable[[np.ndarray], object], int]] = {
            "np.memmap, fancy indexing": (lambda rows: memmap[rows], per_turn),
            "np.memmap, take": (lambda rows: memmap.take(rows, axis=0), per_turn),
            "np.memmap, take into out=": (
                lambda rows: memmap.take(rows, axis=0, out=memmap_out, mode="clip"),
                per_turn,
            ),
            "Zarr store": (ours.read, per_turn),
            "Zarr store, into out=": (lambda rows: ours.read(rows, out), per_turn),
            "Zarr store, into packed out=": (lambda rows: ours.read(rows, memmap_out), per_turn),
            "HDF5 store": (ours_h5.read, per_turn),
            "HDF5 store, into out=": (lambda rows: ours_h5.read(rows, out_h5), per_turn),
            "h5py, one row a time": (lambda rows: np.stack([in_h5[row] for row in rows]), 4),
            "h5py, fancy indexing": (lambda rows: in_h5[np.unique(rows)], 1),
            "zarr-python, oindex": (lambda rows: in_zarr.oindex[rows], 2),
            ".pt batch files": (partial(rows_of_pt_files, pt_files), 1),
            ".pt batch files, mmap=True": (partial(rows_of_pt_files, pt_files, mmap=True), 1),
        }
        if importlib.util.find_spec("tensorstore"):
            ways["tensorstore"] = (_tensorstore_reader(folder / "s.zarr" / NAME), 8)
        seconds = seconds_per_clip(ways, num_rows)
        assert np.array_equal(ours.read(np.arange(num_rows)), values)
        assert np.array_equal(ours_h5.read(np.arange(num_rows)), values)
    return _shown_random(shape, num_rows, seconds)


def _shown_random(shape: tuple[int, ...], num_rows: int, seconds: dict[str, float]) -> Numbers:
    base = min(value for way, value in seconds.items() if way.startswith("np.memmap"))
    rows = [[way, f"{1 / value:,.0f}", f"{base / value:.3f}"] for way, value in seconds.items()]
    text = "x".join(map(str, shape))
    show(f"Random batches of {BATCH}, {num_rows:,} clips of {text} float16, warm cache",
         ["way", "clips/s", "x best np.memmap"], rows)  # fmt: skip
    return {
        "zarr_over_memmap": base / seconds["Zarr store, into out="],
        "hdf5_over_memmap": base / seconds["HDF5 store, into out="],
        "zarr_new_array_over_memmap_new_array": seconds["np.memmap, take"] / seconds["Zarr store"],
        "hdf5_new_array_over_memmap_new_array": seconds["np.memmap, take"] / seconds["HDF5 store"],
        "zarr_over_zarr_python": seconds["zarr-python, oindex"] / seconds["Zarr store"],
        "hdf5_over_h5py": seconds["h5py, one row a time"] / seconds["HDF5 store"],
        "zarr_over_pt_files": seconds[".pt batch files"] / seconds["Zarr store"],
    }


def _at_a_page(shape: tuple[int, ...]) -> np.ndarray:
    """Return an array that begins at a page, as ours do: copies to malloc's places can take twice as long."""
    memory = np.empty(int(np.prod(shape)) + 2048, np.float16)
    first = -memory.ctypes.data % 4096 // 2
    return memory[first : first + int(np.prod(shape))].reshape(shape)


def _tensorstore_reader(path: Path) -> Callable[[np.ndarray], object]:
    import tensorstore

    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    opened = tensorstore.open(spec, read=True).result()
    return lambda rows: opened.oindex[rows].read().result()


def drop_pages(path: Path) -> None:
    """Have no page of the files below in memory; nothing may have them mapped."""
    os.sync()
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def read_in_order(path: Path) -> None:
    """Read a file from front to back."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 20):
            pass


def read_ahead_at_random(array: ClipArray, order: np.ndarray) -> None:
    """Read every row once, in batches, telling the disk of each two batches before, as training does."""
    batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
    for number, rows in enumerate(batches):
        for soon in batches[number : number + 3] if number == 0 else batches[number + 2 : number + 3]:
            array.will_need(soon)
        array.read(rows)


def cold_and_sequential(shape: tuple[int, ...], num_rows: int) -> Numbers:
    """The whole store in order, warm, beside `cp`; and at random from a cold disk, beside in order."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = np.random.default_rng(1).standard_normal((num_rows, *shape), np.float32).astype(np.float16)
        zarr_files, hdf5_files = write_stores(folder, values)
        shards = sorted(str(path) for path in (folder / "s.zarr" / NAME).rglob("0") if path.is_file())
        out = zarr_files.array(NAME, num_rows).empty(BATCH)
        whole = num_rows // BATCH * BATCH

        def in_order() -> None:
            array = zarr_files.array(NAME, num_rows)
            for first in range(0, whole, BATCH):
                array.read(np.arange(first, first + BATCH), out)

        def copied() -> None:
            for shard in shards:
                subprocess.run(["cp", shard, "/dev/null"], check=True)

        warm = median_seconds({"in order": in_order, "cp": copied})
        order = np.random.default_rng(2).permutation(num_rows)

        def cold_in_order() -> None:
            for shard in shards:
                read_in_order(Path(shard))

        cold = median_seconds(
            {
                "files in order": cold_in_order,
                "Zarr store, random": lambda: read_ahead_at_random(zarr_files.array(NAME, num_rows), order),
                "HDF5 store, random": lambda: read_ahead_at_random(hdf5_files.array(NAME, num_rows), order),
                "without telling ahead": lambda: _plainly(zarr_files.array(NAME, num_rows), order),
            },
            before=lambda: drop_pages(folder),
        )
    megabytes = values.nbytes / 1e6
    rows = [[f"warm: {way}", f"{megabytes / seconds:,.0f}"] for way, seconds in warm.items()]
    rows += [[f"cold: {way}", f"{megabytes / seconds:,.0f}"] for way, seconds in cold.items()]
    show(f"Whole store of {megabytes:.0f} MB, one process", ["way", "MB/s"], rows)
    return {
        "in_order_over_cp": warm["cp"] / warm["in order"],
        "cold_random_over_in_order": cold["files in order"] / cold["Zarr store, random"],
        "cold_hdf5_random_over_in_order": cold["files in order"] / cold["HDF5 store, random"],
        "cold_gain_of_telling_ahead": cold["without telling ahead"] / cold["Zarr store, random"],
    }


def _plainly(array: ClipArray, order: np.ndarray) -> None:
    for first in range(0, len(order), BATCH):
        array.read(order[first : first + BATCH])


def writing(shape: tuple[int, ...], num_rows: int) -> Numbers:
    """Shards written durably: ours (with checksums), `tofile` of the same rows, zarr-python."""
    values = np.random.default_rng(1).standard_normal((num_rows, *shape), np.float32).astype(np.float16)
    parts = [values[first : first + SHARD_CLIPS] for first in range(0, num_rows, SHARD_CLIPS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def ours() -> None:
            for number, part in enumerate(parts):
                path = folder / f"ours{number}"
                with ShardWriter(path, shard_clips=SHARD_CLIPS, row_bytes=part[0].nbytes) as writer:
                    for first in range(0, len(part), 16):
                        writer.append(part[first : first + 16])
                    writer.finish()

        def tofile(digest: bool = False) -> None:
            for number, part in enumerate(parts):
                with (folder / f"tofile{number}").open("wb") as file:
                    part.tofile(file)
                    file.flush()
                    if digest:
                        hashlib.sha256(part)
                    os.fsync(file.fileno())

        def zarr_python() -> None:
            array = zarr.create_array(
                folder / "z.zarr", shape=values.shape, dtype="float16", chunks=(1, *shape),
                shards=(SHARD_CLIPS, *shape), compressors=[zarr.codecs.Crc32cCodec()], overwrite=True,
            )  # fmt: skip
            for number, part in enumerate(parts):
                first = number * SHARD_CLIPS
                array[first : first + len(part)] = part

        seconds = median_seconds(
            {
                "this project": ours,
                "tofile and fsync": tofile,
                "tofile, sha256 and fsync": partial(tofile, digest=True),
                "zarr-python, no fsync": zarr_python,
            }
        )
    rows = [
        [way, f"{values.nbytes / 1e6 / value:,.0f}", f"{seconds['tofile and fsync'] / value:.2f}"]
        for way, value in seconds.items()
    ]
    show(f"Writing {values.nbytes / 1e6:.0f} MB of rows as shards", ["way", "MB/s", "x tofile"], rows)
    return {
        "writer_over_tofile": seconds["tofile and fsync"] / seconds["this project"],
        "writer_over_tofile_with_sha256": seconds["tofile, sha256 and fsync"] / seconds["this project"],
        "writer_over_zarr_python": seconds["zarr-python, no fsync"] / seconds["this project"],
    }


def reads() -> Numbers:
    """All of it: random, in order, cold, and the writer."""
    found: Numbers = {}
    for number, (shape, num_rows) in enumerate(SHAPES.items()):
        ending = "" if number == 0 else f"_{shape[0]}"
        found |= {f"{name}{ending}": value for name, value in random_reads(shape, num_rows).items()}
    shape, num_rows = next(iter(SHAPES.items()))
    found |= cold_and_sequential(shape, num_rows) | writing(shape, 3072)
    return {f"reads.{name}": value for name, value in found.items()}
