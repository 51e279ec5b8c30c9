"""Which recordings are held out: by recording, never by clip."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from trainer.config import SplitConfig

ALWAYS_TRAINED = 0


@dataclass(frozen=True)
class Split:
    """fold: per recording, 1.., or ALWAYS_TRAINED; held_out: the fold that is scored, or None."""

    fold: np.ndarray
    held_out: int | None
    remarks: tuple[str, ...]

    @property
    def validation(self) -> np.ndarray:
        """Tell per recording whether it is held out."""
        if self.held_out is None:
            return np.zeros(len(self.fold), bool)
        return np.asarray(self.fold == self.held_out)


def make_split(recordings: pd.DataFrame, primary: list[str], config: SplitConfig, fold: str | None) -> Split:
    """Hold out a fold: of the `fold` column where there is one, else of the computed folds.

    Args:
        primary: first primary species of every recording, "" for none.
        fold: its number, "none" to hold nothing out, None for the first.

    Raises:
        ValueError: no such fold.
    """
    given = _given_folds(recordings)
    folds = computed_folds(recordings["sha256"], primary, config) if given is None else given
    names = sorted(set(folds.tolist()) - {ALWAYS_TRAINED})
    if fold == "none":
        return Split(folds, None, ())
    if fold is None:
        held_out = names[0] if names else None
    elif fold.isdigit() and int(fold) in names:
        held_out = int(fold)
    else:
        raise ValueError(f"--fold {fold}: there are folds {', '.join(map(str, names))} and 'none'.")
    split = Split(folds, held_out, ())
    return Split(folds, held_out, _remarks(split, primary))


def _given_folds(recordings: pd.DataFrame) -> np.ndarray | None:
    if "fold" not in recordings:
        return None
    folds = pd.to_numeric(recordings["fold"], errors="coerce")
    whole = folds.notna() & (folds % 1 == 0) & (folds >= 0)
    # External recordings have no fold in the metadata: they are trained on in every fold.
    odd = ~whole & (recordings["fold"].astype(str).str.strip() != "")
    if odd.any():
        row = recordings[odd].iloc[0]
        raise ValueError(f"fold {row['fold']!r} of {row['filename']} is no number 0, 1, 2, ..")
    shift = 1 if (folds == 0).any() else 0  # folds counted from 0 become 1..
    return np.where(whole, folds.fillna(-1) + shift, ALWAYS_TRAINED).astype(np.int64)


def computed_folds(sha256: pd.Series, primary: list[str], config: SplitConfig) -> np.ndarray:
    """Deal recordings out to folds 1.., species by species, in an order given by the seed.

    Files with the same bytes go together; a species' only recording is always trained on.
    """
    groups = pd.DataFrame({"key": sha256.to_numpy(), "species": primary})
    groups.loc[groups["key"] == "", "key"] = [f"row {row}" for row in np.flatnonzero(groups["key"] == "")]
    first = groups.drop_duplicates("key")
    rng = np.random.default_rng(config.seed)
    fold_of_key: dict[str, int] = {}
    offset = 0
    for _, keys in sorted(first.groupby("species")["key"]):
        if len(keys) == 1:
            fold_of_key[keys.iloc[0]] = ALWAYS_TRAINED
            continue
        for place, key in enumerate(rng.permutation(keys.to_numpy(dtype=object))):
            fold_of_key[key] = 1 + (offset + place) % config.folds
        offset += len(keys)
    return groups["key"].map(fold_of_key).to_numpy(np.int64)


def _remarks(split: Split, primary: list[str]) -> tuple[str, ...]:
    validation = split.validation
    trained = {species for species, held in zip(primary, validation, strict=True) if not held}
    held = {species for species, held in zip(primary, validation, strict=True) if held}
    never = sorted(held - trained - {""})
    lines = []
    if never:
        lines.append(f"held out and never trained on: {', '.join(never)}")
    unscored = sorted(trained - held - {""})
    if unscored and split.held_out is not None:
        lines.append(f"trained on and not in the held-out fold: {', '.join(unscored)}")
    return tuple(lines)
