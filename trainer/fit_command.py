"""What `trainer fit` does and says: one fold, all folds, or a grid of settings."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from shared.config import as_sections, digest
from shared.features import FeatureConfig
from shared.store import VIEWS
from trainer.config import TrainConfig, TuneConfig
from trainer.fit import steps_per_epoch
from trainer.folded import fold_jobs, out_of_fold_figures, with_folds, write_folded, write_table_run
from trainer.grid import Trial, grid_text, mean_and_spread, read_grid
from trainer.jobs import Fitter, Job, run_jobs
from trainer.leakage import crossing_report, leakage_lines
from trainer.map_source import views_of
from trainer.metrics import FIGURES
from trainer.nested import choose, chosen_tables, inner_jobs
from trainer.out_of_fold import OutOfFold
from trainer.prepare import split_report
from trainer.run import claim_folder, parameter_count
from trainer.splits import Folds, one_sided


@dataclass(frozen=True)
class Way:
    """Where a command writes to, whether it goes on there, how many fits run at once, and whom it tells."""

    out: Path
    resume: bool
    workers: int
    say: Callable[[str], object]


def fit_one(fitter: Fitter, config: TrainConfig, way: Way, fold: str | None) -> None:
    """Train with one fold held out, or none."""
    if fold == "none" and not config.fit.patience:  # nothing is held out that a copy could leak to
        config_of_folds = replace(config, split=replace(config.split, duplicates=0.0))
        folds = _find_folds(fitter, config_of_folds)
    else:
        folds = _find_folds(fitter, config)
    held_out = folds.chosen(fold)
    job = Job(way.out, config, () if held_out is None else (held_out,))
    prepared = fitter.prepare(job)
    way.say(
        f"{len(prepared.training_rows)} clips to train on"
        f"{f' with {prepared.num_views} views of each' if prepared.num_views else ''}, "
        f"{len(prepared.validation_rows)} held out "
        f"({'no fold' if held_out is None else f'fold {held_out}'}), {len(fitter.taxonomy)} species, "
        f"{config.head.name} on {fitter.device.type}"
    )
    for remark in [*prepared.remarks, *leakage_lines(split_report(prepared))]:
        way.say(f"  {remark}")
    steps = steps_per_epoch(prepared, config) * config.fit.epochs
    with tqdm(total=steps, unit="step", desc="training", leave=False) as bar:
        run = fitter.fit(job, resume=way.resume, say=bar.write, step_done=bar.update)
    way.say(f"{way.out}: {parameter_count(run.model)} parameters; next: trainer evaluate {way.out}")


def fit_folds(fitter: Fitter, config: TrainConfig, way: Way, num_folds: int) -> None:
    """Hold out every fold in turn and join what was predicted for them."""
    config = with_folds(config, num_folds)
    folds = _all_folds(fitter, config, num_folds)
    jobs = fold_jobs(way.out, config, folds.names)
    leakage = _leakage(fitter, config, folds, folds.names, way)
    for job in jobs:
        fitter.prepare(job)
    claim_folder(way.out, "folds", digest(as_sections(config)), resume=way.resume)
    failed = _run(fitter, jobs, way, "folds")
    if failed:
        raise ValueError(f"{len(failed)} of {len(jobs)} folds failed: {'; '.join(_lines(failed))}")
    say_folded(write_folded(way.out, jobs, config, fitter.data(config), folds, leakage), way)


def say_folded(table: OutOfFold, way: Way) -> None:
    """Say what all folds' predictions together score."""
    figures = out_of_fold_figures(table, interval=True)
    for name in FIGURES:
        low, high = figures[f"{name}_low"], figures[f"{name}_high"]
        way.say(
            f"{name}: {figures[name]:.4f} [{low:.4f}, {high:.4f}] over {figures['rows_scored']} recordings; "
            f"by fold {figures[f'{name}_fold_mean']:.4f} (sd {figures[f'{name}_fold_sd']:.4f})"
        )
    way.say(f"{way.out}: out_of_fold.csv, per_class.csv; next: trainer evaluate {way.out}")


@dataclass(frozen=True)
class Grid:
    """What a grid is to try: its file, which folds it holds out, and how it chooses.

    fold: the one to hold out; num_folds: or all of so many. nested: choose for each fold without it.
    """

    file: Path
    fold: str | None
    num_folds: int | None
    choose_by: str
    nested: bool


def fit_grid(fitter: Fitter, config: TrainConfig, grid: Grid, way: Way) -> None:
    """Train every setting of a file, with one fold held out or all in turn, and show a table."""
    if grid.num_folds:
        config = with_folds(config, grid.num_folds)
        folds = _all_folds(fitter, config, grid.num_folds)
        held_out = folds.names
    else:
        folds = _find_folds(fitter, config)
        held_out = [fold for fold in (folds.chosen(grid.fold),) if fold is not None]
        if not held_out:
            raise ValueError("a grid compares held-out scores: --fold none leaves none.")
    trials = read_grid(
        grid.file, as_sections(config), [*as_sections(FeatureConfig()), VIEWS, *as_sections(TuneConfig())]
    )
    for trial in trials:
        views_of(fitter.data(trials[0].config).store, trial.config.sampler.views)
    jobs = {trial.number: fold_jobs(way.out / trial.name, trial.config, held_out) for trial in trials}
    inner = inner_jobs(way.out, trials, folds) if grid.nested else []
    for job in [*jobs[0], *inner[: len(folds.names) ** 2]]:
        fitter.prepare(job)
    leakage = _leakage(fitter, config, folds, held_out, way)
    claim_folder(way.out, "grid", digest(as_sections(config)), resume=way.resume)
    failed = _run(fitter, [*itertools.chain(*jobs.values()), *inner], way, "grid")
    whole = [trial for trial in trials if not _is_below(failed, way.out / trial.name)]
    figures: dict[int, dict[str, float | int]] = {}
    for trial in whole:
        data, own = fitter.data(trial.config), jobs[trial.number]
        table = write_folded(way.out / trial.name, own, trial.config, data, folds, leakage)
        figures[trial.number] = out_of_fold_figures(table, interval=False)
    _write_grid(way.out, whole, figures)
    if whole:
        way.say(grid_text(whole, figures, grid.choose_by))
    if grid.nested:
        bad = {trial.title for trial in trials if trial not in whole}
        bad |= {trial.title for trial in trials if _is_below(failed, way.out / "inner" / trial.name)}
        _say_nested(fitter, [trial for trial in whole if trial.title not in bad], folds, way, grid.choose_by)
    else:
        way.say("the best row is chosen by the folds it is scored on, so its figures are a little too good; "
                "--folds with --nested gives honest ones")  # fmt: skip
    way.say(f"{way.out}/grid.csv; each setting's run: {way.out}/{trials[0].name}, ..")
    if failed:
        raise ValueError(f"{len(failed)} fits failed and are left out: {'; '.join(_lines(failed))}")


def _is_below(failed: dict[Path, str], folder: Path) -> bool:
    return any(path.is_relative_to(folder) for path in failed)


def _lines(failed: dict[Path, str]) -> list[str]:
    return [f"{path}: {error}" for path, error in list(failed.items())[:3]]


def _say_nested(fitter: Fitter, trials: Sequence[Trial], folds: Folds, way: Way, choose_by: str) -> None:
    if not trials:
        return
    chosen = choose(way.out, trials, folds, choose_by)
    for fold, seeds, score in chosen:
        way.say(f"fold {fold}: chose {seeds[0].title} ({choose_by} {score:.4f} on the others)")
    tables = chosen_tables(way.out, chosen)
    for seed, table in enumerate(tables):
        facts = {
            "kind": "folds",
            "runs": [],
            "remarks": [f"fold {f}: {seeds[0].title}" for f, seeds, _ in chosen],
        }
        config = chosen[0][1][seed].config
        write_table_run(way.out / "chosen" / f"seed{seed}", table, config, fitter.data(config), facts)
    figures = [out_of_fold_figures(table, interval=False) for table in tables]
    for name in FIGURES:
        values = [float(one[name]) for one in figures]
        way.say(f"{name} of what was chosen without seeing the fold: {mean_and_spread(values)}")
    way.say(f"{way.out}/chosen: its out-of-fold predictions, for trainer compare")


def _write_grid(out: Path, trials: Sequence[Trial], figures: dict[int, dict[str, float | int]]) -> None:
    rows = [
        {"run": trial.name, **trial.settings, "fit.seed": trial.seed, **figures[trial.number]}
        for trial in trials
    ]
    pd.DataFrame(rows).to_csv(out / "grid.csv", index=False)


def _run(fitter: Fitter, jobs: Sequence[Job], way: Way, unit: str) -> dict[Path, str]:
    """Run all jobs; return what went wrong, by folder."""
    done = run_jobs(fitter, jobs, workers=way.workers, resume=way.resume)
    failed = {}
    for job, error in tqdm(done, total=len(jobs), unit="fit", desc=unit, leave=False):
        if error is not None:
            failed[job.path] = error
    return failed


def _find_folds(fitter: Fitter, config: TrainConfig) -> Folds:
    with tqdm(unit="clip", desc="looking for duplicates", leave=False) as bar:
        return fitter.find_folds(config, bar.update)


def _all_folds(fitter: Fitter, config: TrainConfig, num_folds: int) -> Folds:
    """Find the folds; those of the metadata must be as many as asked for."""
    folds = _find_folds(fitter, config)
    folds.chosen(None)  # at least one can be held out
    if folds.given and len(folds.names) != num_folds:
        raise ValueError(
            f"the metadata's fold column has {len(folds.names)} folds ({', '.join(map(str, folds.names))}): "
            f"give --folds {len(folds.names)}, or build without the column."
        )
    return folds


def _leakage(
    fitter: Fitter, config: TrainConfig, folds: Folds, held_out: Sequence[int], way: Way
) -> dict[str, Any]:
    """Return the leakage report of each fold held out in turn, and say what there is to say."""
    data = fitter.data(config)
    reports = crossing_report(data.store.recordings, folds, data.has_clip(), held_out)
    for remark in folds.remarks:
        way.say(f"  {remark}")
    for fold in held_out:
        one = one_sided(folds.fold == fold, data.first_primary(), data.has_clip())
        for line in [*one, *leakage_lines(reports[str(fold)])]:
            way.say(f"  fold {fold}: {line}")
    return reports
