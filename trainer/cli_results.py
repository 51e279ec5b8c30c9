"""The commands of `trainer` that use what was trained. Heavy imports live inside the commands."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from shared.command_line import one_line_errors, stoppable_exit, text_table

DEVICES = click.Choice(["auto", "cpu", "cuda"])
ENGINES = click.Choice(["auto", "torch", "onnxruntime", "openvino"])
WEIGHTS_HELP = "Backbone weights, where the features were built from a file."
PATH = click.Path(path_type=Path)


@click.command()
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
            segments = commands.segment_scores(path, torch_device, weights, audio, truth)
            table |= {f"segment_{name}": value for name, value in segments.items()}
        tables[str(path)] = {"head": run.train.head.name + (", tuned" if run.tune else ""), **table}
    if as_json:
        for table in tables.values():
            click.echo(json.dumps({k: None if v != v else v for k, v in table.items()}, indent=2))
    else:
        click.echo(commands.scores_text(tables))


@click.command()
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


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--audio", required=True, type=PATH, help="A recording, or a folder of them.")
@click.option("--out", required=True, type=PATH, help="The submission, as in submission.csv.")
@click.option("--sample-submission", type=PATH, help="Gives columns, their order, and rows for a dry run.")
@click.option(
    "--overlap", default=0.0, show_default=True, help="Share of a window that the next one covers too."
)
@click.option(
    "--smoothing", default=0.0, show_default=True, help="What a neighbouring segment counts against its own."
)
@click.option(
    "--engine",
    type=ENGINES,
    default="auto",
    show_default=True,
    help="What runs the backbone; auto: as the config says.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default=None,
    help="What the backbone computes in (of an exported model all of it); default: as in training, fp32 "
    "for an exported model.",
)
@click.option(
    "--budget-minutes",
    default=0.0,
    help="Score no longer: sheds overlap, then backbones (the last run's first), then recordings.",
)
@click.option(
    "--events",
    type=click.Choice(["csv", "raven", "audacity"]),
    multiple=True,
    help="Events too, beside the submission. May be repeated.",
)
@click.option("--threshold", type=float, help="Of events, for all species; default: the run's own, or 0.5.")
@click.option("--event-join", default=0.0, help="Seconds: gaps in an event up to this are closed.")
@click.option("--event-min", default=0.0, help="Seconds: shorter events are left out.")
@click.option("--event-pad", default=0.0, help="Seconds added before and behind an event.")
@click.option("--frames", type=PATH, help="Folder for the frame-wise probabilities, a .npy per recording.")
@click.option("--clips", type=PATH, help="Folder for the best detections of each species, as wav files.")
@click.option("--clips-per-species", default=20, show_default=True, help="How many of them.")
@click.option(
    "--as-metadata", type=PATH, help="CSV of pseudo-labels, for `featurestore build --external CSV=AUDIO`."
)
@click.option(
    "--pseudo-min",
    type=float,
    help="Probability that a segment's best species must have to be labelled; default: 0.5.",
)
@click.option("--uncalibrated", is_flag=True, help="Ignore the runs' calibrations and thresholds.")
@click.option("--break-lock", is_flag=True, help="Take over an --out that another host seems to write.")
@click.option("--overwrite", is_flag=True, help="Begin anew where --out was begun otherwise.")
@click.option(
    "--html", type=PATH, help="Folder for a page per recording, to look, listen and review, and index.html."
)
@click.option(
    "--html-most", default=200, show_default=True, help="Pages at most, those with most events first."
)
@click.option("--png", type=PATH, help="Folder for a picture per recording (needs matplotlib).")
@click.option("--svg", type=PATH, help="The same as svg.")
@click.option(
    "--truth", type=PATH, help="Events to underline in the pictures: filename, species, start, stop (s)."
)
@click.option("--weights", metavar="FILE", help=WEIGHTS_HELP)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@one_line_errors
def predict(
    event_join: float, event_min: float, event_pad: float, uncalibrated: bool, **options: Any
) -> None:
    """Write a row of probabilities for every 5-second segment of every recording, and events.

    RUNS are run folders, or models of `trainer export`. Several of them, and the folds of one, are averaged
    as logits. What was done is kept in .OUT.parts: the
    same command goes on behind a kill, and with recordings that came since. Before the first window is
    scored the submission is whole: what is not reached, or cannot be read, has the species' prior.

    \b
    Example:
      trainer predict runs/first --audio unlabeled_soundscapes --out submission.csv \\
          --sample-submission sample_submission.csv
      trainer predict runs/all --audio recorder --out week.csv --events raven --clips heard --overlap 0.5
    """
    began = time.monotonic()
    from trainer.events import EventRules
    from trainer.predict_command import PredictRequest, predict_recordings

    rules = EventRules(join=event_join, shortest=event_min, pad=event_pad)
    with stoppable_exit():
        predict_recordings(PredictRequest(rules=rules, calibrated=not uncalibrated, began=began, **options))


@click.command()
@click.argument("run", type=PATH)
@click.option("--precision", type=float, help="Thresholds for this share of right ones; default: best F1.")
@click.option("--no-call-minutes", default=5.0, show_default=True, help="Of each kind of noise; 0: none.")
@click.option("--no-call", type=PATH, help="Recordings without a call, to count false alarms in.")
@click.option("--weights", metavar="FILE", help=WEIGHTS_HELP)
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
@one_line_errors
def calibrate(
    run: Path, precision: float | None, no_call_minutes: float, no_call: Path | None, weights: str | None,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """Make a run's probabilities mean something, by its out-of-fold predictions.

    Per species a slope and an offset on the logit, drawn to those of all species where there are few
    recordings; and the probability to act on. `trainer predict` uses them from then on. Then it
    listens to noise, rain, wind and silence, and says how often it hears a bird there.

    \b
    Example:
      trainer calibrate runs/all --precision 0.9
    """
    from tqdm import tqdm

    from shared.embedder import choose_device
    from trainer.calibrate_command import calibrate_run, calibration_text

    with tqdm(unit="window", desc="listening where nobody calls", leave=False) as bar:
        facts = calibrate_run(
            run, precision, no_call, no_call_minutes, choose_device(device), weights, bar.update
        )
    click.echo(json.dumps(facts, indent=2) if as_json else calibration_text(run, facts))


@click.command()
@click.argument("run", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder of the model.")
@click.option("--openvino", is_flag=True, help="Write OpenVINO's own form too (model.xml).")
@click.option(
    "--features", type=PATH, help="Store to count licences and authors in; default: that of the training."
)
@click.option("--weights", metavar="FILE", help=WEIGHTS_HELP)
@click.option("--overwrite", is_flag=True, help="Replace a model that is there.")
@one_line_errors
def export(
    run: Path, out: Path, openvino: bool, features: Path | None, weights: str | None, overwrite: bool
) -> None:
    """Write a run, or all folds of one, as a model that runs without it, and without Dawnchorus.

    One ONNX graph takes images and one takes waveforms; both give calibrated probabilities per clip and
    frame. With them: weights, config, species, calibration, a model card, and whom the training recordings
    are by. `trainer predict` takes the folder in place of a run.

    \b
    Example:
      trainer export runs/all --out model --openvino
      trainer predict model --audio soundscapes --out submission.csv --engine openvino
    """
    from shared.command_line import size_text
    from trainer.export_command import export_run

    export_run(
        run, out, openvino=openvino, features=features, weights=weights, overwrite=overwrite,
        say=lambda line: click.echo(f"  {line}"),
    )  # fmt: skip
    size = sum(file.stat().st_size for file in out.iterdir())
    click.echo(f"{out}: {size_text(size)}; {out / 'README.md'} says what it is")


@click.command()
@click.argument("runs", nargs=-1, required=True, type=PATH)
@click.option("--out", required=True, type=PATH, help="The page, as in run.html.")
@click.option("--features", type=PATH, help="Store of the clips to show; default: that of the training.")
@click.option("--mistakes", default=8, show_default=True, help="False alarms to look at, and as many misses.")
@click.option("--png", type=PATH, help="Folder for the charts as png, for papers.")
@click.option("--svg", type=PATH, help="Folder for the charts as svg.")
@click.option("--device", type=DEVICES, default="auto", show_default=True)
@one_line_errors
def report(
    runs: tuple[Path, ...], out: Path, features: Path | None, mistakes: int, png: Path | None,
    svg: Path | None, device: str,
) -> None:  # fmt: skip
    """Write one HTML page of a run, or of several side by side.

    Curves, scores of every species with intervals, calibration, confusions, a map of the clips, the most
    confident mistakes to look at and listen to, the split and what leaks through it, config and provenance.

    \b
    Example:
      trainer report runs/attention runs/linear --out runs.html
    """
    from shared.embedder import choose_device
    from trainer.report import ReportRequest, write_report

    write_report(
        ReportRequest(
            runs=runs, out=out, features=features, mistakes=mistakes, png=png, svg=svg,
            device=choose_device(device),
        ),
        click.echo,
    )  # fmt: skip


@click.command()
@click.option("--events", required=True, type=PATH, help="Found events: filename, species, start, stop (s).")
@click.option("--truth", required=True, type=PATH, help="True events, of the same form.")
@click.option("--frames", type=PATH, help="Frame-wise probabilities of `trainer predict --frames`.")
@click.option("--segment", default=1.0, show_default=True, help="Length of a segment, in seconds.")
@click.option(
    "--collar", multiple=True, type=float, default=(0.2, 0.5), show_default=True, help="In seconds."
)
@click.option("--json", "as_json", is_flag=True, help="One flat JSON object.")
@one_line_errors
def score(
    events: Path, truth: Path, frames: Path | None, segment: float, collar: tuple[float, ...], as_json: bool
) -> None:
    """Score events against strong labels: segment-based and event-based F1, as in sed_eval.

    An event is right when one of its species begins within the collar of it and ends within the
    collar, or half the true event's length, of its end.

    \b
    Example:
      trainer predict runs/all --audio soundscapes --out s.csv --events csv --frames frames
      trainer score --events s.events.csv --truth truth.csv --frames frames
    """
    from trainer.score_command import score_events, score_text

    figures = score_events(events, truth, frames, segment, collar)
    if as_json:
        click.echo(json.dumps({k: None if v != v else v for k, v in figures.items()}, indent=2))
    else:
        click.echo(score_text(figures))
