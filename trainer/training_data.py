"""Which recordings a run learned from, and whom they are by."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from shared.documents import UNREADABLE
from shared.store import FeatureStore
from trainer.data import is_soft
from trainer.run import Run

FILE = "attribution.csv"
KEYS = ["source", "filename", "sha256"]
COLUMNS = ["source", "filename", "primary_label", "author", "license", "url"]
NOT_GIVEN = "not given"


@dataclass(frozen=True)
class TrainingData:
    """The recordings that some head of a run learned from (N rows of COLUMNS, text).

    not_attributed: why author, license and url are empty, "" where they are not.
    num_clips: of these recordings; None where they are not attributed. num_soft: how many of them a model
        labelled.
    """

    recordings: pd.DataFrame
    not_attributed: str = ""
    num_clips: int | None = None
    num_soft: int = 0

    def counts(self, column: str) -> list[tuple[str, int]]:
        """Return a column's values, the most frequent first, with how many recordings have each."""
        values = Counter(value.strip() or NOT_GIVEN for value in self.recordings[column])
        return sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))

    def non_commercial(self) -> int:
        """Return how many recordings' licences forbid commercial use by their name."""
        names = self.recordings["license"].str.lower()
        return int(names.str.contains(r"non-?commercial|\bnc\b|by-nc", regex=True).sum())


def training_data(members: list[Run], features: Path | None) -> TrainingData:
    """Read the training recordings of a run, or of its folds, and their metadata.

    features: a store that holds them; None: the one that the run was trained on, where it is still there.

    Raises:
        ValueError: a run's split is damaged; `features` cannot be opened or lacks some of the recordings.
    """
    trained = pd.concat([_trained(run.path) for run in members]).drop_duplicates(KEYS, ignore_index=True)
    place = features or Path(members[0].facts["features"])
    try:
        store = FeatureStore(place)
    except UNREADABLE:
        if features:
            raise
        return _not_attributed(trained, f"the run's store {place} is not there")
    known = store.recordings.drop_duplicates(KEYS).set_index(KEYS)
    keys = pd.MultiIndex.from_frame(trained[KEYS])
    rows = known.index.get_indexer(keys)
    if (rows < 0).any():
        missing = trained["filename"][rows < 0]
        line = (
            f"{place} lacks {len(missing)} of the {len(trained)} training recordings, {missing.iloc[0]} first"
        )
        if features:
            raise ValueError(f"{line}; give the store that the run was trained on.")
        return _not_attributed(trained, line)
    others = [name for name in COLUMNS if name not in trained]
    for name in others:
        column = known[name] if name in known else pd.Series("", known.index)
        trained[name] = column.iloc[rows].astype(str).to_numpy()
    numbers = set(store.recordings.index[store.recordings.set_index(KEYS).index.isin(keys)])
    num_clips = int(store.clips["recording"].isin(numbers).sum())
    soft = numbers & set(np.flatnonzero(is_soft(store)).tolist())
    return TrainingData(trained[COLUMNS], num_clips=num_clips, num_soft=len(soft))


def _not_attributed(trained: pd.DataFrame, why: str) -> TrainingData:
    return TrainingData(trained.reindex(columns=COLUMNS, fill_value=""), why)


def _trained(path: Path) -> pd.DataFrame:
    try:
        split = pd.read_csv(path / "split.csv", dtype=str, keep_default_na=False)
        return split[split["side"].isin(["training", "watched"])][[*KEYS, "primary_label"]]
    except UNREADABLE as error:
        raise ValueError(f"{path}/split.csv is missing or damaged: {error}.") from error
