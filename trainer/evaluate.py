"""Score the held-out recordings of a run, and segments of soundscapes against their truth."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from shared.config import differences
from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.config import LabelConfig
from trainer.data import ClipData, all_batches
from trainer.loop import Precision, recording_scores, score_clips
from trainer.map_source import StoredMaps
from trainer.metrics import Scores
from trainer.run import Run

WAVEFORM_BATCH = 32  # clips scored at once by a whole network


def score_recordings(
    model: nn.Module, data: ClipData, rows: np.ndarray, precision: Precision
) -> tuple[np.ndarray, Scores]:
    """Return recordings (N,), sorted, and their scores: the means of their clips' logits."""
    logits = score_clips(model, all_batches(data, rows), precision)
    recordings, scores = recording_scores(logits, data.recording_of_row[rows])
    targets = data.targets
    truth, weights = targets.recording_truth[recordings], targets.recording_weights[recordings]
    return recordings, Scores(scores, truth, weights)


def check_same_features(run: Run, store: FeatureStore) -> None:
    """Stop where a store's features are not those that the run was trained on.

    Raises:
        ValueError: names every differing key.
    """
    if store.fingerprint != run.facts["fingerprint"]:
        lines = differences(run.facts["fingerprint_of"], store.attributes["fingerprint_of"])
        raise ValueError(
            f"{store.path} holds other features than {run.path} was trained on (run -> store): "
            f"{'; '.join(lines)}. Train on this store, or evaluate on the run's own."
        )


def validation_scores(run: Run, store: FeatureStore, precision: Precision) -> Scores:
    """Score the recordings that the run held out, looked up in `store` by name and audio hash.

    Raises:
        ValueError: other features, nothing held out, or none of it in the store.
    """
    check_same_features(run, store)
    split = pd.read_csv(run.path / "split.csv", dtype=str, keep_default_na=False)
    held_out = split[split["side"] == "validation"]
    if held_out.empty:
        raise ValueError(f"{run.path} has nothing held out to score: it was trained with --fold none.")
    keys = set(zip(held_out["filename"], held_out["sha256"], strict=True))
    there = [
        key in keys for key in zip(store.recordings["filename"], store.recordings["sha256"], strict=True)
    ]
    data = data_of(run, store, precision.device)
    rows = data.usable_rows()
    rows = rows[np.array(there)[data.recording_of_row[rows]]]
    if not len(rows):
        raise ValueError(f"{store.path} holds none of the recordings that {run.path} held out.")
    return score_recordings(run.model, data, rows, precision)[1]


def data_of(run: Run, store: FeatureStore, device: torch.device) -> ClipData:
    """Return a store's clips as the run's model takes them: maps, or waveforms for a whole network."""
    if run.tune is None:
        return ClipData(store, run.taxonomy, run.train.labels)
    return waveform_data(store, run.taxonomy, run.train.labels, device)


def waveform_data(
    store: FeatureStore, taxonomy: Taxonomy, labels: LabelConfig, device: torch.device
) -> ClipData:
    """Return a store's clips with their waveforms in place of maps.

    Raises:
        ValueError: the store holds none.
    """
    if store.waveforms is None:
        raise ValueError(
            f"{store.path} holds no waveforms, which a whole network needs: build it again without "
            "--no-waveforms."
        )
    return ClipData(store, taxonomy, labels, StoredMaps(store.waveforms, device), WAVEFORM_BATCH)


def write_class_table(scores: Scores, taxonomy: Taxonomy, path: Path) -> None:
    """Write ROC-AUC, average precision and their support for every class; empty: not scored.

    positives: recordings of the class; counted: recordings that count for it, either way.
    """
    classes = scores.ranked().classes(np.ones(len(scores.scores)))
    pd.DataFrame(
        {
            "primary_label": taxonomy.species,
            "roc_auc": classes.roc_auc,
            "average_precision": classes.average_precision,
            "positives": (scores.truth * scores.counted).sum(axis=0).astype(int),
            "counted": (scores.counted > 0).sum(axis=0),
        }
    ).to_csv(path, index=False)


def read_events(path: Path) -> pd.DataFrame:
    """Read a truth file: filename, species, start, stop (seconds); adds the file's stem.

    Raises:
        ValueError: a column is missing.
    """
    events = pd.read_csv(path)
    missing = {"filename", "species", "start", "stop"} - set(events.columns)
    if missing:
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}.")
    for column in ("start", "stop"):
        numbers = pd.to_numeric(events[column], errors="coerce")
        odd = ~np.isfinite(numbers.to_numpy(float))
        if odd.any():
            row = int(odd.argmax())
            raise ValueError(f"{path}: {column} {events[column].iloc[row]!r} is no number of seconds.")
        events[column] = numbers
    return events.assign(stem=[Path(name).stem for name in events["filename"].astype(str)])


def segment_truth(
    events: pd.DataFrame, row_ids: list[str], species: tuple[str, ...], segment_seconds: float
) -> np.ndarray:
    """Return (segments, K): 1 where an event overlaps the segment; row ids end in its end second."""
    by_stem = dict(list(events.groupby("stem")))
    column = {code: place for place, code in enumerate(species)}
    truth = np.zeros((len(row_ids), len(species)), np.float32)
    for row, row_id in enumerate(row_ids):
        stem, _, end = row_id.rpartition("_")
        stop = float(end)
        here = by_stem.get(stem, events.iloc[:0])
        here = here[(here["start"] < stop) & (here["stop"] > stop - segment_seconds)]
        truth[row, [column[code] for code in here["species"] if code in column]] = 1
    return truth
