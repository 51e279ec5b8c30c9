import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.taxonomy import Taxonomy
from trainer.folded import out_of_fold_figures
from trainer.out_of_fold import COLUMNS, OutOfFold, read_out_of_fold, write_out_of_fold


def table(species: tuple[str, ...], num: int, seed: int = 0) -> OutOfFold:
    rng = np.random.default_rng(seed)
    rows = {
        "source": "main",
        "filename": [f"{n}.ogg" for n in range(num)],
        "sha256": [f"{n:04x}" for n in range(num)],
    }
    recordings = pd.DataFrame(rows).assign(fold=rng.integers(1, 6, num))
    labels = [f'["{species[n % len(species)]}"]' for n in range(num)]
    logits = rng.standard_normal((num, len(species))).astype(np.float32)
    return OutOfFold(recordings.assign(labels=labels, not_counted="[]"), logits, Taxonomy(species))


@pytest.mark.parametrize(
    "species", [("a", "b"), ("1139490", "22333"), ("Parus major", "fold"), ("nan", "é, ö")]
)
def test_a_table_comes_back_as_it_was(species: tuple[str, ...], tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "out_of_fold.csv"
    whole = table(species, 7)
    write_out_of_fold(whole, path)
    back = read_out_of_fold(path)
    assert back.taxonomy == whole.taxonomy
    assert np.array_equal(back.logits, whole.logits)
    assert back.recordings.equals(whole.recordings[COLUMNS])
    assert back.scores().truth.sum() == 7


def test_folds_of_which_none_can_be_scored_have_no_mean_and_no_spread() -> None:
    whole = table(("a", "b"), 2)
    alone = OutOfFold(whole.recordings.assign(fold=[1, 2]), whole.logits, whole.taxonomy)
    figures = out_of_fold_figures(alone, interval=False)
    assert np.isnan(figures["macro_roc_auc_fold_mean"])
    assert np.isnan(figures["macro_roc_auc_fold_sd"])
    assert figures["folds"] == 2


@given(st.integers(1, 12), st.integers(0, 5))
def test_matching_tables_hold_the_same_recordings_in_the_same_order(num: int, seed: int) -> None:
    whole = table(("a", "b"), 12)
    order = np.random.default_rng(seed).permutation(12)[:num]
    some = OutOfFold(whole.recordings.iloc[order].reset_index(drop=True), whole.logits[order], whole.taxonomy)
    one, two = whole.matching(some)
    assert one.recordings.equals(two.recordings)
    assert np.array_equal(one.logits, two.logits)
    assert len(one.recordings) == num


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("filename", "file", 1), "no table of predictions"),
        (lambda text: text + text.splitlines()[1] + "\n", "holds a recording twice: 0.ogg"),
        (lambda text: text.replace('""a""', '""zebra""', 1), "cannot be read"),
        (lambda text: "", "no table of predictions"),
    ],
)
def test_a_table_of_another_form_is_a_clear_line(change: object, message: str, tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "out_of_fold.csv"
    write_out_of_fold(table(("a", "b"), 4), path)
    path.write_text(change(path.read_text()))  # type: ignore[operator]
    with pytest.raises(ValueError, match=message):
        read_out_of_fold(path)
