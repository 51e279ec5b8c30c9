"""Plan in, store out: decode, embed, write and commit shard after shard."""

import itertools
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from featurestore.plan import Plan
from shared.audio import Clip, ClipDecoder, Finding, to_int16
from shared.clips import ClipGrid
from shared.config import as_sections, differences
from shared.embedder import Embedder
from shared.prefetch import prefetched
from shared.store import ArraySpec, Commit, StoreWriter

DECODE_AHEAD = 4  # batches
Progress = Callable[[int], object]


@dataclass
class DecodedBatch:
    """Up to batch_clips rows: int16 waveforms and what decoding told of them."""

    waveforms: np.ndarray
    gain: list[float]
    valid_samples: list[int]
    recordings: dict[str, Finding] = field(default_factory=dict)


class RowDecoder:
    """Decodes the plan's rows in order; a recording is opened once and read front to back."""

    def __init__(self, plan: Plan, grid: ClipGrid) -> None:
        self._plan, self._grid = plan, grid
        self._recording = -1
        self._decoder: ClipDecoder | None = None
        self._clips: Iterator[Clip] = iter(())
        self._next_start = 0

    def batch(self, rows: range) -> DecodedBatch:
        """Decode rows that follow each other."""
        batch = DecodedBatch(np.zeros((len(rows), self._grid.clip_samples), np.int16), [], [])
        for place, row in enumerate(rows):
            recording = int(self._plan.recording[row])
            clip = self._clip(recording, int(self._plan.start[row]))
            batch.waveforms[place], gain = to_int16(clip.samples)
            batch.gain.append(gain)
            batch.valid_samples.append(clip.valid_samples)
            last = row + 1 == self._plan.num_rows or self._plan.recording[row + 1] != recording
            if last:
                next(self._clips, None)  # past the last clip: the decoder compares the frames
            assert self._decoder is not None
            sha256 = str(self._plan.recordings["sha256"][recording])
            batch.recordings[sha256] = self._decoder.finding
        return batch

    def _clip(self, recording: int, start: int) -> Clip:
        if recording != self._recording or start < self._next_start:
            path = self._plan.paths[recording]
            assert path is not None
            self._decoder = ClipDecoder(path, self._plan.header_of(recording), self._grid)
            self._clips = iter(self._decoder)
            self._recording, self._next_start = recording, 0
        skipped = (start - self._next_start) // self._grid.hop_samples
        clip = next(itertools.islice(self._clips, skipped, None))
        self._next_start = start + self._grid.hop_samples
        return clip


OVERFLOW = Finding("ok", ("map values passed float16's range and were cut to it",))


def add_findings(findings: dict[str, Finding], more: dict[str, Finding]) -> None:
    """Join what was found of recordings, by audio sha256, into `findings`."""
    for sha256, finding in more.items():
        findings[sha256] = findings.get(sha256, Finding("ok")).joined(finding)


class Builder:
    """Computes the shards of a plan that a store does not have yet."""

    def __init__(self, path: Path, embedder: Embedder, *, shard_clips: int, with_waveforms: bool) -> None:
        self.path = path
        self.embedder = embedder
        self.stage_array = f"maps/{embedder.backbone.stage}"
        self.arrays = {
            self.stage_array: ArraySpec(embedder.map_shape, "float16", {"frame_hop": embedder.frame_hop})
        }
        if with_waveforms:
            self.arrays["waveforms"] = ArraySpec((embedder.grid.clip_samples,), "int16", {})
        self.shard_clips = shard_clips

    def bytes_per_clip(self) -> int:
        """Return the bytes that a clip takes on the disk."""
        return sum(
            int(np.prod(spec.row_shape)) * np.dtype(spec.dtype).itemsize + 20 for spec in self.arrays.values()
        )

    def open(self, attributes: dict[str, Any]) -> StoreWriter:
        """Create the store, or go on with a compatible one.

        Raises:
            ValueError: it was built from another config or with other arrays; all differing
                keys are named.
        """
        writer = StoreWriter(self.path, attributes, self.arrays, self.shard_clips)
        found = writer.attributes
        changed = differences(found["fingerprint_of"], self.embedder.fingerprint_of)
        if found["shard_clips"] != self.shard_clips:
            changed.append(f"store.shard_clips: {found['shard_clips']} -> {self.shard_clips}")
        has_waveforms = (self.path / "waveforms").exists()
        if has_waveforms != ("waveforms" in self.arrays):
            changed.append(f"waveforms: {has_waveforms} -> {not has_waveforms}")
        if changed:
            raise ValueError(
                f"{self.path} was built from another config; these differ (store -> now): "
                + "; ".join(changed)
                + ". Build into another --out, or go back to the store's settings."
            )
        return writer

    def admit_numerics(self, writer: StoreWriter, *, allow_mixed: bool) -> None:
        """Record what decides the last bits of the rows that will be added.

        Raises:
            ValueError: it differs from that of the store's rows, unless `allow_mixed`.
        """
        numerics, known = self.numerics(), writer.attributes["numerics"]
        if numerics in known:
            return
        if not allow_mixed:
            lines = differences(known[0], numerics)
            raise ValueError(
                f"{self.path} was built under other numerics, so the last bits of new rows "
                f"would differ (store -> now): {'; '.join(lines)}. Use --allow-mixed to go "
                "on all the same."
            )
        known.append(numerics)
        writer.write_attributes()

    def numerics(self) -> dict[str, Any]:
        """Return what decides the last bits of a feature beside the config."""
        device = self.embedder.device
        gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        return {
            "device": gpu or device.type,
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        }

    def pending(self, writer: StoreWriter, plan: Plan) -> list[int]:
        """Return the shards that are missing or were made from other audio."""
        missing = []
        for shard in range(plan.num_shards):
            commit = writer.commit_of(shard)
            if commit is None or commit.plan != plan.digest_of(shard):
                missing.append(shard)
        return missing

    def moves_rows(self, writer: StoreWriter, plan: Plan, shards: list[int]) -> bool:
        """Tell whether a published row would become another clip, rather than rows being added."""
        if writer.attributes["num_rows"] > plan.num_rows:
            return True
        for shard in shards:
            commit = writer.commit_of(shard)
            if commit is not None and commit.plan != plan.digest_of_rows(range(*commit.rows)):
                return True
        return False

    def run(self, writer: StoreWriter, plan: Plan, shards: list[int], progress: Progress) -> None:
        """Compute, write and commit the given shards; `progress` is told finished clips.

        Where recordings were removed or their audio changed, the store is withdrawn first: a
        reader never finds rows of one recording under another's labels, whenever a kill comes.
        """
        if self.moves_rows(writer, plan, shards):
            writer.withdraw()
        size = self.embedder.batch_clips
        decoder = RowDecoder(plan, self.embedder.grid)
        batches = {shard: _batches(plan.rows_of(shard), size) for shard in shards}
        stream = prefetched(
            (decoder.batch(rows) for shard in shards for rows in batches[shard]),
            depth=DECODE_AHEAD,
        )
        for shard in shards:
            seen: list[DecodedBatch] = []
            mine = itertools.islice(stream, len(batches[shard]))
            files = writer.write_shard(shard, self._embedded(mine, plan, shard, seen, progress))
            rows = plan.rows_of(shard)
            recordings: dict[str, Finding] = {}
            for batch in seen:
                add_findings(recordings, batch.recordings)
            commit = Commit(
                rows=(rows.start, rows.stop),
                plan=plan.digest_of(shard),
                files=files,
                gain=[gain for batch in seen for gain in batch.gain],
                valid_samples=[valid for batch in seen for valid in batch.valid_samples],
                recordings=recordings,
            )
            writer.commit(shard, commit)

    def _embedded(
        self,
        batches: Iterator[DecodedBatch],
        plan: Plan,
        shard: int,
        seen: list[DecodedBatch],
        progress: Progress,
    ) -> Iterator[dict[str, np.ndarray]]:
        row = plan.rows_of(shard).start
        for batch in batches:
            maps, overflows = self.embedder.embed(batch.waveforms)
            # A row without audio is a row of zeros: never trained on, and named.
            maps[np.array(batch.valid_samples) == 0] = 0
            cut = plan.recording[row + np.flatnonzero(overflows)]
            sha256 = plan.recordings["sha256"].to_numpy()[cut]
            add_findings(batch.recordings, {str(key): OVERFLOW for key in sha256})
            row += len(batch.waveforms)
            seen.append(
                DecodedBatch(np.zeros(0, np.int16), batch.gain, batch.valid_samples, batch.recordings)
            )
            yield {self.stage_array: maps, "waveforms": batch.waveforms}
            progress(len(batch.waveforms))

    def publish(self, writer: StoreWriter, plan: Plan) -> dict[str, pd.DataFrame]:
        """Gather all commits into the tables and make the store's rows visible."""
        gain, valid_samples = np.zeros(plan.num_rows, np.float32), np.zeros(plan.num_rows, np.int64)
        findings: dict[str, Finding] = {}
        for shard in range(plan.num_shards):
            commit = writer.commit_of(shard)
            assert commit is not None, f"shard {shard} is not committed"
            rows = slice(*commit.rows)
            gain[rows], valid_samples[rows] = commit.gain, commit.valid_samples
            add_findings(findings, commit.recordings)
        recordings = plan.recordings.copy()
        given = zip(recordings["status"], recordings["reason"], recordings["sha256"], strict=True)
        found = [
            Finding(status, (reason,)) if status else findings[str(sha256)]
            for status, reason, sha256 in given
        ]
        recordings["status"] = [finding.status for finding in found]
        recordings["reason"] = ["; ".join(finding.reasons) for finding in found]
        clips = pd.DataFrame(
            {
                "recording": plan.recording.astype(np.int64),
                "start": plan.start,
                "valid_samples": valid_samples,
                "gain": gain,
            }
        )
        tables = {"clips": clips, "recordings": recordings, "labels": plan.labels}
        writer.attributes["problems"] = list(plan.problems)
        writer.attributes["tail_samples_left_out"] = plan.tail_samples_left_out
        writer.publish(tables)
        return tables


def _batches(rows: range, size: int) -> list[range]:
    return [rows[first : first + size] for first in range(0, len(rows), size)]


def _processor() -> str:
    """Return the processor's name: kernels are chosen by it, and the last bits with them."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def check_free_space(path: Path, num_bytes: int) -> int:
    """Return the free bytes where the store goes.

    Raises:
        ValueError: less than the store needs.
    """
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise ValueError(
            f"the store needs {num_bytes / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. "
            "Make room, choose another --out, or leave the waveforms out with --no-waveforms."
        )
    return free


def store_attributes(embedder: Embedder, numerics: dict[str, Any], taxonomy: list[str]) -> dict[str, Any]:
    """Return the root attributes of a new store: no times, no paths."""
    sections = as_sections(embedder.config)
    sections["backbone"]["weights"] = Path(sections["backbone"]["weights"]).name
    return {
        "fingerprint": embedder.fingerprint,
        "fingerprint_of": embedder.fingerprint_of,
        "config": sections,
        "stage": embedder.backbone.stage,
        "weights": {
            "sha256": embedder.backbone.weights_sha256,
            "source": embedder.backbone.weights_source,
        },
        "numerics": [numerics],
        "taxonomy": taxonomy,
        "problems": [],
        "tail_samples_left_out": 0,
    }


class RateEstimate:
    """Tells once, after the first batches, about how long the rest will take."""

    def __init__(self, num_clips: int, tell: Callable[[str], object], after: int = 5) -> None:
        self._num_clips, self._tell, self._after = num_clips, tell, after
        self._ticks, self._done = 0, 0
        self._start = time.monotonic()

    def __call__(self, clips: int) -> None:
        """Count finished clips; the first batch is warm-up and not timed."""
        self._ticks += 1
        if self._ticks == 1:
            self._start = time.monotonic()
            return
        self._done += clips
        if self._ticks == self._after and self._num_clips > self._done:
            rate = self._done / (time.monotonic() - self._start)
            minutes = (self._num_clips - self._done) / rate / 60
            self._tell(f"about {minutes:.1f} minutes to go at {rate:.1f} clips/s")
