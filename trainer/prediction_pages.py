"""Pages of a prediction: one per soundscape, to look, listen and review, and an index of them."""

import base64
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from shared.clip_array import num_processors
from shared.config import digest
from shared.page import page_state, refuse_other_file, template_digest, write_page
from shared.pipeline import in_order
from trainer.event_tables import RAVEN_COLUMNS, Band, Detections
from trainer.events import EventRules
from trainer.frame_files import FrameWriter
from trainer.predict import Predictor
from trainer.soundscape_audio import SoundPages, SoundStretch, mel_ticks

STRETCH_SECONDS = 600.0
LOWEST = 0.02  # of the threshold slider; what never reaches it has no lane
FOLDER = "pages"


@dataclass(frozen=True)
class Heard:
    """A recording's detections, and what was odd about it."""

    found: Detections
    remarks: str


@dataclass
class PageEntry:
    """A row of the index.

    before: seconds of all recordings before this one, as Raven counts. links: text and address of its
    pages, which are files.
    """

    name: str
    path: str
    seconds: float
    before: float
    num_events: int
    species: list[tuple[str, int]]
    key: str
    links: list[tuple[str, str]] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
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

    def entry(self, heard: Heard) -> PageEntry:
        """Return a recording's row of the index; call it in the order of the event tables."""
        found = heard.found
        counts = Counter(event.species for event in found.events)
        key = f"dawnchorus review {self._of} {found.recording.relative}"
        entry = PageEntry(
            found.recording.relative, str(found.recording.path.absolute()), found.seconds, self._before,
            len(found.events), counts.most_common(), key, problem=heard.remarks,
        )  # fmt: skip
        self._before += found.seconds
        return entry

    def places(self, heard: Heard) -> list["Place"]:
        """Return the pages that a recording has: a long one those with a detection, and the first."""
        step, found = self._sound.stretch_seconds, heard.found
        num = max(1, int(np.ceil(found.seconds / step - 1e-9)))
        places = []
        for number in range(num):
            begin, end = number * step, min((number + 1) * step, found.seconds)
            num_events = sum(e.start < end and e.stop > begin for e in found.events)
            name = found.recording.relative + (f".{number + 1}" if num > 1 else "")
            minutes = f"{begin / 60:g} to {end / 60:.4g}" if num > 1 else ""
            if num_events or not number:
                places.append(Place(number, f"{name}.html", minutes, num_events))
        return places

    def write(self, heard: Heard, frames: np.ndarray, entry: PageEntry, places: Sequence["Place"]) -> None:
        """Write pages of a recording; one that is there and shows the same is left as it is.

        frames: (m, K).

        Raises:
            ValueError: the recording cannot be read, or something else stands where a page goes.
        """
        for place in places:
            refuse_other_file(self._file(place))
        state = self._state(heard)
        missing = {one.number: one for one in places if page_state(self._file(one)) != state}
        if not missing:
            return
        for number, stretch in self._sound.stretches(heard.found.recording.path, missing):
            page = self._page(heard, stretch, missing[number])
            data = self._data(heard, frames, entry, stretch)
            out = self._file(missing[number])
            write_page(out, "soundscape.html", "trainer", title=entry.name, state=state, page=page, data=data)

    def link(self, heard: Heard, entry: PageEntry) -> int:
        """Link all pages of a recording that are there and of now; return how many are not there."""
        places, state = self.places(heard), self._state(heard)
        made = [place for place in places if page_state(self._file(place)) == state]
        entry.links = [(place.text, f"{FOLDER}/{place.address}") for place in made]
        entry.num_bytes = sum(self._file(place).stat().st_size for place in made)
        entry.files = {self._file(place) for place in made}
        return len(places) - len(made)

    def remove_older(self, entries: Sequence[PageEntry]) -> None:
        """Remove pages of these recordings that show what is no longer so."""
        now = {file for entry in entries for file in entry.files}
        names = {entry.name for entry in entries}
        for path in (self.folder / FOLDER).rglob("*.html"):
            below = path.relative_to(self.folder / FOLDER).as_posix().removesuffix(".html")
            is_ours = below in names or re.sub(r"\.\d+$", "", below) in names
            if is_ours and path not in now and page_state(path) is not None:
                path.unlink()

    def _file(self, place: "Place") -> Path:
        return self.folder / FOLDER / place.file

    def _state(self, heard: Heard) -> str:
        """Return a digest of all that a recording's pages show."""
        found = heard.found
        stamp = found.recording.path.stat()
        events = [[e.species, e.start, e.stop, e.confidence] for e in found.events]
        return digest(
            [self._of, template_digest("trainer"), stamp.st_size, stamp.st_mtime_ns, found.seconds, events,
             heard.remarks, self._sound.stretch_seconds, self._threshold.tolist(),
             [self._rules.join, self._rules.shortest, self._rules.pad]]
        )  # fmt: skip

    def _page(self, heard: Heard, stretch: SoundStretch, place: "Place") -> dict[str, Any]:
        """Return what stands on the page beside the script's data."""
        begin, end = stretch.start, stretch.start + stretch.seconds
        events = [e for e in heard.found.events if e.start < end and e.stop > begin]
        return {
            "num_events": len(events), "num_species": len({event.species for event in events}),
            "part": place.minutes, "remarks": heard.remarks, "audio": stretch.audio, "lowest": LOWEST,
            "up": "../" * (heard.found.recording.relative.count("/") + 1) + "index.html",
        }  # fmt: skip

    def _data(
        self, heard: Heard, given: np.ndarray, entry: PageEntry, stretch: SoundStretch
    ) -> dict[str, Any]:
        """Return everything that the page's script works on.

        shift: seconds from the page's beginning to its first frame's, 0 or less.
        """
        first = int(np.floor(stretch.start / self._frame_seconds + 1e-9))
        shift = min(0.0, first * self._frame_seconds - stretch.start)
        last = first + int(np.ceil((stretch.seconds - shift) / self._frame_seconds - 1e-9))
        frames = np.asarray(given[first:last], np.float32)
        highest = frames.max(axis=0, initial=0.0)
        occurs = np.flatnonzero(highest >= np.minimum(LOWEST, self._threshold))
        return {
            "key": entry.key, "relative": entry.name, "stem": Path(entry.name).stem,
            "path": str(heard.found.recording.path.absolute()), "shift": shift,
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
                {"relative": one.name, "path": one.path, "key": one.key, "before": one.before}
                for one in entries
            ],
            "band": [self.band.low_hz, self.band.high_hz],
            "raven_columns": RAVEN_COLUMNS,
        }  # fmt: skip
        return write_page(
            self.folder / "index.html", "predictions.html", "trainer", title="What was heard", data=data,
            entries=entries, totals=totals.most_common(), runs=[str(run) for run in runs], left_out=left_out,
        )  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A page of a recording: its number, its file below FOLDER, its minutes, how many events they hold."""

    number: int
    file: str
    minutes: str
    num_events: int

    @property
    def text(self) -> str:
        """What a link to it says."""
        return f"minutes {self.minutes}" if self.minutes else "open"

    @property
    def address(self) -> str:
        """Its address below FOLDER."""
        return quote(os.fsencode(self.file))


@dataclass(frozen=True)
class Limits:
    """How many pages are made, and what tells that the time is over."""

    most: int
    is_over: Callable[[], bool]


def write_pages(
    pages: PredictionPages, heard: Sequence[Heard], frames: FrameWriter, limits: Limits,
    tick: Callable[[int], object],
) -> tuple[list[PageEntry], int]:  # fmt: skip
    """Write the pages with most events, in threads; pages of before that show what is still so stay.

    Returns:
        all rows of the index, and how many pages there could be and are not.
    """
    entries = [pages.entry(one) for one in heard]
    ready = [number for number, one in enumerate(heard) if frames.has(one.found.recording)]
    possible = [(place, number) for number in ready for place in pages.places(heard[number])]
    possible.sort(key=lambda one: -one[0].num_events)
    chosen: dict[int, list[Place]] = {}
    for place, number in possible[: limits.most]:
        chosen.setdefault(number, []).append(place)

    def make(number: int) -> list[int]:
        try:
            given = frames.read(heard[number].found.recording)
            pages.write(heard[number], given, entries[number], chosen[number])
        except (ValueError, OSError) as error:
            entries[number].problem = str(error)
        return [len(chosen[number])]

    wanted = takewhile(lambda _: not limits.is_over(), chosen)
    cores = num_processors()
    with closing(in_order(make, wanted, workers=cores, ahead=2 * cores)) as made:  # type: ignore[type-var]
        for num in made:
            tick(num)
    num_missing = sum(pages.link(heard[number], entries[number]) for number in ready)
    pages.remove_older(entries)
    return entries, num_missing
