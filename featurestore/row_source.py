"""Where each row's samples come from: the audio, decoded ahead in threads, or the store itself."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from featurestore.plan import Plan
from featurestore.stored_rows import StoredRow, StoredRows
from shared.audio import ClipDecoder, Finding, to_int16
from shared.clips import ClipGrid
from shared.pipeline import in_order
from shared.stage_clock import StageClock

DECODE_DEPTH = 8  # clips of one recording that wait
RECORDINGS_AHEAD = 32
NO_AUDIO = Finding("unreadable", ("its audio is gone, and the rows that the store had of it are lost",))


@dataclass
class RowBatch:
    """Rows that follow each other, as they go through the backbone together.

    waveforms: (B, S) int16.
    stored: per row, where the store has it already.
    recordings: audio sha256 to what is known of it up to here.
    """

    rows: range
    waveforms: np.ndarray
    stored: list[StoredRow | None]
    gain: list[float] = field(default_factory=list)
    valid_samples: list[int] = field(default_factory=list)
    recordings: dict[str, Finding] = field(default_factory=dict)

    @property
    def is_stored(self) -> bool:
        """Whether every row is there already and only needs copying."""
        return all(row is not None for row in self.stored)


@dataclass(frozen=True)
class DecodedClip:
    """One row's samples, and what decoding has told of its recording so far."""

    samples: np.ndarray
    gain: float
    valid_samples: int
    finding: Finding


@dataclass(frozen=True)
class _Stretch:
    """Rows of one recording that follow each other, to be decoded in one go."""

    recording: int
    first: int
    stop: int


def batches_of(rows: range, size: int) -> list[range]:
    """Cut a shard's rows into the batches that pass the backbone together."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]


@dataclass(frozen=True)
class RowSource:
    """Yields the batches of shards in order, decoded in `workers` threads, each recording once."""

    plan: Plan
    grid: ClipGrid
    stored: StoredRows
    batch_clips: int
    workers: int
    clock: StageClock

    def batches(self, shards: list[int]) -> Iterator[RowBatch]:
        """Yield every batch of the shards."""
        decoded = in_order(
            self._decode, self._stretches(shards), workers=self.workers,
            ahead=RECORDINGS_AHEAD, depth=DECODE_DEPTH,
        )  # fmt: skip
        with closing(decoded):  # type: ignore[type-var]
            for shard in shards:
                for rows in batches_of(self.plan.rows_of(shard), self.batch_clips):
                    yield self._filled(self._begun(rows), decoded)

    def _begun(self, rows: range) -> RowBatch:
        starts = self.plan.start[rows.start : rows.stop].tolist()
        sha256 = self.plan.sha256_of(rows)
        stored = [self.stored.find(*key) for key in zip(sha256, starts, strict=True)]
        return RowBatch(rows, np.zeros((len(rows), self.grid.clip_samples), np.int16), stored)

    def _is_decoded(self, batch: RowBatch, place: int) -> bool:
        """Tell whether a row's audio is decoded: not where the store has its samples."""
        if batch.stored[place] is not None and (batch.is_stored or self.stored.has("waveforms")):
            return False
        return self.plan.paths[int(self.plan.recording[batch.rows[place]])] is not None

    def _stretches(self, shards: list[int]) -> Iterator[_Stretch]:
        """Yield what has to be decoded, in the rows' order, recordings in one piece."""
        open_: _Stretch | None = None
        for shard in shards:
            for rows in batches_of(self.plan.rows_of(shard), self.batch_clips):
                batch = self._begun(rows)
                for place, row in enumerate(rows):
                    if not self._is_decoded(batch, place):
                        continue
                    recording = int(self.plan.recording[row])
                    if open_ and (open_.recording, open_.stop) == (recording, row):
                        open_ = _Stretch(recording, open_.first, row + 1)
                        continue
                    if open_:
                        yield open_
                    open_ = _Stretch(recording, row, row + 1)
        if open_:
            yield open_

    def _decode(self, stretch: _Stretch) -> Iterator[DecodedClip]:
        path = self.plan.paths[stretch.recording]
        assert path is not None
        decoder = ClipDecoder(path, self.plan.header_of(stretch.recording), self.grid)
        clips = iter(decoder)
        skipped = int(self.plan.start[stretch.first]) // self.grid.hop_samples
        for row in range(stretch.first, stretch.stop):
            with self.clock.measured("decode"):
                clip = next(islice(clips, skipped, None))
                samples, gain = to_int16(clip.samples)
                skipped = 0
                is_last = row + 1 == self.plan.num_rows or self.plan.recording[row + 1] != stretch.recording
                if is_last:
                    next(clips, None)  # past the last clip: the decoder compares the frames
            yield DecodedClip(samples, gain, clip.valid_samples, decoder.finding)

    def _filled(self, batch: RowBatch, decoded: Iterator[DecodedClip]) -> RowBatch:
        sha256 = self.plan.sha256_of(batch.rows)
        for place, stored in enumerate(batch.stored):
            if self._is_decoded(batch, place):
                clip = next(decoded)
                batch.waveforms[place] = clip.samples
                gain, valid, finding = clip.gain, clip.valid_samples, clip.finding
            elif stored is not None:
                gain, valid, finding = stored.gain, stored.valid_samples, stored.finding
                if self.stored.has("waveforms"):
                    batch.waveforms[place] = self.stored.read("waveforms", [stored])[0]
            else:
                gain, valid, finding = 1.0, 0, NO_AUDIO
            batch.gain.append(gain)
            batch.valid_samples.append(valid)
            batch.recordings[sha256[place]] = finding
        return batch
