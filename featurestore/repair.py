"""Brings a damaged store back: documents and tables from their second copies, shards from the audio."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from featurestore.build import Builder
from featurestore.containers import finish_container, to_folder
from featurestore.damage import UNFINISHED, Damage
from featurestore.plan import Plan
from featurestore.row_source import RowBatch, RowSource
from featurestore.session import Say, embedder_for
from featurestore.store_plan import WaveformSource, plan_of_tables
from featurestore.stored_rows import StoredRows
from featurestore.verify import RECOVERY, find_audio, verify_folder, verify_store
from featurestore.verify_hdf5 import commits_of, raw_rows, recovery_of_file
from featurestore.views import Views, stored_sections
from shared import recovery
from shared.commit import Commit
from shared.config import parse_config
from shared.documents import UNREADABLE, canonical, group_document, with_checksum
from shared.embedder import choose_device
from shared.features import FeatureConfig
from shared.hdf5_files import Hdf5Files, read_seals
from shared.lock import locked
from shared.shards import ShardWriter, digest_of_rows
from shared.stopping import stoppable
from shared.store import files_of, parts_of
from shared.store_writer import StoreWriter, recovery_document
from shared.zarr_files import ZarrFiles


def repair_store(
    path: Path, audio: list[Path], say: Say, *, weights: str | None, workers: int, allow_mixed: bool,
    break_lock: bool,
) -> list[Damage]:  # fmt: skip
    """Mend all damage of a store that can be mended, and return what is left.

    audio: folders with the recordings, for shards whose waveforms are damaged too.

    Raises:
        ValueError: what would be needed and is not there.
    """
    with locked(path, break_lock=break_lock), stoppable():
        damage = verify_store(path, [])
        for found in damage:
            say(f"{found.what}: {found.detail}")
        if not damage:
            return []
        is_file = isinstance(files_of(path), Hdf5Files)
        work = files_of(path).path
        if damage == [UNFINISHED]:
            raise ValueError(f"{path} holds {UNFINISHED.detail}.")
        if is_file:
            work = parts_of(path)
            _sound_parts(path, work)
            damage = verify_folder(ZarrFiles(work))
        restore_documents(ZarrFiles(work), damage)
        shards = sorted({found.shard for found in damage if found.shard is not None})
        if shards:
            say(f"making {len(shards)} shards again")
            _Recomputation(work, audio, weights, workers, allow_mixed).run(shards, damage)
        if is_file:
            finish_container(path)
    return verify_store(path, [])


def restore_documents(files: ZarrFiles, damage: list[Damage]) -> None:
    """Write damaged documents and tables again from their second copies, or these from those.

    Raises:
        ValueError: both are damaged.
    """
    shards = {found.what for found in damage if found.shard is not None}
    names = [found.what for found in damage if found.what not in shards]
    names = [name for name in names if not name.startswith("recovery/")]
    try:
        copies = recovery.unpack((files.path / RECOVERY).read_bytes())
    except UNREADABLE:
        copies = {}
    for name in names:
        if name in copies:
            _write(files.path / name, copies[name])
        elif (files.path / name).is_file() and copies:
            continue  # a stray file: named, and left to its owner
        else:
            raise ValueError(
                f"{files.path}/{name} and its second copy are both damaged; run `featurestore build` "
                "again with the metadata, which writes the tables anew."
            )
    write_second_copies(files)


def write_second_copies(files: ZarrFiles) -> None:
    """Write the second copies of a store's documents and tables, which are sound, unless they are right."""
    attributes = files.attributes()
    small = {name: (files.path / name).read_bytes() for name in attributes["seal"]}
    blob = recovery.pack(small | {"zarr.json": (files.path / "zarr.json").read_bytes()})
    _write(files.path / RECOVERY, blob)
    _write(files.path / "recovery" / "zarr.json", canonical(recovery_document(len(blob))))


def _write(path: Path, data: bytes) -> None:
    """Write a file unless it is there already as it should be."""
    if not path.is_file() or path.read_bytes() != data:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _sound_parts(path: Path, parts: Path) -> None:
    """Copy everything of an HDF5 store that is sound into a folder.

    Raises:
        ValueError: neither the second copies nor the HDF5 structure can be read.
    """
    shutil.rmtree(parts, ignore_errors=True)
    seal = next((seal for seal in read_seals(path) if seal), None)
    if seal and path.stat().st_size < seal["num_bytes"]:
        os.truncate(path, seal["num_bytes"])  # HDF5 reads nothing of a file that lacks its last byte
    try:
        copies = recovery_of_file(path, seal) if seal else {}
    except UNREADABLE:
        copies = {}
    if not copies:
        try:
            to_folder(path, parts)
        except UNREADABLE as error:
            raise ValueError(
                f"{path} and the second copies in it are both damaged ({error}); build it again."
            ) from error
        return
    new = parts.with_name(f".{parts.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    small = {name: data for name, data in copies.items() if not name.startswith(("offsets/", "commits/0"))}
    for name, data in small.items():
        _write(new / name, data)
    _write(new / RECOVERY, recovery.pack(small))
    files = ZarrFiles(new)
    shard_clips = files.attributes()["shard_clips"]
    for shard, commit in commits_of(copies).items():
        for array in commit.files:
            digest = digest_of_rows(raw_rows(path, copies, array, commit), shard_clips)
            if digest.sha256 == commit.files[array]["sha256"]:
                rows_of_it = files.array(array, commit.rows[1])
                target = files.shard_file(array, shard, rows_of_it.row_shape)
                with ShardWriter(target, shard_clips=shard_clips, row_bytes=rows_of_it.row_bytes) as writer:
                    for rows in raw_rows(path, copies, array, commit):
                        writer.append(rows)
                    writer.finish()
        document = canonical(group_document(with_checksum(asdict(commit))))
        _write(files.commit_file(shard), document)
    new.rename(parts)


@dataclass
class _Recomputation:
    """Makes shards of a store in a folder again, from its waveforms where they are sound."""

    work: Path
    audio: list[Path]
    weights: str | None
    workers: int
    allow_mixed: bool

    def run(self, shards: list[int], damage: list[Damage]) -> None:
        """Make the shards again.

        Raises:
            ValueError: audio is needed and not there, or the rows came out differently.
        """
        files = ZarrFiles(self.work)
        attributes = files.attributes()
        tables = files.tables(attributes["tables"])
        config = parse_config(FeatureConfig, attributes["config"])
        engine = attributes["fingerprint_of"]["backbone"]["engine"]
        backbone = replace(config.backbone, engine=engine, weights=self.weights or config.backbone.weights)
        is_cpus = all(numerics["device"] == "cpu" for numerics in attributes["numerics"])
        device = choose_device("cpu" if is_cpus else "auto")  # another's last bits would differ
        embedder = embedder_for(replace(config, backbone=backbone), device, self.workers)
        names = files.array_names()
        views = Views(stored_sections(attributes, self.audio), embedder.grid, device)
        builder = Builder(
            self.work, embedder, shard_clips=attributes["shard_clips"],
            with_waveforms="waveforms" in names, workers=self.workers, views=views,
        )  # fmt: skip
        writer = builder.open({})
        builder.admit_numerics(writer, allow_mixed=self.allow_mixed)
        write_second_copies(files)  # the root may have other numerics now
        commits = self._sound_commits(files, shards, damage)
        spoilt = {found.shard for found in damage if found.what.startswith("waveforms/")}
        from_waveforms = [
            shard for shard in shards if "waveforms" in names and shard in commits and shard not in spoilt
        ]
        from_audio = [shard for shard in shards if shard not in from_waveforms]
        plan = self._plan(tables, attributes, from_audio)
        self._run_from_waveforms(builder, writer, plan, from_waveforms, commits)
        if from_audio:
            source = RowSource(
                plan, embedder.grid, StoredRows.none(), embedder.batch_clips, self.workers, builder.clock
            )
            self._run_from(source.batches(from_audio), builder, writer, plan, from_audio)
        writer.sweep_scratch()
        for shard, before in commits.items():
            after = files.commit(shard)
            if after is not None and after.files != before.files:
                raise ValueError(
                    f"shard {shard} came out differently: its rows were made under other numerics "
                    "(see `numerics` in the store's attributes); they are sound, but not the same bytes."
                )

    def _run_from_waveforms(
        self,
        builder: Builder,
        writer: StoreWriter,
        plan: Plan,
        shards: list[int],
        commits: dict[int, Commit],
    ) -> None:
        if shards:
            waveforms = ZarrFiles(self.work).array("waveforms", plan.num_rows)
            waveforms.read(np.array([plan.rows_of(shard).start for shard in shards]))
            source = WaveformSource(plan, waveforms, commits, builder.embedder.batch_clips)
            self._run_from(source.batches(shards), builder, writer, plan, shards)

    @staticmethod
    def _run_from(
        source: Iterator[RowBatch], builder: Builder, writer: StoreWriter, plan: Plan, shards: list[int]
    ) -> None:
        builder.run_from(source, StoredRows.none(), writer, plan, shards, lambda clips: None)

    @staticmethod
    def _sound_commits(files: ZarrFiles, shards: list[int], damage: list[Damage]) -> dict[int, Commit]:
        spoilt = {found.shard for found in damage if found.what.startswith("commits/")}
        return {
            shard: commit
            for shard in shards
            if shard not in spoilt and (commit := files.commit(shard)) is not None
        }

    def _plan(self, tables: dict, attributes: dict, shards: list[int]) -> Plan:  # type: ignore[type-arg]
        """Return the store's plan, with the audio of the recordings that these shards need."""
        recordings = tables["recordings"]
        paths: list[Path | None] = [None] * len(recordings)
        plan = plan_of_tables(tables, attributes, paths)
        needed = {int(number) for shard in shards for number in plan.recording[plan.rows_of(shard)]}
        missing = []
        for number in sorted(needed):
            name, sha256 = (str(recordings[column].iloc[number]) for column in ("filename", "sha256"))
            paths[number] = find_audio(self.audio, name, sha256)
            if paths[number] is None:
                missing.append(name)
        if missing:
            more = ", .." if len(missing) > 5 else ""
            raise ValueError(
                f"{len(missing)} recordings are needed and not below --audio as they were when the store "
                f"was built: {', '.join(missing[:5])}{more}. Documents and tables are mended; name the "
                "folders of all sources with --audio."
            )
        return plan
