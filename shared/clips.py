"""The clip grid: how recordings are cut into fixed-length clips."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64


@dataclass(frozen=True, kw_only=True)
class ClipGrid:
    """How recordings are cut into clips, in samples at the working sample rate.

    What is left after the last whole clip gets a zero-padded clip of its own if it is at least
    `min_tail_samples` long; a recording shorter than a clip always gets one.
    """

    sample_rate_hz: int
    clip_samples: int
    hop_samples: int
    min_tail_samples: int

    def __post_init__(self) -> None:
        if not 0 < self.hop_samples <= self.clip_samples:
            raise ValueError(
                f"hop_samples must be in 1..{self.clip_samples} (= clip_samples) so that "
                f"no audio falls between clips; got {self.hop_samples}."
            )

        if not 0 <= self.min_tail_samples <= self.clip_samples:
            raise ValueError(
                f"min_tail_samples must be in 0..{self.clip_samples} (= clip_samples); "
                f"got {self.min_tail_samples}."
            )

    def resampled_length(self, num_frames: int, sample_rate_hz: int) -> int:
        """Return the samples that `num_frames` of another rate make at ours, rounded up."""
        return -(-num_frames * self.sample_rate_hz // sample_rate_hz)

    def starts(self, num_samples: int) -> Int64[np.ndarray, " clips"]:
        """Return the first sample of every clip of a recording of `num_samples` samples.

        An empty recording has no clip.
        """
        if num_samples <= 0:
            return np.zeros(0, np.int64)
        beyond_first = max(0, num_samples - self.clip_samples)
        num_clips, tail = divmod(beyond_first, self.hop_samples)
        num_clips += 1 + (tail >= max(1, self.min_tail_samples))
        return np.arange(num_clips, dtype=np.int64) * self.hop_samples

    def next_start(self, start: int, num_samples: int, hop_samples: int) -> int | None:
        """Return where the clip behind the one at `start` begins, None behind the last one.

        With hops of the grid's own these are `starts`.
        """
        beyond = num_samples - start - self.clip_samples
        is_there = beyond >= min(hop_samples, max(1, self.min_tail_samples))
        return start + hop_samples if is_there else None

    def tail_left_out(self, num_samples: int) -> int:
        """Return how many samples at a recording's end are in no clip."""
        starts = self.starts(num_samples)
        return max(0, num_samples - int(starts[-1]) - self.clip_samples) if len(starts) else 0


MAX_CLIP_SECONDS = 600.0


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Section [clips]: the clip grid in seconds."""

    sample_rate_hz: int = 32_000
    clip_seconds: float = 5.0
    hop_seconds: float = 5.0
    min_tail_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.sample_rate_hz < 1000:
            raise ValueError(f"sample_rate_hz must be at least 1000, got {self.sample_rate_hz}.")
        if not 0 < self.clip_seconds <= MAX_CLIP_SECONDS:
            raise ValueError(f"clip_seconds must be in 0..{MAX_CLIP_SECONDS}, got {self.clip_seconds}.")
        if not 0 < self.hop_seconds <= self.clip_seconds:
            raise ValueError(
                f"hop_seconds must be in 0..{self.clip_seconds} (= clip_seconds) so that no audio "
                f"falls between clips; got {self.hop_seconds}."
            )
        if not 0 <= self.min_tail_seconds <= self.clip_seconds:
            raise ValueError(
                f"min_tail_seconds must be in 0..{self.clip_seconds} (= clip_seconds), "
                f"got {self.min_tail_seconds}."
            )
        self.grid()

    def grid(self) -> ClipGrid:
        """Return the same grid in samples."""
        return ClipGrid(
            sample_rate_hz=self.sample_rate_hz,
            clip_samples=round(self.clip_seconds * self.sample_rate_hz),
            hop_samples=round(self.hop_seconds * self.sample_rate_hz),
            min_tail_samples=round(self.min_tail_seconds * self.sample_rate_hz),
        )
