"""Is one run better than another? A paired bootstrap over the recordings that both held out."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from trainer.metrics import BOOTSTRAP_SAMPLES, FIGURES, interval_of, resamplings
from trainer.out_of_fold import OutOfFold


@dataclass(frozen=True)
class Difference:
    """One figure of runs A and B over the same recordings.

    low, high: the 95 % interval of B - A; share_better: of the bootstrap samples in which B is better,
    half of those in which both are the same.
    """

    figure: str
    a: float
    b: float
    low: float
    high: float
    share_better: float

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.low > 0:
            return "B is better"
        return "A is better" if self.high < 0 else "not told apart"


def compare_sides(
    a: list[OutOfFold], b: list[OutOfFold], sample_done: Callable[[int], object] = lambda _: None
) -> tuple[int, list[Difference]]:
    """Return the number of common recordings, and a Difference per figure.

    Each side may be several runs of one setting with different seeds: a side's figure is the mean over its
    runs. Every bootstrap sample draws recordings with replacement and scores all runs on the same ones, so
    what makes a recording hard for both does not count. Chance in the training counts only as far as
    several seeds are given.

    Raises:
        ValueError: nothing in common, or other species or labels.
    """
    common = a[0]
    for table in [*a, *b]:
        common = common.matching(table)[0]
    sides = [[common.matching(table)[1].scores().ranked() for table in side] for side in (a, b)]

    def figures(weights: np.ndarray) -> np.ndarray:
        return np.array([np.mean([one.figures(weights) for one in side], axis=0) for side in sides])

    num = len(common.recordings)
    whole = figures(np.ones(num))
    gains = np.empty((BOOTSTRAP_SAMPLES, len(FIGURES)))
    for place, weights in enumerate(resamplings(num)):
        one, two = figures(weights)
        gains[place] = two - one
        sample_done(1)
    found = []
    for column, name in enumerate(FIGURES):
        gain = gains[:, column]
        known = gain[~np.isnan(gain)]
        better = float(np.mean((known > 0) + (known == 0) / 2)) if len(known) else float("nan")
        low, high = interval_of(gain)
        found.append(Difference(name, float(whole[0, column]), float(whole[1, column]), low, high, better))
    return num, found
