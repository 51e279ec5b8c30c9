"""The two containers of a store as a build sees them: a folder, or one HDF5 file made of a folder."""

import shutil
from pathlib import Path

from tqdm import tqdm

from shared.hdf5_files import Hdf5Files, assemble, read_in_pieces, read_seals
from shared.store import is_hdf5, parts_of, read_attributes
from shared.store_writer import ArraySpec, StoreWriter
from shared.zarr_files import ZarrFiles

ORIGIN = ".unpacked_from"  # in the parts: the seal of the file that they were unpacked from
OWN_ATTRIBUTES = ("format", "format_version", "shard_clips", "num_rows", "tables")


def folder_of(out: Path) -> Path:
    """Return the folder that a build of `out` works in."""
    return parts_of(out) if is_hdf5(out) else out


def work_folder(out: Path) -> Path:
    """Return the folder that a build of `out` works in, with what `out` has already in it.

    Parts that were not unpacked from the file as it is now are left from something else, and made anew.

    Raises:
        ValueError: the folder exists and is none of ours.
    """
    parts = folder_of(out)
    if not is_hdf5(out):
        return out
    shutil.rmtree(_removed(parts), ignore_errors=True)
    if parts.exists():
        read_attributes(parts)
    if out.exists():
        content = _content_of(out)
        origin = parts / ORIGIN
        if not origin.is_file() or origin.read_text() != content:
            _remove(parts)
            to_folder(out, parts)
            origin.write_text(content)
    return parts


def _content_of(file: Path) -> str:
    """Return what an HDF5 store's seal says of its content."""
    seal = next((seal for seal in read_seals(file) if seal), None)
    return str(seal["content_sha256"]) if seal else ""


def finish_container(out: Path) -> None:
    """Make the HDF5 file from its finished parts and remove them; a folder is finished as it is."""
    if not is_hdf5(out):
        return
    parts = parts_of(out)
    assemble(ZarrFiles(parts), out)
    _remove(parts)


def _remove(parts: Path) -> None:
    """Remove parts in one step: half a folder would be taken for a store."""
    if parts.exists():
        parts.rename(_removed(parts))
        shutil.rmtree(_removed(parts))


def _removed(parts: Path) -> Path:
    return parts.with_name(f".{parts.name}.removed")


def to_folder(source: Path, out: Path) -> None:
    """Write an HDF5 store as a Zarr store in a folder, which appears when it is whole.

    Raises:
        ValueError: a shard's rows are not those of its commit.
    """
    files, attributes = Hdf5Files(source), read_attributes(source)
    new = out.with_name(f".{out.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    shard_clips, num_rows = attributes["shard_clips"], attributes["num_rows"]
    arrays = {name: files.array(name, num_rows) for name in files.array_names()}
    specs = {
        name: ArraySpec(array.row_shape, array.dtype.name, array.attributes) for name, array in arrays.items()
    }
    others = {name: value for name, value in attributes.items() if name not in OWN_ATTRIBUTES}
    writer = StoreWriter(new, others, specs, shard_clips)
    for shard in tqdm(range(-(-num_rows // shard_clips)), desc="converting", unit="shard", leave=False):
        commit = files.commit(shard)
        assert commit is not None
        pieces = zip(*(read_in_pieces(array, *commit.rows) for array in arrays.values()), strict=True)
        found = writer.write_shard(shard, (dict(zip(arrays, rows, strict=True)) for rows in pieces))
        if found != commit.files:
            raise ValueError(
                f"{source}: shard {shard} does not match its checksum; bring it back with "
                f"`featurestore repair {source} --audio DIR`."
            )
        writer.commit(shard, commit)
    writer.publish(files.tables(attributes["tables"]))
    new.rename(out)


def convert(source: Path, out: Path) -> None:
    """Write a store in the other container, losslessly: back again, it is the same bytes.

    Raises:
        ValueError: both are of one kind, `out` exists, or `source` is damaged or unfinished.
    """
    if is_hdf5(source) == is_hdf5(out):
        raise ValueError(f"convert goes between a folder (.zarr) and a file (.h5), not {source} to {out}.")
    if out.exists():
        raise ValueError(f"{out} exists; give another name.")
    attributes = read_attributes(source)
    if attributes["tables"] is None or (is_hdf5(source) and not source.exists()):
        raise ValueError(f"{source} holds an unfinished build; finish it with `featurestore build`.")
    if is_hdf5(source):
        to_folder(source, out)
    else:
        assemble(ZarrFiles(source), out)
