"""Which recordings are held out: by recording, never by clip, and with all that belong to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Int64

from trainer.config import SplitConfig
from trainer.groups import author_keys, identity_keys, linked_groups

ALWAYS_TRAINED = -1


@dataclass(frozen=True)
class Folds:
    """A fold for every recording, or ALWAYS_TRAINED.

    given: whether the folds are those of the metadata.
    pairs: near-duplicates (P, 2), by embedding similarity.
    remarks: what was odd, for people.
    """

    fold: Int64[np.ndarray, " r"]
    given: bool
    pairs: Int64[np.ndarray, "p 2"]
    remarks: tuple[str, ...] = ()

    @property
    def names(self) -> list[int]:
        """The folds that hold a recording, sorted."""
        return sorted(set(self.fold.tolist()) - {ALWAYS_TRAINED})

    def chosen(self, name: str | None) -> int | None:
        """Return the fold of that name; the first for None, None for "none".

        Raises:
            ValueError: no such fold.
        """
        if name == "none":
            return None
        if not self.names:
            raise ValueError(
                "nothing can be held out: every species has a single recording, or a single author. "
                "Train on all of them with --fold none."
            )
        if name is None:
            return self.names[0]
        if name.isdigit() and int(name) in self.names:
            return int(name)
        raise ValueError(f"--fold {name}: there are folds {', '.join(map(str, self.names))} and 'none'.")

    def watched(self, held_out: Sequence[int]) -> int:
        """Return the fold that early stopping looks at: the next after those held out, cyclic.

        Raises:
            ValueError: with it nothing would be left to train on, in any fold.
        """
        others = [name for name in self.names if name not in held_out]
        if len(others) < 2 and not (others and (self.fold == ALWAYS_TRAINED).any()):
            raise ValueError(
                "early stopping (fit.patience) watches a fold of its own: with that and the held-out ones "
                "apart, no fold is left to train on. Take more folds, or patience 0."
            )
        last = max(held_out, default=0)
        return next((name for name in others if name > last), others[0])


def make_folds(
    recordings: pd.DataFrame,
    primary: list[str],
    usable: np.ndarray,
    config: SplitConfig,
    pairs: Int64[np.ndarray, "p 2"],
) -> Folds:
    """Take the folds of the `fold` column, or compute them.

    Args:
        primary: first primary species of every recording, "" for none.
        usable: per recording, whether it has a clip to train or score on; others join no fold.
        pairs: near-duplicates.

    Raises:
        ValueError: a fold that is no number.
    """
    fold = np.full(len(recordings), ALWAYS_TRAINED, np.int64)
    given = _given_folds(recordings)
    same = linked_groups(len(recordings), identity_keys(recordings), pairs)
    if given is not None:
        fold[usable] = given[usable]
        return Folds(copies_joined(fold, same, usable), True, pairs)
    keys = [*identity_keys(recordings), *([author_keys(recordings)] if config.by_author else [])]
    groups = linked_groups(len(recordings), keys, pairs)
    species = np.array(primary, dtype=object)[usable]
    stuck = _stuck(species, groups[usable], same[usable])
    dealt = deal_groups(groups[usable][~stuck], species[~stuck], config.folds, config.seed)
    fold[np.flatnonzero(usable)[~stuck]] = dealt
    gathered = pd.Series(fold[usable]).groupby(species).transform("nunique").to_numpy() == 1
    fold[np.isin(same, same[usable][gathered])] = ALWAYS_TRAINED  # else held out all at once
    return Folds(fold, False, pairs, _dealt_remarks(fold[usable], species, config.folds))


def _dealt_remarks(fold: np.ndarray, species: np.ndarray, num_folds: int) -> tuple[str, ...]:
    lines = []
    always = fold == ALWAYS_TRAINED
    if always.any():
        never = sorted(set(species[always]) - set(species[~always]) - {""})
        named = f"; of {len(never)} species never one is scored: {', '.join(never[:10])}" if never else ""
        lines.append(f"{int(always.sum())} recordings are always trained on{named}")
    made = len(set(fold[~always].tolist()))
    if 0 < made < num_folds:
        lines.append(f"{made} folds in place of {num_folds}: there are too few groups to deal out")
    return tuple(lines)


def _stuck(species: np.ndarray, groups: np.ndarray, same: np.ndarray) -> np.ndarray:
    """Tell which recordings must always be trained on: all of their species' others are in their group.

    With such a recording stay its copies, whatever their species. The rest of an author's recordings
    do not.
    """
    if not len(species):
        return np.zeros(0, bool)
    table = pd.DataFrame({"species": species, "group": groups})
    alone = table.groupby("species")["group"].transform("nunique").to_numpy() == 1
    return np.asarray(np.isin(same, same[alone]))


def deal_groups(
    groups: Int64[np.ndarray, " n"], species: np.ndarray, num_folds: int, seed: int
) -> Int64[np.ndarray, " n"]:
    """Deal groups out to folds 1.., the largest first, each to where its species are rarest.

    A group goes where the sum over species of squares of (recordings in the fold / of all) grows least;
    among equals to the smallest fold, among those by chance. With groups of one recording each species
    is spread evenly, to within one. The idea is that of scikit-learn's StratifiedGroupKFold.
    """
    fold = np.zeros(len(groups), np.int64)
    if not len(groups):
        return fold
    rng = np.random.default_rng(seed)
    kind = pd.factorize(species)[0]
    total = np.bincount(kind)
    taken = np.zeros((num_folds, len(total)))
    members = list(pd.Series(np.arange(len(groups))).groupby(groups).indices.values())
    chance = rng.permutation(len(members))
    sizes = np.array([len(rows) for rows in members])
    for place in np.lexsort((chance, -sizes)):
        rows = members[place]
        kinds, counts = np.unique(kind[rows], return_counts=True)
        cost = ((2 * taken[:, kinds] + counts) * (counts / total[kinds] ** 2)).sum(axis=1)
        best = np.lexsort((rng.random(num_folds), taken.sum(axis=1), cost))[0]
        taken[best, kinds] += counts
        fold[rows] = best + 1
    return fold


def _given_folds(recordings: pd.DataFrame) -> np.ndarray | None:
    if "fold" not in recordings or not recordings["fold"].astype(str).str.strip().any():
        return None
    folds = pd.to_numeric(recordings["fold"], errors="coerce")
    whole = folds.notna() & (folds % 1 == 0) & (folds >= 0)
    odd = ~whole & (recordings["fold"].astype(str).str.strip() != "")
    if odd.any():
        row = recordings[odd].iloc[0]
        raise ValueError(f"fold {row['fold']!r} of {row['filename']} is no number 0, 1, 2, ..")
    return np.where(whole, folds.fillna(ALWAYS_TRAINED), ALWAYS_TRAINED).astype(np.int64)


def copies_joined(fold: np.ndarray, same: np.ndarray, usable: np.ndarray) -> np.ndarray:
    """Give recordings without a fold (external ones) that of the recording they are a copy of.

    Others without a fold are trained on in every fold. A copy of recordings in several folds
    goes with the lowest; the leakage report has it.
    """
    table = pd.DataFrame({"same": same, "fold": np.where(fold == ALWAYS_TRAINED, np.nan, fold)})
    lowest = table.groupby("same")["fold"].transform("min").fillna(ALWAYS_TRAINED).to_numpy(np.int64)
    return np.where((fold == ALWAYS_TRAINED) & usable, lowest, fold)


def one_sided(held_out: np.ndarray, primary: list[str], usable: np.ndarray) -> tuple[str, ...]:
    """Name the species that are on one side only."""
    names = np.array(primary, dtype=object)
    trained = set(names[usable & ~held_out]) - {""}
    held = set(names[usable & held_out]) - {""}
    lines = []
    if held - trained:
        lines.append(f"held out and never trained on: {', '.join(sorted(held - trained))}")
    if trained - held:
        lines.append(f"trained on and not in the held-out fold: {', '.join(sorted(trained - held))}")
    return tuple(lines)
