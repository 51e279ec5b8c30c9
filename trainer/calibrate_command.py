"""`trainer calibrate`: a run's calibration and thresholds, and what it hears where nobody calls."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from trainer import calibrate as fits
from trainer.calibration import FILE, Calibration, write_calibration
from trainer.no_call import false_alarms, made_recordings
from trainer.opening import Opening, open_ensemble
from trainer.out_of_fold import OutOfFold, read_out_of_fold
from trainer.predict import Predictor
from trainer.recordings import Recording, find_recordings


def calibrate_run(
    path: Path, precision: float | None, no_call: Path | None, minutes: float, device: torch.device,
    weights: str | None, tick: Callable[[int], object],
) -> dict[str, Any]:  # fmt: skip
    """Write calibration.json into a run, and return what it says but the species.

    Raises:
        ValueError: no out-of-fold predictions, or one of the settings is none.
    """
    if precision is not None and not 0 < precision < 1:
        raise ValueError(f"--precision is a share between 0 and 1, got {precision:g}.")
    if minutes < 0:
        raise ValueError(f"--no-call-minutes must not be negative, got {minutes:g}.")
    recorded = find_recordings(no_call) if no_call else []
    if no_call and not recorded:
        raise ValueError(f"{no_call} holds no recordings.")
    table = read_out_of_fold(path)
    calibration = calibration_of(table, precision)
    write_calibration(calibration, table.taxonomy, path / FILE)
    if not minutes and not recorded:
        return calibration.facts
    predictor = Predictor(open_ensemble([path], Opening(device, weights)))
    calibration.facts["no_call"] = _no_call(predictor, recorded, minutes, tick)
    write_calibration(calibration, table.taxonomy, path / FILE)
    return calibration.facts


def calibration_of(table: OutOfFold, precision: float | None) -> Calibration:
    """Fit the calibration of a table, and measure it on recordings that each fit did not see."""
    scores, parts = table.scores(), fits.parts_of(table)
    truth, counted = scores.truth, scores.counted
    if len(np.unique(parts)) < 2 or not (truth * counted).any():
        raise ValueError("there are too few labelled recordings held out to calibrate on.")
    shrinkage = fits.best_shrinkage(scores, parts)
    held_out = fits.cross_fitted(scores, parts, shrinkage)
    threshold, num_own = fits.thresholds(expit(held_out), truth, counted, precision)
    fitted = fits.fit_affine(scores, shrinkage)
    before = scores.scores
    facts = {
        "recordings": len(before),
        "shrinkage": shrinkage,
        "ece_before": fits.expected_calibration_error(expit(before), truth, counted),
        "ece_after": fits.expected_calibration_error(expit(held_out), truth, counted),
        "log_loss_before": fits.log_loss(before, truth, counted),
        "log_loss_after": fits.log_loss(held_out, truth, counted),
        "thresholds": "best F1" if precision is None else f"precision {precision:g}",
        "own_thresholds": num_own,
        "classes": len(table.taxonomy),
    }
    slope, offset, own = (part.astype(np.float32) for part in (fitted.slope, fitted.offset, threshold))
    return Calibration(slope, offset, own, facts)


def _no_call(
    predictor: Predictor, recorded: list[Recording], minutes: float, tick: Callable[[int], object]
) -> dict[str, dict[str, float]]:
    threshold = predictor.ensemble.threshold
    found = {}
    with tempfile.TemporaryDirectory() as name:
        if minutes:
            rate = predictor.ensemble.grid.sample_rate_hz
            for kind, recordings in made_recordings(Path(name), minutes, rate).items():
                found[kind] = false_alarms(predictor, threshold, recordings, tick)
        if recorded:
            found["recorded"] = false_alarms(predictor, threshold, recorded, tick)
    return found


def calibration_text(path: Path, facts: dict[str, Any]) -> str:
    """Return what a calibration brought, in lines."""
    own = f"{facts['own_thresholds']} of {facts['classes']} species with one of their own"
    lines = [
        f"{path / FILE}: from {facts['recordings']} recordings held out",
        f"  expected calibration error {facts['ece_before']:.4f} -> {facts['ece_after']:.4f}, log loss "
        f"{facts['log_loss_before']:.4f} -> {facts['log_loss_after']:.4f} (on recordings not fitted on)",
        f"  thresholds: {facts['thresholds']}, {own}",
    ]
    if facts["log_loss_after"] > facts["log_loss_before"]:
        lines.append(
            "  that is worse than without: there are too few recordings; predict with --uncalibrated, or "
            f"remove {FILE}"
        )
    for kind, one in facts.get("no_call", {}).items():
        lines.append(
            f"  {kind}: {one['events_per_hour']:.0f} false events an hour, "
            f"{100 * one['segments_over_threshold']:.1f} % of segments"
        )
    return "\n".join(lines)
