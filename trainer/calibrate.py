"""A calibration from out-of-fold predictions, and what it brings on recordings it was not fitted on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.special import expit

from trainer.metrics import Scores
from trainer.out_of_fold import OutOfFold

Tick = Callable[[int], object]
SHRINKAGES = (0.1, 1.0, 10.0, 100.0, 1e4)
NUM_BINS = 15
CROSS_PARTS = 5
LEAST_SLOPE = 0.1  # of the global one: a class's ranking is never turned round
ENOUGH_POSITIVES = 5  # below, a class's own threshold is chance: it gets the one for all


def ignore(_: int) -> None:
    """Take a tick that nobody waits for."""


@dataclass(frozen=True)
class Affine:
    """Per class (K,): calibrated logit = slope * logit + offset."""

    slope: Float[np.ndarray, " k"]
    offset: Float[np.ndarray, " k"]

    def logits(self, logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
        """Return calibrated logits."""
        return np.asarray(logits * self.slope + self.offset)


def fit_affine(scores: Scores, shrinkage: float) -> Affine:
    """Fit slope and offset per class by the likelihood, drawn to those that fit all classes at once.

    Platt scaling (Platt 1999) with a normal prior around the global fit: `shrinkage` is its precision, so
    a class with few positives keeps the global one.

    scores: logits, truth and what is counted (N, K).
    """
    given = _Pairs(*(part.astype(np.float64) for part in (scores.scores, scores.truth, scores.counted)))
    start = np.ones(1), np.zeros(1)
    slope, offset = _newton(_Pairs(*(part.reshape(-1, 1) for part in given)), start, start, 1e-3)
    num_classes = given.logits.shape[1]
    centre = np.repeat(slope, num_classes), np.repeat(offset, num_classes)
    slopes, offsets = _newton(given, centre, centre, shrinkage)
    low = LEAST_SLOPE * max(slope[0], LEAST_SLOPE)
    held = slopes < low
    if held.any():
        offsets = np.where(held, _offset_alone(given, low, offsets, centre[1], shrinkage), offsets)
    return Affine(np.maximum(slopes, low), offsets)


class _Pairs(NamedTuple):
    """(N, K) each."""

    logits: np.ndarray
    truth: np.ndarray
    counted: np.ndarray


def _newton(
    given: _Pairs, start: tuple[np.ndarray, np.ndarray], centre: tuple[np.ndarray, np.ndarray],
    precision: float, steps: int = 60,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Minimise the penalised log loss of every column by Newton's method, with steps of at most 1."""
    logits, truth, counted = given
    slope, offset = (part.copy() for part in start)
    for _ in range(steps):
        probability = expit(logits * slope + offset)
        error = counted * (probability - truth)
        curve = counted * probability * (1 - probability)
        gradient_a = (error * logits).sum(0) + precision * (slope - centre[0])
        gradient_b = error.sum(0) + precision * (offset - centre[1])
        aa = (curve * logits**2).sum(0) + precision
        ab, bb = (curve * logits).sum(0), curve.sum(0) + precision
        determinant = aa * bb - ab**2
        step_a = (bb * gradient_a - ab * gradient_b) / determinant
        step_b = (aa * gradient_b - ab * gradient_a) / determinant
        size = np.maximum(1.0, np.maximum(np.abs(step_a), np.abs(step_b)))
        slope, offset = slope - step_a / size, offset - step_b / size
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-9:
            break
    return slope, offset


def _offset_alone(
    given: _Pairs, slope: float, offset: np.ndarray, centre: np.ndarray, precision: float, steps: int = 60
) -> np.ndarray:
    """Minimise over the offset where the slope is held."""
    logits, truth, counted = given
    for _ in range(steps):
        probability = expit(logits * slope + offset)
        gradient = (counted * (probability - truth)).sum(0) + precision * (offset - centre)
        curve = (counted * probability * (1 - probability)).sum(0) + precision
        offset = offset - np.clip(gradient / curve, -1, 1)
    return offset


def expected_calibration_error(probability: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> float:
    """Return the mean distance of confidence and frequency over all counted pairs, 15 bins of equal width.

    Source: Naeini, Cooper, Hauskrecht 2015; here every (recording, class) is one binary prediction.
    """
    chosen = counted > 0
    values, hits = probability[chosen].astype(np.float64), truth[chosen].astype(np.float64)
    bins = np.minimum((values * NUM_BINS).astype(int), NUM_BINS - 1)
    confidence = np.bincount(bins, values, NUM_BINS)
    frequency = np.bincount(bins, hits, NUM_BINS)
    return float(np.abs(confidence - frequency).sum() / len(values))


def log_loss(logits: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> float:
    """Return the mean negative log likelihood of all counted pairs, in nats."""
    signed = np.where(truth > 0, -logits, logits)
    losses = np.logaddexp(0, signed.astype(np.float64))
    return float((losses * (counted > 0)).sum() / (counted > 0).sum())


def parts_of(table: OutOfFold) -> np.ndarray:
    """Return the part (N,) in which each recording is held out of a fit: its fold, or one of five."""
    if len(table.folds) > 1:
        return table.recordings["fold"].to_numpy()
    return np.arange(len(table.recordings)) % CROSS_PARTS


def cross_fitted(scores: Scores, parts: np.ndarray, shrinkage: float, tick: Tick = ignore) -> np.ndarray:
    """Return calibrated logits (N, K), each recording's by a fit that never saw its part."""
    found = np.zeros(scores.scores.shape, np.float64)
    for part in np.unique(parts):
        out = parts == part
        seen = Scores(scores.scores[~out], scores.truth[~out], scores.counted[~out])
        found[out] = fit_affine(seen, shrinkage).logits(scores.scores[out])
        tick(1)
    return found


def best_shrinkage(scores: Scores, parts: np.ndarray, tick: Tick = ignore) -> float:
    """Return the one of SHRINKAGES whose cross-fitted log loss is lowest."""
    losses = [
        log_loss(cross_fitted(scores, parts, value, tick), scores.truth, scores.counted)
        for value in SHRINKAGES
    ]
    return SHRINKAGES[int(np.argmin(losses))]


def thresholds(
    probability: Float[np.ndarray, "n k"], truth: np.ndarray, counted: np.ndarray, precision: float | None
) -> tuple[Float[np.ndarray, " k"], int]:
    """Return per class the probability to act on, and how many classes have one of their own.

    That of best F1, or with `precision` the lowest from which on that share is right. A class with
    fewer than 5 positives, or that never gets there, has the one for all classes together.
    """
    everything = _threshold(probability.ravel(), truth.ravel(), counted.ravel(), precision)
    shared = 1.0 if everything is None else everything
    found = np.full(probability.shape[1], shared)
    num_own = 0
    for column in range(probability.shape[1]):
        mine = probability[:, column], truth[:, column], counted[:, column]
        if (mine[1] * mine[2]).sum() < ENOUGH_POSITIVES:
            continue
        own = _threshold(*mine, precision)
        if own is not None:
            found[column] = own
            num_own += 1
    return found, num_own


def _threshold(
    values: np.ndarray, truth: np.ndarray, counted: np.ndarray, precision: float | None
) -> float | None:
    """Return the threshold, half way to the next lower score; None where there is none."""
    chosen = counted > 0
    order = np.argsort(-values[chosen], kind="stable")
    ranked, hits = values[chosen][order], truth[chosen][order] > 0
    if not hits.any():
        return None
    right = np.cumsum(hits)
    taken = np.arange(1, len(hits) + 1)
    is_last_of_ties = np.append(ranked[1:] < ranked[:-1], True)
    if precision is None:
        worth = np.where(is_last_of_ties, 2 * right / (taken + hits.sum()), -1.0)
        place = int(worth.argmax())
    else:
        good = np.flatnonzero(is_last_of_ties & (right / taken >= precision))
        if not len(good):
            return None
        place = int(good[-1])
    below = ranked[place + 1] if place + 1 < len(ranked) else 0.0
    return float((ranked[place] + below) / 2)
