"""The charts of a store's page."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64

from featurestore.report_data import NOT_GIVEN, Species
from shared.charts import (
    COLOURS,
    INK,
    MUTED,
    NARROW,
    WIDE,
    Chart,
    add_legend,
    new_axes,
    shortened,
    twin_axes,
    whole_numbers,
)

MAX_NAMED_BARS = 40  # species; with more the bars stand without names
MAX_VALUES = 12
LOG_FROM = 20  # times the rarest species, from where on a linear axis hides the tail


def long_tail(species: Sequence[Species]) -> Chart:
    """Draw recordings per species, the most frequent first, with the weight n^-0.5 over it."""
    some = [one for one in species if one.recordings]
    figure, axes = new_axes(WIDE)
    places = np.arange(len(some))
    counts = np.array([one.recordings for one in some])
    axes.bar(places, counts, width=0.85, color=COLOURS[0])
    if counts.max() > LOG_FROM * counts.min():
        axes.set_yscale("log")
        axes.set_ylim(0.8 * counts.min(), 1.3 * counts.max())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
    else:
        whole_numbers(axes.yaxis)
    axes.set_ylabel("recordings", color=COLOURS[0])
    axes.grid(axis="x", visible=False)
    axes.margins(x=0.01)
    if len(some) <= MAX_NAMED_BARS:
        axes.set_xticks(
            places, [shortened(one.code, 16) for one in some], rotation=60, ha="right", parse_math=False
        )
    else:
        axes.set_xlabel("species, the most frequent first")
    twin = twin_axes(axes)
    twin.plot(places, [one.weight for one in some], color=COLOURS[1], marker=".", markersize=4)
    twin.set_ylim(0, 1.08)
    twin.set_ylabel("n^-0.5, the rarest is 1", color=COLOURS[1])
    median = int(np.median(counts))
    return Chart(
        "species", "Recordings per species",
        "bars: recordings that can be trained on; line: n^-0.5 of that, the rarest is 1, which weighted "
        "drawing goes by, with ratings and second labels on top. "
        f"From {counts.min()} to {counts.max()}, median {median}.",
        f"Bar chart of {len(some)} species: {counts.max()} recordings of {some[0].code} down to "
        f"{counts.min()} of {some[-1].code}; the weight n^-0.5 rises from {some[0].weight:.2f} to 1.",
        figure,
    )  # fmt: skip


def durations(seconds: Float64[np.ndarray, " n"]) -> Chart:
    """Draw how long recordings are, on a logarithmic axis."""
    figure, axes = new_axes(NARROW)
    known = seconds[seconds > 0]
    edges = np.geomspace(known.min() * 0.95, known.max() * 1.05, 28)
    axes.hist(known, bins=edges, color=COLOURS[0], rwidth=0.92)
    axes.set_xscale("log")
    ticks = [t for t in (1, 2, 5, 10, 30, 60, 300, 600, 3600, 4 * 3600) if edges[0] <= t <= edges[-1]]
    axes.set_xticks(ticks, [_duration_text(t) for t in ticks])
    axes.minorticks_off()
    whole_numbers(axes.yaxis)
    axes.set_ylabel("recordings")
    middle = float(np.median(known))
    return Chart(
        "durations", "How long recordings are", f"median {middle:.3g} s; by what the files declare",
        f"Histogram of durations, from {known.min():.1f} to {known.max():.0f} seconds, median {middle:.0f}.",
        figure,
    )  # fmt: skip


def _duration_text(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g} s"
    return f"{seconds / 60:g} min" if seconds < 3600 else f"{seconds / 3600:g} h"


def rating_chart(ratings: Float64[np.ndarray, " n"], num_recordings: int) -> Chart:
    """Draw the ratings that were given."""
    figure, axes = new_axes(NARROW)
    values, counts = np.unique(ratings, return_counts=True)
    axes.bar(values, counts, width=0.38, color=COLOURS[0])
    whole_numbers(axes.yaxis)
    axes.set_xlabel("rating")
    axes.set_ylabel("recordings")
    without = num_recordings - len(ratings)
    return Chart(
        "ratings", "Ratings", f"{without} of {num_recordings} recordings have none (0 means unrated)",
        f"Bar chart of {len(ratings)} ratings, mean {ratings.mean():.2f}.", figure,
    )  # fmt: skip


def place_map(latitude: Float64[np.ndarray, " n"], longitude: Float64[np.ndarray, " n"], total: int) -> Chart:
    """Draw where recordings were made, as points on a graticule."""
    figure, axes = new_axes(NARROW)
    axes.scatter(longitude, latitude, s=14, color=COLOURS[0], alpha=0.45, linewidths=0)
    axes.set_aspect(1 / max(0.2, np.cos(np.radians(float(latitude.mean())))), adjustable="datalim")
    axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}°{'E' if x > 0 else 'W' if x < 0 else ''}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{abs(y):g}°{'N' if y > 0 else 'S' if y < 0 else ''}")
    return Chart(
        "places", "Where", f"{len(latitude)} of {total} recordings have coordinates",
        f"Map of points between {latitude.min():.1f} and {latitude.max():.1f} degrees of latitude, "
        f"{longitude.min():.1f} and {longitude.max():.1f} of longitude.", figure,
    )  # fmt: skip


def bars(name: str, title: str, remark: str, values: Sequence[tuple[str, int]]) -> Chart:
    """Draw how many recordings have each value, lying bars, the rest of a long list in one."""
    shown = list(values[:MAX_VALUES])
    rest = values[MAX_VALUES:]
    if rest:
        shown.append((f"{len(rest)} others", sum(num for _, num in rest)))
    figure, axes = new_axes((NARROW[0], 0.35 + 0.3 * len(shown)))
    places = np.arange(len(shown))
    numbers = [num for _, num in shown]
    colours = [MUTED if text in (NOT_GIVEN, "") else COLOURS[0] for text, _ in shown]
    drawn = axes.barh(places, numbers, color=colours, height=0.7)
    axes.bar_label(drawn, [str(num) for num in numbers], padding=3, color=INK)
    axes.set_yticks(places, [shortened(text) for text, _ in shown], parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.tick_params(length=0)
    axes.set_xlim(0, max(numbers) * 1.15)
    axes.grid(visible=False)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    said = "; ".join(f"{text}: {num}" for text, num in shown)
    return Chart(name, title, remark, f"Bar chart. {said}.", figure)


def by_year(year: pd.Series, source: pd.Series) -> Chart:
    """Draw recordings per year, sources on top of each other."""
    known = year != ""
    table = pd.crosstab(year[known].astype(int), source[known])
    table = table.reindex(range(int(table.index.min()), int(table.index.max()) + 1), fill_value=0)
    figure, axes = new_axes(NARROW)
    bottom: Any = np.zeros(len(table))
    for number, name in enumerate(table.columns):
        axes.bar(table.index, table[name], bottom=bottom, label=shortened(str(name)), width=0.85,
                 color=COLOURS[number % len(COLOURS)])  # fmt: skip
        bottom = bottom + table[name].to_numpy()
    if len(table.columns) > 1:
        add_legend(axes)
    whole_numbers(axes.xaxis)
    whole_numbers(axes.yaxis)
    axes.set_ylabel("recordings")
    return Chart(
        "years", "Years", f"{int((~known).sum())} of {len(year)} recordings have no date",
        f"Bar chart of recordings per year, {table.index.min()} to {table.index.max()}.", figure,
    )  # fmt: skip
