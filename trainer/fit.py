"""Train a head on a store's maps, from the config to the run folder."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.config import TrainConfig
from trainer.data import ClipData, all_batches, feature_config, training_steps
from trainer.evaluate import score_recordings, write_class_table
from trainer.heads import Head
from trainer.loop import Precision, Training, make_optimiser, warmup_cosine
from trainer.mixup import mixup
from trainer.run import Run, create_run, save_progress, software_versions
from trainer.sampling import ClipSampler, recording_weights
from trainer.splits import Split, make_split

STANDARDISE_CLIPS = 2048


@dataclass(frozen=True)
class Prepared:
    """What a fit works on: the data, who is held out, and the clips to draw from."""

    data: ClipData
    split: Split
    sampler: ClipSampler
    training_rows: np.ndarray
    validation_rows: np.ndarray


def prepare(store: FeatureStore, taxonomy: Taxonomy, config: TrainConfig, fold: str | None) -> Prepared:
    """Split the recordings and weigh them.

    Raises:
        ValueError: fewer than two kinds of recordings to tell apart, or no such fold.
    """
    data = ClipData(store, taxonomy, config.labels)
    truth, usable = data.targets.recording_truth, data.usable_rows()
    has_clip = np.isin(np.arange(len(truth)), data.recording_of_row[usable])
    kinds = {tuple(np.flatnonzero(row)) for row in truth[has_clip]}
    if len(kinds) < 2:
        names = [code for column, code in enumerate(taxonomy.species) if truth[has_clip, column].any()]
        raise ValueError(
            f"of the taxonomy's species, {store.path} holds recordings of "
            f"{', '.join(names) or 'none'} only; a detector needs at least two, or one and "
            "recordings without it."
        )
    split = make_split(store.recordings, data.first_primary(), has_clip, config.split, fold)
    held_out = split.validation[data.recording_of_row]
    training = usable[~held_out[usable] & data.targets.is_known()[usable]]
    weights = np.zeros(len(truth))
    trained = np.unique(data.recording_of_row[training])
    weights[trained] = recording_weights(truth[trained], data.ratings()[trained], config.sampler)
    sampler = ClipSampler(training, data.recording_of_row[training], weights)
    return Prepared(data, split, sampler, training, usable[held_out[usable]])


def fit(
    store: FeatureStore,
    prepared: Prepared,
    config: TrainConfig,
    out: Path,
    device: torch.device,
    *,
    say: Callable[[str], object],
    step_done: Callable[[int], object],
) -> Run:
    """Train and return the run; its folder is complete after every epoch.

    The weights kept are the last epoch's: the held-out fold is scored and never chosen by.
    """
    data = prepared.data
    torch.manual_seed(config.fit.seed)
    head = Head(store.maps.row_shape[0], len(data.taxonomy), config.head)
    rng = np.random.default_rng(config.fit.seed)
    sample = prepared.training_rows
    if len(sample) > STANDARDISE_CLIPS:
        sample = rng.choice(sample, STANDARDISE_CLIPS, replace=False)
    head.standardise.set_from(torch.from_numpy(store.maps.read(np.sort(sample))))
    head.to(device)
    run = Run(out, config, feature_config(store), data.taxonomy, head, _facts(store, prepared, config))
    create_run(run)
    write_split(data, prepared.split, out / "split.csv")

    per_step = config.fit.batch_clips * config.fit.accumulate
    num_steps = steps_per_epoch(prepared, config)
    optimiser = make_optimiser(head, config.fit)
    schedule = warmup_cosine(optimiser, num_steps * config.fit.epochs, config.fit.warmup)
    precision = Precision(device)
    training = Training(head, optimiser, schedule, precision, config.loss, config.fit.clip_norm)
    for epoch in range(1, config.fit.epochs + 1):
        start = time.perf_counter()
        epoch_rng = np.random.default_rng([config.fit.seed, epoch])
        mix_rng = np.random.default_rng([config.fit.seed, epoch, 1])
        steps = training_steps(
            data, prepared.sampler, num_steps=num_steps, batch_clips=config.fit.batch_clips,
            accumulate=config.fit.accumulate, rng=epoch_rng,
        )  # fmt: skip
        mix = functools.partial(mixup, config=config.mixup, rng=mix_rng)
        loss = training.run(steps, mix, step_done)
        seconds = time.perf_counter() - start
        metrics: dict[str, Any] = {"epoch": epoch, "loss": loss}
        metrics |= _validate(run, prepared, precision, last=epoch == config.fit.epochs)
        metrics |= {"clips_per_s": round(num_steps * per_step / seconds, 1)}
        run.facts["epochs_done"] = epoch
        save_progress(run, metrics)
        if epoch % max(1, config.fit.epochs // 10) and epoch != config.fit.epochs:
            continue  # metrics.jsonl has them all; the screen a tenth
        auc = metrics.get("macro_roc_auc")
        say(f"epoch {epoch:3d}  loss {loss:.5f}" + (f"  macro ROC-AUC {auc:.4f}" if auc else ""))
    return run


def steps_per_epoch(prepared: Prepared, config: TrainConfig) -> int:
    """Return the optimiser steps that draw about as many clips as there are to train on."""
    return max(1, round(len(prepared.training_rows) / (config.fit.batch_clips * config.fit.accumulate)))


def _validate(run: Run, prepared: Prepared, precision: Precision, *, last: bool) -> dict[str, Any]:
    if not len(prepared.validation_rows):
        return {}
    batches = all_batches(prepared.data, prepared.validation_rows)
    scores = score_recordings(run.head, prepared.data, prepared.validation_rows, batches, precision)
    if last:
        write_class_table(scores, run.taxonomy, run.path / "per_class.csv")
    return {name: value for name, value in scores.table(interval=False).items() if value == value}


def _facts(store: FeatureStore, prepared: Prepared, config: TrainConfig) -> dict[str, Any]:
    return {
        "features": str(store.path.absolute()),
        "fingerprint": store.fingerprint,
        "fingerprint_of": store.attributes["fingerprint_of"],
        "stage": store.stage,
        "map_shape": list(store.maps.row_shape),
        "frame_hop": store.frame_hop,
        "held_out": prepared.split.held_out,
        "remarks": list(prepared.split.remarks),
        "training_clips": len(prepared.training_rows),
        "validation_clips": len(prepared.validation_rows),
        "seed": config.fit.seed,
        "epochs_done": 0,
        "software": software_versions(),
    }


def write_split(data: ClipData, split: Split, path: Path) -> None:
    """Write which recording was on which side."""
    table = data.store.recordings[["source", "filename", "xc_id", "sha256"]].copy()
    table["primary_label"] = data.first_primary()
    table["fold"] = split.fold
    table["side"] = np.where(split.validation, "validation", "training")
    pd.DataFrame(table).to_csv(path, index=False)
