"""The command line of `trainer`. Heavy imports live inside the commands."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shared.command_line import SET_HELP, one_line_errors, text_table

if TYPE_CHECKING:
    from shared.store import FeatureStore
    from trainer.config import TrainConfig
    from trainer.predict import Predictor
    from trainer.run import Run

DEVICES = click.Choice(["auto", "cpu", "cuda"])
WEIGHTS_HELP = "Backbone weights, where the features were built from a file."


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


@main.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="Default: the store that the run was trained on.",
)
@click.option(
    "--audio",
    type=click.Path(path_type=Path),
    help="Score segments of these soundscapes as well; with --truth.",
)
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    help="CSV of events: filename, species, start, stop (s).",
)
@click.option("--weights", metavar="FILE", help=WEIGHTS_HELP)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One flat JSON object per run.")
@one_line_errors
def evaluate(
    runs: tuple[Path, ...], features: Path | None, audio: Path | None, truth: Path | None,
    weights: str | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Score the held-out recordings of one or several runs, with 95 % bootstrap intervals.

    A recording's score is the mean of its clips' logits. Macro ROC-AUC is over the classes with
    a positive, as in BirdCLEF 2024. With --audio and --truth, the segments of soundscapes are
    scored against their events too; that interval takes segments as independent, and is too
    narrow where neighbours are alike.

    \b
    Example:
      trainer evaluate runs/chrononet runs/linear --json
    """
    from shared.embedder import choose_device
    from trainer import evaluate_command as commands
    from trainer.run import load_run, read_facts

    if bool(audio) != bool(truth):
        raise ValueError("--audio and --truth belong together: give both or none.")
    if weights and not audio:
        raise ValueError("--weights is for --audio: stored features need no backbone.")
    torch_device = choose_device(device)
    tables: dict[str, dict[str, Any]] = {}
    for path in runs:
        if read_facts(path).get("kind") == "folds":
            if audio or features:
                raise ValueError(
                    f"{path} holds predictions of several heads: with --audio or --features name one head's "
                    "run, as fold1 below a run of --folds."
                )
            tables[str(path)] = commands.folded_scores(path)
            continue
        run = load_run(path)
        table = commands.held_out_scores(run, features, torch_device)
        if audio and truth:
            from trainer.predict import Predictor

            segments = commands.segment_scores(Predictor(run, torch_device, weights), audio, truth)
            table |= {f"segment_{name}": value for name, value in segments.items()}
        tables[str(path)] = {"head": run.train.head.name + (", tuned" if run.tune else ""), **table}
    if as_json:
        for table in tables.values():
            click.echo(json.dumps({k: None if v != v else v for k, v in table.items()}, indent=2))
    else:
        click.echo(commands.scores_text(tables))


@main.command()
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object per figure.")
@one_line_errors
def compare(run_a: Path, run_b: Path, as_json: bool) -> None:
    """Ask whether run B is better than run A: a paired bootstrap over the recordings both held out.

    A run is a folder of `trainer fit`, or any out_of_fold.csv of that form. A folder of several such
    runs, one a seed, counts by the mean over them.

    \b
    Example:
      trainer compare runs/linear runs/chrononet
    """
    import dataclasses

    from tqdm import tqdm

    from trainer.compare import compare_sides as compared
    from trainer.metrics import BOOTSTRAP_SAMPLES
    from trainer.out_of_fold import read_side

    a, b = read_side(run_a), read_side(run_b)
    with tqdm(total=BOOTSTRAP_SAMPLES, unit="sample", desc="comparing", leave=False) as bar:
        num, found = compared(a, b, bar.update)
    if as_json:
        for one in found:
            click.echo(json.dumps(dataclasses.asdict(one)))
        return
    rows = [
        [one.figure, f"{one.a:.4f}", f"{one.b:.4f}", f"{one.b - one.a:+.4f}",
         f"[{one.low:+.4f}, {one.high:+.4f}]", f"{one.share_better:.3f}", one.verdict]
        for one in found
    ]  # fmt: skip
    header = ["figure", "A", "B", "B - A", "95 % interval", "samples with B better", "verdict"]
    click.echo(f"A: {run_a}\nB: {run_b}\n{num} recordings\n{text_table(header, rows)}")


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--audio",
    required=True,
    type=click.Path(path_type=Path),
    help="A recording, or a folder of them.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The submission, as in submission.csv.",
)
@click.option(
    "--sample-submission",
    type=click.Path(path_type=Path),
    help="Gives columns, their order, and rows for a dry run.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path),
    help="Folder for a picture per recording (needs matplotlib).",
)
@click.option(
    "--truth",
    type=click.Path(path_type=Path),
    help="Events to underline in the pictures: filename, species, start, stop (s).",
)
@click.option("--weights", metavar="FILE", help=WEIGHTS_HELP)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@one_line_errors
def predict(
    run: Path, audio: Path, out: Path, sample_submission: Path | None, png: Path | None,
    truth: Path | None, weights: str | None, device: str,
) -> None:  # fmt: skip
    """Write a row of probabilities for every 5-second segment of every recording.

    \b
    Example:
      trainer predict runs/first --audio unlabeled_soundscapes --out submission.csv \\
          --sample-submission sample_submission.csv
    """
    from tqdm import tqdm

    from shared.embedder import choose_device
    from trainer.predict import (
        Predictor,
        find_recordings,
        read_sample_submission,
        write_submission,
    )
    from trainer.run import load_run

    if truth and not png:
        raise ValueError("--truth is for the pictures of --png: give both.")
    opened: Run = load_run(run)
    sample = read_sample_submission(sample_submission) if sample_submission else None
    recordings = find_recordings(audio)
    if not recordings and sample is None:
        raise ValueError(f"{audio} holds no recordings; for a dry run give --sample-submission.")
    predictor = Predictor(opened, choose_device(device), weights)
    with tqdm(total=len(recordings), unit="recording", desc="predicting") as bar:
        report = write_submission(predictor, recordings, out, sample, bar.update)
    click.echo(f"{out}: {report.num_rows} rows from {report.num_recordings} recordings")
    for remark in report.remarks:
        click.echo(f"  {remark}", err=True)
    if png:
        _draw(predictor, recordings, png, truth)


def _draw(predictor: Predictor, recordings: list[Path], folder: Path, truth: Path | None) -> None:
    from trainer.evaluate import read_events
    from trainer.figure import draw_recording

    events = read_events(truth) if truth else None
    for path in recordings:
        here = events[events["stem"] == path.stem] if events is not None else None
        try:
            click.echo(f"  {draw_recording(predictor, path, folder, here)}")
        except ValueError as error:
            click.echo(f"  no picture of {path.name}: {error}", err=True)
