import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from shared.taxonomy import Taxonomy
from trainer.calibrate import (
    best_shrinkage,
    cross_fitted,
    expected_calibration_error,
    fit_affine,
    log_loss,
    thresholds,
)
from trainer.calibrate_command import calibration_of, calibration_text
from trainer.calibration import Calibration, read_calibration, write_calibration
from trainer.metrics import Scores
from trainer.no_call import KINDS, make_no_call
from trainer.out_of_fold import COLUMNS, OutOfFold

Run = Callable[..., Result]


def drawn(num: int, slopes: list[float], offsets: list[float], seed: int = 0) -> Scores:
    """Logits, and a truth drawn by sigmoid(slope * logit + offset)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (num, len(slopes)))
    truth = (rng.random(logits.shape) < expit(logits * slopes + offsets)).astype(np.float32)
    return Scores(logits, truth, np.ones_like(truth))


def test_without_shrinkage_it_is_logistic_regression_of_the_logit() -> None:
    scores = drawn(400, [0.4, 1.0, 1.7], [-1.0, 0.0, 0.5])
    found = fit_affine(scores, 1e-9)
    for column in range(3):
        oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
        oracle.fit(scores.scores[:, [column]], scores.truth[:, column])
        assert found.slope[column] == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
        assert found.offset[column] == pytest.approx(oracle.intercept_[0], abs=1e-4)


def test_much_shrinkage_is_one_fit_for_all_and_more_is_nearer_to_it() -> None:
    scores = drawn(300, [0.4, 1.0, 1.7], [-1.0, 0.0, 0.5])
    one = fit_affine(scores, 1e9)
    assert np.ptp(one.slope) < 1e-4
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(scores.scores.reshape(-1, 1), scores.truth.ravel())
    assert one.slope[0] == pytest.approx(oracle.coef_[0, 0], abs=1e-2)
    spread = [np.ptp(fit_affine(scores, value).slope) for value in (0.01, 1, 10, 100, 1000)]
    assert spread == sorted(spread, reverse=True)


def test_pairs_that_are_not_counted_change_nothing() -> None:
    scores = drawn(200, [1.0, 0.5], [0.0, -1.0])
    counted = scores.counted.copy()
    counted[100:] = 0
    half = Scores(scores.scores[:100], scores.truth[:100], scores.counted[:100])
    other = fit_affine(half, 1.0)
    assert not np.allclose(fit_affine(scores, 1.0).slope, other.slope)
    same = fit_affine(Scores(scores.scores, scores.truth, counted), 1.0)
    assert np.allclose(same.slope, other.slope)
    assert np.allclose(same.offset, other.offset)


def test_a_class_that_is_ranked_the_wrong_way_round_is_not_turned() -> None:
    found = fit_affine(drawn(400, [1.0, 1.0, -1.0], [0.0, 0.0, 0.0]), 0.1)
    assert (found.slope > 0).all()


def test_separable_classes_stay_finite() -> None:
    logits = np.linspace(-5, 5, 40).reshape(-1, 1).repeat(2, axis=1)
    truth = (logits > 0).astype(np.float32)
    found = fit_affine(Scores(logits, truth, np.ones_like(truth)), 0.1)
    assert np.isfinite(found.slope).all()
    ones = np.ones_like(truth)
    assert log_loss(found.logits(logits), truth, ones) < log_loss(logits, truth, ones)


def test_calibration_error_is_the_distance_of_confidence_and_frequency() -> None:
    probability = np.array([[0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.5]])
    truth = np.array([[1, 1, 1, 0, 0, 0, 1.0]])
    counted = np.array([[1, 1, 1, 1, 1, 1, 0.0]])
    assert expected_calibration_error(probability, truth, counted) == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    sure = drawn(4000, [1.0], [0.0])
    assert expected_calibration_error(expit(sure.scores), sure.truth, sure.counted) < 0.02


def test_cross_fitting_never_sees_what_it_scores() -> None:
    scores = drawn(60, [1.0, 1.0], [0.0, 0.0])
    parts = np.arange(60) % 3
    before = cross_fitted(scores, parts, 1.0)
    truth = scores.truth.copy()
    truth[parts == 1] = 1 - truth[parts == 1]
    after = cross_fitted(Scores(scores.scores, truth, scores.counted), parts, 1.0)
    assert np.array_equal(before[parts == 1], after[parts == 1])
    assert not np.allclose(before[parts == 0], after[parts == 0])
    assert best_shrinkage(scores, parts) >= 10  # the classes are alike
    assert best_shrinkage(drawn(600, [0.2, 3.0], [-3, 3]), np.arange(600) % 3) <= 1


def test_thresholds_are_of_best_f1_by_hand() -> None:
    values = np.array([[0.9], [0.8], [0.7], [0.6], [0.5], [0.4], [0.3]])
    truth = np.array([[1], [1], [0], [1], [1], [1], [0.0]])
    found, num_own = thresholds(values, truth, np.ones_like(truth), None)
    assert num_own == 1
    assert found[0] == pytest.approx(0.35)  # five of five right, one wrong
    found, _ = thresholds(values, truth, np.ones_like(truth), 0.99)
    assert found[0] == pytest.approx(0.75)
    found, _ = thresholds(values, truth, np.ones_like(truth), 0.8)
    assert found[0] == pytest.approx(0.35)


def test_a_class_with_few_positives_gets_the_threshold_for_all() -> None:
    scores = drawn(300, [1.0, 1.0], [0.0, 0.0])
    truth = scores.truth.copy()
    truth[3:, 1] = 0
    probability = expit(scores.scores)
    found, num_own = thresholds(probability, truth, scores.counted, None)
    alone, _ = thresholds(probability.reshape(-1, 1), truth.reshape(-1, 1), np.ones((600, 1)), None)
    assert num_own == 1
    assert found[1] == pytest.approx(alone[0])


def table_of(scores: Scores, num_folds: int) -> OutOfFold:
    num, num_classes = scores.scores.shape
    taxonomy = Taxonomy(tuple(f"s{n}" for n in range(num_classes)))
    labels = [json.dumps([taxonomy.species[c] for c in np.flatnonzero(row)]) for row in scores.truth]
    recordings = pd.DataFrame({"filename": [f"{n}.ogg" for n in range(num)], "labels": labels})
    recordings["source"], recordings["not_counted"] = "main", "[]"
    recordings["sha256"], recordings["fold"] = recordings["filename"], np.arange(num) % num_folds
    recordings = recordings[COLUMNS]
    return OutOfFold(recordings, scores.scores.astype(np.float32), taxonomy)


@pytest.mark.parametrize("num_folds", [1, 4])
def test_a_calibration_makes_overconfident_logits_honest(num_folds: int) -> None:
    scores = drawn(500, [0.3, 0.3, 0.3], [-1.0, -1.0, -1.0])
    facts = calibration_of(table_of(scores, num_folds), None).facts
    assert facts["ece_before"] > 0.1
    assert facts["ece_after"] < 0.04
    assert facts["log_loss_after"] < facts["log_loss_before"]


def test_it_is_written_and_read_as_it_was_and_damage_is_a_clear_line(tmp_path: Path) -> None:
    taxonomy = Taxonomy(("a", "b"))
    one = Calibration(*np.array([[0.5, 2], [-1, 1], [0.25, 0.75]], np.float32), {"shrinkage": 1.0})
    assert read_calibration(tmp_path, taxonomy) is None
    path = tmp_path / "calibration.json"
    write_calibration(one, taxonomy, path)
    found = read_calibration(tmp_path, Taxonomy(("b", "a")))
    assert found is not None
    assert found.slope.tolist() == [2, 0.5]
    assert found.facts == {"shrinkage": 1.0}
    text = path.read_text()
    other_format = text.replace('"format": 1', '"format": 9')
    for bad in (text[:-30], text.replace('"slope": 0.5', '"slope": "x"'), other_format, "[]"):
        path.write_text(bad)
        with pytest.raises(ValueError, match="trainer calibrate"):
            read_calibration(tmp_path, taxonomy)


@pytest.mark.parametrize("kind", KINDS)
def test_what_nobody_calls_in_sounds_like_its_name(kind: str) -> None:
    samples = make_no_call(kind, 20, 32_000)
    assert samples.shape == (640_000,)
    assert np.array_equal(samples, make_no_call(kind, 20, 32_000))
    if kind == "silence":
        assert not samples.any()
        return
    assert not np.array_equal(samples, make_no_call(kind, 20, 32_000, seed=1))
    assert np.sqrt(np.mean(samples**2)) == pytest.approx(0.05, rel=1e-3)
    power = np.abs(np.fft.rfft(samples)) ** 2
    hertz = np.fft.rfftfreq(len(samples), 1 / 32_000)
    below = power[hertz < 500].sum() / power.sum()
    kurtosis = np.mean(samples**4) / np.mean(samples**2) ** 2
    levels = np.sqrt(np.mean(samples.reshape(20, -1) ** 2, axis=1))
    match kind:
        case "white noise":
            assert below < 0.05
        case "pink noise":
            assert 0.3 < below < 0.8
        case "rain":
            assert kurtosis > 6
            assert below < 0.1
        case "wind":
            assert below > 0.8
            assert levels.max() > 2 * levels.min()


def test_a_run_is_calibrated_and_counts_false_alarms(
    build_tiny: Callable[..., Path], tiny_config: Path, run_program: Run, tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all"
    fit = ["fit", "--features", build_tiny(), "--config", tiny_config, "--out", out]
    run_program("trainer", *fit, "--folds", "3", "--workers", "1", "--set", "fit.epochs=20")
    said = run_program("trainer", "calibrate", out, "--no-call-minutes", "0.1").output
    assert "from 12 recordings held out" in said
    assert all(f"{kind}: " in said for kind in KINDS)
    # The tones of the training data are no silence: there the alarms are counted.
    command = ["calibrate", out, "--no-call-minutes", "0", "--no-call", tiny_data / "audio", "--json"]
    facts = json.loads(run_program("trainer", *command).stdout)
    assert facts["no_call"]["recorded"]["segments_over_threshold"] > 0.5
    assert facts["no_call"]["recorded"]["events_per_hour"] > 100
    stored = json.loads((out / "calibration.json").read_text())
    assert stored["no_call"] == facts["no_call"]
    assert set(stored["species"]) == {"low", "middle", "high"}


def test_what_cannot_be_calibrated_is_a_clear_line(
    build_tiny: Callable[..., Path], tiny_config: Path, run_program: Run, tmp_path: Path
) -> None:
    out = tmp_path / "none"
    fit = ["fit", "--features", build_tiny(), "--config", tiny_config, "--out", out]
    run_program("trainer", *fit, "--fold", "none")
    command = ["calibrate", out]
    assert "nothing was held out" in run_program("trainer", *command, status=2).output
    assert "is a share" in run_program("trainer", *command, "--precision", "2", status=2).output


def test_a_calibration_that_makes_it_worse_is_said(tmp_path: Path) -> None:
    facts = {"recordings": 2, "ece_before": 0.17, "ece_after": 0.2, "log_loss_before": 0.4, "classes": 6,
             "thresholds": "best F1", "own_thresholds": 0}  # fmt: skip
    assert "worse than without" in calibration_text(tmp_path, facts | {"log_loss_after": 0.6})
    assert "worse" not in calibration_text(tmp_path, facts | {"log_loss_after": 0.3})
