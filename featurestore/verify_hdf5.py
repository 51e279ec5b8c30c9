"""Checks an HDF5 store: the whole file against its seal, then shard by shard where it differs."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.damage import Damage
from shared import recovery
from shared.clip_array import ClipArray
from shared.commit import Commit
from shared.documents import UNREADABLE
from shared.hdf5_files import SEAL_BYTES, Hdf5Files, read_in_pieces, read_seals
from shared.shards import digest_of_rows


def verify_file(files: Hdf5Files) -> list[Damage]:
    """Check an HDF5 store: the whole file against its seal, then shard by shard where it differs."""
    seals = read_seals(files.path)
    damage = [
        Damage(f"seal {number + 1}", "does not match its checksum")
        for number, seal in enumerate(seals)
        if seal is None
    ]
    seal = seals[0] or seals[1]
    if seal is None:
        return damage
    with files.path.open("rb") as file:
        file.seek(SEAL_BYTES)
        if hashlib.file_digest(file, "sha256").hexdigest() == seal["content_sha256"]:
            return damage
    try:
        copies = recovery_of_file(files.path, seal)
    except UNREADABLE:
        damage.append(Damage("recovery", "does not match its checksum"))
        copies = {}
    bad = _bad_shards(files, copies)
    damage += [Damage(f"shard {shard}", "rows do not match their checksum", shard) for shard in bad]
    if not bad and copies:
        damage.append(Damage("the file", "its structure, tables or checksums are not as they were written"))
    return damage


def recovery_of_file(path: Path, seal: dict[str, Any]) -> dict[str, bytes]:
    """Return the second copies that an HDF5 store holds, found without the HDF5 library.

    Raises:
        ValueError: they are damaged.
    """
    with path.open("rb") as file:
        file.seek(seal["recovery_offset"])
        return recovery.unpack(file.read(seal["recovery_bytes"]))


def raw_rows(path: Path, copies: dict[str, bytes], array: str, commit: Commit) -> Iterator[np.ndarray]:
    """Yield a shard's rows from the places that the second copy gives, whatever state HDF5 is in."""
    document = json.loads(copies[f"{array}/zarr.json"])
    row_shape, dtype = document["shape"][1:], np.dtype(document["data_type"]).newbyteorder("<")
    offsets = np.frombuffer(copies[f"offsets/{array}"], "<i8")
    data = np.memmap(path, np.uint8, "r")
    num_bytes = int(np.prod(row_shape)) * dtype.itemsize
    for row in range(*commit.rows):
        offset = int(offsets[row])
        chunk = data[offset : offset + num_bytes] if offset >= 0 else np.zeros(num_bytes, np.uint8)
        yield np.frombuffer(chunk.tobytes(), dtype).reshape(1, *row_shape)


def commits_of(copies: dict[str, bytes]) -> dict[int, Commit]:
    """Return the commits among the second copies of an HDF5 store."""
    return {
        int(name[len("commits/") : -len(".json")]): Commit.from_json(json.loads(data))
        for name, data in copies.items()
        if name.startswith("commits/") and name.endswith(".json") and name != "commits/zarr.json"
    }


def _bad_shards(files: Hdf5Files, copies: dict[str, bytes]) -> list[int]:
    """Return the shards whose rows are not what their commits say."""
    if copies:
        shard_clips = json.loads(copies["zarr.json"])["attributes"]["shard_clips"]
        return [
            shard
            for shard, commit in commits_of(copies).items()
            if any(
                digest_of_rows(raw_rows(files.path, copies, array, commit), shard_clips).sha256
                != commit.files[array]["sha256"]
                for array in commit.files
            )
        ]
    try:
        attributes = files.attributes()
        arrays = {name: files.array(name, attributes["num_rows"]) for name in files.array_names()}
        num_shards = -(-attributes["num_rows"] // attributes["shard_clips"])
        return [
            shard
            for shard in range(num_shards)
            if not is_sound(files.commit(shard), arrays, attributes["shard_clips"])
        ]
    except UNREADABLE:
        return []


def is_sound(commit: Commit | None, arrays: dict[str, ClipArray], shard_clips: int) -> bool:
    """Tell whether the rows of a shard are what its commit says."""
    return commit is not None and all(
        digest_of_rows(read_in_pieces(array, *commit.rows), shard_clips).sha256
        == commit.files[name]["sha256"]
        for name, array in arrays.items()
    )
