"""Recordings of any length, streamed through an ensemble, into probabilities per segment and per frame."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int64
from scipy.special import expit

from shared.audio import AudioHeader, ClipDecoder, Finding, read_header, to_int16
from shared.clip_array import num_processors
from shared.pipeline import in_order
from trainer.ensemble import Ensemble
from trainer.scorers import Logits
from trainer.stitching import Stitcher, Stretch

DECODE_DEPTH = 2  # chunks of one recording's windows that wait
CHUNK_WINDOWS = 8


@dataclass(frozen=True)
class Level:
    """How much is spent on a recording: the hop between its windows, and how many of the scorers."""

    hop_samples: int
    num_scorers: int


# A recording's number, a sample of it, and how many windows were made of it since the last call, to what is
# spent on it from there on. Called from threads.
Pace = Callable[[int, int, int], Level]


@dataclass(frozen=True)
class Piece:
    """A stretch of a recording, in order; the last one has the finding and the duration.

    number: the recording's, in the order in which they were given.
    segments: (n, K) probabilities from `first_segment` on; valid_samples: (n,), 0 where nothing could be
        decoded.
    frames: (m, K) probabilities from `first_frame` on, 0 where nothing could be decoded.
    num_windows: how many windows it took.
    """

    number: int
    level: Level
    first_segment: int
    segments: Float32[np.ndarray, "n k"]
    valid_samples: Int64[np.ndarray, " n"]
    first_frame: int
    frames: Float32[np.ndarray, "m k"]
    num_windows: int
    finding: Finding | None = None
    duration_seconds: float = 0.0


@dataclass(frozen=True)
class _Window:
    number: int
    start: int
    valid: int


@dataclass(frozen=True)
class _End:
    """A recording's last window is behind it."""

    number: int
    level: Level
    finding: Finding
    num_segments: int
    num_samples: int


@dataclass
class _Chunk:
    """Windows of one recording, decoded: int16 samples (n, S); or its end."""

    level: Level
    waveforms: list[np.ndarray]
    marks: list[_Window | _End]


class Predictor:
    """An ensemble over recordings, with windows that overlap, and smoothing over neighbouring segments.

    overlap: the share of a window that the next one covers too; the hop must be whole frames, so that
        windows meet frame by frame.
    smoothing: what each neighbouring segment counts against the segment itself, 0..1.
    """

    def __init__(self, ensemble: Ensemble, overlap: float = 0.0, smoothing: float = 0.0) -> None:
        """Check the settings.

        Raises:
            ValueError: names the overlaps that there are.
        """
        self.ensemble, self.overlap, self.smoothing = ensemble, overlap, smoothing
        if not 0 <= smoothing <= 1:
            raise ValueError(f"--smoothing is a weight in 0..1, got {smoothing:g}.")
        clip, frame = ensemble.grid.clip_samples, ensemble.frame_hop
        hop = round(clip * (1 - overlap))
        if not 0 <= overlap < 1 or not hop or (overlap and hop % frame):
            fitting = [1 - hop / clip for hop in range(frame, clip, frame)]
            raise ValueError(
                f"--overlap {overlap:g}: windows must be moved by whole frames; here that is one of "
                f"0, {', '.join(f'{share:.4g}' for share in reversed(fitting))}."
            )
        self.full = Level(hop, len(ensemble.scorers))

    def header(self, path: Path) -> tuple[AudioHeader, int]:
        """Return a recording's header, and how many segments it has.

        Raises:
            ValueError: the recording cannot be read.
        """
        header, grid = read_header(path), self.ensemble.grid
        return header, len(grid.starts(grid.resampled_length(header.num_frames, header.sample_rate_hz)))

    def pieces(self, paths: Iterable[Path], pace: Pace | None = None) -> Iterator[Piece]:
        """Yield all recordings' pieces in order, in bounded memory, while threads work ahead.

        pace: says what to spend on a recording as it is begun, and every few windows again.
        """
        streams, cores = self.ensemble.streams, num_processors()
        at = pace or (lambda number, start, num_windows: self.full)
        decoded = in_order(
            lambda one: self._decode(*one, at), enumerate(paths),
            workers=cores, ahead=2 * cores, depth=DECODE_DEPTH,
        )  # fmt: skip
        with closing(decoded):  # type: ignore[type-var]
            batches = _packed(decoded, self.ensemble.batch_clips)
            scored = in_order(
                lambda batch: [(batch, self._scored(batch))], batches, workers=streams, ahead=2 * streams
            )
            with closing(scored):  # type: ignore[type-var]
                yield from self._assembled(scored)

    def recording(self, path: Path) -> Iterator[Piece]:
        """Yield one recording's pieces."""
        return self.pieces([path])

    def _decode(self, number: int, path: Path, pace: Pace) -> Iterator[_Chunk]:
        grid, level = self.ensemble.grid, pace(number, 0, 0)
        try:
            header, num_segments = self.header(path)
        except (ValueError, OSError) as error:
            yield _Chunk(level, [], [_End(number, level, Finding("unreadable", (str(error),)), 0, 0)])
            return
        decoder = ClipDecoder(path, header, grid)
        chunk, start = _Chunk(level, [], []), 0
        num_made = 0  # since the pace was asked last
        for clip in decoder:
            # Asked only where a segment begins, so that windows without overlap are segments.
            is_due = num_made >= CHUNK_WINDOWS and start % grid.clip_samples == 0
            if is_due or len(chunk.marks) >= CHUNK_WINDOWS:
                yield chunk
                if is_due:
                    level, num_made = pace(number, start, num_made), 0
                chunk = _Chunk(level, [], [])
            chunk.waveforms.append(to_int16(clip.samples)[0])
            chunk.marks.append(_Window(number, start, clip.valid_samples))
            decoder.hop_samples = level.hop_samples
            start, num_made = start + level.hop_samples, num_made + 1
        samples = grid.resampled_length(decoder.num_decoded, header.sample_rate_hz)
        chunk.marks.append(_End(number, level, decoder.finding, num_segments, samples))
        yield chunk

    def _scored(self, batch: _Chunk) -> Logits | None:
        if not batch.waveforms:
            return None
        valid = np.array([mark.valid for mark in batch.marks if isinstance(mark, _Window)])
        return self.ensemble.score(np.stack(batch.waveforms), valid, batch.level.num_scorers)

    def _assembled(self, scored: Iterator[tuple[_Chunk, Logits | None]]) -> Iterator[Piece]:
        ensemble = self.ensemble
        num_classes = len(ensemble.taxonomy)
        stitcher = Stitcher(ensemble.grid, ensemble.frame_hop, num_classes)
        smoother, num_windows = _Smoother(self.smoothing, num_classes), 0
        for batch, logits in scored:
            place, last = 0, None
            for mark in batch.marks:
                if isinstance(mark, _Window):
                    assert logits is not None
                    stitcher.add(mark.start, mark.valid, logits.clip_wise[place], logits.frame_wise[place])
                    place, last, num_windows = place + 1, mark, num_windows + 1
                    continue
                stretch = stitcher.take_rest(mark.num_segments, mark.num_samples)
                piece = _piece(mark.number, mark.level, smoother.through(stretch, is_last=True), num_windows)
                seconds = mark.num_samples / ensemble.grid.sample_rate_hz
                yield replace(piece, finding=mark.finding, duration_seconds=seconds)
                stitcher = Stitcher(ensemble.grid, ensemble.frame_hop, num_classes)
                smoother, num_windows, last = _Smoother(self.smoothing, num_classes), 0, None
            if last is not None:  # windows to come begin after the last one
                stretch = stitcher.take(last.start + batch.level.hop_samples)
                yield _piece(last.number, batch.level, smoother.through(stretch, is_last=False), num_windows)
                num_windows = 0


def _piece(number: int, level: Level, stretch: Stretch, num_windows: int) -> Piece:
    """Turn frames into probabilities too; what was not heard has none."""
    return Piece(
        number, level, stretch.first_segment, stretch.segments, stretch.valid_samples,
        stretch.first_frame, np.nan_to_num(expit(stretch.frames)), num_windows,
    )  # fmt: skip


class _Smoother:
    """Segments' probabilities, each averaged with its neighbours, held back until the next one is there."""

    def __init__(self, weight: float, num_classes: int) -> None:
        self._weight = np.float32(weight)
        self._before = np.full((1, num_classes), np.nan, np.float32)
        self._held = np.zeros((0, num_classes), np.float32)
        self._held_valid = np.zeros(0, np.int64)

    def through(self, stretch: Stretch, *, is_last: bool) -> Stretch:
        """Return the stretch with its segments as probabilities, smoothed; nan where none was heard."""
        given = expit(stretch.segments)
        if not self._weight:
            return replace(stretch, segments=given)
        known = np.concatenate([self._held, given])
        valid = np.concatenate([self._held_valid, stretch.valid_samples])
        num = len(known) if is_last else max(0, len(known) - 1)
        nothing = np.full_like(self._before, np.nan)
        around = np.concatenate([self._before, known, nothing])
        parts = np.stack([around[:-2], around[1:-1], around[2:]])[:, :num]
        weights = np.array([self._weight, 1, self._weight], np.float32)[:, None, None] * ~np.isnan(parts)
        smooth = np.where(np.isnan(parts[1]), np.nan, (np.nan_to_num(parts) * weights).sum(0))
        smooth = (smooth / np.maximum(weights.sum(0), 1e-9)).astype(np.float32)
        first = stretch.first_segment - len(self._held)
        if num:
            self._before = known[num - 1 : num]
        self._held, self._held_valid = known[num:], valid[num:]
        return replace(stretch, first_segment=first, segments=smooth, valid_samples=valid[:num])


def _packed(chunks: Iterable[_Chunk], size: int) -> Iterator[_Chunk]:
    """Yield batches of at most `size` windows of one level, over the borders of recordings."""
    batch: _Chunk | None = None
    for chunk in chunks:
        waveforms = iter(chunk.waveforms)
        for mark in chunk.marks:
            is_full = batch is not None and (batch.level != chunk.level or len(batch.waveforms) == size)
            if batch is not None and isinstance(mark, _Window) and is_full:
                yield batch
                batch = None
            if batch is None:
                batch = _Chunk(chunk.level, [], [])
            batch.marks.append(mark)
            if isinstance(mark, _Window):
                batch.waveforms.append(next(waveforms))
    if batch is not None:
        yield batch
