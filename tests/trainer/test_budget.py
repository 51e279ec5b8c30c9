"""Budgets: what is shed, when, and by what is left; with a clock of our own."""

import numpy as np

from shared.audio import Finding
from trainer.budget import Budget, levels_from
from trainer.predict import Level, Piece

FULL = Level(50, 3)
LEVELS = [FULL, Level(100, 3), Level(100, 2), Level(100, 1)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def budget_of(clock: Clock, lengths: list[int], seconds: float = 1000.0) -> Budget:
    return Budget(seconds, LEVELS, lengths, 10, lambda level: level.num_scorers, 0.0, clock)


def piece(level: Level, num_windows: int, number: int, *, is_last: bool = False) -> Piece:
    nothing = np.zeros((0, 1), np.float32)
    finding = Finding("ok") if is_last else None
    return Piece(number, level, 0, nothing, np.zeros(0, np.int64), 0, nothing, num_windows, finding)


def test_levels_go_from_overlap_to_scorers() -> None:
    assert levels_from(FULL, 100) == LEVELS
    assert levels_from(Level(100, 1), 100) == [Level(100, 1)]


def test_a_budget_sheds_overlap_first_then_scorers_and_never_goes_back() -> None:
    clock = Clock()
    budget = budget_of(clock, [10_000] * 100)
    assert budget.level(0, 0, 0) == FULL  # nothing is known yet
    clock.now = 5.0
    budget.note(piece(FULL, 200, 0, is_last=True))  # 5 s a recording: 500 s for all of them
    assert budget.level(1, 0, 0) == FULL
    assert budget.said == []
    clock.now = 60.0
    budget.note(piece(FULL, 200, 1, is_last=True))  # 30 s each: 2,940 s; no overlap 1,470; 2 scorers 980
    assert budget.level(2, 0, 0) == Level(100, 1)
    assert ["overlap" in line or "backbones" in line for line in budget.said] == [True] * 3
    assert "within 16.6667 minutes, from recording 3 of 100 on: windows no longer overlap" in budget.said[0]
    assert "2 of 3 backbones" in budget.said[1]
    for number in range(2, 52):
        budget.level(number, 0, 0)
        budget.note(piece(Level(100, 1), 100, number, is_last=True))
    assert budget.level(52, 0, 0) == Level(100, 1)
    assert not budget.is_over()
    clock.now = 1001.0
    assert budget.is_over()


def test_a_long_recording_is_shed_inside() -> None:
    clock = Clock()
    budget = budget_of(clock, [1_000_000])  # 20,000 windows
    assert budget.level(0, 0, 0) == FULL
    for step in range(1, 11):  # 0.06 s a window: 1,200 s for all of them
        clock.now = 6.0 * step
        budget.note(piece(FULL, 100, 0))
        found = budget.level(0, 5000 * step, 100)
    assert found == Level(100, 3)
    assert len(budget.said) == 1
    assert "from recording 1 of 1, 500 s, on: windows no longer overlap" in budget.said[0]


def test_windows_in_flight_are_still_to_be_paid_for() -> None:
    """1,000 windows at a second each are within 1,075 s and its margin; 90 in flight are not."""
    for in_flight, said in ((0, 0), (90, 1)):
        clock = Clock()
        budget = budget_of(clock, [50_000 + 50 * (100 + in_flight)], 1000 / 0.93 + 100 + 5)
        budget.level(0, 0, 0)
        clock.now = 100.0
        budget.note(piece(FULL, 100, 0))
        budget.level(0, 50 * (100 + in_flight), 100 + in_flight)
        assert len(budget.said) == said


def test_a_recording_that_ended_early_is_not_waited_for() -> None:
    clock = Clock()
    budget = budget_of(clock, [1_000_000, 1000], 200.0)
    budget.level(0, 0, 0)
    clock.now = 100.0
    budget.note(piece(FULL, 100, 0, is_last=True))  # its header promised 20,000 windows
    assert budget.level(1, 0, 0) == FULL
    assert budget.said == []
