"""A run's most confident mistakes, each with the clip in question: pictures, sound, and curves over it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit

from shared.clip_media import ClipMedia, ClipShower
from shared.store import FeatureStore
from trainer.calibration import Calibration
from trainer.data import ClipData, all_batches, feature_config
from trainer.evaluate import data_of
from trainer.heads import HeadOutput
from trainer.loop import Precision, to_device
from trainer.out_of_fold import KEYS, OutOfFold
from trainer.run import Run

PER_SPECIES = 3
COLOURS = ("second", "accent", "fourth", "third", "fifth")


@dataclass(frozen=True)
class Curve:
    """A species' frame-wise probabilities over a clip, and the page's colour for them."""

    species: str
    colour: str
    values: list[float]

    @property
    def points(self) -> str:
        """Steps for an svg polyline over 100 x 100, 1 at the top."""
        wide = 100 / max(1, len(self.values))
        places = [
            (edge * wide, 100 - 100 * value)
            for number, value in enumerate(self.values)
            for edge in (number, number + 1)
        ]
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in places)


@dataclass(frozen=True)
class Mistake:
    """A species that is said and not there (`is_alarm`), or there and not said; probability: of it.

    The clip is the one, of the recording, in which that species scores highest; start in seconds.
    media: None where the store has no waveforms.
    """

    filename: str
    species: str
    is_alarm: bool
    probability: float
    labels: list[str]
    start: float
    curves: list[Curve]
    media: ClipMedia | None


@dataclass(frozen=True)
class Wanted:
    """A mistake in the table of predictions: its row and column."""

    row: int
    column: int
    is_alarm: bool
    probability: float


def worst(table: OutOfFold, calibration: Calibration, each: int) -> list[Wanted]:
    """Return the most confident false alarms, then the most confident misses, `each` of both.

    A recording is shown once of each kind, a species at most PER_SPECIES times.
    """
    scores = table.scores()
    probability = expit(calibration.logits(scores.scores))
    found: list[Wanted] = []
    for is_alarm in (True, False):
        right_kind = (scores.truth > 0) != is_alarm
        rows, columns = np.nonzero(right_kind & (scores.counted > 0))
        values = probability[rows, columns]
        order = np.lexsort((columns, rows, -values if is_alarm else values))
        seen_rows: set[int] = set()
        num_of: dict[int, int] = {}
        for place in order:
            row, column = int(rows[place]), int(columns[place])
            if len(seen_rows) == each:
                break
            is_over = values[place] >= calibration.threshold[column]  # a species' own: not in this order
            if is_over != is_alarm or row in seen_rows or num_of.get(column, 0) == PER_SPECIES:
                continue
            seen_rows.add(row)
            num_of[column] = num_of.get(column, 0) + 1
            found.append(Wanted(row, column, is_alarm, float(values[place])))
    return found


class MistakeShower:
    """Makes mistakes visible by the heads that made them.

    members: for every fold that was held out, the run that held it out.
    """

    def __init__(
        self, members: dict[int, Run], store: FeatureStore, calibration: Calibration, device: torch.device
    ) -> None:
        self._members, self._store, self._calibration = members, store, calibration
        self._precision = Precision(device)
        self._data: dict[int, ClipData] = {}
        self._show = ClipShower(feature_config(store)) if store.waveforms is not None else None
        self._numbers = {
            tuple(key): row for row, key in enumerate(store.recordings[KEYS].astype(str).to_numpy())
        }

    def __call__(
        self, table: OutOfFold, wanted: Sequence[Wanted], tick: Callable[[int], object]
    ) -> list[Mistake]:
        """Return the mistakes whose recordings the store has, and its metadata still."""
        found = []
        for one in wanted:
            recording = table.recordings.iloc[one.row]
            number = self._numbers.get(tuple(str(recording[key]) for key in KEYS))
            if number is not None and self._store.in_metadata[number]:
                found.append(self._mistake(table, one, number))
            tick(1)
        return found

    def _mistake(self, table: OutOfFold, one: Wanted, number: int) -> Mistake:
        recording = table.recordings.iloc[one.row]
        fold = int(recording["fold"])
        run = self._members[fold]
        run.model.to(self._precision.device)
        if fold not in self._data:
            self._data[fold] = data_of(run, self._store, self._precision.device)
        data = self._data[fold]
        rows = data.usable_rows()
        rows = rows[data.recording_of_row[rows] == number]
        clip_wise, frame_wise, masks = scored_frames(run.model, data, rows, self._precision)
        best = int(clip_wise[:, one.column].argmax())
        labels = json.loads(recording["labels"])
        columns = [one.column, *(table.taxonomy.column[name] for name in labels)]
        probability = expit(self._calibration.logits(frame_wise[best]))
        heard = max(1, int(masks[best].sum()))
        curves = [
            Curve(table.taxonomy.species[column], colour, np.where(
                np.arange(len(probability)) < heard, probability[:, column], 0.0).tolist())
            for column, colour in zip(dict.fromkeys(columns), COLOURS, strict=False)
        ]  # fmt: skip
        row = rows[best]
        media = None
        if self._show is not None and self._store.waveforms is not None:
            media = self._show(self._store.waveforms.read(np.array([row]))[0])
        start = float(self._store.clips["start"].iloc[row]) / data.grid.sample_rate_hz
        species = table.taxonomy.species[one.column]
        return Mistake(
            str(recording["filename"]), species, one.is_alarm, one.probability, labels, start, curves, media
        )


@torch.inference_mode()
def scored_frames(
    model: torch.nn.Module, data: ClipData, rows: np.ndarray, precision: Precision
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return clip-wise logits (n, K), frame-wise ones (n, T, K), and which frames are audio (n, T')."""
    model.eval()
    clip_wise, frame_wise, masks = [], [], []
    for batch in all_batches(data, rows):
        moved = to_device(batch, precision.device)
        with precision.autocast():
            output: HeadOutput = model(moved.maps, moved.mask)
        clip_wise.append(output.clip_wise.float().cpu().numpy())
        frame_wise.append(output.frame_wise.float().cpu().numpy())
        masks.append(batch.mask.numpy())
    return np.concatenate(clip_wise), np.concatenate(frame_wise), np.concatenate(masks)
