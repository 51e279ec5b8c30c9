"""Train on a store, from the config to the run folder: a head on its maps, or what another recipe says."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

from shared.config import as_sections, digest
from shared.store import VIEWS
from trainer.checkpoint import Progress, load_checkpoint, remove_checkpoint, save_checkpoint
from trainer.config import TrainConfig, TuneConfig
from trainer.data import ClipData, feature_config, training_steps
from trainer.evaluate import score_recordings, write_class_table
from trainer.heads import Head
from trainer.loop import (
    AnchoredWeights,
    AveragedWeights,
    NotFiniteError,
    Precision,
    Training,
    make_optimiser,
    warmup_cosine,
)
from trainer.mixup import Batch, mixup
from trainer.out_of_fold import FILE as OUT_OF_FOLD
from trainer.out_of_fold import tabulate, write_out_of_fold
from trainer.prepare import Prepared, write_split
from trainer.run import (
    Run,
    claim_folder,
    create_run,
    load_run,
    save_progress,
    software_versions,
)
from trainer.sampling import draw_views

STANDARDISE_CLIPS = 2048
MIN_GAIN = 1e-4  # of the watched macro ROC-AUC, to be called better


@runtime_checkable
class Recipe(Protocol):
    """What is trained, and on what: the loop, the split and the run folder are the same for all."""

    kind: str
    tune: TuneConfig | None

    def model(self, prepared: Prepared, config: TrainConfig, device: torch.device) -> nn.Module:
        """Return a fresh model on the device; its chance is seeded already."""

    def optimiser(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return what moves its weights."""

    def kept(self, model: nn.Module, config: TrainConfig) -> AveragedWeights | AnchoredWeights | None:
        """Return the weights that are scored and kept, where they are not the trained ones."""

    def mix(self, config: TrainConfig, epoch: int) -> Callable[[Batch], Batch]:
        """Return what is done to every batch of an epoch on the device, with chance of its own."""

    def facts(self) -> dict[str, Any]:
        """Return what decides the weights beside config, data and split; for run.json."""


class HeadRecipe:
    """A head on stored maps, mixed in feature space."""

    kind = "head"
    tune: TuneConfig | None = None

    def model(self, prepared: Prepared, config: TrainConfig, device: torch.device) -> nn.Module:
        """Return a head that standardises by training clips."""
        maps = prepared.data.store.maps
        num_channels, num_rows, _ = maps.row_shape
        head = Head(num_channels, num_rows, len(prepared.data.taxonomy), config.head)
        sample = prepared.training_rows
        if len(sample) > STANDARDISE_CLIPS:
            rng = np.random.default_rng(config.fit.seed)
            sample = rng.choice(sample, STANDARDISE_CLIPS, replace=False)
        head.standardise.set_from(torch.from_numpy(maps.read(np.sort(sample))))
        return head.to(device)

    def optimiser(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return AdamW."""
        return make_optimiser(model, config.fit)

    def kept(self, model: nn.Module, config: TrainConfig) -> AveragedWeights | AnchoredWeights | None:
        """Return the moving average, if one is asked for."""
        return AveragedWeights(model, config.fit.ema) if config.fit.ema else None

    def mix(self, config: TrainConfig, epoch: int) -> Callable[[Batch], Batch]:
        """Return mixup."""
        rng = np.random.default_rng([config.fit.seed, epoch, 1])
        return functools.partial(mixup, config=config.mixup, rng=rng)

    def facts(self) -> dict[str, Any]:
        """Return nothing: config, data and split decide."""
        return {}


def fit(
    prepared: Prepared,
    config: TrainConfig,
    out: Path,
    device: torch.device,
    *,
    recipe: Recipe,
    remember: dict[str, Any] | None = None,
    resume: bool,
    say: Callable[[str], object],
    step_done: Callable[[int], object],
) -> Run:
    """Train and return the run; its folder is complete after every epoch.

    The weights kept are the last epoch's (or their average), or with early stopping those of the epoch
    that was best on the watched fold: the held-out folds are scored and never chosen by. Killed and
    resumed, a training on the CPU ends in the same bits.

    remember: more facts for run.json, which decide nothing.
    """
    bound_to = _bound_to(prepared, config, recipe)
    num_steps = steps_per_epoch(prepared, config) * config.fit.epochs
    if claim_folder(out, recipe.kind, bound_to, resume=resume).get("finished"):
        say(f"{out} is finished already")
        step_done(num_steps)
        return load_run(out)
    training = _training(prepared, config, device, recipe)
    run = _run(prepared, config, training, out, {"kind": recipe.kind, "bound_to": bound_to, **recipe.facts()})
    run.tune = recipe.tune
    run.facts |= remember or {}
    progress = load_checkpoint(out, training, bound_to) if resume else Progress()
    run.facts["epochs_done"] = progress.epochs_done
    create_run(run)
    write_split(prepared, out)
    step_done(training.steps_done)
    for epoch in range(progress.epochs_done + 1, config.fit.epochs + 1):
        if _is_over(progress, config):
            break
        metrics = _train_epoch(training, prepared, config, epoch, recipe.mix(config, epoch), step_done)
        metrics |= _look(training, prepared, progress, epoch)
        progress.history.append(metrics)
        run.facts["epochs_done"] = epoch
        save_progress(run, progress.history)
        save_checkpoint(out, training, progress, bound_to)
        if epoch % max(1, config.fit.epochs // 10) == 0 or epoch == config.fit.epochs:
            say(_epoch_line(metrics))  # metrics.jsonl has them all; the screen a tenth
    _finish(run, prepared, progress, training)
    return run


def _training(prepared: Prepared, config: TrainConfig, device: torch.device, recipe: Recipe) -> Training:
    """Return a fresh model and what moves it."""
    torch.manual_seed(config.fit.seed)
    model = recipe.model(prepared, config, device)
    rate = functools.partial(
        warmup_cosine,
        num_steps=steps_per_epoch(prepared, config) * config.fit.epochs,
        warmup=config.fit.warmup,
    )
    averaged = recipe.kept(model, config)
    optimiser = recipe.optimiser(model, config)
    precision = Precision(device)
    return Training(model, optimiser, rate, precision, config.loss, config.fit.clip_norm, averaged)


def _train_epoch(
    training: Training,
    prepared: Prepared,
    config: TrainConfig,
    epoch: int,
    mix: Callable[[Batch], Batch],
    step_done: Callable[[int], object],
) -> dict[str, Any]:
    """Train one epoch; all its chance comes from the seed and its number, so it can be done again."""
    start = time.perf_counter()
    seed, batch, accumulate = config.fit.seed, config.fit.batch_clips, config.fit.accumulate
    num_steps = steps_per_epoch(prepared, config)
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, 2]).generate_state(1)[0]))
    drawn = prepared.sampler.draw_epoch(num_steps, accumulate * batch, np.random.default_rng([seed, epoch]))
    # A step is what is drawn as a whole; its batches get every accumulate-th clip, so all classes too.
    rows = drawn.reshape(num_steps, batch, accumulate).transpose(0, 2, 1)
    if prepared.num_views:
        rng = np.random.default_rng([seed, epoch, 4])
        rows = draw_views(rows, prepared.num_views, prepared.data.store.num_rows, rng)
    steps = training_steps(prepared.data, rows, prepared.loss_weights)
    try:
        loss = training.run(steps, mix, step_done)
    except NotFiniteError as error:
        where = _damaged_clip(prepared.data, rows[error.step - 1])
        raise ValueError(f"epoch {epoch}, {error} {where}") from error
    seconds = time.perf_counter() - start
    return {"epoch": epoch, "loss": loss, "clips_per_s": round(rows.size / seconds, 1)}


def _damaged_clip(data: ClipData, rows: np.ndarray) -> str:
    """Name the first of these clips whose stored map is not finite; "" where samples are stored."""
    maps = data.source.read(rows.ravel()).flatten(1)
    if not maps.is_floating_point():
        return ""  # whole numbers, samples
    bad = (~maps.isfinite().all(dim=1)).nonzero()
    if not len(bad):
        return "All stored maps of that step are finite."
    view, row = divmod(int(rows.ravel()[int(bad[0])]), data.store.num_rows)
    clip = data.store.clips.iloc[row]
    seconds = clip["start"] / data.grid.sample_rate_hz
    name = data.store.recordings["filename"].iloc[int(clip["recording"])]
    return f"The stored map of {name} at {seconds:g} s is not{f', in view {view}' if view else ''}."


def _look(training: Training, prepared: Prepared, progress: Progress, epoch: int) -> dict[str, Any]:
    """Score the held-out folds, and the watched one, which decides whether this epoch is the best."""
    model, data, precision = training.scored_model, prepared.data, training.precision
    metrics: dict[str, Any] = {}
    if len(prepared.validation_rows):
        table = score_recordings(model, data, prepared.validation_rows, precision)[1].table(interval=False)
        metrics |= {name: value for name, value in table.items() if value == value}
    if len(prepared.watched_rows):
        table = score_recordings(model, data, prepared.watched_rows, precision)[1].table(interval=False)
        score = float(table["macro_roc_auc"])
        metrics["watched_macro_roc_auc"] = score
        if score > progress.best_score + MIN_GAIN:
            progress.best_score, progress.best_epoch = score, epoch
            progress.best_weights = {name: value.clone() for name, value in model.state_dict().items()}
    return metrics


def _is_over(progress: Progress, config: TrainConfig) -> bool:
    waited = progress.epochs_done - progress.best_epoch
    return bool(config.fit.patience) and waited >= config.fit.patience


def _finish(run: Run, prepared: Prepared, progress: Progress, training: Training) -> None:
    """Keep the weights that count, score the held-out recordings with them, and say that it is done."""
    if progress.best_weights:
        training.scored_model.load_state_dict(progress.best_weights)
        run.facts["best_epoch"] = progress.best_epoch
    if len(prepared.validation_rows):
        recordings, scores = score_recordings(
            run.model, prepared.data, prepared.validation_rows, training.precision
        )
        write_class_table(scores, run.taxonomy, run.path / "per_class.csv")
        table = tabulate(prepared.data.store, recordings, prepared.folds.fold, scores, run.taxonomy)
        write_out_of_fold(table, run.path / OUT_OF_FOLD)
    run.facts["finished"] = True
    save_progress(run, progress.history)
    remove_checkpoint(run.path)


def _epoch_line(metrics: dict[str, Any]) -> str:
    auc = metrics.get("macro_roc_auc")
    return f"epoch {metrics['epoch']:3d}  loss {metrics['loss']:.5f}" + (
        f"  macro ROC-AUC {auc:.4f}" if auc else ""
    )


def steps_per_epoch(prepared: Prepared, config: TrainConfig) -> int:
    """Return the optimiser steps that draw about as many clips as there are to train on."""
    return max(1, round(len(prepared.training_rows) / (config.fit.batch_clips * config.fit.accumulate)))


def _bound_to(prepared: Prepared, config: TrainConfig, recipe: Recipe) -> str:
    """Return a digest of all that decides the weights: config, species, features, views, labels, sides."""
    store = prepared.data.store
    views = store.attributes[VIEWS] if prepared.num_views else {}
    return digest(
        [
            as_sections(config), prepared.data.taxonomy.species, store.fingerprint, views,
            store.attributes["tables"], store.stage, prepared.side.tolist(), recipe.facts(),
        ]
    )  # fmt: skip


def _run(prepared: Prepared, config: TrainConfig, training: Training, out: Path, more: dict[str, Any]) -> Run:
    data, store = prepared.data, prepared.data.store
    facts = {
        **more,
        **store_facts(data),
        "held_out": list(prepared.held_out),
        "remarks": list(prepared.remarks),
        "training_clips": len(prepared.training_rows),
        "validation_clips": len(prepared.validation_rows),
        "views": prepared.num_views,
        "seed": config.fit.seed,
        "epochs_done": 0,
        "software": software_versions(),
    }
    return Run(out, config, feature_config(store), data.taxonomy, training.scored_model, facts)


def store_facts(data: ClipData) -> dict[str, Any]:
    """Return what a run remembers of its features."""
    store = data.store
    return {
        "features": str(store.path.absolute()),
        "fingerprint": store.fingerprint,
        "fingerprint_of": store.attributes["fingerprint_of"],
        "stage": store.stage,
        "map_shape": list(store.maps.row_shape),
        "frame_hop": store.frame_hop,
    }
