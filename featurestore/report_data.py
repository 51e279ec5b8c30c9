"""What a store's tables say of its recordings, counted for a page."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from shared.store import FeatureStore

NOT_GIVEN = "not given"
UNKNOWN = ("", "nan", "none", "unknown")
ROWS_NAMED = 500
NAMES = ("common_name", "scientific_name")


@dataclass(frozen=True)
class Species:
    """One species, as the labels have it; recordings: that can be trained on.

    weight: n^-0.5 of these, the largest 1.
    """

    code: str
    common_name: str
    scientific_name: str
    recordings: int
    secondary: int
    clips: int
    hours: float
    rating: float
    weight: float


@dataclass(frozen=True)
class Named:
    """The first rows of a list that may be long, and how many there are."""

    rows: list[tuple[str, ...]]
    total: int

    @property
    def left_out(self) -> int:
        """How many are not among the rows."""
        return self.total - len(self.rows)


@dataclass(frozen=True)
class StoreTables:
    """A store's tables with the columns that the counts need.

    primary: first primary species per recording, "" for none. seconds: how long each recording is, 0 where
    it cannot be read.
    """

    store: FeatureStore
    primary: np.ndarray
    seconds: Float64[np.ndarray, " r"]
    num_clips: Int64[np.ndarray, " r"]

    @property
    def is_used(self) -> np.ndarray:
        """Tell per recording whether it can be trained on."""
        return np.asarray((self.num_clips > 0) & self.store.in_metadata)

    @property
    def clip_samples(self) -> int:
        """Samples of a clip."""
        clips = self.store.attributes["config"]["clips"]
        num: int = round(clips["clip_seconds"] * clips["sample_rate_hz"])
        return num

    def column(self, *names: str) -> pd.Series:
        """Return the first of these metadata columns that there is, as stripped text; "" where unknown."""
        for name in names:
            if name in self.store.recordings:
                text = self.store.recordings[name].astype(str).str.strip()
                return text.where(~text.str.lower().isin(UNKNOWN), "")
        return pd.Series("", self.store.recordings.index, dtype=object)

    def numbers(self, name: str) -> Float64[np.ndarray, " r"]:
        """Return a metadata column as numbers, nan where it has none."""
        return pd.to_numeric(self.column(name), errors="coerce").to_numpy(np.float64)


def read_tables(store: FeatureStore) -> StoreTables:
    """Return a store's tables, ready to be counted."""
    labels, num = store.labels, len(store.recordings)
    first = labels[labels["kind"] == "primary"].drop_duplicates("recording")
    primary = np.full(num, "", object)
    primary[first["recording"].to_numpy(np.int64)] = first["species"].to_numpy(object)
    recording = store.clips["recording"].to_numpy(np.int64)
    heard = (store.clips["valid_samples"] > 0).to_numpy(np.float64)
    num_clips = np.bincount(recording, heard, num).astype(np.int64)
    frames = store.recordings["num_frames"].to_numpy(np.float64)
    rates = np.maximum(store.recordings["sample_rate_hz"].to_numpy(np.float64), 1)
    return StoreTables(store, primary, np.where(num_clips > 0, frames / rates, 0.0), num_clips)


def species_of(tables: StoreTables) -> list[Species]:
    """Return all species that are labelled, the most frequent first."""
    labels = tables.store.labels
    labels = labels[(labels["species"] != "") & tables.is_used[labels["recording"].to_numpy(np.int64)]]
    once = labels.drop_duplicates(["recording", "species", "kind"])
    primary = once[once["kind"] == "primary"]
    counts = primary["species"].value_counts()
    secondary = once[once["kind"] == "secondary"]["species"].value_counts()
    rows = primary.assign(
        clips=tables.num_clips[primary["recording"].to_numpy(np.int64)],
        seconds=tables.seconds[primary["recording"].to_numpy(np.int64)],
        rating=_rated(tables)[primary["recording"].to_numpy(np.int64)],
    ).groupby("species")
    sums, rating = rows[["clips", "seconds"]].sum(), rows["rating"].mean()
    names = _species_names(tables)
    rarest = counts.min() if len(counts) else 1
    found = []
    for code in sorted({*counts.index, *secondary.index}, key=lambda code: (-counts.get(code, 0), code)):
        num = int(counts.get(code, 0))
        found.append(
            Species(
                code,
                *names.get(code, ("", "")),
                num,
                int(secondary.get(code, 0)),
                int(sums["clips"].get(code, 0)),
                float(sums["seconds"].get(code, 0.0)) / 3600,
                float(rating.get(code, np.nan)),
                float((rarest / num) ** 0.5) if num else np.nan,
            )
        )
    return found


def _rated(tables: StoreTables) -> Float64[np.ndarray, " r"]:
    """Return ratings; a rating of 0 means that there is none."""
    ratings = tables.numbers("rating")
    return np.asarray(np.where(ratings > 0, ratings, np.nan))


def _species_names(tables: StoreTables) -> dict[str, tuple[str, str]]:
    columns = [tables.column(name).to_numpy(object) for name in NAMES]
    found: dict[str, tuple[str, str]] = {}
    for code, common, scientific in zip(tables.primary, *columns, strict=True):
        if code and code not in found and (common or scientific):
            found[str(code)] = str(common), str(scientific)
    return found


def ratings(tables: StoreTables) -> Float64[np.ndarray, " n"]:
    """Return the ratings that were given."""
    rated = _rated(tables)
    return np.asarray(rated[~np.isnan(rated)])


def years(dates: pd.Series) -> pd.Series:
    """Return the year of every date, in whatever form people write one; "" where there is none."""
    return dates.map(lambda value: match[0] if (match := re.search(r"\b(19|20)\d\d(?=\b|_)", value)) else "")


def counted(values: pd.Series) -> list[tuple[str, int]]:
    """Return how many recordings have each value, the most frequent first."""
    counts = values.where(values != "", NOT_GIVEN).value_counts()
    return sorted(((str(key), int(num)) for key, num in counts.items()), key=lambda one: (-one[1], one[0]))


def places(tables: StoreTables) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return latitudes and longitudes in degrees of the recordings that have both, and are on the globe."""
    latitude, longitude = tables.numbers("latitude"), tables.numbers("longitude")
    there = (np.abs(latitude) <= 90) & (np.abs(longitude) <= 180)
    return latitude[there], longitude[there]


def problems(tables: StoreTables) -> Named:
    """Return status, file name and reason of the recordings that are not ok, or have a remark."""
    recordings = tables.store.recordings
    odd = recordings[(recordings["status"] != "ok") | (recordings["reason"] != "")]
    worst = {"unreadable": 0, "damaged": 1, "short": 2, "ok": 3}
    odd = odd.assign(order=odd["status"].map(worst)).sort_values("order", kind="stable")
    columns = [odd[name].astype(str) for name in ("status", "filename", "reason")]
    return Named(list(zip(*columns, strict=True))[:ROWS_NAMED], len(odd))


def copies(recordings: pd.DataFrame) -> Named:
    """Return recordings that are one and the same: by bytes, or by xeno-canto id; why, and which."""
    found: list[tuple[str, ...]] = []
    seen: set[frozenset[int]] = set()
    for column, why in (("sha256", "the same bytes"), ("xc_id", "the same xeno-canto id")):
        values = recordings[column].astype(str)
        again = values[(values != "") & values.duplicated(keep=False)]
        for _, group in again.groupby(again, sort=False):
            members = frozenset(int(row) for row in group.index)
            if members not in seen:
                seen.add(members)
                found.append((why, "\n".join(name_of(recordings, row) for row in group.index)))
    return Named(found[:ROWS_NAMED], len(found))


def name_of(recordings: pd.DataFrame, row: Any) -> str:
    """Return a recording's file name, and its source where that is not the main metadata."""
    source, name = recordings["source"].iloc[row], recordings["filename"].iloc[row]
    return str(name) if source == "main" else f"{name} ({source})"
