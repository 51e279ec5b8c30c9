import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import DRAWINGS, SamplerConfig
from trainer.sampling import ClipSampler, rarest_class, recording_weights


def one_hot(classes: list[int], num_classes: int) -> np.ndarray:
    return np.eye(num_classes, dtype=np.float32)[classes]


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_ten_thousand_drawn_clips_have_the_classes_that_the_exponent_promises(drawing: str) -> None:
    counts = [400, 100, 25, 4]
    classes = [k for k, n in enumerate(counts) for _ in range(n)]
    truth = one_hot(classes, 4)
    weights = recording_weights(truth, np.zeros(len(classes), np.float32), SamplerConfig())
    clips_each = np.random.default_rng(1).integers(1, 9, len(classes))
    recording = np.repeat(np.arange(len(classes)), clips_each)
    sampler = ClipSampler(np.arange(len(recording)), recording, weights, np.array(classes), drawing)
    rows = sampler.draw_epoch(100, 100, np.random.default_rng(0))
    drawn = np.bincount(np.array(classes)[recording[rows.ravel()]], minlength=4)
    expected = 10_000 * np.sqrt(counts) / np.sqrt(counts).sum()  # n recordings, each n^-0.5
    deviation = 1 if drawing == "stratified" else 4 * np.sqrt(expected)
    assert (np.abs(drawn - expected) <= deviation).all()


def drawn(sampler: ClipSampler, num_batches: int, batch_clips: int, seed: int = 0) -> np.ndarray:
    return sampler.draw_epoch(num_batches, batch_clips, np.random.default_rng(seed))


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_a_long_recording_is_drawn_as_often_as_a_short_one_and_its_clips_evenly(drawing: str) -> None:
    recording = np.array([0] * 90 + [1] * 10)
    sampler = ClipSampler(np.arange(100), recording, np.ones(2), np.zeros(2, np.int64), drawing)
    rows = drawn(sampler, 200, 100)
    assert abs((recording[rows] == 0).mean() - 0.5) < 0.02
    assert np.bincount(rows[rows < 90]).std() < 25


@pytest.mark.parametrize("drawing", DRAWINGS)
def test_only_given_rows_are_drawn_and_never_one_of_weight_0(drawing: str) -> None:
    rows, recording = np.array([3, 5, 8, 13]), np.array([0, 0, 1, 2])
    sampler = ClipSampler(rows, recording, np.array([1.0, 0.0, 1.0]), np.array([0, 1, 1]), drawing)
    assert set(drawn(sampler, 10, 50).ravel()) == {3, 5, 13}


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=60),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(0, 99),
)
def test_stratified_batches_hold_every_class_by_its_share(
    classes: list[int], num_batches: int, batch_clips: int, seed: int
) -> None:
    """A batch's count of a class, and an epoch's count of a recording, are the expected ones, rounded."""
    rng = np.random.default_rng(seed)
    weights = rng.random(len(classes)) + 0.1
    recording = np.repeat(np.arange(len(classes)), rng.integers(1, 6, len(classes)))
    sampler = ClipSampler(np.arange(len(recording)), recording, weights, np.array(classes), "stratified")
    batches = recording[drawn(sampler, num_batches, batch_clips, seed)]
    share = weights / weights.sum()
    times = np.bincount(batches.ravel(), minlength=len(classes))
    assert (np.abs(times - share * batches.size) < 1 + 1e-9).all()
    for batch in batches:
        for kind in set(classes):
            mine = np.array(classes) == kind
            count = mine[batch].sum()
            assert abs(count - share[mine].sum() * batch_clips) < 1 + 1 / num_batches + 1e-9
        most = np.bincount(batch).max()
        assert most <= np.ceil(np.ceil(share.max() * batches.size + 1) / num_batches)


def test_clips_of_one_recording_do_not_meet_in_a_batch() -> None:
    recording = np.repeat(np.arange(40), 6)
    sampler = ClipSampler(np.arange(240), recording, np.ones(40), np.arange(40) % 4, "stratified")
    for batch in drawn(sampler, 8, 30):  # 240 draws of 40 recordings: six each, and eight batches
        assert len(set(recording[batch])) == 30


def test_all_clips_of_a_recording_are_drawn_before_one_comes_twice() -> None:
    recording = np.repeat(np.arange(4), 5)
    sampler = ClipSampler(np.arange(20), recording, np.ones(4), np.zeros(4, np.int64), "stratified")
    assert sorted(drawn(sampler, 5, 4).ravel()) == list(range(20))


def test_all_classes_meet_and_none_has_its_place_in_an_epoch() -> None:
    """More classes than a batch holds: over epochs each meets each, early and late."""
    sampler = ClipSampler(np.arange(120), np.arange(120), np.ones(120), np.arange(120) % 40, "stratified")
    met = np.zeros((40, 40), bool)
    places: list[list[int]] = [[] for _ in range(40)]
    for epoch in range(60):
        for place, batch in enumerate(drawn(sampler, 12, 10, epoch) % 40):
            met[np.ix_(batch, batch)] = True
            for kind in batch:
                places[kind].append(place)
    assert met.all()
    assert all(3 < np.mean(place) < 8 and np.std(place) > 2 for place in places)


def test_every_recording_is_drawn_by_its_weight_over_many_epochs() -> None:
    weights = np.array([0.1, 1.0, 2.5, 0.4])
    sampler = ClipSampler(np.arange(4), np.arange(4), weights, np.array([0, 0, 1, 2]), "stratified")
    times = sum(np.bincount(drawn(sampler, 1, 3, seed).ravel(), minlength=4) for seed in range(4000))
    assert np.allclose(times / 12_000, weights / weights.sum(), atol=0.01)


def test_a_recording_counts_in_its_rarest_class() -> None:
    truth = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.float32)
    assert rarest_class(truth).tolist() == [0, 0, 1, 2]


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
    nothing = np.zeros(0, np.int64)
    with pytest.raises(ValueError, match="no clip to train on"):
        ClipSampler(nothing, nothing, np.zeros(0), nothing, "stratified")
