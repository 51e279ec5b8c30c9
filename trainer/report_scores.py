"""What the out-of-fold predictions of a run say, beyond one figure: classes, calibration, confusions."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from trainer import calibrate as fits
from trainer.metrics import BOOTSTRAP_SAMPLES, Scores, interval_of, resamplings
from trainer.out_of_fold import OutOfFold


@dataclass(frozen=True)
class ClassRow:
    """One class: ROC-AUC and average precision with 95 % intervals (low, high), and what they rest on."""

    species: str
    roc_auc: float
    roc_auc_interval: tuple[float, float]
    average_precision: float
    average_precision_interval: tuple[float, float]
    positives: int
    counted: int


def class_rows(table: OutOfFold, tick: Callable[[int], object]) -> list[ClassRow]:
    """Score every class, with a bootstrap over recordings; the worst ROC-AUC first, unscored ones last."""
    scores = table.scores()
    ranked = scores.ranked()
    whole = ranked.classes(np.ones(len(scores.scores)))
    samples = np.empty((BOOTSTRAP_SAMPLES, 2, len(table.taxonomy)), np.float32)
    for number, weights in enumerate(resamplings(len(scores.scores))):
        drawn = ranked.classes(weights)
        samples[number] = drawn.roc_auc, drawn.average_precision
        tick(1)
    positives = (scores.truth * scores.counted).sum(axis=0).astype(int)
    counted = (scores.counted > 0).sum(axis=0)
    rows = [
        ClassRow(
            species,
            float(whole.roc_auc[k]),
            interval_of(samples[:, 0, k]),
            float(whole.average_precision[k]),
            interval_of(samples[:, 1, k]),
            int(positives[k]),
            int(counted[k]),
        )
        for k, species in enumerate(table.taxonomy.species)
    ]
    return sorted(rows, key=lambda row: (np.isnan(row.roc_auc), row.roc_auc, row.species))


@dataclass(frozen=True)
class Confusion:
    """How many recordings of one species have another as their best-scored one; examples: file names."""

    true: str
    taken_for: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Confusions:
    """All pairs, the most frequent first; judged: recordings with a label; wrong: of them."""

    pairs: list[Confusion]
    judged: int
    wrong: int


def confusions(table: OutOfFold) -> Confusions:
    """Return which species are taken for which: the best-scored one is none of the recording's labels.

    Background species that do not count neither way are no mistake.
    """
    scores = table.scores()
    best = np.where(scores.counted > 0, scores.scores, -np.inf).argmax(axis=1)
    counts: Counter[tuple[str, str]] = Counter()
    examples: dict[tuple[str, str], list[str]] = {}
    judged = 0
    for row, (labels, name) in enumerate(
        zip(table.recordings["labels"], table.recordings["filename"], strict=True)
    ):
        own = json.loads(labels)
        judged += bool(own)
        taken = table.taxonomy.species[best[row]]
        if own and taken not in own:
            counts[own[0], taken] += 1
            examples.setdefault((own[0], taken), []).append(str(name))
    pairs = [
        Confusion(*pair, count, tuple(examples[pair][:3]))
        for pair, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))
    ]
    return Confusions(pairs, judged, sum(counts.values()))


@dataclass(frozen=True)
class Reliability:
    """Confidence against frequency in NUM_BINS bins of equal width; nan where a bin is empty.

    error: expected calibration error; loss: log loss; count: pairs per bin.
    """

    confidence: np.ndarray
    frequency: np.ndarray
    count: np.ndarray
    error: float
    loss: float


def reliability(logits: np.ndarray, scores: Scores) -> Reliability:
    """Bin all counted pairs (recording, class) by their probability."""
    chosen = scores.counted > 0
    values, hits = expit(logits[chosen].astype(np.float64)), scores.truth[chosen].astype(np.float64)
    bins = np.minimum((values * fits.NUM_BINS).astype(int), fits.NUM_BINS - 1)
    count = np.bincount(bins, minlength=fits.NUM_BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, values, fits.NUM_BINS) / count
        frequency = np.bincount(bins, hits, fits.NUM_BINS) / count
    return Reliability(
        confidence, frequency, count,
        fits.expected_calibration_error(expit(logits), scores.truth, scores.counted),
        fits.log_loss(logits, scores.truth, scores.counted),
    )  # fmt: skip


def before_and_after(
    table: OutOfFold, tick: Callable[[int], object] = lambda _: None
) -> tuple[Reliability, Reliability | None]:
    """Return the reliability as it is, and by calibrations fitted without the recording; None: too few.

    How strongly classes are drawn to each other is chosen on all recordings.
    """
    scores, parts = table.scores(), fits.parts_of(table)
    before = reliability(scores.scores, scores)
    if len(np.unique(parts)) < 2 or not (scores.truth * scores.counted).any():
        return before, None
    shrinkage = fits.best_shrinkage(scores, parts, tick)
    after = fits.cross_fitted(scores, parts, shrinkage, tick)
    return before, reliability(after, scores)
