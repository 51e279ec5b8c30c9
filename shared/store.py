"""A published store, opened for reading, in a folder (Zarr) or in one file (HDF5)."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.clip_array import ClipArray
from shared.documents import UNREADABLE, with_checksum
from shared.features import FORMAT_VERSION
from shared.hdf5_files import Hdf5Files
from shared.store_writer import FORMAT_NAME
from shared.zarr_files import ZarrFiles

TABLES = ("clips", "recordings", "labels")
HDF5_SUFFIXES = (".h5", ".hdf5")

VIEWS = "views"

StoreFiles = ZarrFiles | Hdf5Files


def is_hdf5(path: Path) -> bool:
    """Tell by its name whether a store is one HDF5 file."""
    return path.suffix in HDF5_SUFFIXES


def parts_of(path: Path) -> Path:
    """Return the folder in which an HDF5 store is built."""
    return path.with_name(f"{path.name}.parts")


def view_group(number: int) -> str:
    """Return the group of a view's maps, by its number from 1 on."""
    return f"{VIEWS}/{number}"


def files_of(path: Path) -> StoreFiles:
    """Return what reads the store at `path`; for an HDF5 file that is not made yet, its parts.

    Raises:
        ValueError: nothing is there.
    """
    if is_hdf5(path) and not path.exists() and parts_of(path).exists():
        return ZarrFiles(parts_of(path))
    if not path.exists():
        raise ValueError(f"{path} does not exist; make a store with `featurestore build`.")
    return Hdf5Files(path) if path.is_file() else ZarrFiles(path)


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the root attributes of a store.

    Raises:
        ValueError: no store, one of another format version, or damaged; says what was found.
    """
    files = files_of(path)
    attributes = files.attributes()
    if attributes.get("format") != FORMAT_NAME:
        raise ValueError(f"{path} is not a feature store (it has no attribute format = {FORMAT_NAME}).")
    version = attributes.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has store format version {version}; this program reads {FORMAT_VERSION}. "
            "Build it again, or take the program version that made it."
        )
    if isinstance(files, ZarrFiles) and attributes != with_checksum(attributes):
        raise ValueError(
            f"{path}/zarr.json does not match its checksum: it is damaged or was changed by hand; "
            f"`featurestore repair {path}` brings it back."
        )
    return attributes


def _read_consistently(path: Path) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """Return root attributes and the tables that belong to them, while a build may replace both."""
    attributes = read_attributes(path)
    while True:
        if attributes["tables"] is None:
            raise ValueError(
                f"{path} holds an unfinished build; run the same `featurestore build` again to finish it."
            )
        tables: dict[str, pd.DataFrame] = {}
        error: Exception | None = None
        try:
            tables = files_of(path).tables(attributes["tables"])
        except UNREADABLE as missing:
            error = missing
        # A build removes old tables once the root names new ones: they count if it still names these.
        again = read_attributes(path)
        if again["tables"] == attributes["tables"]:
            if error is not None:
                raise ValueError(
                    f"{path}/{attributes['tables']} cannot be read ({error}); the store is damaged: "
                    f"`featurestore repair {path}` brings it back."
                ) from error
            return again, tables
        attributes = again


class FeatureStore:
    """A published store.

    clips: one row per clip: recording (row of `recordings`), start, valid_samples, gain.
    recordings: one row per recording: metadata as given, sha256, status, reason, in_metadata.
    labels: one row per (recording, species, kind, start, stop, value, weight).
    stages: the maps that it holds; `maps` is the first one's, the default.
    """

    def __init__(self, path: Path, stage: str = "") -> None:
        self.path = path
        self.attributes, tables = _read_consistently(path)
        self.files = files_of(path)
        self.clips, self.recordings, self.labels = (tables[name] for name in TABLES)
        self.num_rows = len(self.clips)
        self.stages: list[str] = self.attributes["stages"]
        self.stage = stage or self.stages[0]
        if self.stage not in self.stages:
            raise ValueError(f"{path} holds no maps of {self.stage}, but of {', '.join(self.stages)}.")
        self.maps = self.array(f"maps/{self.stage}")
        has_waveforms = "waveforms" in self.files.array_names()
        self.waveforms = self.array("waveforms") if has_waveforms else None

    def array(self, name: str) -> ClipArray:
        """Return a clip array by name."""
        return self.files.array(name, self.num_rows)

    @property
    def num_views(self) -> int:
        """Augmented versions of every clip beside the clean one."""
        return int(self.attributes.get(VIEWS, {}).get("count", 0))

    def view(self, number: int) -> ClipArray:
        """Return the maps of a view: 0 is the clean one."""
        return self.array(f"{view_group(number)}/{self.stage}") if number else self.maps

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides a feature's value."""
        return str(self.attributes["fingerprint"])

    @property
    def frame_hop(self) -> int:
        """Samples from one frame of the map to the next."""
        return int(self.maps.attributes["frame_hop"])

    @property
    def in_metadata(self) -> np.ndarray:
        """Tell per recording whether the metadata of the last build still had it."""
        return self.recordings["in_metadata"].to_numpy(bool)
