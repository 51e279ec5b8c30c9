"""What `trainer evaluate` scores, and its table."""

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from shared.command_line import text_table
from shared.store import FeatureStore
from trainer.evaluate import read_events, segment_truth, validation_scores
from trainer.folded import head_name, out_of_fold_figures
from trainer.loop import Precision
from trainer.metrics import Scores
from trainer.opening import Opening, open_ensemble
from trainer.out_of_fold import read_out_of_fold
from trainer.predict import Predictor
from trainer.recordings import find_recordings
from trainer.run import Run


def held_out_scores(run: Run, features: Path | None, device: torch.device) -> dict[str, Any]:
    """Score the recordings that one head held out, from its own store or another."""
    run.model.to(device)
    store = FeatureStore(features or Path(run.facts["features"]), run.facts["stage"])
    return dict(validation_scores(run, store, Precision(device)).table(interval=True))


def folded_scores(path: Path) -> dict[str, Any]:
    """Score the out-of-fold predictions of a run of folds."""
    table = read_out_of_fold(path)
    return {"head": head_name(path), **out_of_fold_figures(table, interval=True)}


def segment_scores(
    run: Path, device: torch.device, weights: str | None, audio: Path, truth: Path
) -> dict[str, Any]:
    """Score the segments of soundscapes against their events.

    Raises:
        ValueError: no recording can be read.
    """
    predictor = Predictor(open_ensemble([run], Opening(device, weights, calibrated=False)))
    ensemble = predictor.ensemble
    recordings = find_recordings(audio)
    if any("/" in recording.name for recording in recordings):
        raise ValueError(
            f"{audio} holds recordings of one name in two folders, which a truth by file names cannot tell "
            "apart; rename them."
        )
    row_ids: list[str] = []
    scores: list[np.ndarray] = []
    for piece in predictor.pieces([recording.path for recording in recordings]):
        recording = recordings[piece.number]
        heard = piece.valid_samples > 0
        numbers = piece.first_segment + np.flatnonzero(heard)
        row_ids += [recording.row_id(int(number), ensemble.segment_seconds) for number in numbers]
        scores.append(piece.segments[heard])
        if piece.finding is not None and piece.finding.reasons:
            click.echo(f"{recording.relative}: {'; '.join(piece.finding.reasons)}", err=True)
    if not row_ids:
        raise ValueError(f"{audio} holds no recordings that can be read.")
    events = segment_truth(read_events(truth), row_ids, ensemble.taxonomy.species, ensemble.segment_seconds)
    return Scores(np.concatenate(scores), events, np.ones_like(events)).table(interval=True)


def scores_text(tables: dict[str, dict[str, Any]]) -> str:
    """Return a row per run; columns of segments only where they were scored."""
    columns = {
        "recordings' macro ROC-AUC": "macro_roc_auc",
        "cmAP": "cmap",
        "top-1": "top1",
        "segments' macro ROC-AUC": "segment_macro_roc_auc",
    }
    shown = {title: key for title, key in columns.items() if any(key in t for t in tables.values())}

    def cell(table: dict[str, Any], key: str) -> str:
        if table[key] != table[key]:  # nan: no class had both a positive and a negative
            return "no class scored"
        return f"{table[key]:.3f} [{table[f'{key}_low']:.3f}, {table[f'{key}_high']:.3f}]"

    def over_folds(table: dict[str, Any]) -> list[str]:
        if not any("folds" in one for one in tables.values()):
            return []
        if "folds" not in table:
            return [""]
        mean, deviation = table["macro_roc_auc_fold_mean"], table["macro_roc_auc_fold_sd"]
        return [f"{mean:.3f} (sd {deviation:.3f}, {table['folds']} folds)"]

    rows = [
        [path, table["head"], *(cell(table, key) for key in shown.values()), *over_folds(table),
         f"{table['classes_scored']}/{table['classes_scored'] + table['classes_left_out']}"]
        for path, table in tables.items()
    ]  # fmt: skip
    folded = ["macro ROC-AUC by fold"] if any("folds" in table for table in tables.values()) else []
    return text_table(["run", "head", *shown, *folded, "classes scored"], rows)
