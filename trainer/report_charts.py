"""The charts of a run's page."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from shared.charts import (
    CARD,
    COLOURS,
    INK,
    LINE,
    MUTED,
    NARROW,
    WIDE,
    Chart,
    add_legend,
    new_axes,
    shortened,
    whole_numbers,
)
from trainer.report_map import ClipMap
from trainer.report_scores import ClassRow, Confusions, Reliability

MAX_CLASSES = 60
MAX_CONFUSED = 24
Histories = dict[str, list[list[dict[str, Any]]]]  # by run: of each of its heads, a row per epoch
TITLES = {"loss": "Loss", "macro_roc_auc": "Macro ROC-AUC", "cmap": "cmAP", "top1": "Top-1"}


def curve(histories: Histories, key: str) -> Chart | None:
    """Draw a figure by epoch, a colour per run: the mean over its folds, and each of them thin."""
    figure, axes = new_axes(NARROW)
    said = []
    for number, (name, heads) in enumerate(histories.items()):
        colour = COLOURS[number % len(COLOURS)]
        lines = [
            {row["epoch"]: row[key] for row in head if row.get(key) is not None and row[key] == row[key]}
            for head in heads
        ]
        lines = [line for line in lines if line]
        if not lines:
            continue
        if len(lines) > 1:
            for line in lines:
                axes.plot(list(line), list(line.values()), color=colour, alpha=0.3, linewidth=0.9)
        common = sorted(set.intersection(*(set(line) for line in lines)))
        means = [float(np.mean([line[epoch] for line in lines])) for epoch in common]
        axes.plot(common, means, color=colour, label=_shown(name), marker="." if len(common) < 3 else None)
        said.append(f"{name}: {means[0]:.4g} to {means[-1]:.4g}")
    if not said:
        return None
    if len(said) > 1:
        add_legend(axes, ncols=1, loc="best", bbox_to_anchor=None)
    if key == "loss":
        axes.set_yscale("log")
    whole_numbers(axes.xaxis)
    axes.set_xlabel("epoch")
    what = "of the training" if key == "loss" else "of the held-out recordings"
    return Chart(
        f"curve-{key}",
        TITLES[key],
        f"by epoch, {what}",
        f"{TITLES[key]} by epoch. {'; '.join(said)}.",
        figure,
    )


def _shown(name: str, most: int = 32) -> str:
    return shortened(name) if len(name) <= most else f"…{name[-most + 1 :]}"


def class_chart(name: str, rows: Sequence[ClassRow]) -> Chart:
    """Draw every class's ROC-AUC and average precision with their intervals, the worst first."""
    some = [row for row in rows if row.roc_auc == row.roc_auc][:MAX_CLASSES]
    figure, axes = new_axes((WIDE[0], 1.1 + 0.24 * len(some)))
    places = np.arange(len(some))
    for shift, colour, label, points, intervals in (
        (-0.16, COLOURS[0], "ROC-AUC", [r.roc_auc for r in some], [r.roc_auc_interval for r in some]),
        (0.16, COLOURS[1], "average precision", [r.average_precision for r in some],
         [r.average_precision_interval for r in some]),
    ):  # fmt: skip
        axes.hlines(places + shift, *np.array(intervals).T, color=colour, linewidth=2, alpha=0.45)
        axes.plot(points, places + shift, "o", color=colour, markersize=4.5, label=label)
    axes.set_yticks(places, [f"{shortened(row.species)} ({row.positives})" for row in some], parse_math=False)
    axes.set_ylim(len(some) - 0.4, -0.6)
    lowest = min(low for r in some for low in (r.roc_auc_interval[0], r.average_precision_interval[0]))
    axes.set_xlim(max(0.0, np.floor(10 * lowest) / 10 - 0.1), 1.01)
    add_legend(axes)
    left_out = len(rows) - len(some)
    more = f"; {left_out} classes are not drawn (not scored, or better than these)" if left_out else ""
    return Chart(
        name, "Species", f"95 % bootstrap intervals over recordings; in brackets how many are positive{more}",
        f"ROC-AUC and average precision of {len(some)} species; the table below has the numbers.", figure,
    )  # fmt: skip


def reliability_chart(name: str, before: Reliability, after: Reliability | None) -> Chart:
    """Draw frequency against confidence, before and after calibration."""
    figure, axes = new_axes((NARROW[0], 3.9))
    axes.plot([0, 1], [0, 1], color=MUTED, linestyle=":", linewidth=1)
    said = []
    for one, colour, label in ((before, COLOURS[1], "as trained"), (after, COLOURS[0], "calibrated")):
        if one is None:
            continue
        there = one.count > 0
        sizes = 14 + 12 * np.log10(one.count[there])
        axes.plot(one.confidence[there], one.frequency[there], color=colour, linewidth=1.2, alpha=0.7)
        axes.scatter(one.confidence[there], one.frequency[there], s=sizes, color=colour,
                     label=f"{label}: error {one.error:.4f}")  # fmt: skip
        said.append(f"{label}: expected calibration error {one.error:.4f}, log loss {one.loss:.4f}")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("probability that is said")
    axes.set_ylabel("share that is right")
    add_legend(axes, ncols=2)
    return Chart(
        name, "Calibration",
        "each recording by a calibration that never saw it; the size of a point: how many pairs it is of",
        f"Reliability diagram. {'; '.join(said)}.", figure,
    )  # fmt: skip


def confusion_chart(name: str, found: Confusions) -> Chart:
    """Draw which species are taken for which, the area by how often."""
    counts: dict[str, int] = {}
    for pair in found.pairs:
        counts[pair.true] = counts.get(pair.true, 0) + pair.count
        counts[pair.taken_for] = counts.get(pair.taken_for, 0) + pair.count
    names = sorted(sorted(counts, key=lambda one: (-counts[one], one))[:MAX_CONFUSED])
    place = {one: number for number, one in enumerate(names)}
    drawn = [pair for pair in found.pairs if pair.true in place and pair.taken_for in place]
    side = 1.6 + 0.24 * len(names)
    figure, axes = new_axes((min(max(side * 1.15, NARROW[0]), 7.5), max(side, 2.4)))
    most = max(pair.count for pair in drawn)
    axes.scatter(
        [place[pair.taken_for] for pair in drawn], [place[pair.true] for pair in drawn],
        s=[220 * pair.count / most for pair in drawn], color=COLOURS[1], alpha=0.8, linewidths=0,
    )  # fmt: skip
    for pair in drawn:
        axes.annotate(str(pair.count), (place[pair.taken_for], place[pair.true]), ha="center", va="center",
                      fontsize=7, color=CARD if pair.count > most / 4 else INK)  # fmt: skip
    shown = [shortened(one, 16) for one in names]
    axes.set_xticks(range(len(names)), shown, rotation=60, ha="right", parse_math=False)
    axes.set_yticks(range(len(names)), shown, parse_math=False)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("is taken for")
    axes.set_ylabel("recording of")
    rest = len(found.pairs) - len(drawn)
    more = f"; {rest} pairs of rarer species are not drawn" if rest else ""
    top = found.pairs[0]
    return Chart(
        name, "Taken for each other", f"recordings whose best-scored species is none of theirs{more}",
        f"Bubble chart; the most frequent: {top.true} taken for {top.taken_for}, {top.count} times.",
        figure,
    )  # fmt: skip


def clip_map_chart(name: str, found: ClipMap) -> tuple[Chart, list[str]]:
    """Draw the map of clips; return it with the species in the order of its groups of points.

    The six most frequent species have colours, the others are grey; each is a group of its own in the svg.
    """
    figure, axes = new_axes((NARROW[0] + 0.6, 4.6))
    species, counts = np.unique(found.species.astype(str), return_counts=True)
    order = [str(species[place]) for place in np.lexsort((species, -counts))]
    for number in reversed(range(len(order))):
        mine = found.species == order[number]
        coloured = number < len(COLOURS)
        axes.scatter(
            *found.places[mine].T, s=16 if coloured else 10, color=COLOURS[number] if coloured else MUTED,
            alpha=0.8 if coloured else 0.35, linewidths=0, gid=f"species-{number}",
            label=shortened(order[number] or "no label", 20) if coloured else None,
        )  # fmt: skip
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(True)
    axes.spines[:].set_color(LINE)
    handles, labels = axes.get_legend_handles_labels()
    add_legend(axes, handles[::-1], labels[::-1], loc="upper center", bbox_to_anchor=(0.5, -0.01))
    text = (
        f"t-SNE of {len(found.places)} of {found.num_clips} {found.kind} clips by the mean maps of "
        f"{found.of}; near: alike to it"
    )
    chart = Chart(
        name,
        "Map of clips",
        text,
        f"Scatter plot of {len(found.places)} clips of {len(order)} species.",
        figure,
    )
    return chart, order
