"""What a store knows of recordings from earlier builds, joined to the metadata of this one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shared.audio import AudioHeader
from shared.zarr_files import ZarrFiles


@dataclass(frozen=True)
class Known:
    """The recordings and labels that a store has already."""

    recordings: pd.DataFrame
    labels: pd.DataFrame
    has_rows: np.ndarray

    @classmethod
    def of(cls, path: Path) -> "Known | None":
        """Return what a store in a folder knows, a withdrawn one too; None of one never published."""
        files = ZarrFiles(path)
        attributes = files.attributes()
        name = attributes.get("tables") or attributes.get("withdrawn_tables")
        if name is None:
            return None
        tables = files.tables(name)
        has_rows = np.zeros(len(tables["recordings"]), bool)
        has_rows[tables["clips"]["recording"].to_numpy()] = True
        # Where a build was stopped, rows that the tables do not show yet may be there all the same.
        has_rows |= (tables["recordings"]["status"] != "unreadable").to_numpy()
        return cls(tables["recordings"], tables["labels"], has_rows)

    def keys(self) -> list[tuple[str, str]]:
        """Return (source, filename) of every recording."""
        return recording_keys(self.recordings)

    def gone_from(self, metadata: pd.DataFrame) -> np.ndarray:
        """Return the recordings with rows that the metadata no longer has."""
        now = {*recording_keys(metadata)}
        gone = [number for number, key in enumerate(self.keys()) if key not in now and self.has_rows[number]]
        return np.array(gone, np.int64)

    def without_gone(self, metadata: pd.DataFrame) -> "Known":
        """Forget the recordings that the metadata no longer has."""
        gone = np.zeros(len(self.recordings), bool)
        gone[self.gone_from(metadata)] = True
        return Known(self.recordings, self.labels, self.has_rows & ~gone)

    def joined_to(self, recordings: pd.DataFrame, labels: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Add the recordings that the metadata no longer has, with their labels, at the end."""
        gone = self.gone_from(recordings)
        if not len(gone):
            return recordings, labels
        number = {int(old): len(recordings) + place for place, old in enumerate(gone)}
        theirs = self.labels[self.labels["recording"].isin(gone)]
        theirs = theirs.assign(recording=theirs["recording"].map(number).astype(np.int64))
        kept = self.recordings.take(gone).assign(in_metadata=False)
        joined = pd.concat([recordings, kept], ignore_index=True)
        for name in joined.columns:
            if joined[name].dtype.kind not in "iufb":
                joined[name] = joined[name].fillna("")
        return joined, pd.concat([labels, theirs], ignore_index=True)

    def header_and_sha256(self) -> dict[tuple[str, str], tuple[AudioHeader, str]]:
        """Return, of every recording with rows, what its file was when they were made."""
        columns = (self.recordings[name] for name in ("num_frames", "sample_rate_hz", "sha256"))
        return {
            key: (AudioHeader(int(frames), int(rate)), str(sha256))
            for key, has_rows, frames, rate, sha256 in zip(self.keys(), self.has_rows, *columns, strict=True)
            if has_rows
        }

    def order(self, recordings: pd.DataFrame, num_clips: np.ndarray) -> np.ndarray:
        """Return the recordings in the store's order, then new ones in their own.

        One that could not be read before and can be now counts as new: no row moves.
        """
        place = {key: number for number, key in enumerate(self.keys())}
        unreadable = (self.recordings["status"] == "unreadable").to_numpy() & ~self.has_rows
        places = []
        for key, clips in zip(recording_keys(recordings), num_clips, strict=True):
            number = place.get(key, len(place))
            is_new = number == len(place) or (clips and unreadable[number])
            places.append(len(place) if is_new else number)
        return np.argsort(np.array(places), kind="stable")


def recording_keys(recordings: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (source, filename) of every recording: what names it across builds."""
    return list(zip(recordings["source"].astype(str), recordings["filename"].astype(str), strict=True))
