"""Writes a store in a folder. Nothing counts until it is committed, nothing is seen until published."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from zarr.codecs import Crc32cCodec

from shared import recovery
from shared.commit import Commit
from shared.documents import canonical, group_document, with_checksum, write_atomically
from shared.features import FORMAT_VERSION
from shared.shards import ShardDigest, ShardWriter
from shared.stage_clock import StageClock
from shared.tables import tables_digest, write_tables
from shared.zarr_files import ZarrFiles

FORMAT_NAME = "dawnchorus"
SCRATCH = ".tmp"
OLD = ".old"


@dataclass(frozen=True)
class ArraySpec:
    """An array of the store: one row per clip."""

    row_shape: tuple[int, ...]
    dtype: str
    attributes: dict[str, Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(np.prod(self.row_shape)) * np.dtype(self.dtype).itemsize


class StoreWriter:
    """Creates a store or goes on with one."""

    def __init__(
        self, path: Path, attributes: dict[str, Any], arrays: dict[str, ArraySpec], shard_clips: int
    ) -> None:
        self.path = path
        self.files = ZarrFiles(path)
        self.arrays = arrays
        self.shard_clips = shard_clips
        self._scratch = path / SCRATCH
        self._journal = self._scratch / "journal"
        self._keeps_old = False
        if not path.exists():
            self._create(attributes)
        if self._journal.is_file():
            self._finish_commit()
        self.sweep_scratch()
        self.attributes = self.files.attributes()

    def _create(self, attributes: dict[str, Any]) -> None:
        """Make the empty store beside its place and move it there: a kill leaves no half store."""
        new = self.path.with_name(f".{self.path.name}.new")
        shutil.rmtree(new, ignore_errors=True)
        for group in (*self._groups(), "commits", "tables"):
            write_atomically(new / group / "zarr.json", canonical(group_document({})), new / SCRATCH)
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
            document = json.loads((new / name / "zarr.json").read_text(encoding="utf-8"))
            write_atomically(new / name / "zarr.json", canonical(document), new / SCRATCH)
        root = {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            **attributes,
            "shard_clips": self.shard_clips,
            "num_rows": 0,
            "tables": None,
        }
        document = group_document(with_checksum(root))
        write_atomically(new / "zarr.json", canonical(document), new / SCRATCH)
        new.replace(self.path)

    def _groups(self) -> list[str]:
        """Return the groups that the arrays are in, all levels."""
        parents = {parent for name in self.arrays for parent in Path(name).parents} - {Path()}
        return sorted(parent.as_posix() for parent in parents)

    def sweep_scratch(self) -> None:
        """Remove what was being written; nothing of it counts."""
        shutil.rmtree(self._scratch, ignore_errors=True)

    def write_attributes(self) -> None:
        """Write the root attributes as they are now."""
        self.attributes = with_checksum(self.attributes)
        self._write(Path("zarr.json"), canonical(group_document(self.attributes)))

    def _write(self, name: Path, data: bytes) -> None:
        write_atomically(self.path / name, data, self._scratch)

    def commit_of(self, shard: int) -> Commit | None:
        """Return the commit of a shard, None where it is not done, damaged, or its files are gone."""
        try:
            commit = self.files.commit(shard)
        except ValueError:
            return None
        if commit is None or {*commit.files} != {*self.arrays}:
            return None
        for name, spec in self.arrays.items():
            file = self.files.shard_file(name, shard, spec.row_shape)
            if not file.is_file() or file.stat().st_size != commit.files[name]["num_bytes"]:
                return None
        return commit

    def write_shard(
        self, shard: int, batches: Iterator[dict[str, np.ndarray]], clock: StageClock | None = None
    ) -> dict[str, Any]:
        """Stream batches of rows per array into new shard files, which wait to be committed.

        Returns each array's size and sha256, for the commit that must follow.
        """
        clock = clock or StageClock()
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(
                    ShardWriter(
                        self._scratch / name.replace("/", "."),
                        shard_clips=self.shard_clips,
                        row_bytes=spec.row_bytes,
                    )
                )
                for name, spec in self.arrays.items()
            }
            for batch in batches:
                with clock.measured("write"):
                    for name, writer in writers.items():
                        writer.append(batch[name])
            with clock.measured("write"):
                digests: dict[str, ShardDigest] = {n: w.finish() for n, w in writers.items()}
        return {name: asdict(digest) for name, digest in digests.items()}

    def commit(self, shard: int, commit: Commit) -> None:
        """Make a written shard count, in one step: a kill leaves the shard as it was, or as it will be.

        What has to be done is written down first, and done when the store is opened again.
        """
        targets = {
            name.replace("/", "."): self.files.shard_file(name, shard, spec.row_shape)
            for name, spec in self.arrays.items()
        }
        journal = {
            "moves": {name: target.relative_to(self.path).as_posix() for name, target in targets.items()},
            "commit": self.files.commit_file(shard).relative_to(self.path).as_posix(),
            "attributes": with_checksum(asdict(commit)),
            "keeps_old": self._keeps_old,
        }
        write_atomically(self._journal, canonical(journal), self._scratch)
        self._finish_commit()

    def _finish_commit(self) -> None:
        """Do what the journal says, as far as it is not done already."""
        journal = json.loads(self._journal.read_bytes())
        commit, document = journal["commit"], canonical(group_document(journal["attributes"]))
        for name in (commit, *journal["moves"].values()):
            if not recovery.is_inside(name):
                raise ValueError(f"{self._journal} names a file outside the store, {name}: remove it.")
        waiting = {
            name: target for name, target in journal["moves"].items() if (self._scratch / name).exists()
        }
        if journal["keeps_old"]:
            for target in waiting.values():
                self._keep_old(target)
            if (self.path / commit).exists() and (self.path / commit).read_bytes() != document:
                self._keep_old(commit)
        for name, target in waiting.items():
            (self.path / target).parent.mkdir(parents=True, exist_ok=True)
            (self._scratch / name).replace(self.path / target)
        self._write(Path(commit), document)
        self._journal.unlink()

    def _keep_old(self, name: str) -> None:
        """Move a file among the old ones, unless one of an earlier try is there."""
        old = self.old_files.path / name
        if (self.path / name).exists() and not old.exists():
            old.parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).rename(old)

    @property
    def old_files(self) -> ZarrFiles:
        """The shards that were replaced since the store was withdrawn, until it is published."""
        return ZarrFiles(self.path / OLD)

    def withdraw(self) -> None:
        """Make nothing visible any more: published rows are about to become other recordings'.

        The tables stay, for the build that goes on after a kill to know what was there, and so do
        shards that are replaced: rows move from one to another, and their audio may be gone.
        """
        for name in self.arrays:
            document = Path(name, "zarr.json")
            if not (self.old_files.path / document).exists():
                self._write(Path(OLD, document), (self.path / document).read_bytes())
        self._keeps_old = True
        if self.attributes["tables"] is not None:
            tables = self.attributes["tables"]
            self.attributes |= {"num_rows": 0, "tables": None, "withdrawn_tables": tables}
            self.write_attributes()

    def publish(self, tables: dict[str, pd.DataFrame], *, finished: bool = True) -> None:
        """Make tables and all committed rows visible in one step: the root's replacement.

        The tables' folder is named by their content, so that a store's bytes do not depend on
        how often its build was interrupted. The root seals every small file by its sha256, and
        `recovery` keeps a second copy of them all. A build that is stopped early publishes the
        rows it has, and keeps shards behind them that the next one will not have to make.
        """
        num_rows = len(tables["clips"])
        name = f"tables/{tables_digest(tables)}"
        if not (self.path / name).exists():
            write_tables(self._scratch / "tables", tables)
            _flush_folder(self._scratch / "tables")
            (self._scratch / "tables").replace(self.path / name)
        for array in self.arrays:
            document = json.loads((self.path / array / "zarr.json").read_text(encoding="utf-8"))
            document["shape"][0] = num_rows
            self._write(Path(str(array), "zarr.json"), canonical(document))
        small = {file.as_posix(): (self.path / file).read_bytes() for file in self._small_files(name)}
        seal = {file: hashlib.sha256(data).hexdigest() for file, data in sorted(small.items())}
        self.attributes |= {"num_rows": num_rows, "tables": name, "seal": seal}
        self.attributes.pop("withdrawn_tables", None)
        self.attributes = with_checksum(self.attributes)
        root = canonical(group_document(self.attributes))
        self._write(Path("zarr.json"), root)
        self.write_recovery(small | {"zarr.json": root})
        self._sweep(num_rows if finished else None, keep=name)

    def write_recovery(self, files: dict[str, bytes]) -> None:
        """Write the second copies of the documents and tables."""
        blob = recovery.pack(files)
        self._write(Path("recovery", "c", "0"), blob)
        self._write(Path("recovery", "zarr.json"), canonical(recovery_document(len(blob))))

    def _small_files(self, tables: str) -> list[Path]:
        """Return the documents and tables that belong to a store, the root's apart."""
        names = (*self._groups(), *self.arrays, "commits", "tables")
        documents = [Path(name, "zarr.json") for name in names]
        written = [file.relative_to(self.path) for file in (self.path / tables).rglob("*") if file.is_file()]
        return documents + written

    def _sweep(self, num_rows: int | None, keep: str) -> None:
        """Remove what no longer counts: earlier tables, shards past the last row, scratch."""
        for folder in (self.path / "tables").iterdir():
            if folder.is_dir() and f"tables/{folder.name}" != keep:
                shutil.rmtree(folder)
        self.sweep_scratch()
        if num_rows is None:
            return
        shutil.rmtree(self.old_files.path, ignore_errors=True)
        num_shards = -(-num_rows // self.shard_clips)
        stale = [path for path in (self.path / "commits").iterdir() if path.is_dir()]
        stale += [path for name in self.arrays for path in (self.path / name).glob("c/*")]
        for path in stale:
            if int(path.name) >= num_shards:
                shutil.rmtree(path)


def recovery_document(num_bytes: int) -> dict[str, Any]:
    """Return the zarr.json of the recovery copy: bytes in one chunk."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [num_bytes],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [num_bytes]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
        "attributes": {"holds": "a tar of all documents and tables, then its sha256"},
    }


def _flush_folder(folder: Path) -> None:
    """Have all files of a folder on the disk before it is named."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
