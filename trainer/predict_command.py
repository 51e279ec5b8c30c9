"""`trainer predict`: what its options mean together, and what it says."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from tqdm import tqdm

from shared.command_line import size_text
from shared.config import digest
from shared.embedder import choose_device
from shared.lock import locked
from shared.page import need_page_packages, refuse_other_file
from shared.stopping import stopping_only_at
from trainer.clip_files import num_clips, write_clips
from trainer.ensemble import Ensemble
from trainer.event_tables import FORMATS, Band, event_path
from trainer.events import EventRules
from trainer.frame_files import FrameWriter
from trainer.opening import Opening, identity_of, open_ensemble
from trainer.parts import Parts
from trainer.predict import Predictor
from trainer.prediction_job import PredictionJob, Report, job_facts
from trainer.prediction_pages import Heard, Limits, PredictionPages, write_pages
from trainer.pseudo_labels import write_pseudo_labels
from trainer.recordings import find_recordings
from trainer.submission import Layout, read_sample_submission

PSEUDO_MIN = 0.5
UNSEEN_IN_FRAMES = ("columns", "sample", "events", "threshold", "smoothing", "frames")


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """The options of `trainer predict`; began: when the program began, by time.monotonic."""

    runs: tuple[Path, ...]
    audio: Path
    out: Path
    sample_submission: Path | None = None
    overlap: float = 0.0
    smoothing: float = 0.0
    engine: str = "auto"
    precision: str | None = None
    budget_minutes: float = 0.0
    events: tuple[str, ...] = ()
    threshold: float | None = None
    rules: EventRules
    frames: Path | None = None
    clips: Path | None = None
    clips_per_species: int = 20
    as_metadata: Path | None = None
    pseudo_min: float | None = None
    calibrated: bool = True
    overwrite: bool = False
    break_lock: bool = False
    png: Path | None = None
    svg: Path | None = None
    html: Path | None = None
    html_most: int = 200
    truth: Path | None = None
    weights: str | None = None
    device: str = "auto"
    began: float = 0.0


def predict_recordings(request: PredictRequest) -> None:
    """Predict, write everything that was asked for, and say what was done.

    Raises:
        ValueError: what cannot be done, before anything is written.
        Stopped: a signal came; what is done is on the disk.
    """
    if request.truth and not (request.png or request.svg):
        raise ValueError("--truth is for the pictures of --png and --svg: give one of them.")
    if request.html:
        need_page_packages()
        refuse_other_file(request.html / "index.html")
    if request.html_most < 1:
        raise ValueError(f"--html-most must be at least 1, got {request.html_most}.")
    if request.threshold is not None and not 0 < request.threshold < 1:
        raise ValueError(f"--threshold is a probability between 0 and 1, got {request.threshold:g}.")
    if request.clips_per_species < 1:
        raise ValueError(f"--clips-per-species must be at least 1, got {request.clips_per_species}.")
    if request.pseudo_min is not None and not request.as_metadata:
        raise ValueError("--pseudo-min is for the labels of --as-metadata: give both.")
    if request.pseudo_min is not None and not 0 < request.pseudo_min <= 1:
        raise ValueError(f"--pseudo-min is a probability above 0, got {request.pseudo_min:g}.")
    if request.budget_minutes < 0:
        raise ValueError(f"--budget-minutes must be positive, got {request.budget_minutes:g}.")
    sample = read_sample_submission(request.sample_submission) if request.sample_submission else None
    recordings = find_recordings(request.audio)
    if not recordings and sample is None:
        raise ValueError(f"{request.audio} holds no recordings; for a dry run give --sample-submission.")
    predictor = Predictor(_opened(request), request.overlap, request.smoothing)
    ensemble = predictor.ensemble
    layout = Layout(ensemble.taxonomy, ensemble.prior, ensemble.segment_seconds, sample)
    threshold = ensemble.threshold
    if request.threshold is not None:
        threshold = np.full_like(threshold, request.threshold)
    parts = Parts(request.out)
    runs = identity_of(request.runs, calibrated=request.calibrated)
    place = str(request.frames.absolute()) if request.frames else ""
    facts = job_facts(predictor, runs, request.rules, threshold, layout, place, request.precision or "")
    with locked(request.out, break_lock=request.break_lock), closing(parts):
        parts.open(facts, request.out, overwrite=request.overwrite)
        frames = _frame_writers(request, ensemble, parts.folder, facts)
        job = PredictionJob(
            predictor, recordings, request.out, layout, parts, request.rules, threshold, request.began,
            60 * request.budget_minutes, frames,
        )  # fmt: skip
        _say(request.out, _run(job))
        _write_events(request, job)
        if request.html:
            _write_pages(request.html, request.html_most, job, request.runs, _frames_digest(facts))
        if request.as_metadata:
            _write_pseudo_labels(request.as_metadata, request.pseudo_min or PSEUDO_MIN, job)
    pictures = {"png": request.png, "svg": request.svg}
    if request.png or request.svg:
        _draw(job, {kind: folder for kind, folder in pictures.items() if folder}, request.truth)


def _frame_writers(
    request: PredictRequest, ensemble: Ensemble, parts: Path, facts: dict[str, Any]
) -> tuple[FrameWriter, ...]:
    """Return what keeps frames: for the user, and for the pages in full precision; the pages' is last."""
    given = ensemble.taxonomy, ensemble.frame_seconds, _frames_digest(facts)
    writers = []
    if request.frames:
        writers.append(FrameWriter(request.frames, *given, overwrite=request.overwrite))
    if request.html:
        writers.append(FrameWriter(parts / "frames", *given, overwrite=True, kind=np.float32))
    return tuple(writers)


def _frames_digest(facts: dict[str, Any]) -> str:
    return digest({key: value for key, value in facts.items() if key not in UNSEEN_IN_FRAMES})


def _opened(request: PredictRequest) -> Ensemble:
    engine = "" if request.engine == "auto" else request.engine
    opening = Opening(
        choose_device(request.device),
        request.weights,
        engine=engine,
        precision=request.precision or "",
        calibrated=request.calibrated,
    )
    return open_ensemble(request.runs, opening)


def _run(job: PredictionJob) -> Report:
    job.prepare()
    with (
        tqdm(total=job.num_windows, unit="window", desc="predicting", smoothing=0.05) as bar,
        stopping_only_at("after the windows in flight") as stop_if_asked,
    ):
        return job.run(bar.update, stop_if_asked)


def _say(out: Path, report: Report) -> None:
    skipped = f", {report.num_skipped} of them done before" if report.num_skipped else ""
    click.echo(f"{out}: {report.num_rows} rows from {report.num_recordings} recordings{skipped}")
    for remark in report.remarks:
        click.echo(f"  {remark}", err=True)


def _write_events(request: PredictRequest, job: PredictionJob) -> None:
    if not request.events and not request.clips:
        return
    mel, found = job.predictor.ensemble.mel, job.detections()
    band = Band(mel.fmin_hz, mel.fmax_hz)
    num_events = sum(len(one.events) for one in found)
    for kind in dict.fromkeys(request.events):
        path = event_path(request.out, kind)
        FORMATS[kind][1](found, path, band)
        click.echo(f"{path}: {num_events} events")
    if request.clips and job.time_is_over():
        click.echo(
            f"  no time is left for {request.clips}; the same command without a budget cuts them", err=True
        )
    elif request.clips:
        total = num_clips(found, request.clips_per_species)
        with tqdm(total=total, unit="clip", desc="cutting clips", leave=False) as bar:
            num, problems = write_clips(found, request.clips, request.clips_per_species, bar.update)
        click.echo(f"{request.clips}: {num} clips, the best {request.clips_per_species} of each species")
        for problem in problems:
            click.echo(f"  {problem}", err=True)


def _write_pages(folder: Path, most: int, job: PredictionJob, runs: tuple[Path, ...], of: str) -> None:
    if job.time_is_over():
        click.echo(f"  no time is left for {folder}; the same command without a budget makes it", err=True)
        return
    pages = PredictionPages(folder, job.predictor, job.rules, job.threshold, of[:16])
    done = job.parts.done
    heard = [
        Heard(one, "; ".join(done[one.recording.relative].reasons if one.recording.relative in done else ()))
        for one in job.detections()
    ]
    with tqdm(unit="page", desc="writing pages", leave=False) as bar:
        limits = Limits(most, job.time_is_over)
        entries, left_out = write_pages(pages, heard, job.frames[-1], limits, bar.update)
    size = pages.write_index(entries, runs, left_out) + sum(one.num_bytes for one in entries)
    num = sum(len(one.links) for one in entries)
    why = "no time is left for them" if job.time_is_over() else "with fewer detections; --html-most"
    more = f"; {left_out} are left out ({why})" if left_out else ""
    click.echo(f"{folder / 'index.html'}: {num} pages, {size_text(size)}{more}")


def _write_pseudo_labels(path: Path, at_least: float, job: PredictionJob) -> None:
    done = [one for one in job.recordings if one.relative in job.parts.done]
    ensemble, layout = job.predictor.ensemble, job.layout
    found = write_pseudo_labels(
        path, done, job.parts.rows_of, layout.species, layout.prior, ensemble.segment_seconds, at_least
    )
    click.echo(
        f"{path}: {found.segments} of {found.looked_at} segments are sure enough ({at_least:g}), "
        f"{found.rows} labels in {found.recordings} recordings"
    )


def _draw(job: PredictionJob, folders: dict[str, Path], truth: Path | None) -> None:
    from trainer.evaluate import read_events
    from trainer.figure import draw_recording

    events = read_events(truth) if truth else None
    for recording in job.recordings:
        if job.time_is_over():
            click.echo(f"  no time is left for the picture of {recording.relative} and the rest", err=True)
            break
        here = events[events["stem"] == recording.path.stem] if events is not None else None
        try:
            for path in draw_recording(job.predictor, recording.path, folders, here):
                click.echo(f"  {path}")
        except ValueError as error:
            click.echo(f"  no picture of {recording.relative}: {error}", err=True)
