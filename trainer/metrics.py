"""Ranking metrics over classes, with weights so that a bootstrap sample costs one pass.

BirdCLEF 2024: the mean ROC-AUC over the classes that have a positive. Classes without one are
left out, as are classes without a negative; both are counted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

BOOTSTRAP_SAMPLES = 1000
FIGURES = ("macro_roc_auc", "cmap", "top1")


@dataclass(frozen=True)
class ClassScores:
    """Per class (K,): nan where a class has no positive or no negative."""

    roc_auc: np.ndarray
    average_precision: np.ndarray


@dataclass(frozen=True)
class Scores:
    """Scores, truth and what is counted, all (N, K); N recordings or segments."""

    scores: np.ndarray
    truth: np.ndarray
    counted: np.ndarray

    def table(self, *, interval: bool) -> dict[str, float | int]:
        """Return the metrics by name."""
        return score_table(self.scores, self.truth, self.counted, interval=interval)

    def ranked(self) -> "RankedScores":
        """Return them sorted, for any number of weightings."""
        return RankedScores(self.scores, self.truth, self.counted)


@dataclass(frozen=True)
class _RankedClass:
    """One class's rows from the best score to the worst, and where its positives stand among them.

    order: the rows that count; positives: their places in it; before, through: for each positive the
    number of rows above its group of equal scores, and with it; positives_before, positives_through:
    the same of positives alone.
    """

    order: np.ndarray
    positives: np.ndarray
    before: np.ndarray
    through: np.ndarray
    positives_before: np.ndarray
    positives_through: np.ndarray

    def score(self, row_weights: np.ndarray) -> tuple[float, float]:
        """Return ROC-AUC and average precision; nan without a positive or a negative."""
        weights = row_weights[self.order]
        rows = np.concatenate([[0.0], np.cumsum(weights)])
        own = weights[self.positives]
        positives = np.concatenate([[0.0], np.cumsum(own)])
        num_positive, num_negative = positives[-1], rows[-1] - positives[-1]
        if num_positive <= 0 or num_negative <= 0:
            return np.nan, np.nan
        positives_through = positives[self.positives_through]
        negatives_before = rows[self.before] - positives[self.positives_before]
        negatives_through = rows[self.through] - positives_through
        below = num_negative - (negatives_before + negatives_through) / 2
        counted = own > 0
        precision = positives_through[counted] / rows[self.through][counted]
        auc = (own * below).sum() / (num_positive * num_negative)
        return float(auc), float((own[counted] * precision).sum() / num_positive)


class RankedScores:
    """Scores of every class, sorted once; then any weighting of the rows is a cumulative sum.

    scores, truth, counted: (N, K); truth 0 or 1; where counted is 0 the pair is left out.
    """

    def __init__(
        self,
        scores: Float[np.ndarray, "n k"],
        truth: Float[np.ndarray, "n k"],
        counted: Float[np.ndarray, "n k"],
    ) -> None:
        self._classes = [
            _ranked_class(*column) for column in zip(scores.T, truth.T > 0, counted.T > 0, strict=True)
        ]
        self._hits = top1(scores, truth, counted)

    def classes(self, row_weights: np.ndarray) -> ClassScores:
        """Return both metrics per class for rows counted `row_weights` (N,) times.

        Tied scores count one half in the ROC-AUC; average precision takes a group of ties as
        one threshold, as scikit-learn does.
        """
        both = np.array([one.score(row_weights) for one in self._classes]).reshape(-1, 2)
        return ClassScores(both[:, 0], both[:, 1])

    def figures(self, row_weights: np.ndarray) -> np.ndarray:
        """Return FIGURES: macro ROC-AUC, cmAP and top-1 for rows counted `row_weights` (N,) times.

        A class without a positive, or without a negative, is left out of both means.
        """
        classes = self.classes(row_weights)
        has_label = ~np.isnan(self._hits) & (row_weights > 0)
        share = np.nan
        if has_label.any():
            share = float(np.average(self._hits[has_label], weights=row_weights[has_label]))
        return np.array([mean_of_scored(classes.roc_auc), mean_of_scored(classes.average_precision), share])


def _ranked_class(scores: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> _RankedClass:
    rows = np.flatnonzero(counted)
    order = rows[np.argsort(-scores[rows], kind="stable")]
    ranked = scores[order]
    positives = np.flatnonzero(truth[order])
    before = np.searchsorted(-ranked, -ranked[positives], side="left")
    through = np.searchsorted(-ranked, -ranked[positives], side="right")
    return _RankedClass(
        order, positives, before, through,
        np.searchsorted(positives, before), np.searchsorted(positives, through),
    )  # fmt: skip


def top1(scores: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return per row 1.0 where the best-scored class that counts is right, nan where none is."""
    best = np.where(counted > 0, scores, -np.inf).argmax(axis=1)
    right = (truth * counted)[np.arange(len(scores)), best] > 0
    return np.where((truth * counted > 0).any(axis=1), right.astype(float), np.nan)


def mean_of_scored(values: np.ndarray) -> float:
    """Return the mean over what is not nan; nan where nothing is."""
    scored = values[~np.isnan(values)]
    return float(scored.mean()) if len(scored) else float("nan")


def resamplings(num_rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yield, per bootstrap sample, how often every row is in it (N,)."""
    rng = np.random.default_rng(seed)
    for _ in range(BOOTSTRAP_SAMPLES):
        yield np.bincount(rng.integers(0, num_rows, num_rows), minlength=num_rows).astype(np.float64)


def interval_of(values: np.ndarray) -> tuple[float, float]:
    """Return the central 95 % of what is not nan."""
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def score_table(
    scores: np.ndarray,
    truth: np.ndarray,
    counted: np.ndarray,
    *,
    seed: int = 0,
    interval: bool = True,
) -> dict[str, float | int]:
    """Return macro_roc_auc, cmap and top1 with a 95 % bootstrap interval over rows.

    Rows are recordings or segments. `classes_scored` counts the classes that entered the mean;
    in a bootstrap sample a class without a positive is left out of that sample's mean.
    """
    ranked = RankedScores(scores, truth, counted)
    ones = np.ones(len(scores))
    table: dict[str, float | int] = dict(zip(FIGURES, map(float, ranked.figures(ones)), strict=True))
    if interval:
        samples = np.array([ranked.figures(weights) for weights in resamplings(len(scores), seed)])
        for name, column in zip(FIGURES, samples.T, strict=True):
            table[f"{name}_low"], table[f"{name}_high"] = interval_of(column)
    classes = ranked.classes(ones)
    table["classes_scored"] = int((~np.isnan(classes.roc_auc)).sum())
    table["classes_left_out"] = int(np.isnan(classes.roc_auc).sum())
    table["rows_scored"] = len(scores)
    return table
