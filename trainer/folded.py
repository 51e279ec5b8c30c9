"""A run of all folds: a run folder per fold below it, and the out-of-fold predictions joined."""

import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from shared.taxonomy import write_taxonomy
from trainer.config import TrainConfig, TuneConfig
from trainer.data import ClipData, feature_config
from trainer.evaluate import write_class_table
from trainer.fit import store_facts
from trainer.jobs import Job
from trainer.metrics import FIGURES
from trainer.out_of_fold import FILE, OutOfFold, joined, read_out_of_fold, write_out_of_fold
from trainer.run import read_facts, software_versions, write_config, write_facts, write_json
from trainer.splits import Folds


def fold_jobs(path: Path, config: TrainConfig, held_out: Sequence[int]) -> list[Job]:
    """Return a job per fold to hold out, each in a folder of its own below `path`."""
    return [Job(path / f"fold{fold}", config, (fold,)) for fold in held_out]


def write_folded(
    path: Path,
    jobs: Sequence[Job],
    config: TrainConfig,
    data: ClipData,
    folds: Folds,
    leakage: dict[str, Any],
    tune: TuneConfig | None = None,
) -> OutOfFold:
    """Join the finished folds' predictions in the run folder `path`; return them.

    leakage: the report of every fold held out in turn.
    """
    table = joined([read_out_of_fold(job.path) for job in jobs])
    facts = {**read_facts(path)} if (path / "run.json").is_file() else {}
    facts |= {"kind": "folds", "runs": [job.path.name for job in jobs], "remarks": list(folds.remarks)}
    write_table_run(path, table, config, data, facts, tune)
    write_json(path / "leakage.json", leakage)
    split = data.store.recordings[["source", "filename", "xc_id", "sha256"]].copy()
    split["primary_label"], split["fold"] = data.first_primary(), folds.fold
    pd.DataFrame(split).to_csv(path / "split.csv", index=False)
    return table


def write_table_run(
    path: Path,
    table: OutOfFold,
    config: TrainConfig,
    data: ClipData,
    facts: dict[str, Any],
    tune: TuneConfig | None = None,
) -> None:
    """Write a run folder that holds a table of predictions instead of a head."""
    path.mkdir(parents=True, exist_ok=True)
    write_config(path, feature_config(data.store), config, tune)
    write_taxonomy(table.taxonomy, path / "taxonomy.csv")
    write_class_table(table.scores(), table.taxonomy, path / "per_class.csv")
    write_out_of_fold(table, path / FILE)
    write_facts(path, {**store_facts(data), **facts, "finished": True, "software": software_versions()})


def out_of_fold_figures(table: OutOfFold, *, interval: bool) -> dict[str, float | int]:
    """Return the figures over all recordings, and mean and deviation over the folds' own.

    Over all recordings, scores of different heads are ranked together; a class that is rare has more
    positives there than in any fold.
    """
    figures = table.scores().table(interval=interval)
    by_fold = [table.of_folds(fold).scores().table(interval=False) for fold in table.folds]
    for name in FIGURES:
        values = [float(one[name]) for one in by_fold if one[name] == one[name]]
        figures[f"{name}_fold_mean"] = statistics.fmean(values) if values else float("nan")
        figures[f"{name}_fold_sd"] = statistics.stdev(values) if len(values) > 1 else float("nan")
    return figures | {"folds": len(table.folds)}


def head_name(path: Path) -> str:
    """Return the head's name of a run of folds, and whether its network was tuned."""
    sections = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
    return str(sections["head"]["name"]) + (", tuned" if "finetune" in sections else "")


def with_folds(config: TrainConfig, num_folds: int) -> TrainConfig:
    """Return the config with that many folds to compute."""
    return replace(config, split=replace(config.split, folds=num_folds))
