"""Pages of a prediction: one per soundscape, to look, listen and review, and an index of them."""

import base64
import re
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from shared.clip_array import num_processors
from shared.config import digest
from shared.page import is_page_of, refuse_other_file, template_digest, write_page
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

    def entry(self, heard: Heard) -> PageEntry:
        """Return a recording's row of the index; call it in the order of the event tables."""
        found = heard.found
        counts = Counter(event.species for event in found.events)
        key = f"dawnchorus review {self._of} {found.recording.relative}"
        entry = PageEntry(
            found.recording.relative, found.seconds, self._before, len(found.events),
            counts.most_common(), key, problem=heard.remarks,
        )  # fmt: skip
        self._before += found.seconds
        return entry

    def write(self, heard: Heard, frames: np.ndarray, entry: PageEntry) -> None:
        """Write a recording's page, or several of a long one: those that have a detection, and the first.

        frames: (m, K). A page that is there and of the same is left as it is.

        Raises:
            ValueError: the recording cannot be read.
        """
        wanted = [place for place in self._places(heard) if place.is_shown]
        for place in wanted:
            refuse_other_file(self.folder / FOLDER / place.file)
        of = self._digest(heard, wanted)
        missing = {one.number: one for one in wanted if not is_page_of(self.folder / FOLDER / one.file, of)}
        if missing:
            path = heard.found.recording.path
            for number, stretch in self._sound.stretches(path, missing):
                page = self._page(heard, stretch, missing[number], wanted)
                data = self._data(frames, entry, stretch)
                out = self.folder / FOLDER / missing[number].file
                write_page(out, "soundscape.html", "trainer", title=entry.name, of=of, page=page, data=data)
        made = [place for place in wanted if (self.folder / FOLDER / place.file).is_file()]
        entry.links = [(place.text, f"{FOLDER}/{place.address}") for place in made]
        entry.num_bytes = sum((self.folder / FOLDER / place.file).stat().st_size for place in made)

    def remove_older(self, entry: PageEntry) -> None:
        """Remove pages of a recording that this call did not make, of earlier calls."""
        now = {unquote(link) for _, link in entry.links}
        folder = (self.folder / FOLDER / entry.name).parent
        name = re.compile(re.escape(Path(entry.name).name) + r"(\.\d+)?\.html")
        for path in folder.iterdir() if folder.is_dir() else ():
            is_ours = name.fullmatch(path.name) and path.relative_to(self.folder).as_posix() not in now
            if is_ours and path.is_file():
                path.unlink()

    def _digest(self, heard: Heard, wanted: Sequence["_Place"]) -> str:
        """Tell one state of a recording's pages from another."""
        found = heard.found
        stamp = found.recording.path.stat()
        events = [[e.species, e.start, e.stop, e.confidence] for e in found.events]
        return digest(
            [self._of, template_digest("trainer"), stamp.st_size, stamp.st_mtime_ns, found.seconds, events,
             heard.remarks, [place.file for place in wanted], self._threshold.tolist(),
             [self._rules.join, self._rules.shortest, self._rules.pad]]
        )  # fmt: skip

    def _places(self, heard: Heard) -> list["_Place"]:
        step = self._sound.stretch_seconds
        found = heard.found
        num = max(1, int(np.ceil(found.seconds / step - 1e-9)))
        places = []
        for number in range(num):
            begin, end = number * step, min((number + 1) * step, found.seconds)
            has_event = any(e.start < end and e.stop > begin for e in found.events)
            name = found.recording.relative + (f".{number + 1}" if num > 1 else "")
            minutes = f"{begin / 60:g} to {end / 60:.4g}" if num > 1 else ""
            places.append(_Place(number, f"{name}.html", minutes, has_event or number == 0))
        return places

    def _page(
        self, heard: Heard, stretch: SoundStretch, place: "_Place", others: Sequence["_Place"]
    ) -> dict[str, Any]:
        """Return what stands on the page beside the script's data."""
        begin, end = stretch.start, stretch.start + stretch.seconds
        events = [e for e in heard.found.events if e.start < end and e.stop > begin]
        near = others.index(place)
        up = "../" * (heard.found.recording.relative.count("/") + 1)
        neighbours = [
            (text, f"{up}{FOLDER}/{others[to].address}")
            for text, to in (("before", near - 1), ("after", near + 1))
            if 0 <= to < len(others)
        ]
        return {
            "num_events": len(events), "num_species": len({event.species for event in events}),
            "part": place.minutes, "up": f"{up}index.html", "neighbours": neighbours,
            "remarks": heard.remarks, "audio": stretch.audio, "lowest": LOWEST,
        }  # fmt: skip

    def _data(self, given: np.ndarray, entry: PageEntry, stretch: SoundStretch) -> dict[str, Any]:
        """Return everything that the page's script works on."""
        first = round(stretch.start / self._frame_seconds)
        last = first + int(np.ceil(stretch.seconds / self._frame_seconds - 1e-9))
        frames = np.asarray(given[first:last], np.float32)
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


@dataclass(frozen=True)
class Limits:
    """How many recordings get pages, and what tells that the time is over."""

    most: int
    is_over: Callable[[], bool]


def write_pages(
    pages: PredictionPages, heard: Sequence[Heard], frames: FrameWriter, limits: Limits,
    tick: Callable[[int], object],
) -> tuple[list[PageEntry], int]:  # fmt: skip
    """Write the pages of the recordings with most events, in threads.

    Returns:
        all rows of the index, and how many recordings could have a page and have none.
    """
    entries = [pages.entry(one) for one in heard]
    order = sorted(range(len(heard)), key=lambda number: (-entries[number].num_events, number))
    ready = [number for number in order if frames.has(heard[number].found.recording)]

    def make(number: int) -> list[int]:
        try:
            pages.write(heard[number], frames.read(heard[number].found.recording), entries[number])
        except (ValueError, OSError) as error:
            entries[number].problem = str(error)
        return [number]

    wanted = takewhile(lambda _: not limits.is_over(), ready[: limits.most])
    cores = num_processors()
    with closing(in_order(make, wanted, workers=cores, ahead=2 * cores)) as made:  # type: ignore[type-var]
        tried = set()
        for number in made:
            tried.add(number)
            tick(1)
    for entry in entries:
        pages.remove_older(entry)
    return entries, len(set(ready) - tried)
