"""A BirdCLEF metadata CSV of any year, or a plain one, into recordings and labels."""

import ast
import posixpath
import re
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shared.clips import ClipGrid

NO_CALL = ("", "nocall", "noCall")
MAX_SECONDS = 1e7  # a clip_start_time beyond it is no time
LABEL_COLUMNS = ["recording", "species", "kind", "start", "stop", "value", "weight"]
SOFT_COLUMNS = ("label_value", "label_weight")
WHOLE = -1  # start and stop of a label that holds for the whole recording

# Columns that the store adds; a given column of the same name is kept as given_<name>.
OWN_COLUMNS = frozenset(
    ["source", "xc_id", "sample_rate_hz", "num_frames", "sha256", "status", "reason", "in_metadata"]
)


@dataclass(frozen=True)
class Metadata:
    """Recordings as given, their labels, and what was odd about the file.

    recordings: one row each: `filename`, `source`, `xc_id` (empty where unknown) and every
        given column as text.
    labels: LABEL_COLUMNS; `recording` is the row number in `recordings`, `kind` primary or
        secondary, `start` and `stop` samples of the clip grid or WHOLE.
    problems: one line each, for the summary.
    """

    recordings: pd.DataFrame
    labels: pd.DataFrame
    problems: tuple[str, ...] = ()

    def primary_species(self) -> list[str]:
        """Return the sorted primary species: the taxonomy of this metadata."""
        primary = self.labels["species"][self.labels["kind"] == "primary"]
        return sorted(set(primary) - {""})


def read_metadata(path: Path, grid: ClipGrid, *, source: str = "main", audio: Path | None = None) -> Metadata:
    """Read a CSV with at least `filename` and `primary_label`, one or several rows a recording.

    Rows of one recording (the same file name, or files XC123.* of one xeno-canto id) are its
    labels: of several species, or, with a `clip_start_time` column (seconds), of several clips.
    Identical rows are merged and counted. A `primary_label` that is empty or "nocall" means: no
    species. A column `label_value` makes primary labels soft, 0..1, and `label_weight` says what they
    count. Bare file names that lie in their species' folder below `audio`, as the metadata of
    2021 has them, get that folder.

    Raises:
        ValueError: not UTF-8, no CSV, no rows, or a column missing.
    """
    table, problems = _read_table(path)
    if audio is not None:
        table["filename"] = _below_species(table, audio)
    table["xc_id"] = _xeno_canto_ids(table)
    only_id = table["filename"].str.fullmatch(r"(?:.*/)?XC\d+\.\w+")
    key = ("XC" + table["xc_id"]).where(only_id, "file " + table["filename"])
    number, first = pd.factorize(key)
    labels, odd = _labels_of_rows(table, number, grid)
    problems += odd
    again = len(table) - len(first)
    if again and "clip_start_time" not in table:
        problems.append(f"{again} rows name a recording that an earlier row names: labels joined")
    unread = table["filename"].nunique() - len(first)
    if unread:
        problems.append(f"{unread} files have the xeno-canto id of an earlier one and are not read")
    recordings = table[~key.duplicated()].reset_index(drop=True)
    recordings.insert(0, "source", source)
    return Metadata(recordings, labels, tuple(f"{path.name}: {line}" for line in problems))


def _read_table(path: Path) -> tuple[pd.DataFrame, list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8.") from error
    except pd.errors.EmptyDataError as error:
        raise ValueError(f"{path} is empty; it needs a header and a row per recording.") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        message = str(error).strip().splitlines()[0].rstrip(".")
        raise ValueError(f"{path} is no valid CSV: {message}.") from error
    for column in ("filename", "primary_label"):
        if column not in table:
            raise ValueError(
                f"{path} has no column {column!r} (it has: {', '.join(table.columns[:12])}). "
                "At least filename and primary_label are needed."
            )
    if table.empty:
        raise ValueError(f"{path} has a header and no rows.")
    table = table.rename(columns={name: f"given_{name}" for name in OWN_COLUMNS & {*table}})
    problems = []
    repeated = int(table.duplicated().sum())
    if repeated:
        problems.append(f"{repeated} identical rows merged")
        table = table.drop_duplicates()
    nameless = table["filename"].str.strip() == ""
    if nameless.any():
        problems.append(f"{int(nameless.sum())} rows have no file name and are left out")
        table = table[~nameless]
    if table.empty:
        raise ValueError(f"{path} names no file: the column filename is empty in every row.")
    table["filename"] = [posixpath.normpath(name.strip()) for name in table["filename"]]
    return table.reset_index(drop=True), problems


def _below_species(table: pd.DataFrame, audio: Path) -> list[str]:
    return [
        f"{species}/{name}"
        if "/" not in name and not (audio / name).exists() and (audio / species / name).exists()
        else name
        for name, species in zip(table["filename"], table["primary_label"], strict=True)
    ]


def _xeno_canto_ids(table: pd.DataFrame) -> pd.Series:
    """Return the id behind `XC` in the file name, else at the end of a xeno-canto URL."""
    ids = table["filename"].str.extract(r"(?:^|/)XC(\d+)[^/]*$", expand=False)
    if "url" in table:
        ids = ids.fillna(table["url"].str.extract(r"xeno-canto\.org/(\d+)", expand=False))
    return ids.fillna("").astype(object)


def _labels_of_rows(
    table: pd.DataFrame, recording: np.ndarray, grid: ClipGrid
) -> tuple[pd.DataFrame, list[str]]:
    start, stop, problems = _spans(table, grid)
    primary = table["primary_label"].str.strip()
    primary = primary.where(~primary.isin(NO_CALL), "")
    # A span without a species is a label too (nobody calls here); a whole recording has none.
    called = (primary != "").to_numpy() | (start != WHOLE)
    parts = [(recording[called], primary[called].to_numpy(), "primary", start[called], stop[called])]
    if "secondary_labels" in table:
        parsed = [parse_species_list(text) for text in table["secondary_labels"]]
        for row, species in enumerate(parsed):
            if species is None:
                text = table["secondary_labels"].iloc[row]
                problems.append(
                    f"{table['filename'].iloc[row]}: secondary_labels {text!r} is no list of "
                    "species; taken as none"
                )
        rows = [row for row, species in enumerate(parsed) for _ in species or ()]
        codes = np.array([code for species in parsed for code in species or ()], dtype=object)
        parts.append((recording[rows], codes, "secondary", start[rows], stop[rows]))
    soft, odd = _soft_labels(table)
    problems += odd
    parts[0] = (*parts[0], *(column[called] for column in soft))
    tables = [dict(zip(LABEL_COLUMNS, (*part, 1.0, 1.0), strict=False)) for part in parts]
    labels = pd.concat([pd.DataFrame(one) for one in tables], ignore_index=True)
    # A species that is primary somewhere in a span is not secondary there as well.
    labels = labels.drop_duplicates(["recording", "species", "start", "stop"])
    labels = labels.sort_values("recording", kind="stable", ignore_index=True)
    return labels.astype({"recording": np.int64, "start": np.int64, "stop": np.int64}), problems


def _soft_labels(table: pd.DataFrame) -> tuple[list[np.ndarray], list[str]]:
    """Return value and weight of every row's primary label, 1 where none is given.

    What is no number of 0..1 counts for nothing.
    """
    columns, problems = [], []
    bad = np.zeros(len(table), bool)
    for name in SOFT_COLUMNS:
        text = table[name].str.strip() if name in table else pd.Series("", table.index)
        numbers = pd.to_numeric(text, errors="coerce").to_numpy(float)
        given = (text != "").to_numpy()
        odd = given & ~((numbers >= 0) & (numbers <= 1))
        problems += [
            f"{table['filename'].iloc[row]}: {name} {text.iloc[row]!r} is not in 0..1; its label does not "
            "count"
            for row in np.flatnonzero(odd)
        ]
        bad |= odd
        columns.append(np.where(given & ~odd, numbers, 1.0))
    columns[1][bad] = 0.0
    return columns, problems


def _spans(table: pd.DataFrame, grid: ClipGrid) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return start and stop in samples of every row, WHOLE where the row gives no time."""
    whole = np.full(len(table), WHOLE, np.int64)
    if "clip_start_time" not in table:
        return whole, whole, []
    seconds = pd.to_numeric(table["clip_start_time"], errors="coerce").to_numpy(float)
    given = np.isfinite(seconds) & (seconds >= 0) & (seconds < MAX_SECONDS)
    written = (table["clip_start_time"].str.strip() != "").to_numpy()
    problems = [
        f"{table['filename'].iloc[row]}: clip_start_time "
        f"{table['clip_start_time'].iloc[row]!r} is no time; the label counts for the whole recording"
        for row in np.flatnonzero(written & ~given)
    ]
    start = np.where(given, np.rint(np.where(given, seconds, 0) * grid.sample_rate_hz), WHOLE)
    start = start.astype(np.int64)
    return start, np.where(given, start + grid.clip_samples, WHOLE), problems


def parse_species_list(text: str) -> list[str] | None:
    """Return the species of a `secondary_labels` cell, None where it is malformed.

    Reads Python and JSON lists (`['a', 'b']`), an empty cell, and codes between spaces.
    """
    text = text.strip()
    if not text or text.lower() == "nan":
        return []
    if re.fullmatch(r"[\w-]+( [\w-]+)*", text):
        return text.split()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(code, str) for code in value):
        return None
    return [code.strip() for code in value if code.strip()]


def keep_species(external: Metadata, species: Iterable[str], known_ids: Collection[str]) -> Metadata:
    """Return the external recordings with a primary label in `species` and an id not yet known."""
    wanted, known = set(species), set(known_ids)
    primary = external.labels[external.labels["kind"] == "primary"]
    ours = set(primary["recording"][primary["species"].isin(wanted)])
    ids = external.recordings["xc_id"]
    keep = [row for row in external.recordings.index if row in ours and ids[row] not in known - {""}]
    return _select(external, keep)


def _select(metadata: Metadata, rows: list[int]) -> Metadata:
    new_number = pd.Series(range(len(rows)), index=rows, dtype=np.int64)
    labels = metadata.labels[metadata.labels["recording"].isin(rows)].copy()
    labels["recording"] = labels["recording"].map(new_number).astype(np.int64)
    recordings = metadata.recordings.loc[rows].reset_index(drop=True)
    return Metadata(recordings, labels.reset_index(drop=True), metadata.problems)


def join(parts: list[Metadata]) -> Metadata:
    """Return all recordings one after the other, with the union of their columns."""
    offsets = np.cumsum([0, *(len(part.recordings) for part in parts[:-1])])
    labels = [
        part.labels.assign(recording=part.labels["recording"] + offset)
        for part, offset in zip(parts, offsets, strict=True)
    ]
    recordings = pd.concat([part.recordings for part in parts], ignore_index=True).fillna("")
    problems = tuple(line for part in parts for line in part.problems)
    return Metadata(recordings, pd.concat(labels, ignore_index=True), problems)
