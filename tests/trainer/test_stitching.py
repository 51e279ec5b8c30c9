import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.clips import ClipGrid
from trainer.stitching import Stitcher

HOP = 10  # samples of a frame
GRID = ClipGrid(sample_rate_hz=100, clip_samples=50, hop_samples=50, min_tail_samples=10)


def line(start: int, num_frames: int, hop: int = HOP) -> np.ndarray:
    """Frames whose value is the middle of what they stand for: linear in time."""
    return ((start + (np.arange(num_frames) + 0.5) * hop)[:, None]).astype(np.float32)


def test_windows_side_by_side_are_segments_and_frames_as_they_are() -> None:
    stitcher = Stitcher(GRID, HOP, 1)
    for start in (0, 50, 100):
        stitcher.add(start, 50, np.full(1, start, np.float32), line(start, 5))
    rest = stitcher.take_rest(3, 150)
    assert rest.segments.ravel().tolist() == [0, 50, 100]
    assert rest.valid_samples.tolist() == [50, 50, 50]
    assert np.array_equal(rest.frames, line(0, 15))


@given(st.integers(1, 50), st.integers(50, 400), st.integers(7, 13))
def test_frames_lie_where_they_were_heard_whatever_the_windows_hop(hop: int, length: int, frame: int) -> None:
    """What is linear in time stays so between the first and the last frame's middle of a window."""
    grid = ClipGrid(sample_rate_hz=100, clip_samples=50, hop_samples=hop, min_tail_samples=1)
    stitcher = Stitcher(GRID, frame, 1)
    num_frames = -(-50 // frame)
    for start in grid.starts(length).tolist():
        stitcher.add(start, min(50, length - start), np.zeros(1, np.float32), line(start, num_frames, frame))
    frames = stitcher.take_rest(-(-length // 50), length).frames
    if np.isnan(frames[-1]):  # less than half a frame at the end
        assert 0 < length % frame <= frame / 2
        frames = frames[:-1]
    middles = (np.arange(len(frames)) + 0.5) * frame
    assert not np.isnan(frames).any()
    assert np.abs(frames.ravel() - middles).max() <= frame / 2 + 1e-3
    if hop % frame == 0 and 50 % frame == 0:
        assert np.abs(frames.ravel() - middles).max() < 1e-3


def test_an_overlapping_window_counts_for_a_segment_by_the_share_it_covers() -> None:
    stitcher = Stitcher(GRID, HOP, 1)
    for start, value in ((0, 1.0), (25, 5.0), (50, 2.0)):
        stitcher.add(start, 50, np.full(1, value, np.float32), line(start, 5))
    found = stitcher.take_rest(2, 100).segments.ravel()
    assert found == pytest.approx([(1 + 0.5 * 5) / 1.5, (2 + 0.5 * 5) / 1.5])


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
def test_taking_early_changes_nothing(valid: list[int]) -> None:
    rng = np.random.default_rng(0)
    whole, early = Stitcher(GRID, HOP, 2), Stitcher(GRID, HOP, 2)
    parts = []
    for place, heard in enumerate(valid):
        values = rng.random(2).astype(np.float32), rng.random((5, 2)).astype(np.float32)
        for stitcher in (whole, early):
            stitcher.add(25 * place, heard, *values)
        parts.append(early.take(25 * (place + 1)))
    num_samples = 25 * len(valid) + 25
    num_segments = -(-num_samples // 50)
    parts.append(early.take_rest(num_segments, num_samples))
    expected = whole.take_rest(num_segments, num_samples)
    for name in ("segments", "frames", "valid_samples"):
        found = np.concatenate([getattr(part, name) for part in parts])
        assert np.array_equal(found, getattr(expected, name), equal_nan=True), name
    assert [p.first_segment for p in parts] == np.cumsum([0, *(len(p.segments) for p in parts[:-1])]).tolist()
    assert [p.first_frame for p in parts] == np.cumsum([0, *(len(p.frames) for p in parts[:-1])]).tolist()


def test_what_nobody_heard_is_nan() -> None:
    stitcher = Stitcher(GRID, HOP, 1)
    stitcher.add(0, 20, np.ones(1, np.float32), line(0, 5))
    stitcher.add(50, 0, np.ones(1, np.float32), line(50, 5))
    rest = stitcher.take_rest(2, 100)
    assert np.isnan(rest.segments[1]).all()
    assert rest.valid_samples.tolist() == [20, 0]
    assert np.isnan(rest.frames[2:]).all()
    assert not np.isnan(rest.frames[:2]).any()
