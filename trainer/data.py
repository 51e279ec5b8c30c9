"""Clips of a store as batches: maps, targets, weights, masks."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from shared.config import parse_config
from shared.features import FeatureConfig
from shared.prefetch import prefetched
from shared.store import FeatureStore
from shared.taxonomy import Taxonomy
from trainer.config import LabelConfig
from trainer.map_source import MapSource, StoredMaps
from trainer.mixup import Batch
from trainer.targets import SURE, LabelledClips, Targets, make_targets

SCORE_BATCH = 256
ROWS_AHEAD = 2  # steps: the one after next is on its way from a cold disk while this one is read


def feature_config(store: FeatureStore) -> FeatureConfig:
    """Return the config that the store was built with."""
    return parse_config(FeatureConfig, store.attributes["config"])


def frame_mask(valid_samples: np.ndarray, *, frame_hop: int, num_frames: int) -> np.ndarray:
    """Tell (B, T) which frames begin inside the audio; the first one always counts.

    Frames do not tile the clip: frame t stands for the samples from t * frame_hop on.
    """
    begins = np.arange(num_frames) * frame_hop
    return np.asarray((begins < valid_samples[:, None]) | (begins == 0))


@dataclass
class ClipData:
    """A store under a taxonomy: everything a head needs to know of its clips."""

    store: FeatureStore
    taxonomy: Taxonomy
    targets: Targets
    source: MapSource
    score_clips: int
    num_views: int

    def __init__(
        self,
        store: FeatureStore,
        taxonomy: Taxonomy,
        labels: LabelConfig,
        source: MapSource | None = None,
        score_clips: int = SCORE_BATCH,
    ) -> None:
        """Turn labels into targets; maps come from `source`, or straight from the store.

        source: where it holds views too, the row of a clip's view v is v * R + the clip's own.
        score_clips: how many are read at once to be scored.
        """
        self.score_clips = score_clips
        self.store, self.taxonomy = store, taxonomy
        self.source = source or StoredMaps(store.maps, torch.device("cpu"))
        self.num_views = self.source.num_rows // max(1, store.num_rows) - 1
        self.grid = feature_config(store).clips.grid()
        tables = LabelledClips(len(store.recordings), store.clips, store.labels, self.grid.clip_samples)
        self.targets = make_targets(tables, taxonomy, labels)
        self.recording_of_row = store.clips["recording"].to_numpy(np.int64)
        self._valid = store.clips["valid_samples"].to_numpy(np.int64)

    def usable_rows(self) -> np.ndarray:
        """Return rows with enough audio to be judged: a whole tail, or a recording's first clip.

        Recordings that the metadata no longer has are left out, though the store keeps them.
        """
        first = self.store.clips["start"].to_numpy() == 0
        enough = self._valid >= max(1, self.grid.min_tail_samples)
        known = self.store.in_metadata[self.recording_of_row]
        return np.flatnonzero(known & (enough | (first & (self._valid > 0))))

    def has_clip(self) -> np.ndarray:
        """Tell per recording whether it has a usable clip."""
        return np.isin(np.arange(len(self.store.recordings)), self.recording_of_row[self.usable_rows()])

    def is_soft(self) -> np.ndarray:
        """Tell per recording whether it is pseudo-labelled."""
        return is_soft(self.store)

    def first_primary(self) -> list[str]:
        """Return each recording's first primary species, "" where it has none; of soft ones a sure one."""
        labels = self.store.labels
        sure = (labels["value"] >= SURE) & (labels["weight"] > 0)
        primary = labels[(labels["kind"] == "primary") & sure]
        first = primary.drop_duplicates("recording").set_index("recording")["species"]
        return [str(first.get(number, "")) for number in range(len(self.store.recordings))]

    def ratings(self) -> np.ndarray:
        """Return each recording's rating; 0 where there is none."""
        if "rating" not in self.store.recordings:
            return np.zeros(len(self.store.recordings), np.float32)
        given = self.store.recordings["rating"]
        return np.array([_number(text) for text in given], np.float32)

    def batch(self, rows: np.ndarray, loss_weights: np.ndarray | None = None) -> Batch:
        """Read rows; maps as they are stored, the rest as the loss takes them.

        loss_weights: what each recording counts in the loss (R,), where it is not 1.
        """
        view, clips = np.divmod(rows, self.store.num_rows)
        targets, weights = self.targets.of(clips)
        if loss_weights is not None:
            weights = weights * loss_weights[self.recording_of_row[clips]][:, None]
        maps = self.source.read(rows)
        valid, num_frames = self._valid[clips], self.store.maps.row_shape[2]
        mask = frame_mask(valid, frame_hop=self.store.frame_hop, num_frames=num_frames)
        mask |= ((view > 0) & (valid > 0))[:, None]  # a view has no end: short clips are repeated in it
        parts = (targets, weights, mask, valid)
        return Batch(maps, *(torch.from_numpy(part) for part in parts))


def is_soft(store: FeatureStore) -> np.ndarray:
    """Tell per recording whether some label of it is soft, or weighs less than 1: a pseudo-label."""
    value, weight = (store.labels[name].to_numpy(float) for name in ("value", "weight"))
    soft = ((value > 0) & (value < 1)) | (weight < 1)
    return np.isin(np.arange(len(store.recordings)), store.labels["recording"].to_numpy()[soft])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def training_steps(
    data: ClipData, steps: Int64[np.ndarray, "steps a b"], loss_weights: np.ndarray | None = None
) -> Iterator[list[Batch]]:
    """Yield, per optimiser step, its batches of drawn clips, read one step ahead."""
    draws = (list(batches) for batches in steps)
    return prefetched(
        [data.batch(rows, loss_weights) for rows in step] for step in _asked_for_early(draws, data)
    )


def all_batches(data: ClipData, rows: np.ndarray) -> Iterator[Batch]:
    """Yield batches of the given rows in order."""
    size = data.score_clips
    pieces = ([rows[first : first + size]] for first in range(0, len(rows), size))
    return prefetched(data.batch(piece) for (piece,) in _asked_for_early(pieces, data))


def _asked_for_early(draws: Iterable[list[np.ndarray]], data: ClipData) -> Iterator[list[np.ndarray]]:
    """Yield lists of rows unchanged; the disk is told of each ROWS_AHEAD lists before it is read."""
    waiting: deque[list[np.ndarray]] = deque()
    for draw in draws:
        data.source.will_need(np.concatenate(draw))
        waiting.append(draw)
        if len(waiting) > ROWS_AHEAD:
            yield waiting.popleft()
    yield from waiting
