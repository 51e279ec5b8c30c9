"""Weighted drawing with replacement: a recording first, then one of its clips."""

import numpy as np
from jaxtyping import Float32, Int64

from trainer.config import SamplerConfig


def recording_weights(
    truth: Float32[np.ndarray, "r k"], ratings: Float32[np.ndarray, " r"], config: SamplerConfig
) -> np.ndarray:
    """Return the weight (R,) of every training recording.

    A class with n recordings weighs n ** exponent; a recording weighs the mean over its
    classes (recordings without a species are a class of their own), times its rating's weight
    clip(rating / 5, 0.1, 1). A rating of 0 means unrated: weight 1.
    """
    positive = truth > 0
    with_silence = np.column_stack([positive, ~positive.any(axis=1)])
    counts = with_silence.sum(axis=0)
    class_weight = np.where(counts > 0, np.maximum(counts, 1) ** config.exponent, 0.0)
    weights = (with_silence @ class_weight) / with_silence.sum(axis=1)
    if config.use_rating:
        weights = weights * np.where(ratings > 0, np.clip(ratings / 5, 0.1, 1), 1.0)
    return np.asarray(weights)


class ClipSampler:
    """Draws clips: a recording by its weight, then one of its clips evenly.

    Cumulative sums, since `torch.multinomial` stops at 2^24 categories.
    """

    def __init__(
        self,
        rows: Int64[np.ndarray, " rows"],
        recording_of_row: Int64[np.ndarray, " rows"],
        weights: np.ndarray,
    ) -> None:
        """Take the rows that may be drawn, each row's recording, and all recordings' weights."""
        order = np.argsort(recording_of_row, kind="stable")
        self._rows = rows[order]
        recordings, self._first, self._count = np.unique(
            recording_of_row[order], return_index=True, return_counts=True
        )
        self._cumulative = np.cumsum(weights[recordings])
        if not len(rows) or self._cumulative[-1] <= 0:
            raise ValueError("there is no clip to train on: every recording is held out or unknown.")

    def draw(self, num_clips: int, rng: np.random.Generator) -> np.ndarray:
        """Return rows, drawn with replacement."""
        places = rng.random(num_clips) * self._cumulative[-1]
        recording = np.searchsorted(self._cumulative, places, side="right")
        recording = np.minimum(recording, len(self._cumulative) - 1)
        within = (rng.random(num_clips) * self._count[recording]).astype(np.int64)
        return np.asarray(self._rows[self._first[recording] + within])
