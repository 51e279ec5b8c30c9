"""The table of out-of-fold predictions: every recording scored by a head that never saw it."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from shared.documents import UNREADABLE
from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.metrics import Scores

FILE = "out_of_fold.csv"
KEYS = ["source", "filename", "sha256"]
COLUMNS = [*KEYS, "fold", "labels", "not_counted"]


@dataclass(frozen=True)
class OutOfFold:
    """Recordings (N rows of COLUMNS) and their logits (N, K), in the taxonomy's order.

    labels: the recording's species, as a JSON list; not_counted: those that count neither way
    (secondary labels).
    """

    recordings: pd.DataFrame
    logits: Float[np.ndarray, "n k"]
    taxonomy: Taxonomy

    @property
    def folds(self) -> list[int]:
        """The folds that occur, sorted."""
        return sorted(set(self.recordings["fold"].tolist()))

    def scores(self) -> Scores:
        """Return logits, truth and what is counted."""
        truth = self._member("labels")
        return Scores(self.logits, truth, 1 - self._member("not_counted"))

    def _member(self, column: str) -> np.ndarray:
        member = np.zeros(self.logits.shape, np.float32)
        for row, species in enumerate(self.recordings[column]):
            member[row, [self.taxonomy.column[name] for name in json.loads(species)]] = 1
        return member

    def of_folds(self, *folds: int) -> "OutOfFold":
        """Return the rows of some folds."""
        return self._rows(np.flatnonzero(self.recordings["fold"].isin(folds)))

    def _rows(self, places: np.ndarray) -> "OutOfFold":
        return OutOfFold(
            self.recordings.iloc[places].reset_index(drop=True), self.logits[places], self.taxonomy
        )

    def matching(self, other: "OutOfFold") -> tuple["OutOfFold", "OutOfFold"]:
        """Return the recordings that both tables hold, in the same order.

        Raises:
            ValueError: none in common, other species, or other labels.
        """
        if self.taxonomy != other.taxonomy:
            raise ValueError("the two runs have other species; train both with the same --taxonomy.")
        mine, theirs = (pd.MultiIndex.from_frame(table.recordings[KEYS]) for table in (self, other))
        place = theirs.get_indexer(mine)
        if not (place >= 0).any():
            raise ValueError(
                "the two runs held out none of the same recordings: there is nothing to compare."
            )
        one, two = self._rows(np.flatnonzero(place >= 0)), other._rows(place[place >= 0])
        if not one.recordings[["labels", "not_counted"]].equals(two.recordings[["labels", "not_counted"]]):
            raise ValueError("the labels of some recordings changed between the two runs; train both again.")
        return one, two


def tabulate(
    store: FeatureStore, recordings: np.ndarray, fold: np.ndarray, scores: Scores, taxonomy: Taxonomy
) -> OutOfFold:
    """Make the table of scored recordings (N,); fold: of every recording of the store (R,)."""
    table = store.recordings.iloc[recordings][KEYS].reset_index(drop=True).astype(str)
    table["fold"] = fold[recordings]
    table["labels"] = _names(scores.truth * (scores.counted > 0), taxonomy)
    table["not_counted"] = _names(scores.counted == 0, taxonomy)
    return OutOfFold(table, scores.scores.astype(np.float32), taxonomy)


def _names(member: np.ndarray, taxonomy: Taxonomy) -> list[str]:
    return [
        json.dumps([taxonomy.species[column] for column in np.flatnonzero(row)], ensure_ascii=False)
        for row in member
    ]


def joined(tables: list[OutOfFold]) -> OutOfFold:
    """Return the tables of several folds as one, in the order of the first KEYS."""
    recordings = pd.concat([table.recordings for table in tables], ignore_index=True)
    order = recordings.sort_values(KEYS, kind="stable").index.to_numpy()
    logits = np.concatenate([table.logits for table in tables])
    return OutOfFold(recordings.loc[order].reset_index(drop=True), logits[order], tables[0].taxonomy)


def write_out_of_fold(table: OutOfFold, path: Path) -> None:
    """Write the CSV: COLUMNS, then a logit per species, so many digits that float32 comes back."""
    whole = pd.concat([table.recordings, pd.DataFrame(table.logits)], axis=1)
    temporary = path.with_name(f".{path.name}.tmp")
    whole.to_csv(temporary, index=False, float_format="%.9g", header=[*COLUMNS, *table.taxonomy.species])
    temporary.replace(path)


def read_out_of_fold(path: Path) -> OutOfFold:
    """Read the table of a run folder, or a file of that form.

    Raises:
        ValueError: there is none, or it has another form.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path} has no {FILE}: nothing was held out, or the run is not finished.")
    with file.open(newline="", encoding="utf-8") as lines:
        header = next(csv.reader(lines), [])
    if header[: len(COLUMNS)] != COLUMNS:
        raise ValueError(f"{file} is no table of predictions: it must begin with {', '.join(COLUMNS)}.")
    kinds = dict.fromkeys(range(len(COLUMNS)), str)
    try:
        whole = pd.read_csv(file, header=None, skiprows=1, dtype=kinds, keep_default_na=False)
        recordings = whole.iloc[:, : len(COLUMNS)].set_axis(COLUMNS, axis=1)
        recordings["fold"] = recordings["fold"].astype(int)
        logits = whole.iloc[:, len(COLUMNS) :].to_numpy(np.float32)
        table = OutOfFold(recordings, logits, Taxonomy(tuple(header[len(COLUMNS) :])))
        table.scores()
    except UNREADABLE as error:
        raise ValueError(f"{file} cannot be read: {error}.") from error
    if recordings.duplicated(KEYS).any():
        raise ValueError(
            f"{file} holds a recording twice: {recordings['filename'][recordings.duplicated(KEYS)].iloc[0]}."
        )
    return table


def read_side(path: Path) -> list[OutOfFold]:
    """Read one run's table, or those of all runs directly below a folder that is none itself.

    Raises:
        ValueError: no table, or one of another form.
    """
    below = sorted(path.glob(f"*/{FILE}")) if path.is_dir() and not (path / FILE).is_file() else []
    return [read_out_of_fold(file) for file in below] if below else [read_out_of_fold(path)]
