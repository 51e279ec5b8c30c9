import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from trainer.metrics import RankedScores, score_table, top1


def problem(seed: int, num_rows: int = 40, num_classes: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, (num_rows, num_classes)).astype(float)  # many ties
    truth = (rng.random((num_rows, num_classes)) < 0.3).astype(np.float32)
    truth[0], truth[1] = 1, 0  # every class has a positive and a negative
    return scores, truth


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_metrics_agree_with_scikit_learn_per_class_with_ties_and_weights(seed: int) -> None:
    scores, truth = problem(seed)
    weights = np.random.default_rng(seed).integers(0, 3, len(scores)).astype(float)
    weights[:2] = 1  # the rows that give every class a positive and a negative
    classes = RankedScores(scores, truth, np.ones_like(truth)).classes(weights)
    for k in range(scores.shape[1]):
        auc = roc_auc_score(truth[:, k], scores[:, k], sample_weight=weights)
        average = average_precision_score(truth[:, k], scores[:, k], sample_weight=weights)
        assert classes.roc_auc[k] == pytest.approx(auc)
        assert classes.average_precision[k] == pytest.approx(average)


def test_what_is_not_counted_is_as_if_it_were_not_there() -> None:
    scores, truth = problem(1)
    counted = np.ones_like(truth)
    counted[5:15, 2] = 0
    classes = RankedScores(scores, truth, counted).classes(np.ones(len(scores)))
    keep = counted[:, 2] > 0
    assert classes.roc_auc[2] == pytest.approx(roc_auc_score(truth[keep, 2], scores[keep, 2]))


def test_a_weight_of_n_is_n_rows() -> None:
    scores, truth = problem(2)
    rows = np.random.default_rng(0).integers(0, len(scores), len(scores))
    drawn = RankedScores(scores[rows], truth[rows], np.ones_like(truth)).classes(np.ones(len(rows)))
    weighted = RankedScores(scores, truth, np.ones_like(truth)).classes(
        np.bincount(rows, minlength=len(scores))
    )
    assert np.allclose(drawn.roc_auc, weighted.roc_auc, equal_nan=True)
    assert np.allclose(drawn.average_precision, weighted.average_precision, equal_nan=True)


def test_classes_without_a_positive_or_a_negative_are_left_out_and_counted() -> None:
    scores, truth = problem(3)
    truth[:, 0], truth[:, 1] = 0, 1
    table = score_table(scores, truth, np.ones_like(truth), interval=False)
    assert (table["classes_scored"], table["classes_left_out"]) == (4, 2)
    expected = np.mean([roc_auc_score(truth[:, k], scores[:, k]) for k in range(2, 6)])
    assert table["macro_roc_auc"] == pytest.approx(expected)


def test_the_interval_holds_the_value_and_narrows_with_more_rows() -> None:
    widths = []
    for num_rows in (60, 960):
        rng = np.random.default_rng(0)
        truth = (rng.random((num_rows, 4)) < 0.3).astype(np.float32)
        scores = truth + rng.standard_normal(truth.shape)
        table = score_table(scores, truth, np.ones_like(truth))
        for name in ("macro_roc_auc", "cmap", "top1"):
            assert table[f"{name}_low"] <= table[name] <= table[f"{name}_high"]
        widths.append(table["macro_roc_auc_high"] - table["macro_roc_auc_low"])
    assert widths[1] < widths[0] / 2


def test_top1_counts_rows_with_a_label_only() -> None:
    scores = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    truth = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    everything = np.ones_like(truth)
    assert np.allclose(top1(scores, truth, everything), [1, 0, np.nan], equal_nan=True)
    masked = np.array([[1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])  # the secondary species of the second
    assert np.allclose(top1(scores, truth, masked), [1, 1, np.nan], equal_nan=True)
