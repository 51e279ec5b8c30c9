"""Pages of a prediction: one per soundscape, to look, listen and review, and an index of them."""

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from shared.page import refuse_other_file, write_page
from trainer.event_tables import RAVEN_COLUMNS, Band, Detections
from trainer.events import EventRules
from trainer.frame_files import FrameWriter
from trainer.predict import Predictor
from trainer.soundscape_audio import SoundPages, SoundStretch, mel_ticks

STRETCH_SECONDS = 600.0
LOWEST = 0.02  # of the threshold slider; what never reaches it has no lane
FOLDER = "pages"


@dataclass(frozen=True)
class ReadySoundscape:
    """A recording that is predicted whole: its events, its frames (m, K), and what was odd about it."""

    found: Detections
    frames: np.ndarray
    remarks: str


@dataclass
class PageEntry:
    """A row of the index. before: seconds of all recordings before this one, as Raven counts."""

    name: str
    seconds: float
    before: float
    num_events: int
    species: list[tuple[str, int]]
    key: str
    links: list[tuple[str, str]] = field(default_factory=list)
    num_bytes: int = 0
    problem: str = ""


class PredictionPages:
    """Writes the pages of one prediction into a folder.

    of: a digest of what decides the detections; verdicts belong to it. threshold: (K,) of the species.
    """

    def __init__(
        self, folder: Path, predictor: Predictor, rules: EventRules, threshold: np.ndarray, of: str
    ) -> None:
        ensemble = predictor.ensemble
        self.folder, self._rules, self._of = folder, rules, of
        self._threshold = threshold.astype(np.float32)
        self._species, self._frame_seconds = ensemble.taxonomy.species, ensemble.frame_seconds
        self._sound = SoundPages(ensemble.grid, ensemble.mel, STRETCH_SECONDS)
        self.band = Band(ensemble.mel.fmin_hz, ensemble.mel.fmax_hz)
        self._ticks = mel_ticks(ensemble.mel)
        self._before = 0.0

    def entry(self, found: Detections) -> PageEntry:
        """Return a recording's row of the index; call it in the order of the event tables."""
        counts = Counter(event.species for event in found.events)
        key = f"dawnchorus review {self._of} {found.recording.relative}"
        entry = PageEntry(
            found.recording.relative, found.seconds, self._before, len(found.events),
            counts.most_common(), key,
        )  # fmt: skip
        self._before += found.seconds
        return entry

    def write(self, ready: ReadySoundscape, entry: PageEntry) -> None:
        """Write a recording's page, or several of a long one: those that have a detection, and the first.

        Raises:
            ValueError: the recording cannot be read.
        """
        places = self._places(ready)
        wanted = [place for place in places if place.is_shown]
        by_start = {place.number: place for place in wanted}
        for number, stretch in enumerate(self._sound.stretches(ready.found.recording.path)):
            if number in by_start:
                entry.num_bytes += self._write_one(ready, entry, stretch, by_start[number], wanted)
        entry.links = [(place.text, f"{FOLDER}/{place.address}") for place in wanted]

    def _places(self, ready: ReadySoundscape) -> list["_Place"]:
        step = self._sound.clips_each * self._sound.grid.clip_samples / self._sound.grid.sample_rate_hz
        num = max(1, int(np.ceil(ready.found.seconds / step - 1e-9)))
        below = ready.found.recording.relative
        places = []
        for number in range(num):
            here = [e for e in ready.found.events if e.start < (number + 1) * step and e.stop > number * step]
            name = below if num == 1 else f"{below}.{number + 1}"
            minutes = f"{number * step / 60:g} to {min((number + 1) * step, ready.found.seconds) / 60:.3g}"
            places.append(
                _Place(number, f"{name}.html", minutes if num > 1 else "", bool(here) or number == 0)
            )
        return places

    def _write_one(
        self, ready: ReadySoundscape, entry: PageEntry, stretch: SoundStretch, place: "_Place",
        others: Sequence["_Place"],
    ) -> int:  # fmt: skip
        relative = ready.found.recording.relative
        events = [e for e in ready.found.events
                  if e.start < stretch.start + stretch.seconds and e.stop > stretch.start]  # fmt: skip
        near = others.index(place)
        up = "../" * (relative.count("/") + 1)
        neighbours = [
            (text, f"{up}{FOLDER}/{others[to].address}")
            for text, to in (("before", near - 1), ("after", near + 1))
            if 0 <= to < len(others)
        ]
        page = {
            "num_events": len(events), "num_species": len({event.species for event in events}),
            "part": place.minutes, "up": f"{up}index.html", "neighbours": neighbours,
            "remarks": ready.remarks, "audio": stretch.audio, "lowest": LOWEST,
        }  # fmt: skip
        out = self.folder / FOLDER / place.file
        refuse_other_file(out)
        data = self._data(ready, entry, stretch)
        return write_page(out, "soundscape.html", "trainer", title=relative, page=page, data=data)

    def _data(self, ready: ReadySoundscape, entry: PageEntry, stretch: SoundStretch) -> dict[str, Any]:
        """Return everything that the page's script works on."""
        first = round(stretch.start / self._frame_seconds)
        last = first + int(np.ceil(stretch.seconds / self._frame_seconds - 1e-9))
        frames = np.asarray(ready.frames[first:last], np.float32)
        highest = frames.max(axis=0, initial=0.0)
        occurs = np.flatnonzero(highest >= np.minimum(LOWEST, self._threshold))
        return {
            "key": entry.key, "relative": entry.name, "stem": Path(entry.name).stem,
            "offset": stretch.start, "seconds": stretch.seconds, "frame_seconds": self._frame_seconds,
            "rules": {"join": self._rules.join, "shortest": self._rules.shortest, "pad": self._rules.pad},
            "band": [self.band.low_hz, self.band.high_hz], "raven_columns": RAVEN_COLUMNS,
            "mel_ticks": self._ticks, "tiles": stretch.tiles, "num_frames": len(frames),
            "species": [
                {"code": self._species[column], "threshold": float(self._threshold[column])}
                for column in occurs
            ],
            "frames": base64.b64encode(np.ascontiguousarray(frames[:, occurs].T).tobytes()).decode(),
        }  # fmt: skip

    def write_index(self, entries: Sequence[PageEntry], runs: Sequence[Path], left_out: int) -> int:
        """Write index.html of all recordings; return its size in bytes."""
        totals = Counter[str]()
        for entry in entries:
            totals.update(dict(entry.species))
        data = {
            "recordings": [
                {"relative": one.name, "key": one.key, "before": one.before} for one in entries
            ],
            "band": [self.band.low_hz, self.band.high_hz],
            "raven_columns": RAVEN_COLUMNS,
        }  # fmt: skip
        return write_page(
            self.folder / "index.html", "predictions.html", "trainer", title="What was heard", data=data,
            entries=entries, totals=totals.most_common(), runs=[str(run) for run in runs], left_out=left_out,
        )  # fmt: skip


@dataclass(frozen=True)
class _Place:
    """A page of a recording: its number, its file below FOLDER, which minutes, and whether it is written."""

    number: int
    file: str
    minutes: str
    is_shown: bool

    @property
    def text(self) -> str:
        return f"minutes {self.minutes}" if self.minutes else "open"

    @property
    def address(self) -> str:
        return quote(self.file)


def write_pages(
    pages: PredictionPages, found: Sequence[Detections], frames: FrameWriter, remarks: dict[str, str],
    most: int, tick: Callable[[int], object],
) -> tuple[list[PageEntry], int]:  # fmt: skip
    """Write the pages of the `most` recordings with most events; return all rows, and how many are left out.

    remarks: by a recording's path below the audio folder.
    """
    entries = [pages.entry(one) for one in found]
    order = sorted(range(len(found)), key=lambda number: (-entries[number].num_events, number))
    ready = [number for number in order if frames.has(found[number].recording)]
    for number, one in enumerate(found):
        entries[number].problem = remarks.get(one.recording.relative, "")
    for number in ready[:most]:
        one = found[number]
        try:
            pages.write(
                ReadySoundscape(one, frames.read(one.recording), remarks.get(one.recording.relative, "")),
                entries[number],
            )
        except ValueError as error:
            entries[number].problem = str(error)
        tick(1)
    return entries, len(ready[most:])
