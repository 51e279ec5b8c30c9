"""Which recordings are held out: by recording, never by clip."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from trainer.config import SplitConfig

ALWAYS_TRAINED = -1


@dataclass(frozen=True)
class Split:
    """fold: per recording, or ALWAYS_TRAINED; held_out: the fold that is scored, or None."""

    fold: np.ndarray
    held_out: int | None
    remarks: tuple[str, ...]

    @property
    def validation(self) -> np.ndarray:
        """Tell per recording whether it is held out."""
        if self.held_out is None:
            return np.zeros(len(self.fold), bool)
        return np.asarray(self.fold == self.held_out)


def make_split(
    recordings: pd.DataFrame,
    primary: list[str],
    usable: np.ndarray,
    config: SplitConfig,
    fold: str | None,
) -> Split:
    """Hold out a fold: of the `fold` column where there is one, else of the computed folds.

    Args:
        primary: first primary species of every recording, "" for none.
        usable: per recording, whether it has a clip to train or score on; others join no fold.
        fold: its number, "none" to hold nothing out, None for the first.

    Raises:
        ValueError: no such fold.
    """
    given = _given_folds(recordings)
    folds = np.full(len(recordings), ALWAYS_TRAINED)
    if given is None:
        species = [name for name, has_clip in zip(primary, usable, strict=True) if has_clip]
        folds[usable] = computed_folds(recordings["sha256"][usable], species, config)
    else:
        folds = np.where(usable, given, ALWAYS_TRAINED)
    names = sorted(set(folds.tolist()) - {ALWAYS_TRAINED})
    if fold == "none":
        return Split(folds, None, ())
    if not names:
        raise ValueError(
            "nothing can be held out: every species has a single recording. Train on all of them "
            "with --fold none."
        )
    if fold is None:
        held_out = names[0]
    elif fold.isdigit() and int(fold) in names:
        held_out = int(fold)
    else:
        raise ValueError(f"--fold {fold}: there are folds {', '.join(map(str, names))} and 'none'.")
    return Split(folds, held_out, _remarks(folds == held_out, primary, usable))


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
    return np.where(whole, folds.fillna(ALWAYS_TRAINED), ALWAYS_TRAINED).astype(np.int64)


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


def _remarks(held_out: np.ndarray, primary: list[str], usable: np.ndarray) -> tuple[str, ...]:
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
