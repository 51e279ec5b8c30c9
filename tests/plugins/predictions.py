"""Predictions of the command line, read and compared."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from click.testing import Result
from scipy.special import expit, logit

Run = Callable[..., Result]


def rows_of(path: Path) -> dict[str, np.ndarray]:
    with path.open(newline="") as file:
        _, *rows = csv.reader(file)
    return {row[0]: np.array(row[1:], float) for row in rows}


def predicted(run_program: Run, out: Path, *args: object) -> dict[str, np.ndarray]:
    run_program("trainer", "predict", *args, "--out", out, "--overwrite")
    return rows_of(out)


def mean_of(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {
        row: expit(np.mean([logit(part[row].clip(1e-6, 1 - 1e-6)) for part in parts], axis=0))
        for row in parts[0]
    }


def assert_near(found: dict[str, np.ndarray], expected: dict[str, np.ndarray], within: float = 1e-4) -> None:
    assert list(found) == list(expected)
    assert max(np.abs(found[row] - expected[row]).max() for row in found) < within
