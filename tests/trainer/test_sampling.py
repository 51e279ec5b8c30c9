import numpy as np
import pytest

from trainer.config import SamplerConfig
from trainer.sampling import ClipSampler, recording_weights


def one_hot(classes: list[int], num_classes: int) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[classes]


def test_ten_thousand_drawn_clips_have_the_classes_that_the_exponent_promises() -> None:
    counts = [400, 100, 25, 4]
    classes = [k for k, n in enumerate(counts) for _ in range(n)]
    truth = one_hot(classes, 4)
    weights = recording_weights(truth, np.zeros(len(classes), np.float32), SamplerConfig())
    clips_each = np.random.default_rng(1).integers(1, 9, len(classes))
    recording = np.repeat(np.arange(len(classes)), clips_each)
    sampler = ClipSampler(np.arange(len(recording)), recording, weights)
    rows = sampler.draw(10_000, np.random.default_rng(0))
    drawn = np.bincount(np.array(classes)[recording[rows]], minlength=4) / 10_000
    expected = np.sqrt(counts) / np.sqrt(counts).sum()  # n recordings, each n^-0.5
    assert np.abs(drawn - expected).max() < 4 * np.sqrt(0.25 / 10_000)


def test_a_long_recording_is_drawn_as_often_as_a_short_one_and_its_clips_evenly() -> None:
    recording = np.array([0] * 90 + [1] * 10)
    sampler = ClipSampler(np.arange(100), recording, np.ones(2))
    rows = sampler.draw(20_000, np.random.default_rng(0))
    assert abs((recording[rows] == 0).mean() - 0.5) < 0.02
    assert np.bincount(rows[rows < 90]).std() < 25


def test_only_given_rows_are_drawn_and_never_one_of_weight_0() -> None:
    rows = np.array([3, 5, 8, 13])
    sampler = ClipSampler(rows, np.array([0, 0, 1, 2]), np.array([1.0, 0.0, 1.0]))
    assert set(sampler.draw(500, np.random.default_rng(0))) == {3, 5, 13}


def test_a_recording_of_two_classes_weighs_their_mean() -> None:
    truth = np.array([[1, 0], [1, 0], [1, 0], [1, 1]], np.float32)
    weights = recording_weights(truth, np.zeros(4, np.float32), SamplerConfig())
    assert weights[0] == pytest.approx(4**-0.5)
    assert weights[3] == pytest.approx((4**-0.5 + 1) / 2)


def test_a_rating_weighs_and_0_means_unrated() -> None:
    truth = one_hot([0, 0, 0, 0], 1)
    ratings = np.array([5.0, 2.5, 0.2, 0.0], np.float32)
    weights = recording_weights(truth, ratings, SamplerConfig())
    assert np.allclose(weights / weights[0], [1, 0.5, 0.1, 1])
    flat = recording_weights(truth, ratings, SamplerConfig(use_rating=False))
    assert np.allclose(flat, flat[0])


def test_recordings_without_a_species_are_a_class_of_their_own() -> None:
    truth = np.array([[1.0], [0.0], [0.0], [0.0], [0.0]], np.float32)
    weights = recording_weights(truth, np.zeros(5, np.float32), SamplerConfig())
    assert np.allclose(weights, [1, 0.5, 0.5, 0.5, 0.5])


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(ValueError, match="no clip to train on"):
        ClipSampler(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
