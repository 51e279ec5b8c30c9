"""`trainer report`: one or several runs as one HTML page."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from shared.charts import Chart, refuse_files, save_charts
from shared.command_line import size_text
from shared.documents import UNREADABLE
from shared.page import data_uri, need_page_packages, refuse_other_file, write_page
from shared.store import FeatureStore
from trainer import report_charts as draw
from trainer.calibrate import ENOUGH_POSITIVES
from trainer.calibration import Calibration, no_calibration, read_calibration
from trainer.compare import Difference, compare_sides
from trainer.evaluate import check_same_features
from trainer.folded import head_name, out_of_fold_figures
from trainer.leakage import leakage_lines
from trainer.metrics import BOOTSTRAP_SAMPLES
from trainer.opening import members_of
from trainer.out_of_fold import FILE, KEYS, OutOfFold, read_out_of_fold
from trainer.report_map import map_clips
from trainer.report_mistakes import Mistake, MistakeShower, worst
from trainer.report_scores import ClassRow, Confusions, Reliability, before_and_after, class_rows, confusions
from trainer.run import Run, read_facts

SPLIT_ROWS = 200
PAIRS_LISTED = 40


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """The options of `trainer report`."""

    runs: tuple[Path, ...]
    out: Path
    features: Path | None = None
    mistakes: int = 8
    png: Path | None = None
    svg: Path | None = None
    device: torch.device


@dataclass
class ReportedRun:
    """A run with everything that its page shows; what could not be made has its reason in `left_out`."""

    number: int
    name: str
    facts: dict[str, Any]
    config: str
    head: str
    members: list[Run]
    table: OutOfFold | None
    calibration: Calibration | None
    split: pd.DataFrame
    leakage: list[str]
    history: list[list[dict[str, Any]]]
    figures: dict[str, float | int] = field(default_factory=dict)
    classes: list[ClassRow] = field(default_factory=list)
    reliability: tuple[Reliability, Reliability | None] | None = None
    confused: Confusions | None = None
    mistakes: list[Mistake] = field(default_factory=list)
    charts: dict[str, Chart] = field(default_factory=dict)
    map_species: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def holds_out(self) -> bool:
        """Tell whether some recordings were held out."""
        return "side" not in self.split or bool((self.split["side"] == "validation").any())

    @property
    def sides(self) -> list[tuple[str, int]]:
        """How many recordings are on each side of the split, or in each fold."""
        column = "side" if "side" in self.split else "fold"
        counts = self.split[column].astype(str).value_counts().sort_index()
        return [(f"fold {key}" if column == "fold" else str(key), int(num)) for key, num in counts.items()]

    @property
    def split_rows(self) -> list[list[str]]:
        """The first recordings of the split, as text."""
        return [list(map(str, row)) for row in self.split.head(SPLIT_ROWS).to_numpy()]

    @property
    def split_file(self) -> str:
        """The whole split as a packed CSV, in a data: address."""
        content = self.split.to_csv(index=False).encode()
        return data_uri(gzip.compress(content, mtime=0), "application/gzip")

    @property
    def facts_text(self) -> str:
        """What run.json says."""
        return json.dumps(self.facts, indent=1, ensure_ascii=False)


def write_report(request: ReportRequest, say: Callable[[str], object]) -> None:
    """Write the page, and the pictures that were asked for.

    Raises:
        ValueError: no run, a package is missing, the store holds other features, or `out` is something else.
    """
    need_page_packages("sklearn")
    refuse_other_file(request.out)
    if request.mistakes < 0:
        raise ValueError(f"--mistakes must not be negative, got {request.mistakes}.")
    if len(set(request.runs)) < len(request.runs):
        raise ValueError("a run is named twice.")
    refuse_files(request.png, request.svg)
    runs = [read_run(path, number) for number, path in enumerate(request.runs, 1)]
    for run in runs:
        _score(run)
        _compare(runs[0], run)
        _look_at_clips(run, request)
    histories = {run.name: run.history for run in runs}
    curves = [chart for key in draw.TITLES if (chart := draw.curve(histories, key))]
    beside = species_beside(runs)
    title = f"Run: {runs[0].name}" if len(runs) == 1 else f"{len(runs)} runs, side by side"
    size = write_page(
        request.out, "run.html", "trainer", title=title, runs=runs, curves=curves, pairs_listed=PAIRS_LISTED,
        split_rows=SPLIT_ROWS, beside=beside, few=ENOUGH_POSITIVES,
    )  # fmt: skip
    say(f"{request.out}: {size_text(size)}")
    charts = [*curves, *(chart for run in runs for chart in run.charts.values())]
    for folder, kind in ((request.png, "png"), (request.svg, "svg")):
        if folder:
            say(f"{folder}: {len(save_charts(charts, folder, kind))} charts as {kind}")


def species_beside(runs: list[ReportedRun]) -> list[tuple[str, int, list[ClassRow | None]]]:
    """Return every species with its positives in the first run that scores it, and each run's row of it.

    Those that differ most from the first run come first.
    """
    by_run = [{row.species: row for row in run.classes if row.roc_auc == row.roc_auc} for run in runs]
    found = []
    for species in dict.fromkeys(name for rows in by_run for name in rows):
        rows = [mine.get(species) for mine in by_run]
        found.append((species, next(row.positives for row in rows if row), rows))

    def largest_change(one: tuple[str, int, list[ClassRow | None]]) -> float:
        first, *others = one[2]
        return max((abs(row.roc_auc - first.roc_auc) for row in others if row and first), default=0.0)

    return sorted(found, key=lambda one: (-largest_change(one), one[0]))


def read_run(path: Path, number: int) -> ReportedRun:
    """Read a run folder of one head, one network, or folds.

    Raises:
        ValueError: none of these, or damaged.
    """
    facts = read_facts(path)
    if facts.get("kind") == "grid":
        raise ValueError(f"{path} holds many settings; name one of them, as in {path / '000'}.")
    members = members_of(path)
    try:
        split = pd.read_csv(path / "split.csv", dtype=str, keep_default_na=False)
        report = json.loads((path / "leakage.json").read_text(encoding="utf-8"))
        history = [_lines(run.path / "metrics.jsonl") for run in members]
        config = (path / "config.toml").read_text(encoding="utf-8")
    except UNREADABLE as error:
        raise ValueError(f"{path} has a damaged file: {error}.") from error
    taxonomy = members[0].taxonomy
    reports = report.values() if facts.get("kind") == "folds" else [report]
    return ReportedRun(
        number, str(path), facts, config, head_name(path), members,
        read_out_of_fold(path) if (path / FILE).is_file() else None, read_calibration(path, taxonomy), split,
        [line for one in reports for line in leakage_lines(one)], history,
    )  # fmt: skip


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _score(run: ReportedRun) -> None:
    """Add everything that follows from the predictions alone."""
    if run.table is None:
        is_done = run.facts.get("finished", False)
        run.left_out["scores"] = "nothing was held out" if is_done else "the run is not finished"
        return
    run.figures = out_of_fold_figures(run.table, interval=True)
    with tqdm(total=BOOTSTRAP_SAMPLES, unit="sample", desc="scoring species", leave=False) as bar:
        run.classes = class_rows(run.table, bar.update)
    with tqdm(unit="fit", desc="calibrating", leave=False) as bar:
        run.reliability = before_and_after(run.table, bar.update)
    run.confused = confusions(run.table)
    if any(row.roc_auc == row.roc_auc for row in run.classes):
        run.charts["classes"] = draw.class_chart(f"classes-{run.number}", run.classes)
    run.charts["calibration"] = draw.reliability_chart(f"calibration-{run.number}", *run.reliability)
    if run.confused.pairs:
        run.charts["confusions"] = draw.confusion_chart(f"confusions-{run.number}", run.confused)


def _compare(first: ReportedRun, run: ReportedRun) -> None:
    """Add the paired differences to the first run."""
    if first is run or first.table is None or run.table is None:
        return
    try:
        with tqdm(total=BOOTSTRAP_SAMPLES, unit="sample", desc="comparing", leave=False) as bar:
            run.differences = compare_sides([first.table], [run.table], bar.update)[1]
    except ValueError as error:
        run.left_out["comparison"] = str(error)


def _look_at_clips(run: ReportedRun, request: ReportRequest) -> None:
    """Add what needs the store: mistakes to look at, and the map of clips.

    Raises:
        ValueError: the store that was given cannot be opened, or holds other features.
    """
    member = run.members[0]
    place = request.features or Path(member.facts["features"])
    try:
        store = FeatureStore(place, member.facts["stage"])
        check_same_features(member, store)
    except UNREADABLE as error:
        if request.features:
            raise
        run.left_out["clips"] = f"the run's store cannot be used ({error}); name it with --features"
        return
    if run.table is not None:
        _add_mistakes(run, run.table, store, request)
    _add_map(run, store, request.device)


def _add_mistakes(run: ReportedRun, table: OutOfFold, store: FeatureStore, request: ReportRequest) -> None:
    if not request.mistakes:
        run.left_out["mistakes"] = "none were asked for (--mistakes 0)"
        return
    calibration = run.calibration or no_calibration(len(table.taxonomy))
    wanted = worst(table, calibration, request.mistakes)
    members = {fold: one for one in run.members for fold in one.facts["held_out"]}
    show = MistakeShower(members, store, calibration, request.device)
    with tqdm(total=len(wanted), unit="mistake", desc="drawing mistakes", leave=False) as bar:
        run.mistakes = show(table, wanted, bar.update)
    if len(run.mistakes) < len(wanted):
        gone = len(wanted) - len(run.mistakes)
        run.left_out["mistakes"] = f"{gone} more are of recordings that {store.path} no longer has"
    elif store.waveforms is None:
        run.left_out["mistakes"] = f"{store.path} holds no waveforms: there is nothing to see or hear"


def _add_map(run: ReportedRun, store: FeatureStore, device: torch.device) -> None:
    """Draw the held-out clips, or all where none were: of the first head, if it has a backbone of its own."""
    member = run.members[0]
    held_out = np.ones(len(store.recordings), bool)
    if run.table is not None:
        table = run.table
        if member.tune is not None:
            table = table.of_folds(*member.facts["held_out"])
        keys = pd.MultiIndex.from_frame(table.recordings[KEYS])
        there = pd.MultiIndex.from_frame(store.recordings[KEYS].astype(str))
        held_out = np.asarray(there.isin(keys))
    kind = "training" if run.table is None else "held-out"
    found = map_clips(member, store, held_out, kind, device)
    if found is None:
        run.left_out["map"] = "there are too few clips to lay out"
        return
    run.charts["map"], run.map_species = draw.clip_map_chart(f"map-{run.number}", found)
