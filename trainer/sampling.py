"""Weighted drawing with replacement: a recording first, then one of its clips."""

import numpy as np
from jaxtyping import Float32, Int64

from trainer.config import SamplerConfig


def _with_silence(truth: np.ndarray) -> np.ndarray:
    """Return (R, K + 1): recordings without a species are a class of their own, the last."""
    positive = truth > 0
    return np.column_stack([positive, ~positive.any(axis=1)])


def recording_weights(
    truth: Float32[np.ndarray, "r k"], ratings: Float32[np.ndarray, " r"], config: SamplerConfig
) -> np.ndarray:
    """Return the weight (R,) of every training recording.

    A class with n recordings weighs n ** exponent; a recording weighs the mean over its
    classes (recordings without a species are a class of their own), times its rating's weight
    clip(rating / 5, 0.1, 1). A rating of 0 means unrated: weight 1.
    """
    member = _with_silence(truth)
    counts = member.sum(axis=0)
    class_weight = np.where(counts > 0, np.maximum(counts, 1) ** config.exponent, 0.0)
    weights = (member @ class_weight) / member.sum(axis=1)
    if config.use_rating:
        weights = weights * np.where(ratings > 0, np.clip(ratings / 5, 0.1, 1), 1.0)
    return np.asarray(weights)


def rarest_class(truth: Float32[np.ndarray, "r k"]) -> Int64[np.ndarray, " r"]:
    """Return each recording's class with the fewest recordings, K where it has no species."""
    member = _with_silence(truth)
    counts = np.where(member, member.sum(axis=0), len(truth) + 1)
    return np.asarray(counts.argmin(axis=1), np.int64)


def draw_views(
    rows: Int64[np.ndarray, "..."], num_views: int, num_clips: int, rng: np.random.Generator
) -> Int64[np.ndarray, "..."]:
    """Draw for every drawn clip its clean map or one of its views, all alike, sorted within a batch.

    rows: (.., B); those returned count on through the views: the row of a clip's view v is
        v * num_clips + the clip's own.
    """
    views = rng.integers(0, num_views + 1, rows.shape)
    return np.sort(rows + views * num_clips, axis=-1)


class ClipSampler:
    """Draws the clips of an epoch: recordings by their weights, with replacement, then their clips.

    The expected number of draws of a recording is its share of the weights, as with
    `torch.utils.data.WeightedRandomSampler`; by cumulative sums, since `torch.multinomial` stops at
    2^24 categories.
    """

    def __init__(
        self,
        rows: Int64[np.ndarray, " rows"],
        recording_of_row: Int64[np.ndarray, " rows"],
        weights: np.ndarray,
        classes: Int64[np.ndarray, " r"],
        drawing: str,
    ) -> None:
        """Take the rows that may be drawn, each row's recording, and all recordings' weights and classes.

        Raises:
            ValueError: nothing may be drawn.
        """
        order = np.argsort(recording_of_row, kind="stable")
        self._rows = rows[order]
        recordings, self._first, self._count = np.unique(
            recording_of_row[order], return_index=True, return_counts=True
        )
        self._weights, self._classes = weights[recordings], classes[recordings]
        self._drawing = drawing
        if not len(rows) or self._weights.sum() <= 0:
            raise ValueError("there is no clip to train on: every recording is held out or unknown.")

    def draw_epoch(
        self, num_batches: int, batch_clips: int, rng: np.random.Generator
    ) -> Int64[np.ndarray, "batches clips"]:
        """Return the rows of every batch.

        Stratified: one point in each of N equal parts of the weights, laid out class by class, a
        recording's copies side by side; the points are dealt out to the batches in turn. So a batch
        holds of every class its share, to within two clips; a recording is drawn its expected number of
        times, rounded up or down; and two of its clips meet in a batch only if it is drawn more often
        than there are batches. Classes and batches come in another order every time. Within a batch
        clips stand class by class. Independent: every clip by itself.
        """
        num_draws = num_batches * batch_clips
        match self._drawing:
            case "stratified":
                class_order = rng.permutation(int(self._classes.max()) + 1)
                order = np.lexsort((rng.random(len(self._weights)), class_order[self._classes]))
                places = (np.arange(num_draws) + rng.random()) / num_draws
            case "independent":
                order = np.arange(len(self._weights))
                places = rng.random(num_draws)
            case _:
                raise ValueError(f"drawing must be stratified or independent, got {self._drawing!r}.")
        cumulative = np.cumsum(self._weights[order])
        drawn = np.searchsorted(cumulative, places * cumulative[-1], side="right")
        recording = order[np.minimum(drawn, len(order) - 1)]
        rows = self._rows[self._first[recording] + self._clip_within(recording, rng)]
        return np.asarray(rows.reshape(batch_clips, num_batches).T[rng.permutation(num_batches)])

    def _clip_within(self, recording: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return which of its recording's clips each draw takes: draws in a row, clips in a row.

        From a random clip on, so that all are drawn alike, and all of them before one comes twice.
        """
        if self._drawing == "independent":
            return np.asarray((rng.random(len(recording)) * self._count[recording]).astype(np.int64))
        begins = np.flatnonzero(np.diff(recording, prepend=-1))
        run = np.arange(len(recording)) - np.repeat(begins, np.diff(begins, append=len(recording)))
        start = (rng.random(len(self._count)) * self._count).astype(np.int64)
        return np.asarray((start[recording] + run) % self._count[recording])
