"""`featurestore report`: what is in a store, as one HTML page."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from featurestore import report_charts as draw
from featurestore import report_data as data
from featurestore.summary import store_facts
from featurestore.verify import verify_store
from shared.charts import Chart, refuse_files, save_charts
from shared.clip_media import ClipMedia, ClipShower
from shared.command_line import size_text
from shared.config import parse_config
from shared.duplicates import CLIPS_EACH, recording_embeddings, similar_pairs
from shared.features import FeatureConfig
from shared.metadata import WHOLE
from shared.page import need_page_packages, refuse_other_file, write_page
from shared.store import FeatureStore

ALIKE = 0.95  # cosine of embeddings; what splits keep together by default
MAX_COMPARED = 30_000  # recordings; the time is quadratic
DAMAGE_NAMED = 50


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """The options of `featurestore report`."""

    store: Path
    out: Path
    clips_per_species: int = 3
    max_megabytes: float = 20.0
    quick: bool = False
    png: Path | None = None
    svg: Path | None = None


@dataclass(frozen=True)
class Example:
    """A clip of a species: its recording's name, where it begins in seconds, its pictures and sound."""

    filename: str
    start: float
    rating: float
    author: str
    media: ClipMedia


@dataclass
class Examples:
    """Clips by species; wanted: how many there were to be, num: how many there are."""

    of: dict[str, list[Example]] = field(default_factory=dict)
    wanted: int = 0
    num: int = 0
    num_bytes: int = 0


def write_report(request: ReportRequest, say: Callable[[str], object]) -> None:
    """Write the page, and the pictures that were asked for.

    Raises:
        ValueError: no store, a package is missing, or `out` is something else.
    """
    need_page_packages()
    refuse_other_file(request.out)
    if request.clips_per_species < 0:
        raise ValueError(f"--clips must not be negative, got {request.clips_per_species}.")
    if request.max_megabytes <= 0:
        raise ValueError(f"--max-mb must be above 0, got {request.max_megabytes:g}.")
    store = FeatureStore(request.store)
    tables = data.read_tables(store)
    species = data.species_of(tables)
    refuse_files(request.png, request.svg)
    damage = None if request.quick else verify_store(request.store, [])
    charts = draw_charts(tables, species)
    alike, why_not = (data.Named([], 0), "not looked for") if request.quick else near_duplicates(tables)
    limit = round(1e6 * request.max_megabytes)
    examples = choose_examples(tables, species, request.clips_per_species, limit)
    values = {
        "facts": store_facts(store),
        "hours": float(tables.seconds.sum()) / 3600,
        "species": species,
        "charts": charts,
        "single": single_values(tables),
        "examples": examples,
        "mel_channels": store.attributes["config"]["mel"]["channels"],
        "limit": size_text(limit),
        "has_waveforms": store.waveforms is not None,
        "problems": data.problems(tables),
        "oddities": store.attributes["problems"],
        "copies": data.copies(store.recordings),
        "alike": alike,
        "alike_why_not": why_not,
        "alike_from": ALIKE,
        "damage": damage,
        "damage_named": DAMAGE_NAMED,
        "provenance": _provenance(store),
    }
    size = write_page(request.out, "data.html", "featurestore", title=f"Data: {request.store.name}", **values)
    say(f"{request.out}: {size_text(size)}, {examples.num} clips of {len(examples.of)} species")
    for folder, kind in ((request.png, "png"), (request.svg, "svg")):
        if folder:
            say(f"{folder}: {len(save_charts(charts, folder, kind))} charts as {kind}")


def draw_charts(tables: data.StoreTables, species: list[data.Species]) -> list[Chart]:
    """Draw what the store has something to draw of."""
    charts = []
    num = len(tables.store.recordings)
    if any(one.recordings for one in species):
        charts.append(draw.long_tail(species))
    if (tables.seconds > 0).any():
        charts.append(draw.durations(tables.seconds))
    rated = data.ratings(tables)
    if len(rated):
        charts.append(draw.rating_chart(rated, num))
    latitude, longitude = data.places(tables)
    if len(latitude):
        charts.append(draw.place_map(latitude, longitude, num))
    year, source = data.years(tables.column("date", "year")), tables.column("source")
    if (year != "").any():
        charts.append(draw.by_year(year, source))
    authors = data.counted(tables.column("author"))
    num_authors = sum(1 for name, _ in authors if name != data.NOT_GIVEN)
    for name, title, remark, values in (
        ("sources", "Sources", "recordings by metadata file", data.counted(source)),
        ("licences", "Licences", "recordings, as the metadata has it", licences_of(tables)),
        ("authors", "Authors", f"{num_authors} of them; recordings by those with most", authors),
    ):
        if len(values) > 1:
            charts.append(draw.bars(name, title, remark, values))
    return charts


def single_values(tables: data.StoreTables) -> list[tuple[str, str]]:
    """Return what is the same for all recordings, name and value: no chart is drawn of it."""
    columns = {
        "source": data.counted(tables.column("source")),
        "licence": licences_of(tables),
        "author": data.counted(tables.column("author")),
    }
    return [(name, values[0][0]) for name, values in columns.items() if len(values) == 1]


def licences_of(tables: data.StoreTables) -> list[tuple[str, int]]:
    """Return how many recordings have each licence."""
    return data.counted(tables.column("license", "licence"))


def near_duplicates(tables: data.StoreTables) -> tuple[data.Named, str]:
    """Return recordings that are not the same file but alike to the backbone; or why nobody looked."""
    store = tables.store
    rows = np.flatnonzero(store.clips["valid_samples"].to_numpy() > 0)
    recording = store.clips["recording"].to_numpy(np.int64)[rows]
    if len(np.unique(recording)) > MAX_COMPARED:
        return data.Named([], 0), f"not looked for: there are more than {MAX_COMPARED} recordings"
    total = int(np.minimum(np.bincount(recording), CLIPS_EACH).sum())
    with tqdm(total=total, unit="clip", desc="looking for near-duplicates", leave=False) as bar:
        numbers, embeddings = recording_embeddings(store.maps, rows, recording, bar.update)
    pairs = numbers[similar_pairs(embeddings, ALIKE)]
    sha256 = store.recordings["sha256"].to_numpy(object)
    pairs = [pair for pair in pairs.tolist() if sha256[pair[0]] != sha256[pair[1]]]
    names = [tuple(data.name_of(store.recordings, row) for row in pair) for pair in pairs]
    return data.Named(names[: data.ROWS_NAMED], len(names)), ""


def choose_examples(tables: data.StoreTables, species: list[data.Species], each: int, limit: int) -> Examples:
    """Return the loudest clip of each species' best rated recordings, until they are `limit` bytes.

    Every species has its first clip before one has its second, so that a limit costs all alike.
    """
    store = tables.store
    found = Examples()
    if store.waveforms is None or not each:
        return found
    show = ClipShower(parse_config(FeatureConfig, store.attributes["config"]))
    rows_of = {one.code: _best_rows(tables, one.code, each) for one in species if one.recordings}
    found.wanted = sum(map(len, rows_of.values()))
    rate = store.attributes["config"]["clips"]["sample_rate_hz"]
    ratings, authors = tables.numbers("rating"), tables.column("author")
    recording = store.clips["recording"].to_numpy(np.int64)
    with tqdm(total=found.wanted, unit="clip", desc="drawing clips", leave=False) as bar:
        for code, row in _in_turn(rows_of):
            media = show(store.waveforms.read(np.array([row]))[0])
            bar.update()
            if found.num_bytes + media.num_bytes > limit:
                break
            of = int(recording[row])
            start = float(store.clips["start"].iloc[row]) / rate
            name = data.name_of(store.recordings, of)
            example = Example(name, start, float(ratings[of]), str(authors.iloc[of]), media)
            found.of.setdefault(code, []).append(example)
            found.num += 1
            found.num_bytes += media.num_bytes
    return found


def _best_rows(tables: data.StoreTables, code: str, each: int) -> list[int]:
    """Return the loudest labelled clip of each of a species' recordings.

    Sure labels come before soft ones, then those with the best rating, then the first in name.
    """
    clips, recordings, labels = tables.store.clips, tables.store.recordings, tables.store.labels
    mine = labels[(labels["kind"] == "primary") & (labels["species"] == code)]
    mine = mine.assign(
        rating=np.nan_to_num(tables.numbers("rating")[mine["recording"].to_numpy(np.int64)]),
        name=recordings["filename"].to_numpy(object)[mine["recording"].to_numpy(np.int64)],
        sure=mine["value"] * mine["weight"],
    )
    mine = mine.sort_values(["sure", "rating", "name"], ascending=[False, False, True], kind="stable")
    clip_samples = tables.clip_samples
    rows = []
    for label in mine.drop_duplicates("recording").itertuples():
        here = clips[(clips["recording"] == label.recording) & (clips["valid_samples"] > 0)]
        if label.start != WHOLE:
            here = here[(here["start"] < label.stop) & (here["start"] + clip_samples > label.start)]
        if len(here):
            rows.append(int(here.index[int(here["gain"].argmax())]))
        if len(rows) == each:
            break
    return rows


def _in_turn(rows_of: dict[str, list[int]]) -> Iterator[tuple[str, int]]:
    for place in range(max(map(len, rows_of.values()), default=0)):
        for code, rows in rows_of.items():
            if place < len(rows):
                yield code, rows[place]


def _provenance(store: FeatureStore) -> list[tuple[str, str]]:
    """Return what the features were made by, key and JSON text."""
    attributes: dict[str, Any] = store.attributes
    keys = ("format_version", "fingerprint", "fingerprint_of", "config", "weights", "numerics", "views")
    return [(key, json.dumps(attributes[key], indent=1)) for key in keys if key in attributes]
