"""The command line of `trainer`. Heavy imports live inside the commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.command_line import SET_HELP, one_line_errors
from trainer.cli_results import (
    DEVICES,
    WEIGHTS_HELP,
    calibrate,
    compare,
    evaluate,
    export,
    predict,
    report,
    score,
)

if TYPE_CHECKING:
    from shared.store import FeatureStore
    from trainer.config import TrainConfig


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="dawnchorus")
def main() -> None:
    """Store in, runs and predictions out.

    \b
    Example:
      trainer fit --features features.zarr --out runs/first
      trainer evaluate runs/first
      trainer predict runs/first --audio soundscapes --out submission.csv
    """


for command in (evaluate, compare, predict, calibrate, score, report, export):
    main.add_command(command)


@main.command()
@click.option(
    "--features",
    required=True,
    type=click.Path(path_type=Path),
    help="A store of `featurestore build`.",
)
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default: runs/HEAD-DATE-TIME.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="TOML; default: the baseline.")
@click.option(
    "--taxonomy",
    type=click.Path(path_type=Path),
    help="CSV with primary_label, or a sample submission; default: the store's species.",
)
@click.option("--fold", help="Held-out fold, or 'none' to train on everything; default: the first.")
@click.option("--folds", type=click.IntRange(2), metavar="K", help="Hold out each of K folds in turn.")
@click.option(
    "--grid",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="TOML of settings to try, [[try]] tables whose lists are crossed; a table of scores at the end.",
)
@click.option(
    "--nested", is_flag=True, help="With --grid and --folds: choose for each fold without seeing it."
)
@click.option(
    "--choose-by",
    type=click.Choice(["macro_roc_auc", "cmap", "top1"]),
    help="The figure that orders a grid; default: macro_roc_auc.",
)
@click.option("--resume", is_flag=True, help="Go on where the same command was stopped.")
@click.option(
    "--workers", type=click.IntRange(1), help="Fits side by side, on a CPU; default: one a processor."
)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=SET_HELP)
@one_line_errors
def fit(
    features: Path, out: Path | None, config_path: Path | None, taxonomy: Path | None,
    fold: str | None, folds: int | None, grid: Path | None, nested: bool, choose_by: str | None, resume: bool,
    workers: int | None, device: str, overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Train a head on stored embedding maps.

    The held-out fold is scored after every epoch and never chosen by: the weights kept are the last
    epoch's, or with fit.patience those that were best on another fold, which is then not trained on.

    \b
    Example:
      trainer fit --features features.zarr --out runs/linear --set head.name=linear
      trainer fit --features features.zarr --out runs/all --folds 5
      trainer fit --features features.zarr --out runs/grid --folds 5 --grid heads.toml --nested
    """
    from shared.clip_array import num_processors
    from shared.embedder import choose_device
    from shared.store import FeatureStore
    from shared.taxonomy import Taxonomy, read_taxonomy
    from trainer import fit_command as commands
    from trainer.jobs import Fitter

    if folds and fold:
        raise ValueError("--fold holds out one fold, --folds all of them in turn: give one of the two.")
    if nested and not (grid and folds):
        raise ValueError("--nested chooses among the settings of --grid by --folds: give both.")
    if choose_by and not grid:
        raise ValueError("--choose-by orders the settings of --grid: give both.")
    if workers and not (grid or folds):
        raise ValueError("--workers is for the many fits of --folds and --grid.")
    if resume and not out:
        raise ValueError("--resume goes on in a run folder: name it with --out.")
    store = FeatureStore(features)
    config = _train_config(store, config_path, overrides)
    out = out or Path("runs") / f"{config.head.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    chosen = read_taxonomy(taxonomy) if taxonomy else Taxonomy(tuple(store.attributes["taxonomy"]))
    fitter = Fitter(features, chosen, choose_device(device))
    way = commands.Way(out, resume, workers or num_processors(), click.echo)
    if grid:
        wanted = commands.Grid(grid, fold, folds, choose_by or "macro_roc_auc", nested)
        commands.fit_grid(fitter, config, wanted, way)
    elif folds:
        commands.fit_folds(fitter, config, way, folds)
    else:
        commands.fit_one(fitter, config, way, fold)


def _train_config(store: FeatureStore, path: Path | None, overrides: tuple[str, ...]) -> TrainConfig:
    """Parse the trainer's sections; the features' sections must agree with the store's."""
    from shared.config import as_sections, differences, parse_config, read_sections
    from shared.features import FeatureConfig
    from shared.store import VIEWS
    from trainer.config import TrainConfig, TuneConfig
    from trainer.map_source import views_of

    sections = read_sections(path, overrides)
    feature_sections, tuning = as_sections(FeatureConfig()), as_sections(TuneConfig())
    for section in read_sections(None, overrides):
        if section == VIEWS:
            raise ValueError(
                "--set views: that is for `featurestore build`; what a head draws is sampler.views."
            )
        if section in tuning:
            raise ValueError(f"--set {section}: that is for `trainer finetune`; a head has no use for it.")
    config = parse_config(TrainConfig, sections, foreign=[*feature_sections, VIEWS, *tuning])
    views_of(store, config.sampler.views)
    given = {name: values for name, values in sections.items() if name in feature_sections}
    parse_config(FeatureConfig, given)
    given.pop("store", None)
    given.get("backbone", {}).pop("weights", None)
    built = store.attributes["config"]
    found = {name: {key: built[name][key] for key in values} for name, values in given.items()}
    changed = differences(found, given)
    if changed:
        raise ValueError(
            f"{store.path} was built from another config; these differ (store -> config): "
            f"{'; '.join(changed)}. Build it again with `featurestore build`, or pass the config "
            "it was built with."
        )
    return config


@main.command()
@click.option(
    "--features", required=True, type=click.Path(path_type=Path), help="The head's store, with waveforms."
)
@click.option(
    "--init",
    required=True,
    type=click.Path(path_type=Path),
    help="Run of `trainer fit` to begin with: one head, or one of all folds.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Run folder.")
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="TOML with [augment], [mixing], [finetune]; default: the baseline.",
)
@click.option("--resume", is_flag=True, help="Go on where the same command was stopped.")
@click.option("--weights", default="", metavar="FILE", help=WEIGHTS_HELP)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help=SET_HELP)
@one_line_errors
def finetune(
    features: Path, init: Path, out: Path, config_path: Path | None, resume: bool, weights: str, device: str,
    overrides: tuple[str, ...],
) -> None:  # fmt: skip
    """Train a head's backbone too, end to end on augmented waveforms.

    Labels, split, held-out fold and head are those of the run it begins with, so that the figures
    compare. It starts at that run's score, which is said as epoch 0.

    \b
    Example:
      trainer finetune --features features.zarr --init runs/first --out runs/tuned
      trainer finetune --features features.zarr --init runs/all --out runs/all-tuned --set finetune.epochs=5
    """
    from shared.embedder import choose_device
    from trainer import finetune_command as commands
    from trainer.fit_command import Way

    tune = commands.read_tune_config(config_path, overrides)
    commands.finetune(features, init, tune, Way(out, resume, 1, click.echo), choose_device(device), weights)
