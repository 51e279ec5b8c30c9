import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import SplitConfig
from trainer.leakage import crossing_report, leakage_lines, leakage_report
from trainer.splits import ALWAYS_TRAINED, Folds, deal_groups, make_folds, one_sided

NONE = np.zeros((0, 2), np.int64)
species_lists = st.lists(st.sampled_from(["a", "b", "c", "d", ""]), min_size=4, max_size=60)


def recordings(num: int, **columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {"filename": [f"{n}.ogg" for n in range(num)], "sha256": [f"h{n}" for n in range(num)], **columns}
    )


def folds_of(
    table: pd.DataFrame, primary: list[str], pairs: np.ndarray = NONE, config: SplitConfig | None = None
) -> Folds:
    return make_folds(table, primary, np.ones(len(table), bool), config or SplitConfig(), pairs)


@given(species_lists, st.integers(2, 6), st.integers(0, 5))
def test_folds_are_balanced_within_every_species(species: list[str], folds: int, seed: int) -> None:
    config = SplitConfig(folds=folds, seed=seed)
    fold = folds_of(recordings(len(species)), species, config=config).fold
    for name in set(species):
        mine = fold[np.array(species) == name]
        if len(mine) == 1:
            assert mine[0] == ALWAYS_TRAINED
        else:
            counts = np.bincount(mine, minlength=folds + 1)[1:]
            assert counts.max() - counts.min() <= 1
            assert counts.sum() == len(mine)


linked = st.lists(st.tuples(*[st.integers(0, 12)] * 3), min_size=4, max_size=50)


@given(linked, st.lists(st.tuples(st.integers(0, 49), st.integers(0, 49)), max_size=6), st.integers(0, 3))
def test_what_belongs_together_is_on_one_side(
    rows: list[tuple[int, int, int]], twins: list[tuple[int, int]], seed: int
) -> None:
    """By bytes, xeno-canto id, near-duplicate, and author but for species that only one author has."""
    num = len(rows)
    table = recordings(num, xc_id=[str(a) if a > 6 else "" for a, _, _ in rows],
                       author=[f"author {b}" if b > 3 else "" for _, b, _ in rows])  # fmt: skip
    table["sha256"] = [f"h{c}" if c > 8 else f"own {n}" for n, (_, _, c) in enumerate(rows)]
    species = [f"s{n % 3}" for n in range(num)]
    pairs = np.array([p for p in twins if max(p) < num], np.int64).reshape(-1, 2)
    found = folds_of(table, species, pairs, SplitConfig(folds=3, seed=seed))
    for column in ("xc_id", "sha256"):
        for value in set(table[column]) - {""}:
            assert len(set(found.fold[(table[column] == value).to_numpy()])) == 1
    for a, b in pairs:
        assert found.fold[a] == found.fold[b]
    for value in set(table["author"]) - {""}:
        mine = set(found.fold[(table["author"] == value).to_numpy()]) - {ALWAYS_TRAINED}
        assert len(mine) <= 1
    for fold in found.names:
        report = leakage_report(table, found, found.fold != fold, found.fold == fold)
        assert not any(report[k]["recordings"] for k in ("same_bytes", "same_xc_id", "near_duplicates"))


@given(species_lists, st.lists(st.integers(0, 6), min_size=60, max_size=60), st.integers(2, 5))
def test_no_species_is_held_out_and_never_trained_on(
    species: list[str], authors: list[int], num_folds: int
) -> None:
    table = recordings(len(species), author=[f"author {n}" for n in authors[: len(species)]])
    found = folds_of(table, species, config=SplitConfig(folds=num_folds))
    for fold in found.names:
        remarks = one_sided(found.fold == fold, species, np.ones(len(species), bool))
        assert not any("never trained on" in line for line in remarks)


def test_authors_may_be_split_where_the_config_says_so_and_unknown_ones_always() -> None:
    table = recordings(40, author=["A. Field"] * 40)
    assert folds_of(table, ["a", "b"] * 20).names == []
    assert folds_of(table, ["a", "b"] * 20, config=SplitConfig(by_author=False)).names == [1, 2, 3, 4, 5]
    table["author"] = ["Unknown", ""] * 20
    assert folds_of(table, ["a", "b"] * 20).names == [1, 2, 3, 4, 5]


def test_large_groups_are_dealt_so_that_folds_stay_even() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 1000)
    species = rng.choice(["a", "b", "c"], 1000, p=[0.6, 0.3, 0.1]).astype(object)
    fold = deal_groups(groups, species, 5, 0)
    for name, count in zip(*np.unique(species, return_counts=True), strict=True):
        assert np.abs(np.bincount(fold[species == name])[1:] - count / 5).max() <= 0.15 * count
    assert all(len(set(fold[groups == group])) == 1 for group in set(groups))


def test_the_same_seed_deals_alike_and_another_one_does_not() -> None:
    table, species = recordings(60), ["a", "b", "c"] * 20
    one, two, other = (folds_of(table, species, config=SplitConfig(seed=s)).fold for s in (1, 1, 2))
    assert (one == two).all()
    assert (one != other).any()


def test_a_fold_column_is_respected() -> None:
    found = folds_of(recordings(6, fold=["1", "1", "2", "2", "3", ""]), list("ababab"))
    assert found.fold.tolist() == [1, 1, 2, 2, 3, ALWAYS_TRAINED]
    assert found.given


def test_an_external_copy_goes_with_the_recording_it_is_a_copy_of() -> None:
    table = recordings(6, fold=["1", "1", "2", "2", "", ""], xc_id=["7", "", "", "", "7", ""])
    found = folds_of(table, list("ababab"), np.array([[3, 5]]))
    assert found.fold.tolist() == [1, 1, 2, 2, 1, 2]


def test_a_blank_fold_column_is_none() -> None:
    found = folds_of(recordings(20, fold=[""] * 20), ["a", "b"] * 10)
    assert not found.given
    assert len(found.names) == 5


def test_what_is_never_held_out_and_folds_that_are_missing_are_said() -> None:
    author = ["Ann"] * 4 + ["Ben"] * 2 + ["Eve"] * 2
    found = folds_of(recordings(8, author=author), list("ccaaabab"))
    assert found.remarks == (
        "2 recordings are always trained on; of 1 species never one is scored: c",
        "3 folds in place of 5: there are too few groups to deal out",
    )


def test_folds_counted_from_0_keep_their_names() -> None:
    found = folds_of(recordings(4, fold=["0", "0.0", "1", "1"]), list("abab"))
    assert found.chosen(None) == 0
    assert found.fold.tolist() == [0, 0, 1, 1]


def test_the_first_fold_is_held_out_unless_said_otherwise() -> None:
    found = folds_of(recordings(20), ["a", "b"] * 10)
    assert (found.chosen(None), found.chosen("3"), found.chosen("none")) == (1, 3, None)


def test_early_stopping_watches_the_next_fold_and_never_the_one_that_is_held_out() -> None:
    found = folds_of(recordings(20), ["a", "b"] * 10)
    assert [found.watched(held) for held in ((1,), (4,), (5,), (), (1, 5), (4, 5))] == [2, 5, 1, 1, 2, 1]
    few = folds_of(recordings(6, fold=["1", "1", "2", "2", "3", "3"]), list("ababab"))
    assert few.watched((1,)) == 2
    with pytest.raises(ValueError, match="no fold is left to train on"):
        few.watched((1, 2))


def test_a_fold_that_is_not_there_is_refused_with_those_that_are() -> None:
    found = folds_of(recordings(20), ["a", "b"] * 10)
    with pytest.raises(ValueError, match="--fold 9: there are folds 1, 2, 3, 4, 5 and 'none'"):
        found.chosen("9")


def test_a_fold_that_is_no_number_is_named() -> None:
    with pytest.raises(ValueError, match=r"fold 'x' of 1\.ogg"):
        folds_of(recordings(2, fold=["1", "x"]), ["a", "b"])


def test_species_on_one_side_only_are_named() -> None:
    held_out = np.array([True, True, False, False, False])
    assert one_sided(held_out, ["a", "b", "a", "c", "c"], np.ones(5, bool)) == (
        "held out and never trained on: b",
        "trained on and not in the held-out fold: c",
    )


def test_leakage_over_a_given_split_is_counted_by_its_kind_and_named() -> None:
    table = recordings(6, fold=["1", "1", "1", "2", "2", "2"], xc_id=["7", "", "", "7", "", ""],
                       author=["Ann", "Ben", "", "Eve", "ben ", ""])  # fmt: skip
    table.loc[5, "sha256"] = "h2"
    found = folds_of(table, list("ababab"), np.array([[0, 4]]))
    report = leakage_report(table, found, found.fold == 2, found.fold == 1)
    counted = {kind: value["recordings"] for kind, value in report.items() if isinstance(value, dict)}
    assert counted == {"same_bytes": 1, "same_xc_id": 1, "same_author": 1, "near_duplicates": 1}
    assert report["same_bytes"]["named"] == ["2.ogg"]
    assert report["near_duplicates"]["named"] == ["0.ogg is like 4.ogg"]
    assert report["unknown_author"] == 1
    assert leakage_lines(report)[0] == (
        "1 of 3 held-out recordings have the bytes of a recording that is trained on, as 2.ogg"
    )
    both = crossing_report(table, found, np.ones(6, bool), [1, 2])
    assert list(both) == ["1", "2"]
    assert both["1"] == report
