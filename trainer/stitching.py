"""Overlapping windows of one recording onto its segments and its frames, as they come."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from shared.clips import ClipGrid


@dataclass(frozen=True)
class Stretch:
    """Consecutive segments and frames of a recording that nothing later changes.

    segments: (n, K) logits from segment `first_segment` on; valid_samples: (n,) of each segment, 0 where
        nothing could be decoded (its logits are nan).
    frames: (m, K) logits from frame `first_frame` on; nan where nothing could be decoded.
    """

    first_segment: int
    segments: Float32[np.ndarray, "n k"]
    valid_samples: Int64[np.ndarray, " n"]
    first_frame: int
    frames: Float32[np.ndarray, "m k"]


class Stitcher:
    """Means of windows' logits: by segment, and on the recording's one grid of frames.

    Frame g stands for the samples from g * frame_hop on; less than half a frame at the end is none. A
    window that begins on that grid gives each frame its own value; one that does not is interpolated
    linearly to the frames' middles. A window counts for a segment by the share of it that it covers.
    """

    def __init__(self, grid: ClipGrid, frame_hop: int, num_classes: int) -> None:
        self._clip, self._hop = grid.clip_samples, frame_hop
        self._segments = _Sums(num_classes)
        self._frames = _Sums(num_classes)
        self._heard_to: dict[int, int] = {}  # per segment, where the last sample that was heard lies in it

    def add(
        self, start: int, valid: int, clip_wise: Float32[np.ndarray, " k"], frames: Float32[np.ndarray, "t k"]
    ) -> None:
        """Add the window of samples `start` on, of which the first `valid` are audio; none: nothing."""
        if not valid:
            return
        first, last = start // self._clip, (start + valid - 1) // self._clip
        for segment in range(first, last + 1):
            begin = segment * self._clip
            covered = min(start, begin) + self._clip - max(start, begin)
            weight = np.full(1, covered / self._clip, np.float32)
            self._segments.add(segment, clip_wise[None], weight)
            heard = min(start + valid - begin, self._clip)
            self._heard_to[segment] = max(self._heard_to.get(segment, 0), heard)
        middles = (
            np.arange(-(-start // self._hop) - 1, (start + self._clip) // self._hop + 1) + 0.5
        ) * self._hop
        inside = (middles >= start) & (middles < start + self._clip)
        inside &= middles - self._hop / 2 < start + valid
        middles = middles[inside]
        if not len(middles):  # less audio than half a frame
            return
        place = np.clip((middles - start) / self._hop - 0.5, 0, len(frames) - 1)
        lower = np.floor(place).astype(int)
        upper = np.minimum(lower + 1, len(frames) - 1)
        share = (place - lower).astype(np.float32)[:, None]
        values = frames[lower] * (1 - share) + frames[upper] * share if share.any() else frames[lower]
        self._frames.add(int(middles[0] // self._hop), values, np.ones(len(values), np.float32))

    def take(self, before: int) -> Stretch:
        """Return all segments and frames that end at or before a sample, and forget them."""
        return self._take(before // self._clip, before // self._hop)

    def take_rest(self, num_segments: int, num_samples: int) -> Stretch:
        """Return what is left of a recording of so many segments and samples."""
        return self._take(num_segments, -(-num_samples // self._hop))

    def _take(self, end_segment: int, end_frame: int) -> Stretch:
        first_segment, first_frame = self._segments.first, self._frames.first
        segments, frames = self._segments.take(end_segment), self._frames.take(end_frame)
        heard = [self._heard_to.pop(first_segment + place, 0) for place in range(len(segments))]
        return Stretch(first_segment, segments, np.array(heard, np.int64), first_frame, frames)


class _Sums:
    """Weighted sums of rows (.., K) from row `first` on, in a buffer that grows and is given up in front."""

    def __init__(self, num_classes: int) -> None:
        self.first = 0
        self._sums = np.zeros((64, num_classes), np.float32)
        self._weights = np.zeros(64, np.float32)

    def add(self, row: int, values: np.ndarray, weights: np.ndarray) -> None:
        begin = row - self.first
        self._reach(begin + len(values))
        self._sums[begin : begin + len(values)] += values * weights[:, None]
        self._weights[begin : begin + len(values)] += weights

    def take(self, end: int) -> Float32[np.ndarray, "n k"]:
        """Return the means of the rows before `end`; nan where nothing was added."""
        num = max(0, end - self.first)
        self._reach(num)
        weights = self._weights[:num, None]
        means = np.divide(
            self._sums[:num], weights, out=np.full_like(self._sums[:num], np.nan), where=weights > 0
        )
        kept = len(self._sums) - num
        for buffer in (self._sums, self._weights):
            buffer[:kept] = buffer[num:].copy()
            buffer[kept:] = 0
        self.first += num
        return means

    def _reach(self, num_rows: int) -> None:
        while len(self._sums) < num_rows:
            self._sums = np.concatenate([self._sums, np.zeros_like(self._sums)])
            self._weights = np.concatenate([self._weights, np.zeros_like(self._weights)])
