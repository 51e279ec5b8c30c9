"""Nested selection: the setting is chosen without the fold that it is then scored on.

Choosing the best row of a table of out-of-fold scores makes that row's score too good. Here, for
every fold, the setting is chosen by fits that saw nothing of it: of every pair of folds both are left
out, one fit serves the two. Source: Varma and Simon 2006, doi 10.1186/1471-2105-7-91.
"""

import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainer.grid import Trial, by_setting
from trainer.jobs import Job
from trainer.metrics import FIGURES
from trainer.out_of_fold import OutOfFold, joined, read_out_of_fold
from trainer.splits import Folds


def inner_jobs(out: Path, trials: Sequence[Trial], folds: Folds) -> list[Job]:
    """Return a job per trial and pair of folds.

    Raises:
        ValueError: fewer than three folds, nothing is left to train on; or settings with other seeds.
    """
    if len({tuple(trial.seed for trial in seeds) for seeds in by_setting(trials)}) != 1:
        raise ValueError("nested selection needs the same fit.seed values for every setting.")
    if len(folds.names) < 3:
        raise ValueError(f"nested selection needs at least three folds, there are {len(folds.names)}.")
    return [
        Job(_inner_path(out, trial, pair), trial.config, pair)
        for trial in trials
        for pair in itertools.combinations(folds.names, 2)
    ]


def _inner_path(out: Path, trial: Trial, pair: tuple[int, ...]) -> Path:
    return out / "inner" / trial.name / "-".join(map(str, sorted(pair)))


def inner_score(out: Path, seeds: Sequence[Trial], fold: int, folds: Folds, choose_by: str) -> float:
    """Return a setting's figure over all folds but one, by heads that saw neither; the mean over seeds."""
    figure = FIGURES.index(choose_by)
    found = []
    for trial in seeds:
        others = [other for other in folds.names if other != fold]
        tables = [
            read_out_of_fold(_inner_path(out, trial, (other, fold))).of_folds(other) for other in others
        ]
        scores = joined(tables).scores()
        found.append(float(scores.ranked().figures(np.ones(len(scores.scores)))[figure]))
    return statistics.fmean(found)


def choose(
    out: Path, trials: Sequence[Trial], folds: Folds, choose_by: str
) -> list[tuple[int, list[Trial], float]]:
    """Return, per fold, the chosen setting (its trials, one a seed) and its inner score.

    Among equals the one that the file names first.
    """
    chosen = []
    for fold in folds.names:
        settings = by_setting(trials)
        scores = [inner_score(out, seeds, fold, folds, choose_by) for seeds in settings]
        best = max(range(len(settings)), key=lambda place: (scores[place], -place))
        chosen.append((fold, settings[best], scores[best]))
    return chosen


def chosen_tables(out: Path, chosen: list[tuple[int, list[Trial], float]]) -> list[OutOfFold]:
    """Return, per seed, the out-of-fold predictions of whatever was chosen for each fold."""
    return [
        joined([read_out_of_fold(out / seeds[place].name / f"fold{fold}") for fold, seeds, _ in chosen])
        for place in range(len(chosen[0][1]))
    ]
