"""Labels of the store into what the loss sees of each clip."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from shared.metadata import WHOLE
from shared.taxonomy import Taxonomy
from trainer.config import LabelConfig

SURE = 0.5  # a soft label that makes a recording one of its species


@dataclass(frozen=True)
class Targets:
    """Targets and weights (.., K) of every clip; clips of a recording mostly share one pattern.

    patterns, pattern_weights: (P, K); of_row: per clip the pattern's number.
    recording_truth, recording_weights: (recordings, K) for scoring whole recordings: 1 for a
        primary label, of soft ones where one is at least a half; secondary labels are not counted
        either way.
    """

    patterns: Float32[np.ndarray, "p k"]
    pattern_weights: Float32[np.ndarray, "p k"]
    of_row: Int64[np.ndarray, " rows"]
    recording_truth: Float32[np.ndarray, "r k"]
    recording_weights: Float32[np.ndarray, "r k"]

    def of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return targets and weights (B, K) of clips."""
        patterns = self.of_row[rows]
        return self.patterns[patterns], self.pattern_weights[patterns]

    def is_known(self) -> np.ndarray:
        """Tell per clip whether any of its labels counts."""
        known: np.ndarray = np.any(self.pattern_weights, axis=1)
        return np.asarray(known[self.of_row])


@dataclass(frozen=True)
class LabelledClips:
    """The tables that targets are made of; `labels` and `clips` as in the store."""

    num_recordings: int
    clips: pd.DataFrame
    labels: pd.DataFrame
    clip_samples: int


@dataclass
class _Patterns:
    """Rows of targets and weights (P, K) that labels are written into."""

    values: np.ndarray
    weights: np.ndarray

    def apply(self, pattern: np.ndarray, labels: pd.DataFrame, config: LabelConfig) -> None:
        """Write labels into their patterns, secondary ones first, so that a primary one wins."""
        known = labels["column"].notna().to_numpy()
        for kind in ("secondary", "primary"):
            chosen = known & (labels["kind"] == kind).to_numpy()
            place = (pattern[chosen], labels["column"].to_numpy()[chosen].astype(np.int64))
            value = labels["value"].to_numpy(np.float32)[chosen]
            weight = labels["weight"].to_numpy(np.float32)[chosen]
            if kind == "secondary":
                outranked = self.values[place] > 0  # by a primary label of the whole recording
                place = (place[0][~outranked], place[1][~outranked])
                value, weight = value[~outranked], weight[~outranked]
                worth = {"mask": 0.0, "soft": config.secondary_value, "positive": 1.0}[config.secondary]
                value = value * worth
                weight = weight * (config.secondary != "mask")
            self.values[place], self.weights[place] = value, weight


def make_targets(tables: LabelledClips, taxonomy: Taxonomy, config: LabelConfig) -> Targets:
    """Turn the labels table into targets.

    A label of the whole recording holds for all of its clips (weak labels). Where a recording
    has timed labels only, a clip that none of them overlaps is unknown: weight 0 everywhere.
    Where there are timed ones only, species without a label count as much as the clip's heaviest label.
    A species outside the taxonomy is left out; its recording is a negative for the others.
    """
    shape = (tables.num_recordings, len(taxonomy))
    labels = tables.labels.assign(column=tables.labels["species"].map(taxonomy.column))
    whole, timed = labels[labels["start"] == WHOLE], labels[labels["start"] != WHOLE]
    patterns = _Patterns(np.zeros(shape, np.float32), np.ones(shape, np.float32))
    patterns.apply(whole["recording"].to_numpy(), whole, config)
    of_row = tables.clips["recording"].to_numpy(np.int64).copy()
    if len(timed):
        only_timed = np.setdiff1d(timed["recording"], whole["recording"])
        _add_timed(tables, timed, only_timed, patterns, of_row, config)
    truth = _Patterns(np.zeros(shape, np.float32), np.ones(shape, np.float32))
    by_value = labels[labels["weight"] > 0].sort_values("value", kind="stable")  # the surest is last
    truth.apply(by_value["recording"].to_numpy(), by_value, LabelConfig())
    truth.values = (truth.values >= SURE).astype(np.float32)
    return Targets(patterns.values, patterns.weights, of_row, truth.values, truth.weights)


def _add_timed(
    tables: LabelledClips,
    timed: pd.DataFrame,
    only_timed: np.ndarray,
    patterns: _Patterns,
    of_row: np.ndarray,
    config: LabelConfig,
) -> None:
    """Give every clip of a recording with timed labels a pattern of its own (changes of_row)."""
    rows = np.flatnonzero(np.isin(of_row, timed["recording"].unique()))
    recording = of_row[rows]
    own = _Patterns(patterns.values[recording].copy(), patterns.weights[recording].copy())
    own.weights[np.isin(recording, only_timed)] = 0
    start = tables.clips["start"].to_numpy()[rows]
    clips = pd.DataFrame({"recording": recording, "clip_start": start, "place": np.arange(len(rows))})
    pairs = clips.merge(timed, on="recording")
    begins_before_end = pairs["start"] < pairs["clip_start"] + tables.clip_samples
    pairs = pairs[begins_before_end & (pairs["stop"] > pairs["clip_start"])]
    heaviest = pairs.groupby("place")["weight"].max()
    labelled = heaviest.index.to_numpy()
    weight = heaviest.to_numpy(np.float32)
    weight[~np.isin(recording[labelled], only_timed)] = 1  # labels of the whole recording count as ever
    own.weights[labelled] = patterns.weights[recording[labelled]] * weight[:, None]
    # Of two that a clip overlaps, the surer one is written last, and one that does not count first.
    pairs = pairs.assign(counts=pairs["weight"] > 0).sort_values(["counts", "value"], kind="stable")
    own.apply(pairs["place"].to_numpy(), pairs, config)
    of_row[rows] = len(patterns.values) + np.arange(len(rows))
    patterns.values = np.concatenate([patterns.values, own.values])
    patterns.weights = np.concatenate([patterns.weights, own.weights])
