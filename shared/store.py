"""The store on disk: a Zarr v3 group of clip arrays, tables and commits (docs/store-format.md)."""

import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from jaxtyping import Int64
from zarr.codecs import Crc32cCodec

from shared.audio import Finding
from shared.features import FORMAT_VERSION
from shared.shards import MappedShard, ShardDigest, ShardWriter
from shared.tables import read_tables, tables_digest, write_tables

FORMAT_NAME = "dawnchorus"
MAX_MAPPED_SHARDS = 128  # Python's mmap keeps a descriptor each; a user has about a thousand
TABLES = ("clips", "recordings", "labels")


@dataclass(frozen=True)
class ArraySpec:
    """An array of the store: one row per clip."""

    row_shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Commit:
    """What is known of a finished shard; its presence makes the shard count.

    rows: first row and one past the last.
    plan: digest of the (audio sha256, start) of every row: what the shard was made from.
    files: array name to size and sha256 of the shard file.
    gain, valid_samples: per row.
    recordings: audio sha256 to what this shard found of it.
    """

    rows: tuple[int, int]
    plan: str
    files: dict[str, dict[str, Any]]
    gain: list[float]
    valid_samples: list[int]
    recordings: dict[str, Finding]

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Commit":
        """Make a commit from its attributes: JSON knows lists where we have tuples."""
        first, stop = document["rows"]
        recordings = {
            sha256: Finding(found["status"], tuple(found["reasons"]))
            for sha256, found in document["recordings"].items()
        }
        return cls(**(document | {"rows": (first, stop), "recordings": recordings}))


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the root attributes of a store.

    Raises:
        ValueError: no store, or one of another format version; says what was found.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist; make a store with `featurestore build`.")
    root = path / "zarr.json"
    attributes: dict[str, Any] = {}
    if root.is_file():
        try:
            document = json.loads(root.read_text(encoding="utf-8"))
            attributes = document.get("attributes", {}) if isinstance(document, dict) else {}
        except ValueError as error:
            raise ValueError(f"{root} is not valid JSON ({error}); the store is damaged.") from error
    if attributes.get("format") != FORMAT_NAME:
        raise ValueError(f"{path} is not a feature store (no {FORMAT_NAME} format in zarr.json).")
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has store format version {version}; this program reads {FORMAT_VERSION}. "
            "Build it again, or take the program version that made it."
        )
    return attributes


def _write_atomically(path: Path, document: dict[str, Any]) -> None:
    """Replace a JSON file so that every reader sees the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(document, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _group_document(attributes: dict[str, Any]) -> dict[str, Any]:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _shard_file(store: Path, array: str, shard: int, spec: ArraySpec) -> Path:
    return store.joinpath(array, "c", str(shard), *("0" for _ in spec.row_shape))


class StoreWriter:
    """Creates a store or goes on with one. Nothing counts until it is committed, and readers
    see nothing of a build until it is published.
    """

    def __init__(
        self, path: Path, attributes: dict[str, Any], arrays: dict[str, ArraySpec], shard_clips: int
    ) -> None:
        self.path = path
        self.arrays = arrays
        self.shard_clips = shard_clips
        self._scratch = path / ".tmp"
        if not path.exists():
            self._create(attributes)
        self.attributes = read_attributes(path)
        shutil.rmtree(self._scratch, ignore_errors=True)
        for left_over in path.rglob(".zarr.json.tmp"):
            left_over.unlink()

    def _create(self, attributes: dict[str, Any]) -> None:
        """Make the empty store beside its place and move it there: a kill leaves no half store."""
        new = self.path.with_name(f".{self.path.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        groups = {Path(name).parent.as_posix() for name in self.arrays} - {"."}
        for group in (*groups, "commits", "tables"):
            _write_atomically(new / group / "zarr.json", _group_document({}))
        for name, spec in self.arrays.items():
            zarr.create_array(
                new / name,
                shape=(0, *spec.row_shape),
                dtype=spec.dtype,
                chunks=(1, *spec.row_shape),
                shards=(self.shard_clips, *spec.row_shape),
                compressors=[Crc32cCodec()],
                fill_value=0,
                attributes=spec.attributes,
                zarr_format=3,
            )
        root = {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            **attributes,
            "shard_clips": self.shard_clips,
            "num_rows": 0,
            "tables": None,
        }
        _write_atomically(new / "zarr.json", _group_document(root))
        new.replace(self.path)

    def write_attributes(self) -> None:
        """Write the root attributes as they are now."""
        _write_atomically(self.path / "zarr.json", _group_document(self.attributes))

    def _commit_file(self, shard: int) -> Path:
        return self.path / "commits" / f"{shard:08d}" / "zarr.json"

    def commit_of(self, shard: int) -> Commit | None:
        """Return the commit of a shard, None where it is not done or its files are gone."""
        path = self._commit_file(shard)
        if not path.is_file():
            return None
        commit = Commit.from_json(json.loads(path.read_text(encoding="utf-8"))["attributes"])
        for name, spec in self.arrays.items():
            file = _shard_file(self.path, name, shard, spec)
            if not file.is_file() or file.stat().st_size != commit.files[name]["num_bytes"]:
                return None
        return commit

    def write_shard(self, shard: int, batches: "Iterator[dict[str, np.ndarray]]") -> dict[str, Any]:
        """Stream batches of rows per array into new shard files and put them in place.

        Returns each array's size and sha256, for the commit that must follow.
        """
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    ShardWriter(self._scratch / name.replace("/", "."), shard_clips=self.shard_clips)
                )
                for name in self.arrays
            }
            for batch in batches:
                for name, writer in writers.items():
                    writer.append(batch[name])
            digests: dict[str, ShardDigest] = {n: w.finish() for n, w in writers.items()}
        self._commit_file(shard).unlink(missing_ok=True)  # it speaks of the files replaced now
        for name, writer in writers.items():
            target = _shard_file(self.path, name, shard, self.arrays[name])
            target.parent.mkdir(parents=True, exist_ok=True)
            writer.path.replace(target)
        return {name: asdict(digest) for name, digest in digests.items()}

    def commit(self, shard: int, commit: Commit) -> None:
        """Make a written shard count."""
        _write_atomically(self._commit_file(shard), _group_document(asdict(commit)))

    def withdraw(self) -> None:
        """Make nothing visible any more: published rows are about to become other recordings'."""
        if self.attributes["tables"] is not None:
            self.attributes |= {"num_rows": 0, "tables": None}
            self.write_attributes()

    def publish(self, tables: dict[str, pd.DataFrame]) -> None:
        """Make tables and all committed rows visible in one step: the root's replacement.

        The tables' folder is named by their content, so that a store's bytes do not depend on
        how often its build was interrupted.
        """
        num_rows = len(tables["clips"])
        name = f"tables/{tables_digest(tables)}"
        if not (self.path / name).exists():
            write_tables(self._scratch / "tables", tables)
            (self._scratch / "tables").replace(self.path / name)
        for array in self.arrays:
            document = json.loads((self.path / array / "zarr.json").read_text(encoding="utf-8"))
            document["shape"][0] = num_rows
            _write_atomically(self.path / array / "zarr.json", document)
        self.attributes |= {"num_rows": num_rows, "tables": name}
        self.write_attributes()
        self._sweep(num_rows, keep=name)

    def _sweep(self, num_rows: int, keep: str) -> None:
        """Remove what no longer counts: earlier tables, shards past the last row, scratch."""
        for folder in (self.path / "tables").iterdir():
            if folder.is_dir() and f"tables/{folder.name}" != keep:
                shutil.rmtree(folder)
        num_shards = -(-num_rows // self.shard_clips)
        stale = [path for path in (self.path / "commits").iterdir() if path.is_dir()]
        stale += [path for name in self.arrays for path in (self.path / name).glob("c/*")]
        for path in stale:
            if int(path.name) >= num_shards:
                shutil.rmtree(path)
        shutil.rmtree(self._scratch, ignore_errors=True)


class ClipArray:
    """Random rows of one clip array, straight from the mapped shard files."""

    def __init__(self, store: Path, name: str, num_rows: int) -> None:
        document = json.loads((store / name / "zarr.json").read_text(encoding="utf-8"))
        self.name = name
        self.num_rows = num_rows
        self.row_shape: tuple[int, ...] = tuple(document["shape"][1:])
        self.dtype = np.dtype(document["data_type"]).newbyteorder("<")
        self.attributes: dict[str, Any] = document.get("attributes", {})
        self._shard_clips = int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
        self._spec = ArraySpec(self.row_shape, document["data_type"], {})
        self._store = store
        self._mapped: OrderedDict[int, MappedShard] = OrderedDict()

    def read(self, rows: Int64[np.ndarray, " b"], out: np.ndarray | None = None) -> np.ndarray:
        """Return rows (B, ...) in the order asked for, into `out` where it is given.

        Raises:
            IndexError: a row outside 0..num_rows - 1.
        """
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.num_rows):
            raise IndexError(f"{self.name} has rows 0..{self.num_rows - 1}, asked for {rows}.")
        if out is None:
            out = np.empty((len(rows), *self.row_shape), self.dtype)
        shards, local = np.divmod(rows, self._shard_clips)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            self._shard(int(shard)).read(local[places], out, places)
        return out

    def _shard(self, shard: int) -> MappedShard:
        if shard not in self._mapped:
            self._mapped[shard] = MappedShard(
                _shard_file(self._store, self.name, shard, self._spec),
                shard_clips=self._shard_clips,
                row_shape=self.row_shape,
                dtype=self.dtype,
            )
            if len(self._mapped) > MAX_MAPPED_SHARDS:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(shard)
        return self._mapped[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": OrderedDict()}


class FeatureStore:
    """A published store, opened for reading.

    clips: one row per clip: recording (row of `recordings`), start, valid_samples, gain.
    recordings: one row per recording: metadata as given, sha256, status, reason.
    labels: one row per (recording, species, kind, start, stop, value, weight).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attributes = read_attributes(path)
        if self.attributes["tables"] is None:
            raise ValueError(
                f"{path} holds an unfinished build; run the same `featurestore build` again to finish it."
            )
        tables = read_tables(path / self.attributes["tables"])
        self.clips, self.recordings, self.labels = (tables[name] for name in TABLES)
        self.num_rows = len(self.clips)
        self.stage: str = self.attributes["stage"]
        self.maps = ClipArray(path, f"maps/{self.stage}", self.num_rows)
        has_waveforms = (path / "waveforms" / "zarr.json").is_file()
        self.waveforms = ClipArray(path, "waveforms", self.num_rows) if has_waveforms else None

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides a feature's value."""
        return str(self.attributes["fingerprint"])

    @property
    def frame_hop(self) -> int:
        """Samples from one frame of the map to the next."""
        return int(self.maps.attributes["frame_hop"])
