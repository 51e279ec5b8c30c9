import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.clips import ClipConfig, ClipGrid

grids = st.integers(1, 200).flatmap(
    lambda clip: st.builds(
        ClipGrid,
        sample_rate_hz=st.just(100),
        clip_samples=st.just(clip),
        hop_samples=st.integers(1, clip),
        min_tail_samples=st.integers(0, clip),
    )
)


@given(grids, st.integers(1, 5000))
def test_every_sample_is_in_a_clip_but_for_a_counted_short_tail(grid: ClipGrid, length: int) -> None:
    covered = np.zeros(length, bool)
    for start in grid.starts(length):
        covered[start : start + grid.clip_samples] = True
    left_out = grid.tail_left_out(length)
    assert covered[: length - left_out].all()
    assert not covered[length - left_out :].any()
    assert left_out < max(1, grid.min_tail_samples)


@given(grids, st.integers(1, 5000))
def test_every_clip_holds_audio_of_its_own(grid: ClipGrid, length: int) -> None:
    starts = grid.starts(length)
    assert len(starts) >= 1
    assert starts[-1] < length
    if len(starts) > 1:
        assert length - (starts[-2] + grid.clip_samples) >= 1


def test_an_empty_recording_has_no_clip() -> None:
    assert len(ClipConfig().grid().starts(0)) == 0


def test_a_recording_shorter_than_a_clip_gets_one() -> None:
    assert list(ClipConfig().grid().starts(100)) == [0]


def test_a_hop_longer_than_the_clip_is_refused_with_the_value() -> None:
    with pytest.raises(ValueError, match="hop_seconds must be in 0..5.0.*got 6.0"):
        ClipConfig(hop_seconds=6.0)
    with pytest.raises(ValueError, match="hop_samples must be in 1..10.*got 11"):
        ClipGrid(sample_rate_hz=10, clip_samples=10, hop_samples=11, min_tail_samples=0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("inf"), float("nan")])
def test_a_clip_of_no_length_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="clip_seconds must be in"):
        ClipConfig(clip_seconds=seconds)


def test_resampled_length_rounds_up() -> None:
    assert ClipConfig().grid().resampled_length(44_101, 44_100) == 32_001


@given(grids, st.integers(1, 5000))
def test_one_start_after_the_other_gives_all_of_them(grid: ClipGrid, length: int) -> None:
    found, start = [], 0
    while start is not None:
        found.append(start)
        start = grid.next_start(start, length, grid.hop_samples)
    assert found == list(grid.starts(length))
