"""`trainer score`: events and frames of a prediction against strong labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.command_line import text_table
from trainer.evaluate import read_events
from trainer.frame_files import read_frames
from trainer.metrics import Scores
from trainer.score import Collar, event_counts, frame_truth, recording_keys, segment_counts


def score_events(
    events: Path, truth: Path, frames: Path | None, segment_seconds: float, collars: tuple[float, ...]
) -> dict[str, Any]:
    """Return every figure by name.

    Raises:
        ValueError: a file of another form, or nothing in common.
    """
    if segment_seconds <= 0 or min(collars) < 0:
        raise ValueError("--segment must be positive, and --collar not negative (seconds).")
    found, true = _read(events), _read(truth)
    if not len(true):
        raise ValueError(f"{truth} holds no event to score against.")
    if len(found) and not {*found["recording"]} & {*true["recording"]}:
        raise ValueError(
            f"{events} and {truth} name no recording in common: {found['recording'].iloc[0]} is not "
            f"among those of the truth, as {true['recording'].iloc[0]}."
        )
    species = sorted({*true["species"], *found["species"]})
    figures: dict[str, Any] = {
        "recordings": len({*true["recording"], *found["recording"]}),
        "true_events": len(true),
        "found_events": len(found),
        **segment_counts(true, found, species, segment_seconds).table(f"segment_{segment_seconds:g}s"),
    }
    for collar in collars:
        figures |= event_counts(true, found, species, Collar(collar)).table(f"event_{collar:g}s")
    if frames is not None:
        figures |= _frame_figures(frames, true)
    return figures


def _read(path: Path) -> pd.DataFrame:
    table = read_events(path)
    table["recording"] = recording_keys(table).to_numpy()
    table["species"] = table["species"].astype(str)
    if (table["stop"] < table["start"]).any():
        row = int((table["stop"] < table["start"]).to_numpy().argmax())
        raise ValueError(f"{path}: the event in line {row + 2} stops before it starts.")
    return table


def _frame_figures(folder: Path, true: pd.DataFrame) -> dict[str, Any]:
    """Return ROC-AUC and average precision over the frames of all recordings."""
    read = read_frames(folder)
    scores, truths = [], []
    for key, values in read.recordings():
        scores.append(values)
        here = true[true["recording"] == key]
        truths.append(frame_truth(here, read.species, len(values), read.frame_seconds))
    joined, active = np.concatenate(scores).astype(np.float32), np.concatenate(truths)
    table = Scores(joined, active, np.ones_like(active)).table(interval=False)
    return {
        "frame_macro_roc_auc": table["macro_roc_auc"], "frame_cmap": table["cmap"],
        "frame_classes_scored": table["classes_scored"], "frames": len(joined),
    }  # fmt: skip


def score_text(figures: dict[str, Any]) -> str:
    """Return the figures as tables."""
    kinds = [name[: -len("_f1")] for name in figures if name.endswith("_f1")]
    rows = [
        [kind.replace("_", " "), *(f"{figures[f'{kind}_{name}']:.3f}" for name in
                                   ("f1", "precision", "recall", "f1_macro"))]
        for kind in kinds
    ]  # fmt: skip
    lines = [
        f"{figures['found_events']} events against {figures['true_events']} true ones in "
        f"{figures['recordings']} recordings",
        text_table(["", "F1", "precision", "recall", "mean F1 of classes"], rows),
    ]
    if "frame_macro_roc_auc" in figures:
        lines.append(
            f"frames: macro ROC-AUC {figures['frame_macro_roc_auc']:.3f}, cmAP {figures['frame_cmap']:.3f} "
            f"over {figures['frame_classes_scored']} species"
        )
    return "\n".join(lines)
