"""Checks every byte of a store and names what is damaged."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from featurestore.containers import ORIGIN
from featurestore.damage import UNFINISHED, Damage
from featurestore.plan import refuse_outside
from featurestore.verify_hdf5 import verify_file
from shared import recovery
from shared.commit import Commit, first_runs, runs_of
from shared.documents import UNREADABLE, canonical, read_group
from shared.hdf5_files import Hdf5Files, read_seals
from shared.shards import damaged_rows
from shared.store import VIEWS, StoreFiles, files_of, read_attributes, view_group
from shared.store_writer import recovery_document
from shared.zarr_files import ZarrFiles

RECOVERY = Path("recovery", "c", "0")
MAX_ROWS_NAMED = 8


def verify_store(path: Path, audio: list[Path]) -> list[Damage]:
    """Return all damage of a store.

    audio: folders with the recordings, to check that they are those the rows were made from.

    Raises:
        ValueError: there is no store.
    """
    files = files_of(path)
    _refuse_what_is_no_store(files)
    if isinstance(files, Hdf5Files):
        damage = verify_file(files)
        attributes = {} if damage else files.attributes()
    else:
        damage = verify_folder(files)
        is_root_sound = not any(found.what == "zarr.json" for found in damage)
        attributes = files.attributes() if is_root_sound else {}
    are_tables_sound = not any(found.what.startswith("tables/") for found in damage)
    if audio and are_tables_sound and attributes.get("tables"):
        recordings = files.tables(attributes["tables"])["recordings"]
        damage += _verify_audio(recordings, audio)
    return damage


def _refuse_what_is_no_store(files: StoreFiles) -> None:
    """Tell a damaged store from something else.

    Raises:
        ValueError: nothing speaks for a store.
    """
    if isinstance(files, Hdf5Files):
        is_store = any(read_seals(files.path)) or h5py.is_hdf5(files.path)
    else:
        is_store = (files.path / "zarr.json").exists() or (files.path / RECOVERY).exists()
    if not is_store:
        raise ValueError(f"{files.path} is not a feature store.")


def verify_folder(files: ZarrFiles) -> list[Damage]:
    """Check a Zarr store: documents and tables against the root's seal, shards against commits."""
    if (files.path / ".tmp" / "journal").exists():
        return [UNFINISHED]
    copies, damage = _recovery_of(files)
    root = files.path / "zarr.json"
    try:
        attributes = read_group(root)
    except UNREADABLE:
        damage.append(Damage("zarr.json", "does not match its checksum"))
        if "zarr.json" not in copies:
            return damage
        attributes = json.loads(copies["zarr.json"])["attributes"]
    if attributes.get("tables") is None:
        read_attributes(files.path)
        return [UNFINISHED]
    damage += _verify_small_files(files, attributes["seal"])
    tables = None
    if not any(found.what.startswith("tables/") for found in damage):
        tables = files.tables(attributes["tables"])
    num_shards = -(-attributes["num_rows"] // attributes["shard_clips"])
    arrays = _array_documents(files, attributes, copies)
    for shard in tqdm(range(num_shards), desc="verifying", unit="shard", leave=False):
        damage += _verify_shard(files, shard, attributes, arrays, tables)
    return damage + _strays(files, attributes, num_shards)


def _recovery_of(files: ZarrFiles) -> tuple[dict[str, bytes], list[Damage]]:
    """Return the second copies, and the damage of the file that holds them."""
    try:
        blob = (files.path / RECOVERY).read_bytes()
        copies = recovery.unpack(blob)
    except UNREADABLE:
        return {}, [Damage(RECOVERY.as_posix(), "does not match its checksum")]
    document = files.path / "recovery" / "zarr.json"
    if not document.is_file() or document.read_bytes() != canonical(recovery_document(len(blob))):
        return copies, [Damage("recovery/zarr.json", "is not as it was written")]
    root = files.path / "zarr.json"
    if root.is_file() and root.read_bytes() != copies.get("zarr.json"):
        try:
            read_group(root)
        except UNREADABLE:
            return copies, []  # the root is damaged, not its copy
        return copies, [Damage(RECOVERY.as_posix(), "holds copies of another state of the store")]
    return copies, []


def _verify_small_files(files: ZarrFiles, seal: dict[str, str]) -> list[Damage]:
    damage = []
    for name, sha256 in seal.items():
        file = files.path / name
        if not recovery.is_inside(name):
            raise ValueError(f"{files.path} names a file outside itself, {name}: it is no store of ours.")
        if not file.is_file():
            damage.append(Damage(name, "is gone"))
        elif hashlib.sha256(file.read_bytes()).hexdigest() != sha256:
            damage.append(Damage(name, "does not match its checksum"))
    return damage


def _array_documents(
    files: ZarrFiles, attributes: dict[str, Any], copies: dict[str, bytes]
) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return row bytes and row shape of every clip array, from its document or the second copy."""
    groups = ["maps", *map(view_group, range(1, attributes.get(VIEWS, {}).get("count", 0) + 1))]
    names = [f"{group}/{stage}" for group in groups for stage in attributes["stages"]]
    if "waveforms/zarr.json" in attributes["seal"]:
        names.append("waveforms")
    found = {}
    for name in names:
        file = f"{name}/zarr.json"
        data = (files.path / file).read_bytes() if (files.path / file).is_file() else b""
        if hashlib.sha256(data).hexdigest() != attributes["seal"][file]:
            data = copies.get(file, b"")
        if data:
            document = json.loads(data)
            row_shape = tuple(document["shape"][1:])
            found[name] = (int(np.prod(row_shape)) * np.dtype(document["data_type"]).itemsize, row_shape)
    return found


def _verify_shard(
    files: ZarrFiles,
    shard: int,
    attributes: dict[str, Any],
    arrays: dict[str, tuple[int, tuple[int, ...]]],
    tables: dict[str, pd.DataFrame] | None,
) -> list[Damage]:
    name = files.commit_file(shard).relative_to(files.path).as_posix()
    try:
        commit = files.commit(shard)
    except UNREADABLE:
        return [Damage(name, "does not match its checksum", shard)]
    if commit is None:
        return [Damage(name, "is gone", shard)]
    damage = []
    if tables is not None and not _is_bound(commit, tables, attributes):
        damage.append(Damage(name, "its rows are not those of the tables", shard))
    for array, (row_bytes, row_shape) in arrays.items():
        file = files.shard_file(array, shard, row_shape)
        detail = _damage_of_file(file, commit, array, attributes["shard_clips"], row_bytes)
        if detail:
            damage.append(Damage(file.relative_to(files.path).as_posix(), detail, shard))
    return damage


def _damage_of_file(file: Path, commit: Commit, array: str, shard_clips: int, row_bytes: int) -> str:
    """Return what is wrong with a shard's file, "" if nothing is."""
    if not file.is_file():
        return "is gone"
    with file.open("rb") as opened:
        if hashlib.file_digest(opened, "sha256").hexdigest() == commit.files[array]["sha256"]:
            return ""
    first, stop = commit.rows
    try:
        bad = damaged_rows(np.fromfile(file, np.uint8), shard_clips, row_bytes, stop - first)
    except ValueError as error:
        return str(error)
    return _rows_text([first + row for row in bad]) or "does not match its sha256"


def _rows_text(rows: list[int]) -> str:
    if not rows:
        return ""
    named = ", ".join(map(str, rows[:MAX_ROWS_NAMED]))
    return f"damaged rows: {named}{', ..' if len(rows) > MAX_ROWS_NAMED else ''}"


def _is_bound(commit: Commit, tables: dict[str, pd.DataFrame], attributes: dict[str, Any]) -> bool:
    """Tell whether the tables say of a shard's rows what its commit says: audio, start, gain."""
    first, stop = commit.rows
    clips = tables["clips"].iloc[first:stop]
    count = len(clips)  # fewer than the commit's where a build that adds rows was killed
    sha256 = tables["recordings"]["sha256"].to_numpy()[clips["recording"].to_numpy()]
    clip_config = attributes["config"]["clips"]
    hop = round(clip_config["hop_seconds"] * clip_config["sample_rate_hz"])
    return (
        count == min(stop, len(tables["clips"])) - first
        and runs_of([str(value) for value in sha256], clips["start"].to_numpy(), hop)
        == first_runs(commit.runs, count)
        and clips["valid_samples"].tolist() == commit.valid_samples[:count]
        and clips["gain"].to_numpy().tolist() == np.array(commit.gain[:count], np.float32).tolist()
    )


def _strays(files: ZarrFiles, attributes: dict[str, Any], num_shards: int) -> list[Damage]:
    """Name the files that no build wrote: they may hide what one did write."""
    known = {"zarr.json", "recovery/zarr.json", RECOVERY.as_posix(), *attributes["seal"]}
    damage = []
    for file in sorted(files.path.rglob("*")):
        name = file.relative_to(files.path).as_posix()
        if file.is_dir() or name in known or _is_left_over(name, attributes["tables"]):
            continue
        number = re.search(
            r"^commits/(\d+)/zarr\.json$|^(?:waveforms|maps/[^/]+|views/\d+/[^/]+)/c/(\d+)/0[/0]*$", name
        )
        shard = int(number[1] or number[2]) if number else -1
        # Shards behind the last row are an unfinished build's, which goes on with them.
        if not number or (shard >= num_shards and not files.commit_file(shard).is_file()):
            damage.append(Damage(name, "is not part of the store; move it away"))
    return damage


def _is_left_over(name: str, tables: str) -> bool:
    """Tell whether a killed build left a file that the next one sweeps up."""
    return (
        name == ORIGIN
        or name.startswith((".tmp/", ".old/"))
        or (re.match(r"tables/[0-9a-f]{16}/", name) is not None and not name.startswith(f"{tables}/"))
    )


def _verify_audio(recordings: pd.DataFrame, folders: list[Path]) -> list[Damage]:
    """Compare every recording that has rows with its file, found by name in one of the folders."""
    damage = []
    names = recordings["filename"].astype(str)
    rows = zip(names, recordings["sha256"], recordings["status"], strict=True)
    for name, sha256, status in tqdm(list(rows), desc="hashing audio", unit="file", leave=False):
        if status == "unreadable" and not sha256:
            continue
        found = [file for folder in folders if (file := _file_in(folder, name)) is not None]
        if not found:
            damage.append(Damage(name, f"no such recording below {', '.join(map(str, folders))}"))
        elif not any(audio_sha256(file) == sha256 for file in found):
            damage.append(Damage(name, "is not the recording that its rows were made from"))
    return damage


def _file_in(folder: Path, name: str) -> Path | None:
    try:
        refuse_outside(folder, folder / name)
    except ValueError:
        return None
    return folder / name if (folder / name).is_file() else None


def audio_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_audio(folders: list[Path], name: str, sha256: str) -> Path | None:
    """Return the file of this name and content in one of the folders."""
    for folder in folders:
        file = _file_in(folder, name)
        if file is not None and audio_sha256(file) == sha256:
            return file
    return None
