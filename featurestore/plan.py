"""The plan: which rows a store has, fixed before anything is decoded."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shared.audio import AudioHeader, read_header
from shared.clips import ClipGrid
from shared.metadata import Metadata, join, keep_species

Tick = Callable[[int], object]


@dataclass(frozen=True)
class Source:
    """Metadata and the folder with its audio."""

    metadata: Metadata
    audio: Path


@dataclass(frozen=True)
class Plan:
    """All recordings and rows of a store.

    recordings: metadata as given and what the files declare: sample_rate_hz, num_frames,
        sha256, status ("" until decoded, or unreadable) and reason.
    recording, start: per row, the recording's number and the clip's first sample.
    paths: per recording; None where it is unreadable already.
    """

    recordings: pd.DataFrame
    labels: pd.DataFrame
    problems: tuple[str, ...]
    paths: list[Path | None]
    recording: np.ndarray
    start: np.ndarray
    shard_clips: int
    tail_samples_left_out: int

    @property
    def num_rows(self) -> int:
        """Clips in all."""
        return len(self.recording)

    @property
    def num_shards(self) -> int:
        """Shards in all; the last one may be partly filled."""
        return -(-self.num_rows // self.shard_clips)

    def rows_of(self, shard: int) -> range:
        """Return the rows of a shard."""
        first = shard * self.shard_clips
        return range(first, min(first + self.shard_clips, self.num_rows))

    def digest_of(self, shard: int) -> str:
        """Digest of what the shard is made from."""
        return self.digest_of_rows(self.rows_of(shard))

    def digest_of_rows(self, rows: range) -> str:
        """Digest of (audio sha256, start) of every row; rows past the plan's end are left out."""
        state = hashlib.sha256()
        sha256 = self.recordings["sha256"].to_numpy()
        for row in range(rows.start, min(rows.stop, self.num_rows)):
            state.update(f"{sha256[self.recording[row]]} {self.start[row]}\n".encode())
        return state.hexdigest()

    def header_of(self, recording: int) -> AudioHeader:
        """Return what the recording's file declares."""
        frames, rate = self.recordings["num_frames"], self.recordings["sample_rate_hz"]
        return AudioHeader(int(frames.to_numpy()[recording]), int(rate.to_numpy()[recording]))


@dataclass(frozen=True)
class KeptExternal:
    """How many recordings of an external source were kept, in all and per species."""

    name: str
    num_given: int
    num_of_species: int
    num_kept: int
    per_species: pd.Series


def join_sources(
    main: Source, externals: Iterable[Source]
) -> tuple[Metadata, list[Path], list[KeptExternal]]:
    """Add to the main metadata the external recordings of its species, each id once.

    Returns the joined metadata, the audio folder of every recording, and the counts.
    """
    species = main.metadata.primary_species()
    parts, folders = [main.metadata], [main.audio] * len(main.metadata.recordings)
    known = set(main.metadata.recordings["xc_id"])
    counts = []
    for external in externals:
        of_species = keep_species(external.metadata, species, ())
        kept = keep_species(external.metadata, species, known)
        known |= set(kept.recordings["xc_id"])
        primary = kept.labels[kept.labels["kind"] == "primary"]
        counts.append(
            KeptExternal(
                name=str(external.metadata.recordings["source"].iloc[0]),
                num_given=len(external.metadata.recordings),
                num_of_species=len(of_species.recordings),
                num_kept=len(kept.recordings),
                per_species=primary["species"].value_counts(),
            )
        )
        if len(kept.recordings):
            parts.append(kept)
            folders += [external.audio] * len(kept.recordings)
    return join(parts), folders, counts


def make_plan(
    metadata: Metadata,
    folders: list[Path],
    grid: ClipGrid,
    *,
    shard_clips: int,
    known_order: list[tuple[str, str]],
    tick: Tick,
) -> Plan:
    """Read every header and hash every file, and lay out the rows.

    Recordings that a store has already, `known_order` as (source, filename), keep their order
    and come first, so that adding recordings moves no row. `tick` is called per recording.
    """
    metadata, folders = _in_known_order(metadata, folders, known_order)
    with ThreadPoolExecutor(max_workers=4) as pool:
        inspected = []
        jobs = pool.map(_inspect, folders, metadata.recordings["filename"])
        for result in jobs:
            inspected.append(result)
            tick(1)
    recordings = metadata.recordings.copy()
    recordings["sample_rate_hz"] = [found.header.sample_rate_hz for found in inspected]
    recordings["num_frames"] = [found.header.num_frames for found in inspected]
    recordings["sha256"] = [found.sha256 for found in inspected]
    recordings["status"] = ["unreadable" if found.reason else "" for found in inspected]
    recordings["reason"] = [found.reason for found in inspected]
    num_samples = [
        grid.resampled_length(found.header.num_frames, found.header.sample_rate_hz) for found in inspected
    ]
    starts = [grid.starts(length) for length in num_samples]
    lengths = np.array([len(clip_starts) for clip_starts in starts], np.int64)
    ends = np.array([s[-1] + grid.clip_samples if len(s) else 0 for s in starts], np.int64)
    return Plan(
        recordings=recordings,
        labels=metadata.labels,
        problems=metadata.problems + _labels_in_no_clip(metadata.labels, ends),
        paths=[found.path for found in inspected],
        recording=np.repeat(np.arange(len(starts)), lengths),
        start=np.concatenate([*starts, np.zeros(0, np.int64)]),
        shard_clips=shard_clips,
        tail_samples_left_out=sum(grid.tail_left_out(length) for length in num_samples),
    )


def _labels_in_no_clip(labels: pd.DataFrame, ends: np.ndarray) -> tuple[str, ...]:
    """Count the timed labels that start behind their recording's last clip."""
    lost = int((labels["start"].to_numpy() >= np.maximum(ends[labels["recording"]], 1)).sum())
    if not lost:
        return ()
    return (
        f"{lost} timed labels lie behind their recording's last clip and label nothing: the file is "
        "shorter or unreadable, or its end is shorter than clips.min_tail_seconds",
    )


def _in_known_order(
    metadata: Metadata, folders: list[Path], known_order: list[tuple[str, str]]
) -> tuple[Metadata, list[Path]]:
    keys = list(zip(metadata.recordings["source"], metadata.recordings["filename"], strict=True))
    place = {key: number for number, key in enumerate(known_order)}
    order = sorted(range(len(keys)), key=lambda row: place.get(keys[row], len(place)))
    new_number = np.empty(len(order), np.int64)
    new_number[order] = np.arange(len(order))
    labels = metadata.labels.assign(recording=new_number[metadata.labels["recording"]])
    labels = labels.sort_values("recording", kind="stable", ignore_index=True)
    recordings = metadata.recordings.iloc[order].reset_index(drop=True)
    return Metadata(recordings, labels, metadata.problems), [folders[row] for row in order]


@dataclass(frozen=True)
class _Inspected:
    path: Path | None
    header: AudioHeader
    sha256: str
    reason: str


def _inspect(folder: Path, filename: str) -> _Inspected:
    sha256 = ""
    try:
        path = find_audio(folder, filename)
        header = read_header(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (ValueError, OSError) as error:
        return _Inspected(None, AudioHeader(0, 1), sha256, str(error))
    return _Inspected(path, header, sha256, "")


def find_audio(folder: Path, filename: str) -> Path:
    """Return the file of a metadata row.

    Raises:
        ValueError: the name leads out of the folder, by `..`, an absolute path or a link.
    """
    path = folder / filename
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("the file name leads out of the audio folder; it is not read")
    return path
