"""Ranking metrics over classes, with weights so that a bootstrap costs one pass.

BirdCLEF 2024: the mean ROC-AUC over the classes that have a positive. Classes without one are
left out, as are classes without a negative; both are counted.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

BOOTSTRAP_SAMPLES = 1000


@dataclass(frozen=True)
class ClassScores:
    """Per class (K,): nan where a class has no positive or no negative."""

    roc_auc: np.ndarray
    average_precision: np.ndarray


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
        self._order = np.argsort(-scores, axis=0, kind="stable")
        ranked = np.take_along_axis(scores, self._order, axis=0)
        is_last = np.ones(ranked.shape, bool)
        is_last[:-1] = ranked[1:] != ranked[:-1]
        # For every place, the last place of its group of equal scores.
        places = np.where(is_last, np.arange(len(ranked))[:, None], len(ranked))
        self._group_end = np.minimum.accumulate(places[::-1], axis=0)[::-1]
        self._positive = np.take_along_axis((truth > 0) * counted, self._order, axis=0)
        self._negative = np.take_along_axis((truth <= 0) * counted, self._order, axis=0)

    def classes(self, row_weights: np.ndarray) -> ClassScores:
        """Return both metrics per class for rows counted `row_weights` (N,) times.

        Tied scores count one half in the ROC-AUC; average precision takes a group of ties as
        one threshold, as scikit-learn does.
        """
        weights = row_weights[self._order]
        positive, negative = weights * self._positive, weights * self._negative
        below_p, below_n = np.cumsum(positive, axis=0), np.cumsum(negative, axis=0)
        total_p, total_n = below_p[-1], below_n[-1]
        end_p = np.take_along_axis(below_p, self._group_end, axis=0)
        end_n = np.take_along_axis(below_n, self._group_end, axis=0)
        # A negative is worth the positives above its group, and half of those within it.
        group_p = self._per_group(positive)
        with np.errstate(invalid="ignore", divide="ignore"):
            auc = (negative * (end_p - group_p / 2)).sum(axis=0) / (total_p * total_n)
            precision = end_p / (end_p + end_n)
            average = np.where(positive > 0, positive * precision, 0).sum(axis=0) / total_p
        scored = (total_p > 0) & (total_n > 0)
        return ClassScores(np.where(scored, auc, np.nan), np.where(scored, average, np.nan))

    def _per_group(self, values: np.ndarray) -> np.ndarray:
        """Return, at every place, the sum of `values` over its group of equal scores."""
        sums = np.cumsum(values, axis=0)
        end = np.take_along_axis(sums, self._group_end, axis=0)
        is_end = self._group_end == np.arange(len(values))[:, None]
        # The sum up to the end of the group before: carried forward from the last group end.
        before = np.zeros_like(sums)
        before[1:] = np.maximum.accumulate(np.where(is_end, sums, 0), axis=0)[:-1]
        return np.asarray(end - before)


def top1(scores: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return per row 1.0 where the best-scored class that counts is right, nan where none is."""
    best = np.where(counted > 0, scores, -np.inf).argmax(axis=1)
    right = (truth * counted)[np.arange(len(scores)), best] > 0
    return np.where((truth * counted > 0).any(axis=1), right.astype(float), np.nan)


def mean_of_scored(values: np.ndarray) -> float:
    """Return the mean over what is not nan; nan where nothing is."""
    scored = values[~np.isnan(values)]
    return float(scored.mean()) if len(scored) else float("nan")


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
    hits = top1(scores, truth, counted)

    def at(weights: np.ndarray) -> tuple[float, float, float]:
        classes = ranked.classes(weights)
        has_label = ~np.isnan(hits) & (weights > 0)
        share = np.average(hits[has_label], weights=weights[has_label]) if has_label.any() else np.nan
        return (
            mean_of_scored(classes.roc_auc),
            mean_of_scored(classes.average_precision),
            float(share),
        )

    names = ("macro_roc_auc", "cmap", "top1")
    ones = np.ones(len(scores))
    table: dict[str, float | int] = dict(zip(names, at(ones), strict=True))
    if interval:
        rng = np.random.default_rng(seed)
        samples = np.array(
            [
                at(np.bincount(rng.integers(0, len(scores), len(scores)), minlength=len(scores)))
                for _ in range(BOOTSTRAP_SAMPLES)
            ]
        )
        for name, column in zip(names, samples.T, strict=True):
            values = column[~np.isnan(column)]
            low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
            table[f"{name}_low"], table[f"{name}_high"] = float(low), float(high)
    classes = ranked.classes(ones)
    table["classes_scored"] = int((~np.isnan(classes.roc_auc)).sum())
    table["classes_left_out"] = int(np.isnan(classes.roc_auc).sum())
    table["rows_scored"] = len(scores)
    return table
