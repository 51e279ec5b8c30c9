"""What a fit works on: the split, which recordings are on which side of it, and the clips to draw from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.duplicates import recording_embeddings, similar_pairs
from trainer.config import TrainConfig
from trainer.data import ClipData
from trainer.groups import identity_keys, linked_groups
from trainer.leakage import leakage_report
from trainer.run import write_json
from trainer.sampling import ClipSampler, rarest_class, recording_weights
from trainer.splits import Folds, copies_joined, make_folds, one_sided


@dataclass(frozen=True)
class Prepared:
    """What a fit works on: the data, its split, and the clips to draw from.

    held_out: the folds that are scored; watched: the one that early stopping looks at, if any.
    side: per recording "training", "validation", "watched" or "unused".
    loss_weights: what a recording counts in the loss, where that is not alike.
    num_views: augmented views that each clip to train on is drawn from, beside the clean one.
    """

    data: ClipData
    folds: Folds
    held_out: tuple[int, ...]
    side: np.ndarray
    sampler: ClipSampler
    training_rows: np.ndarray
    validation_rows: np.ndarray
    watched_rows: np.ndarray
    loss_weights: np.ndarray | None
    remarks: tuple[str, ...]
    num_views: int


def find_folds(data: ClipData, config: TrainConfig, step_done: Callable[[int], object]) -> Folds:
    """Look for near-duplicates, and take or compute the folds.

    Recordings with soft labels are in none of them: what a model said is no truth to score another by. But
    one that is a copy of another has that one's fold, so that it is not trained on where that is held out.

    step_done: told how many clips have been read.
    """
    usable = data.usable_rows()
    recording = data.recording_of_row[usable]
    pairs = np.zeros((0, 2), np.int64)
    if config.split.duplicates:
        found, embeddings = recording_embeddings(data.store.maps, usable, recording, step_done)
        pairs = found[similar_pairs(embeddings, config.split.duplicates)]
    is_soft = data.is_soft() & data.has_clip()
    folds = make_folds(
        data.store.recordings, data.first_primary(), data.has_clip() & ~is_soft, config.split, pairs
    )
    if not is_soft.any():
        return folds
    same = linked_groups(len(is_soft), identity_keys(data.store.recordings), pairs)
    line = f"{int(is_soft.sum())} recordings with soft labels are trained on and never scored"
    return replace(folds, fold=copies_joined(folds.fold, same, is_soft), remarks=(*folds.remarks, line))


def prepare(data: ClipData, folds: Folds, config: TrainConfig, held_out: Sequence[int]) -> Prepared:
    """Put every recording on its side, and weigh those to train on.

    Raises:
        ValueError: fewer than two kinds of recordings to tell apart, nothing left to train on, or
            no fold left to watch.
    """
    truth, usable = data.targets.recording_truth, data.usable_rows()
    _check_kinds(data, truth)
    is_validation = np.isin(folds.fold, held_out)
    is_watched = np.zeros(len(truth), bool)
    if config.fit.patience:
        is_watched = folds.fold == folds.watched(held_out)
    of_row = data.recording_of_row[usable]
    known = data.targets.is_known()[usable]
    training = usable[~is_validation[of_row] & ~is_watched[of_row] & known]
    trained = np.unique(data.recording_of_row[training])
    side = np.full(len(truth), "unused", dtype=object)
    side[trained] = "training"
    scored = data.has_clip() & ~data.is_soft()
    side[scored & is_watched] = "watched"
    side[scored & is_validation] = "validation"
    worth = np.zeros(len(truth))
    worth[trained] = recording_weights(truth[trained], data.ratings()[trained], config.sampler)
    classes = np.zeros(len(truth), np.int64)
    classes[trained] = rarest_class(truth[trained])
    in_loss = config.sampler.weigh == "loss" and len(trained) > 0
    drawn = np.isin(np.arange(len(truth)), trained).astype(float) if in_loss else worth
    sampler = ClipSampler(training, data.recording_of_row[training], drawn, classes, config.sampler.drawing)
    loss_weights = (worth / worth[trained].mean()).astype(np.float32) if in_loss else None
    remarks = folds.remarks
    if held_out:
        remarks += one_sided(is_validation, data.first_primary(), data.has_clip())
    return Prepared(
        data, folds, tuple(held_out), side, sampler, training,
        usable[(is_validation & scored)[of_row]], usable[(is_watched & scored)[of_row]],
        loss_weights, remarks, data.num_views,
    )  # fmt: skip


def _check_kinds(data: ClipData, truth: np.ndarray) -> None:
    has_clip = data.has_clip()
    kinds = {tuple(np.flatnonzero(row)) for row in truth[has_clip]}
    if len(kinds) < 2:
        names = [code for column, code in enumerate(data.taxonomy.species) if truth[has_clip, column].any()]
        raise ValueError(
            f"of the taxonomy's species, {data.store.path} holds recordings of "
            f"{', '.join(names) or 'none'} only; a detector needs at least two, or one and "
            "recordings without it."
        )


def write_split(prepared: Prepared, out: Path) -> None:
    """Write which recording was on which side, and what the sides have in common."""
    data = prepared.data
    table = data.store.recordings[["source", "filename", "xc_id", "sha256"]].copy()
    table["primary_label"] = data.first_primary()
    table["fold"] = prepared.folds.fold
    table["side"] = prepared.side
    pd.DataFrame(table).to_csv(out / "split.csv", index=False)
    write_json(out / "leakage.json", split_report(prepared))


def split_report(prepared: Prepared) -> dict[str, Any]:
    """Return the leakage report; watched recordings count as trained on, as they are chosen by."""
    trained = np.isin(prepared.side, ["training", "watched"])
    return leakage_report(
        prepared.data.store.recordings, prepared.folds, trained, prepared.side == "validation"
    )
