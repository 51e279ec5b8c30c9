"""Charts that are drawn once: inside a page in the page's colours, and as files for papers."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

# The page's own light colours; inside a page each becomes a variable, so that it follows light and dark.
INK, MUTED, LINE, CARD = "#1b2422", "#57635f", "#d9ddd7", "#ffffff"
COLOURS = ("#0b6b61", "#b3501b", "#6a4c9c", "#2d6ca2", "#8a6d1a", "#a23b6d")
VARIABLES = dict(
    zip(
        (INK, MUTED, LINE, CARD, *COLOURS),
        ("ink", "muted", "line", "card", "accent", "second", "third", "fourth", "fifth", "sixth"),
        strict=True,
    )
)
NARROW, WIDE = (5.2, 3.1), (10.6, 3.3)  # inches; a page sets the first two side by side
STYLE: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "dawnchorus", "font.family": "sans-serif", "font.size": 10,
    "text.color": INK, "axes.labelcolor": MUTED, "axes.edgecolor": LINE, "axes.facecolor": "none",
    "xtick.color": MUTED, "ytick.color": MUTED, "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": LINE, "grid.linewidth": 0.7,
    "figure.facecolor": "none", "legend.frameon": False, "axes.unicode_minus": True,
    "savefig.facecolor": "none", "lines.linewidth": 1.8,
}  # fmt: skip
FILE_DPI = 200
SCREEN_PIXELS = 115  # per inch, at most: a chart is not blown up


@dataclass(frozen=True)
class Chart:
    """A figure of matplotlib's with its file name, title, a remark, and what it shows in words."""

    name: str
    title: str
    remark: str
    alt: str
    figure: Any

    @property
    def is_wide(self) -> bool:
        """Tell whether it takes a row of its own."""
        return bool(self.figure.get_figwidth() > NARROW[0] + 1)


def new_axes(size: tuple[float, float] = NARROW) -> tuple[Any, Any]:
    """Return a figure and its axes, without touching matplotlib's global state."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots()


def twin_axes(axes: Any) -> Any:
    """Return axes over the same x with a scale of their own on the right, without a grid."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        twin = axes.twinx()
    twin.grid(visible=False)
    for spine in twin.spines.values():
        spine.set_visible(False)
    return twin


def shortened(text: str, most: int = 32) -> str:
    """Return a name for a chart: its end left out where it is long, and never hidden by its first letter."""
    text = f" {text}" if text.startswith("_") else text  # matplotlib leaves such labels out of legends
    return text if len(text) <= most else f"{text[: most - 1]}…"


def add_legend(axes: Any, *args: Any, **options: Any) -> None:
    """Put a legend above the axes, or where the options say."""
    import matplotlib

    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": 3, "fontsize": 8.5, "borderaxespad": 0.2}
    with matplotlib.rc_context(STYLE | {"text.parse_math": False}):
        axes.legend(*args, **(above | options))


def whole_numbers(axis: Any) -> None:
    """Let an axis that counts have its ticks at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def inline_svg(chart: Chart) -> str:
    """Return a chart as an svg element in the page's colours, with text that stays text."""
    from markupsafe import Markup

    file = io.StringIO()
    with _drawing():
        chart.figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", svg, count=1)
    widest = f"max-width: {SCREEN_PIXELS * chart.figure.get_figwidth():.0f}px"
    svg = re.sub("<[^>]*>", lambda tag: _own_tag(tag[0], chart.name), svg)  # text is left as it is
    told = f'<svg style="{widest}" role="img" aria-label={quoteattr(chart.alt)} '
    return Markup(svg.replace("<svg ", told, 1))


def _own_tag(tag: str, name: str) -> str:
    """Return a tag with its ids made the chart's own and its colours the page's."""
    tag = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', tag)
    tag = re.sub(r'(href="|url\()#([^")]+)', rf"\1#{name}-\2", tag)
    for colour, variable in VARIABLES.items():
        tag = tag.replace(colour, f"var(--{variable})")
    return tag


@contextmanager
def _drawing() -> Iterator[None]:
    """Draw in our style; a letter that the font lacks is a box in a png, and no warning."""
    import matplotlib

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def refuse_files(*folders: Path | None) -> None:
    """Stop before any work where charts are to go into a file.

    Raises:
        ValueError: so it is.
    """
    for folder in folders:
        if folder and folder.exists() and not folder.is_dir():
            raise ValueError(f"{folder} is a file; give a folder for the charts.")


def save_charts(charts: Sequence[Chart], folder: Path, kind: str) -> list[Path]:
    """Write charts as files on white; kind: png or svg."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{chart.name}.{kind}" for chart in charts]
    metadata = {"Date": None} if kind == "svg" else None
    with _drawing():
        for chart, path in zip(charts, paths, strict=True):
            chart.figure.savefig(path, format=kind, dpi=FILE_DPI, facecolor=CARD, metadata=metadata)
    return paths
