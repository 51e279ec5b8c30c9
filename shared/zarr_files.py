"""A store in a folder, for reading: where its documents, tables, commits and shards are."""

import json
import mmap
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from jaxtyping import Int64

from shared.address_space import AddressSpace, can_map
from shared.clip_array import ClipArray
from shared.commit import Commit
from shared.documents import read_group
from shared.shards import cell_bytes, row_offsets, shard_bytes
from shared.tables import read_tables

# The kernel grants a process 65,530 mappings (vm.max_map_count), and a mapped shard takes up to two. Beyond
# this many shards, those mapped first are given up and mapped again when they are needed.
MAX_MAPPED_SHARDS = 8192  # of one array
MAX_MAPPED_IN_ALL = 3 * MAX_MAPPED_SHARDS


@dataclass(frozen=True)
class ZarrFiles:
    """A Zarr v3 store at `path`."""

    path: Path

    def attributes(self) -> dict[str, Any]:
        """Return the root attributes as they are, checked or not.

        Raises:
            ValueError: the root's document is no JSON.
        """
        root = self.path / "zarr.json"
        if not root.is_file():
            return {}
        try:
            document = json.loads(root.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{root} is not valid JSON ({error}); the store is damaged: "
                f"`featurestore repair {self.path}` brings it back."
            ) from error
        found = document.get("attributes", {}) if isinstance(document, dict) else {}
        return found if isinstance(found, dict) else {}

    def tables(self, name: str) -> dict[str, pd.DataFrame]:
        """Return the tables in the folder that the root's attribute names."""
        return read_tables(self.path / name)

    def array_names(self) -> list[str]:
        """Return the names of the clip arrays."""
        maps = [*self.path.glob("maps/*/zarr.json"), *self.path.glob("views/*/*/zarr.json")]
        names = sorted(document.parent.relative_to(self.path).as_posix() for document in maps)
        return names + ["waveforms"] * (self.path / "waveforms" / "zarr.json").is_file()

    def array(self, name: str, num_rows: int) -> ClipArray:
        """Return an array with as many of its rows as count."""
        document = json.loads((self.path / name / "zarr.json").read_text(encoding="utf-8"))
        return ClipArray(
            name=name,
            shape=(num_rows, *document["shape"][1:]),
            dtype=np.dtype(document["data_type"]),
            attributes=document.get("attributes", {}),
            open_places=partial(ShardPlaces, self.path / name, document, num_rows, self.max_mapped()),
            ordinary=partial(_read_ordinarily, self.path / name),
        )

    def max_mapped(self) -> int:
        """Return how many shards of one array may be mapped at once, so that all arrays may."""
        num_arrays = max(1, len(self.array_names()))
        return min(MAX_MAPPED_SHARDS, MAX_MAPPED_IN_ALL // num_arrays)

    def commit_file(self, shard: int) -> Path:
        """Return the document of a shard's commit."""
        return self.path / "commits" / f"{shard:08d}" / "zarr.json"

    def commit(self, shard: int) -> Commit | None:
        """Return a shard's commit, None where it is not done.

        Raises:
            ValueError: its document is damaged.
        """
        path = self.commit_file(shard)
        return Commit.from_json(read_group(path)) if path.is_file() else None

    def shard_file(self, name: str, shard: int, row_shape: tuple[int, ...]) -> Path:
        """Return the file of an array's shard."""
        return shard_path(self.path / name, shard, len(row_shape))


def shard_path(array: Path, shard: int, row_dimensions: int) -> Path:
    """Return the shard's file by the default chunk keys, as in c/3/0/0/0."""
    return array.joinpath("c", str(shard), *("0" for _ in range(row_dimensions)))


def _read_ordinarily(array: Path, rows: np.ndarray) -> np.ndarray:
    opened = zarr.open_array(array, mode="r")
    return np.asarray(opened.oindex[rows])


class ShardPlaces:
    """The mapped shards of one array; see RowPlaces.

    Raises:
        LookupError: the array is not laid out as our shards are; says how it is.
    """

    def __init__(
        self, array: Path, document: dict[str, Any], num_rows: int, max_mapped: int = MAX_MAPPED_SHARDS
    ) -> None:
        _refuse_other_layouts(document)
        row_shape = document["shape"][1:]
        self._array, self._row_dimensions = array, len(row_shape)
        self._shard_clips = int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
        self._row_bytes = int(np.prod(row_shape)) * np.dtype(document["data_type"]).itemsize
        num_shards = -(-num_rows // self._shard_clips)
        place_bytes = shard_bytes(self._shard_clips, self._row_bytes) + mmap.PAGESIZE
        cell = cell_bytes(self._row_bytes)
        self.space = AddressSpace(max(1, min(num_shards, max_mapped)), place_bytes, cell)
        self.origin: int | None = 0
        self._offsets = np.full(num_shards * self._shard_clips, -1, np.int64)
        self._place_of: OrderedDict[int, int] = OrderedDict()  # shard to place, the first mapped first
        self._free_places = list(reversed(range(self.space.num_places)))

    @property
    def may_move(self) -> bool:
        """Whether a shard that is mapped may be given up for another."""
        return len(self._offsets) > self.space.num_places * self._shard_clips

    def offsets_of(self, rows: Int64[np.ndarray, " b"]) -> Int64[np.ndarray, " b"]:
        """Return the offset of every row, mapping shards that are not mapped yet.

        Raises:
            ValueError: a shard's file is gone or its index damaged, or these rows need more
                shards than may be mapped at once.
        """
        offsets = self._offsets[rows]
        if (offsets < 0).any():
            self._map_all({*np.unique(rows // self._shard_clips).tolist()})
            offsets = self._offsets[rows]
        return np.asarray(offsets)

    def _map_all(self, needed: set[int]) -> None:
        """Map all of these shards, giving up others, those mapped first before the rest."""
        if len(needed) > self.space.num_places:
            raise ValueError(
                f"these rows lie in {len(needed)} shards, and {self.space.num_places} may be mapped at "
                "once; read fewer rows at a time."
            )
        missing = [shard for shard in needed if shard not in self._place_of]
        unneeded = [shard for shard in self._place_of if shard not in needed]
        for given_up in unneeded[: max(0, len(missing) - len(self._free_places))]:
            self._rows(given_up)[:] = -1
            self._free_places.append(self._place_of.pop(given_up))
        for shard in missing:
            self._map(shard, self._free_places[-1])
            self._free_places.pop()

    def _map(self, shard: int, place: int) -> None:
        path = shard_path(self._array, shard, self._row_dimensions)
        try:
            file = self.space.map(place, path)
            offsets = row_offsets(file, self._shard_clips, self._row_bytes)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"{path}: {error}; `featurestore verify` names all damage, `repair` mends it."
            ) from error
        if (offsets[offsets >= 0] % self.space.cell_bytes).any():
            self.origin = None  # another writer's, packed more tightly
        self._place_of[shard] = place
        self._rows(shard)[:] = np.where(offsets < 0, 0, offsets + self.space.offset_of(place))

    def _rows(self, shard: int) -> np.ndarray:
        return np.asarray(self._offsets[shard * self._shard_clips : (shard + 1) * self._shard_clips])


def _refuse_other_layouts(document: dict[str, Any]) -> None:
    if not can_map():
        raise LookupError("files are mapped on 64-bit Linux only")
    codecs = document["codecs"]
    names = [codec["name"] for codec in codecs]
    if names != ["sharding_indexed"]:
        raise LookupError(f"its codecs are {', '.join(names)}, not sharding_indexed")
    sharding = codecs[0]["configuration"]
    inner = [codec["name"] for codec in sharding["codecs"]]
    index = [codec["name"] for codec in sharding["index_codecs"]]
    if inner != ["bytes", "crc32c"] or index != ["bytes", "crc32c"]:
        raise LookupError(f"its chunks are stored as {', '.join(inner)}, not bytes, crc32c")
    endian = sharding["codecs"][0].get("configuration", {}).get("endian", "little")
    if endian != "little" or sharding.get("index_location", "end") != "end":
        raise LookupError("its bytes are big endian or its index does not stand at the end")
    if sharding["chunk_shape"] != [1, *document["shape"][1:]]:
        raise LookupError(f"its chunks are {sharding['chunk_shape']}, not one row each")
    if document["chunk_key_encoding"]["name"] != "default":
        raise LookupError("its chunk keys are not the default ones")
