"""Logits into probabilities that mean something, and per species the probability to act on."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from shared.documents import UNREADABLE
from shared.taxonomy import Taxonomy
from trainer.run import write_json

FILE = "calibration.json"
FORMAT = 1
DEFAULT_THRESHOLD = 0.5


@dataclass(frozen=True)
class Calibration:
    """Per class (K,): probability = sigmoid(slope * logit + offset), and the threshold on it.

    facts: how it was made and what it brought, for people.
    """

    slope: Float[np.ndarray, " k"]
    offset: Float[np.ndarray, " k"]
    threshold: Float[np.ndarray, " k"]
    facts: dict[str, Any]

    def logits(self, logits: Float[np.ndarray, "... k"]) -> Float[np.ndarray, "... k"]:
        """Return calibrated logits of clips or frames."""
        return np.asarray(logits * self.slope + self.offset)


def no_calibration(num_classes: int) -> Calibration:
    """Return the one that changes nothing, with a threshold of a half."""
    ones = np.ones(num_classes, np.float32)
    return Calibration(ones, 0 * ones, DEFAULT_THRESHOLD * ones, {})


def write_calibration(calibration: Calibration, taxonomy: Taxonomy, path: Path) -> None:
    """Write calibration.json: by species, for people and other programs."""
    species = {
        code: {"slope": float(a), "offset": float(b), "threshold": float(t)}
        for code, a, b, t in zip(
            taxonomy.species, calibration.slope, calibration.offset, calibration.threshold, strict=True
        )
    }
    write_json(path, {"format": FORMAT, **calibration.facts, "species": species})


def read_calibration(folder: Path, taxonomy: Taxonomy) -> Calibration | None:
    """Return a run's calibration, None where it has none.

    Raises:
        ValueError: it is damaged, or of other species.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        by_species = document.pop("species")
        columns = {
            key: np.array([by_species[code][key] for code in taxonomy.species], np.float32)
            for key in ("slope", "offset", "threshold")
        }
    except UNREADABLE as error:
        raise ValueError(
            f"{path} is damaged or of other species ({error}); make it again with `trainer calibrate`."
        ) from error
    if document.pop("format", None) != FORMAT or not all(np.isfinite(v).all() for v in columns.values()):
        raise ValueError(f"{path} is of another format; make it again with `trainer calibrate`.")
    return Calibration(**columns, facts=document)
