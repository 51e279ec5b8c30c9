"""A table as a Zarr group of equally long 1-D arrays, one per column."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import zarr


def write_table(group: zarr.Group, name: str, table: pd.DataFrame) -> None:
    """Write the columns of `table` below `group[name]`; text becomes Zarr strings."""
    target = group.create_group(name, attributes={"columns": list(table.columns)})
    for column in table.columns:
        values = _storable(table[column])
        array = target.create_array(
            column,
            shape=values.shape,
            dtype=str if values.dtype == object else values.dtype,
            chunks=(max(1, len(values)),),
            compressors=None,
        )
        if len(values):
            array[:] = values


def read_table(group: zarr.Group, name: str) -> pd.DataFrame:
    """Return the table in its own column order."""
    source = group[name]
    assert isinstance(source, zarr.Group)
    columns = [str(column) for column in source.attrs["columns"]]  # type: ignore[union-attr]
    values = {}
    for column in columns:
        array = source[column]
        assert isinstance(array, zarr.Array)
        data = np.asarray(array[:])
        values[column] = data if data.dtype.kind in "iufb" else data.astype(object)
    return pd.DataFrame(values, columns=columns)


def _storable(column: pd.Series) -> np.ndarray:
    if column.dtype.kind in "iufb":
        return column.to_numpy()
    return column.astype(str).to_numpy(dtype=object)


def tables_digest(tables: dict[str, pd.DataFrame]) -> str:
    """Return a short digest of names, types and values: the tables' name in the store."""
    state = hashlib.sha256()
    for name, table in sorted(tables.items()):
        for column in table.columns:
            values = _storable(table[column])
            state.update(f"\0{name}\0{column}\0{values.dtype}\0{len(values)}\0".encode())
            if values.dtype == object:
                state.update("\0".join(values).encode("utf-8", "surrogatepass"))
            else:
                state.update(np.ascontiguousarray(values).tobytes())
    return state.hexdigest()[:16]


def write_tables(folder: Path, tables: dict[str, pd.DataFrame]) -> None:
    """Write a group of tables into a new folder."""
    with warnings.catch_warnings():
        # zarr 3.0 warns that strings are no part of the core specification; later ones do not.
        warnings.filterwarnings("ignore", message=".*(string|vlen-utf8).*")
        group = zarr.create_group(folder, zarr_format=3)
        for name, table in sorted(tables.items()):
            write_table(group, name, table)


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Read every table of the group in `folder`."""
    group = zarr.open_group(folder, mode="r")
    return {name: read_table(group, name) for name in sorted(group.group_keys())}
