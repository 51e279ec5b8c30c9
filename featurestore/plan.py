"""The plan: which rows a store has, fixed before anything is decoded."""

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from featurestore.known import Known, recording_keys
from featurestore.seen import SeenFiles
from shared.audio import AudioHeader, read_header
from shared.clips import ClipGrid
from shared.commit import Run, runs_of
from shared.metadata import Metadata, join, keep_species

Tick = Callable[[int], object]
INSPECTED_AT_ONCE = 4096
NAMED = 20


@dataclass(frozen=True)
class Source:
    """Metadata and the folder with its audio."""

    metadata: Metadata
    audio: Path


@dataclass(frozen=True)
class Plan:
    """All recordings and rows of a store.

    recordings: metadata as given and what the files declare: sample_rate_hz, num_frames,
        sha256, status ("" until decoded, or unreadable), reason, and in_metadata, which is
        False for those that only the store still has.
    recording, start: per row, the recording's number and the clip's first sample.
    paths: per recording; None where there is no audio to read.
    """

    recordings: pd.DataFrame
    labels: pd.DataFrame
    problems: tuple[str, ...]
    paths: list[Path | None]
    recording: np.ndarray
    start: np.ndarray
    shard_clips: int
    hop_samples: int
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

    def sha256_of(self, rows: range) -> list[str]:
        """Return the audio sha256 of every row."""
        sha256 = self.recordings["sha256"].to_numpy()
        return [str(sha256[number]) for number in self.recording[rows.start : rows.stop]]

    def runs_of(self, shard: int) -> tuple[Run, ...]:
        """Return what the shard is made from."""
        rows = self.rows_of(shard)
        return runs_of(self.sha256_of(rows), self.start[rows.start : rows.stop], self.hop_samples)

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
    counts, known_again = [], []
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
        known_again += _known_again(of_species, kept)
    joined = join(parts)
    return replace(joined, problems=joined.problems + tuple(known_again)), folders, counts


def _known_again(of_species: Metadata, kept: Metadata) -> list[str]:
    """Say how many recordings of an external source are left out since their id is known, and name some."""
    names = of_species.recordings["filename"]
    again = names[~names.isin(set(kept.recordings["filename"]))]
    if again.empty:
        return []
    more = ", .." if len(again) > NAMED else ""
    return [
        f"{of_species.recordings['source'].iloc[0]}: {len(again)} recordings have a xeno-canto id that an "
        f"earlier source has, and are left out: {', '.join(again.iloc[:NAMED])}{more}"
    ]


def make_plan(
    metadata: Metadata,
    folders: list[Path],
    grid: ClipGrid,
    *,
    shard_clips: int,
    known: Known | None,
    seen: SeenFiles,
    tick: Tick,
) -> Plan:
    """Read every header and hash every file, and lay out the rows.

    Recordings that the store has already keep their order and come first, so that adding
    recordings moves no row; those that the metadata no longer has keep their rows, marked. Where
    a file is not there now, the rows that the store has of it stand. `tick` is called per recording.
    """
    recordings = metadata.recordings.assign(in_metadata=True)
    labels, num_given = metadata.labels, len(metadata.recordings)
    if known is not None:
        recordings, labels = known.joined_to(recordings, labels)
    inspected = _inspect_all(recordings, folders, known, seen, tick)
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
    absent = sum(found.is_kept for found in inspected[:num_given])
    problems = metadata.problems + _labels_in_no_clip(labels, ends)
    if absent:
        problems += (f"the audio of {absent} recordings is not there now; the store's rows of them are kept",)
    order = np.arange(len(recordings)) if known is None else known.order(recordings, lengths)
    recordings, labels = _reordered(recordings, labels, order)
    return Plan(
        recordings=recordings,
        labels=labels,
        problems=problems,
        paths=[inspected[row].path for row in order],
        recording=np.repeat(np.arange(len(starts)), lengths[order]),
        start=np.concatenate([*(starts[row] for row in order), np.zeros(0, np.int64)]),
        shard_clips=shard_clips,
        hop_samples=grid.hop_samples,
        tail_samples_left_out=sum(grid.tail_left_out(length) for length in num_samples),
    )


def _inspect_all(
    recordings: pd.DataFrame, folders: list[Path], known: Known | None, seen: SeenFiles, tick: Tick
) -> "list[_Inspected]":
    """Read headers and hash files, in threads; the database of seen files stays in this one."""
    stored = known.header_and_sha256() if known is not None else {}
    keys = recording_keys(recordings)

    def begin(place: int) -> "_Inspected | Future[_Inspected]":
        if place >= len(folders):  # gone from the metadata: what the store knows of it
            return _Inspected(None, *stored[keys[place]], reason="", is_kept=True)
        path = folders[place] / keys[place][1]
        found = seen.find(path)
        return _Inspected(path, *found, reason="") if found else pool.submit(_inspect, folders[place], path)

    inspected: list[_Inspected] = []
    pool = ThreadPoolExecutor(max_workers=4)
    try:
        for first in range(0, len(keys), INSPECTED_AT_ONCE):
            begun = [begin(place) for place in range(first, min(first + INSPECTED_AT_ONCE, len(keys)))]
            for key, job in zip(keys[first:], begun, strict=False):
                found = job
                if isinstance(job, Future):
                    found = job.result()
                    if found.path is not None and not found.reason:
                        seen.note(found.path, found.header, found.sha256)
                assert isinstance(found, _Inspected)
                if found.is_missing and key in stored:
                    found = _Inspected(None, *stored[key], reason="", is_kept=True)
                inspected.append(found)
                tick(1)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C waits for the files in flight only
    seen.save()
    return inspected


def _labels_in_no_clip(labels: pd.DataFrame, ends: np.ndarray) -> tuple[str, ...]:
    """Count the timed labels that start behind their recording's last clip."""
    lost = int((labels["start"].to_numpy() >= np.maximum(ends[labels["recording"]], 1)).sum())
    if not lost:
        return ()
    return (
        f"{lost} timed labels lie behind their recording's last clip and label nothing: the file is "
        "shorter or unreadable, or its end is shorter than clips.min_tail_seconds",
    )


def _reordered(
    recordings: pd.DataFrame, labels: pd.DataFrame, order: np.ndarray
) -> tuple[pd.DataFrame, pd.DataFrame]:
    new_number = np.empty(len(order), np.int64)
    new_number[order] = np.arange(len(order))
    labels = labels.assign(recording=new_number[labels["recording"]])
    labels = labels.sort_values("recording", kind="stable", ignore_index=True)
    return recordings.iloc[order].reset_index(drop=True), labels


@dataclass(frozen=True)
class _Inspected:
    path: Path | None
    header: AudioHeader
    sha256: str
    reason: str
    is_missing: bool = False
    is_kept: bool = False


def _inspect(folder: Path, path: Path) -> _Inspected:
    sha256 = ""
    try:
        refuse_outside(folder, path)
        header = read_header(path)
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (ValueError, OSError) as error:
        return _Inspected(None, AudioHeader(0, 1), sha256, str(error), is_missing=not path.exists())
    return _Inspected(path, header, sha256, "")


def refuse_outside(folder: Path, path: Path) -> None:
    """Refuse the file of a metadata row that lies elsewhere.

    Raises:
        ValueError: the name leads out of the folder, by `..`, an absolute path or a link.
    """
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError("the file name leads out of the audio folder; it is not read")
