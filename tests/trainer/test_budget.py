import numpy as np

from trainer.budget import Budget, levels_from
from trainer.predict import Level, Piece


def piece(level: Level, num_windows: int) -> Piece:
    nothing = np.zeros((0, 1), np.float32)
    return Piece(0, level, 0, nothing, np.zeros(0, np.int64), 0, nothing, num_windows)


def test_a_budget_sheds_overlap_first_then_scorers_and_never_goes_back() -> None:
    full = Level(50, 3)
    levels = levels_from(full, 100)
    assert levels == [Level(50, 3), Level(100, 3), Level(100, 2), Level(100, 1)]
    now = [0.0]
    windows = [[200] * 100, [100] * 100, [100] * 100, [100] * 100]
    budget = Budget(1000.0, levels, windows, lambda level: level.num_scorers, 0.0, lambda: now[0])
    assert budget.level(0) == full  # nothing is known yet
    now[0] = 5.0
    budget.note(piece(full, 200))  # 5 s a recording: 500 s for all of them
    assert budget.level(1) == full
    assert budget.said == []
    now[0] = 60.0
    budget.note(piece(full, 200))  # 30 s a recording: 2,940 s; without overlap 1,470; two scorers 980
    assert budget.level(2) == Level(100, 1)
    assert ["overlap" in line or "backbones" in line for line in budget.said] == [True] * 3
    assert "from recording 3 of 100 on: windows no longer overlap" in budget.said[0]
    assert "2 of 3 backbones" in budget.said[1]
    for _ in range(50):
        budget.note(piece(Level(100, 1), 100))
    assert budget.level(3) == Level(100, 1)
    assert not budget.is_over()
    now[0] = 1001.0
    assert budget.is_over()
