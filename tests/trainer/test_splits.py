import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import SplitConfig
from trainer.splits import ALWAYS_TRAINED, Split, computed_folds, make_split

species_lists = st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=4, max_size=60)


def recordings(num: int, **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {"filename": [f"{n}.ogg" for n in range(num)], "sha256": [f"h{n}" for n in range(num)], **columns}
    )


def split_all(table: pd.DataFrame, primary: list[str], fold: str | None) -> Split:
    return make_split(table, primary, np.ones(len(table), bool), SplitConfig(), fold)


@given(species_lists, st.integers(2, 6), st.integers(0, 5))
def test_folds_are_balanced_within_every_species(species: list[str], folds: int, seed: int) -> None:
    table = recordings(len(species))
    fold = computed_folds(table["sha256"], species, SplitConfig(folds=folds, seed=seed))
    for name in set(species):
        mine = fold[np.array(species) == name]
        if len(mine) == 1:
            assert mine[0] == ALWAYS_TRAINED
        else:
            counts = np.bincount(mine, minlength=folds + 1)[1:]
            assert counts.max() - counts.min() <= 1
            assert counts.sum() == len(mine)


@given(species_lists, st.lists(st.integers(0, 8), min_size=60, max_size=60))
def test_recordings_of_the_same_bytes_are_on_the_same_side(species: list[str], same: list[int]) -> None:
    sha256 = pd.Series([f"h{group}" for group in same[: len(species)]])
    fold = computed_folds(sha256, species, SplitConfig())
    for key in set(sha256):
        assert len(set(fold[(sha256 == key).to_numpy()])) == 1


def test_a_fold_column_is_respected() -> None:
    table = recordings(6, fold=["1", "1", "2", "2", "3", ""])
    split = split_all(table, list("ababab"), "2")
    assert split.validation.tolist() == [False, False, True, True, False, False]
    assert split.fold[5] == ALWAYS_TRAINED


def test_folds_counted_from_0_keep_their_names() -> None:
    table = recordings(4, fold=["0", "0.0", "1", "1"])
    assert split_all(table, list("abab"), None).validation.tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_the_first_fold_is_held_out_unless_said_otherwise() -> None:
    table = recordings(20)
    assert split_all(table, ["a", "b"] * 10, None).held_out == 1
    assert not split_all(table, ["a", "b"] * 10, "none").validation.any()


def test_a_fold_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="--fold 9: there are folds 1, 2, 3, 4, 5 and 'none'"):
        split_all(recordings(20), ["a", "b"] * 10, "9")


def test_a_fold_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match=r"fold 'x' of 1\.ogg"):
        split_all(recordings(2, fold=["1", "x"]), ["a", "b"], None)


def test_species_on_one_side_only_are_named() -> None:
    table = recordings(5, fold=["1", "1", "2", "2", "2"])
    split = split_all(table, ["a", "b", "a", "c", "c"], "1")
    assert split.remarks == (
        "held out and never trained on: b",
        "trained on and not in the held-out fold: c",
    )
