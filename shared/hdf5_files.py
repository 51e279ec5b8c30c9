"""A store in one HDF5 file: reading it, and making it from a finished store in a folder.

HDF5 has no renaming of parts, and a file that was being written when the power went may not open.
So a build works in a folder (`S.h5.parts`, a Zarr store), and the file is assembled from it in one
go, under another name, then renamed. Assembling is a pure function of the folder: the same bytes.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Int64
from tqdm import tqdm

from shared import recovery
from shared.address_space import AddressSpace, can_map
from shared.clip_array import ClipArray
from shared.commit import Commit
from shared.documents import canonical, with_checksum
from shared.shards import cell_bytes, digest_of_rows
from shared.zarr_files import ZarrFiles

SEAL_BYTES = 4096  # the user block: two copies of the seal, half of it each
COPY_ROWS = 64
META_BLOCK_BYTES = 1 << 16  # the file's own indexes, in few pieces between the chunks
UNSEALED = ("seal", "sha256")  # root attributes that speak of a folder's files
TIMELESS: dict[str, Any] = {"track_times": False}


@dataclass(frozen=True)
class Hdf5Files:
    """A store in the HDF5 file at `path`; the file is open only while something is read."""

    path: Path

    def _open(self) -> h5py.File:
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise ValueError(
                f"{self.path} cannot be opened as HDF5 ({error}); if it was a store, "
                f"`featurestore repair {self.path}` brings it back."
            ) from error

    def attributes(self) -> dict[str, Any]:
        """Return the root attributes."""
        with self._open() as file:
            return {name: json.loads(value) for name, value in file.attrs.items()}

    def tables(self, name: str) -> dict[str, pd.DataFrame]:
        """Return the tables in the group that the root's attribute names."""
        with self._open() as file:
            return {table: _read_table(group) for table, group in file[name].items()}

    def array_names(self) -> list[str]:
        """Return the names of the clip arrays."""
        with self._open() as file:
            groups = ["maps", *(f"views/{number}" for number in file.get("views", ()))]
            names = sorted(f"{group}/{stage}" for group in groups for stage in file[group])
            return names + ["waveforms"] * ("waveforms" in file)

    def array(self, name: str, num_rows: int) -> ClipArray:
        """Return an array with as many of its rows as count."""
        with self._open() as file:
            data = file[name]
            return ClipArray(
                name=name,
                shape=(num_rows, *data.shape[1:]),
                dtype=data.dtype,
                attributes={key: json.loads(value) for key, value in data.attrs.items()},
                open_places=partial(ChunkPlaces, self.path, name, num_rows),
                ordinary=partial(_read_ordinarily, self.path, name),
            )

    def commit(self, shard: int) -> Commit | None:
        """Return a shard's commit, None where there is none."""
        with self._open() as file:
            commits = file["commits"]
            return Commit.from_json(json.loads(commits[shard])) if shard < len(commits) else None


def _read_table(group: h5py.Group) -> pd.DataFrame:
    columns: list[str] = json.loads(group.attrs["columns"])
    values = {}
    for column in columns:
        data = group[column]
        values[column] = data.asstr()[:].astype(object) if data.dtype.kind == "O" else data[:]
    return pd.DataFrame(values, columns=columns)


def _read_ordinarily(path: Path, name: str, rows: np.ndarray) -> np.ndarray:
    with h5py.File(path, "r") as file:
        return np.asarray(file[name][rows])


class ChunkPlaces:
    """The chunks of one dataset in the mapped file; see RowPlaces.

    Raises:
        LookupError: rows are not stored as plain chunks of one row; says how they are.
    """

    def __init__(self, path: Path, name: str, num_rows: int) -> None:
        with h5py.File(path, "r") as file:
            data = file[name]
            _refuse_other_layouts(data)
            offsets = chunk_offsets(data, num_rows)
            first = np.asarray(data[:1])
        self.space = AddressSpace(1, path.stat().st_size, cell_bytes(first.nbytes))
        self.space.map(0, path)
        self.may_move = False
        self._offsets = np.where(offsets < 0, 0, offsets + self.space.offset_of(0))
        origins = np.unique(self._offsets % self.space.cell_bytes)
        self.origin = int(origins[0]) if len(origins) == 1 else None
        if num_rows and self.space.gather(self._offsets[:1], first.nbytes).tobytes() != first.tobytes():
            raise LookupError("its chunks do not lie where HDF5 says")

    def offsets_of(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Return the offset of every row."""
        return np.asarray(self._offsets[rows])


def chunk_offsets(data: h5py.Dataset, num_rows: int) -> Int64[np.ndarray, " r"]:
    """Return where each row's chunk begins in the file, -1 for rows that have none (all zeros)."""
    offsets = np.full(num_rows, -1, np.int64)

    def note(chunk: Any) -> None:
        if chunk.chunk_offset[0] < num_rows:
            if chunk.filter_mask:
                raise LookupError("filters were left out of some of its chunks")
            offsets[chunk.chunk_offset[0]] = chunk.byte_offset

    data.id.chunk_iter(note)  # get_chunk_info in a loop is quadratic
    return offsets


def _refuse_other_layouts(data: h5py.Dataset) -> None:
    if not can_map():
        raise LookupError("files are mapped on 64-bit Linux only")
    if data.chunks != (1, *data.shape[1:]):
        raise LookupError(f"its chunks are {data.chunks}, not one row each")
    if data.compression or data.shuffle or data.scaleoffset is not None:
        raise LookupError(f"its chunks are compressed or filtered ({data.compression or 'shuffle'})")
    if data.dtype.byteorder == ">":
        raise LookupError("its bytes are big endian")


def assemble(source: ZarrFiles, out: Path) -> None:
    """Write the finished store in a folder as the HDF5 file `out`, which is replaced in one step."""
    temporary = out.with_name(f".{out.name}.new")
    try:
        seal = _write_content(source, temporary)
        write_seal(temporary, seal)
        temporary.replace(out)
    except (OSError, RuntimeError) as error:  # h5py has no kind of its own for a full disk
        raise ValueError(f"{out} could not be written ({error}); is the disk full?") from error
    finally:
        temporary.unlink(missing_ok=True)


def _write_content(source: ZarrFiles, path: Path) -> dict[str, Any]:
    """Write everything but the seal, and return what the seal says of it."""
    attributes = source.attributes()
    num_rows, tables = attributes["num_rows"], attributes["tables"]
    num_shards = -(-num_rows // attributes["shard_clips"])
    commits = {shard: commit for shard in range(num_shards) if (commit := source.commit(shard))}
    if len(commits) < num_shards or any(commit.rows[1] > num_rows for commit in commits.values()):
        raise ValueError(f"{source.path} holds an unfinished build; finish it with `featurestore build`.")
    copies = recovery.unpack((source.path / "recovery" / "c" / "0").read_bytes())
    with h5py.File(path, "w", libver="latest", userblock_size=SEAL_BYTES) as file:
        for name, value in attributes.items():
            if name not in UNSEALED:
                file.attrs[name] = json.dumps(value, ensure_ascii=False)
    places = {
        f"offsets/{name}": _write_array(path, source, source.array(name, num_rows), commits)
        .astype("<i8")
        .tobytes()
        for name in source.array_names()
    }
    with h5py.File(path, "r+", libver="latest") as file:
        for table, frame in source.tables(tables).items():
            _write_table(file.create_group(f"{tables}/{table}"), frame)
        documents = [commit.to_json() for commit in commits.values()]
        file.create_dataset("commits", data=documents, dtype=h5py.string_dtype(), **TIMELESS)
        committed = {f"commits/{n:08d}.json": text.encode() for n, text in enumerate(documents)}
        blob = np.frombuffer(recovery.pack(copies | places | committed), np.uint8)
        copy = file.create_dataset("recovery", data=blob, **TIMELESS)
        file.flush()
        return {"recovery_offset": copy.id.get_offset(), "recovery_bytes": len(blob)}


def _write_array(
    path: Path, source: ZarrFiles, array: ClipArray, commits: dict[int, Commit]
) -> Int64[np.ndarray, " r"]:
    """Add an array with its chunks on a grid of cells, and return where they begin in the file.

    Raises:
        ValueError: the rows of a shard are not those of its commit.
    """
    shard_clips = source.attributes()["shard_clips"]
    row_shape = array.row_shape
    with h5py.File(
        path, "r+", libver="latest", meta_block_size=META_BLOCK_BYTES,
        alignment_threshold=array.row_bytes, alignment_interval=cell_bytes(array.row_bytes),
    ) as file:  # fmt: skip
        data = file.create_dataset(
            array.name,
            shape=(array.num_rows, *row_shape),
            maxshape=(None, *row_shape),
            chunks=(1, *row_shape),
            dtype=array.dtype,
            fletcher32=True,
            **TIMELESS,
        )
        for key, value in array.attributes.items():
            data.attrs[key] = json.dumps(value)
        with tqdm(total=array.num_rows, desc=f"writing {array.name}", unit="clip", leave=False) as bar:

            def written(commit: Commit) -> Iterator[np.ndarray]:
                first = commit.rows[0]
                for rows in read_in_pieces(array, *commit.rows):
                    data[first : first + len(rows)] = rows
                    first += len(rows)
                    bar.update(len(rows))
                    yield rows

            for shard, commit in commits.items():
                found = digest_of_rows(written(commit), shard_clips).sha256
                if found != commit.files[array.name]["sha256"]:
                    raise ValueError(
                        f"{source.path}: shard {shard} of {array.name} does not match its checksum; bring it "
                        f"back with `featurestore repair {source.path} --audio DIR`."
                    )
        file.flush()
        return chunk_offsets(data, array.num_rows)


def _write_table(group: h5py.Group, table: pd.DataFrame) -> None:
    group.attrs["columns"] = json.dumps(list(table.columns), ensure_ascii=False)
    for column in table.columns:
        values = table[column]
        if values.dtype.kind in "iufb":
            group.create_dataset(column, data=values.to_numpy(), **TIMELESS)
        else:
            texts = values.astype(str).to_numpy(dtype=object)
            group.create_dataset(column, data=texts, dtype=h5py.string_dtype(), **TIMELESS)


def write_seal(path: Path, seal: dict[str, Any]) -> None:
    """Write the sha256 of all that follows it into the file's user block, twice, and flush."""
    with path.open("r+b") as file:
        file.seek(SEAL_BYTES)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        num_bytes = os.fstat(file.fileno()).st_size
        content = {**seal, "content_sha256": found, "num_bytes": num_bytes}
        copy = canonical(with_checksum({"format": "dawnchorus", **content}))
        file.seek(0)
        file.write(2 * copy.ljust(SEAL_BYTES // 2, b"\n"))
        file.flush()
        os.fsync(file.fileno())


def read_seals(path: Path) -> list[dict[str, Any] | None]:
    """Return the two copies of the seal, None in place of a damaged one."""
    with path.open("rb") as file:
        block = file.read(SEAL_BYTES)
    return [_seal_of(block[half * SEAL_BYTES // 2 :][: SEAL_BYTES // 2]) for half in (0, 1)]


def _seal_of(copy: bytes) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(copy)
        intact = copy == canonical(with_checksum(found)).ljust(SEAL_BYTES // 2, b"\n")
    except (ValueError, AttributeError):
        return None
    return found if intact else None


def read_in_pieces(array: ClipArray, first: int, stop: int) -> Iterator[np.ndarray]:
    """Yield consecutive rows in pieces."""
    for start in range(first, stop, COPY_ROWS):
        yield array.read(np.arange(start, min(start + COPY_ROWS, stop)))
