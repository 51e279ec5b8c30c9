"""The two containers of a store as a build sees them: a folder, or one HDF5 file made of a folder."""

import shutil
from pathlib import Path

from tqdm import tqdm

from shared.hdf5_files import Hdf5Files, assemble, read_in_pieces
from shared.store import is_hdf5, parts_of, read_attributes
from shared.store_writer import ArraySpec, StoreWriter
from shared.zarr_files import ZarrFiles

OWN_ATTRIBUTES = ("format", "format_version", "shard_clips", "num_rows", "tables")


def work_folder(out: Path) -> Path:
    """Return the folder that a build of `out` works in, with what `out` has already in it."""
    if not is_hdf5(out):
        return out
    parts = parts_of(out)
    shutil.rmtree(_removed(parts), ignore_errors=True)
    if out.exists() and not parts.exists():
        to_folder(out, parts)
    return parts


def finish_container(out: Path) -> None:
    """Make the HDF5 file from its finished parts and remove them; a folder is finished as it is."""
    if not is_hdf5(out):
        return
    parts = parts_of(out)
    assemble(ZarrFiles(parts), out)
    parts.rename(_removed(parts))  # in one step: half a folder would be taken for a store
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
    if attributes["tables"] is None:
        raise ValueError(f"{source} holds an unfinished build; finish it with `featurestore build`.")
    if is_hdf5(source):
        to_folder(source, out)
    else:
        assemble(ZarrFiles(source), out)
