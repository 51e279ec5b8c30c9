"""A folder of recordings into a submission and events: resumable, within a budget, always valid on disk."""

import os
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shared.audio import Finding
from shared.stopping import Stopped
from trainer.budget import Budget, levels_from
from trainer.event_tables import Detections
from trainer.events import EventFinder, EventRules
from trainer.frame_files import FrameWriter
from trainer.parts import Parts
from trainer.predict import Piece, Predictor
from trainer.recordings import Recording
from trainer.submission import Layout

PUBLISH_SHARE = 0.02  # of the time goes into rewriting the submission, at most


@dataclass
class Report:
    """What a prediction wrote and what it could not."""

    num_recordings: int = 0
    num_skipped: int = 0
    num_rows: int = 0
    remarks: list[str] = field(default_factory=list)


@dataclass
class PredictionJob:
    """Everything that one call of `trainer predict` is to do.

    began: when the program began, by time.monotonic, for the budget; budget_seconds 0: no end.
    """

    predictor: Predictor
    recordings: list[Recording]
    out: Path
    layout: Layout
    parts: Parts
    rules: EventRules
    threshold: np.ndarray
    began: float
    budget_seconds: float = 0.0
    frames: tuple[FrameWriter, ...] = ()
    report: Report = field(default_factory=Report)

    def __post_init__(self) -> None:
        self._pending: dict[str, tuple[int, bool]] = {}  # segments of recordings that are not done; a tail
        self._lengths: list[int] = []
        self._declared: dict[str, float] = {}  # seconds, by the headers of what is not done
        self._last_published, self._publish_seconds = 0.0, 0.0

    @property
    def num_windows(self) -> int:
        """Windows still to be scored at the full level; valid after `prepare`."""
        hop = self.predictor.full.hop_samples
        return sum(-(-length // hop) for length in self._lengths)

    def prepare(self) -> None:
        """Read the headers of what is to be done, and write a submission of priors for it."""
        grid = self.predictor.ensemble.grid
        self._todo = [one for one in self.recordings if not self._is_done(one)]
        for changed in self._todo:  # what is known of another file of this name is not this one's
            self.parts.done.pop(changed.relative, None)
        self.report.num_skipped = len(self.recordings) - len(self._todo)
        self._levels = levels_from(self.predictor.full, grid.clip_samples)
        lengths = []
        for recording in self._todo:
            try:
                header, num_segments = self.predictor.header(recording.path)
                num_samples = grid.resampled_length(header.num_frames, header.sample_rate_hz)
            except (ValueError, OSError):
                num_segments, num_samples = 0, 0  # is found out again, and named, in its turn
            self._pending[recording.relative] = num_segments, num_segments * grid.clip_samples > num_samples
            lengths.append(num_samples)
            self._declared[recording.relative] = num_samples / grid.sample_rate_hz
        self._lengths = lengths
        self.publish()

    def _is_done(self, recording: Recording) -> bool:
        """Tell whether nothing is to be done: its rows are there, and its frames, if they are wanted."""
        return self.parts.knows(recording) and all(writer.has(recording) for writer in self.frames)

    def run(self, progress: Callable[[int], object], stop_if_asked: Callable[[], None]) -> Report:
        """Predict what is not done; `progress` is told windows.

        Raises:
            Stopped: a signal came; what is done is on the disk.
        """
        budget = self._budget()
        paths = [recording.path for recording in self._todo]
        pieces = self.predictor.pieces(paths, budget.level if budget else None)
        writer = _RecordingWriter(self)
        try:
            with closing(pieces):  # type: ignore[type-var]
                for piece in pieces:
                    stop_if_asked()
                    writer.write(self._todo[piece.number], piece)
                    progress(piece.num_windows)
                    if budget is not None:
                        budget.note(piece)
                        budget.reserve_seconds = 0.5 + 2 * self._publish_seconds
                        if budget.is_over():
                            writer.give_up("the time was over before its end")
                            break
                    self._publish_now_and_then()
        except Stopped:
            self.publish()
            raise
        finally:
            for frames in self.frames:
                frames.forget()
        self.publish()
        self._close_report(budget)
        return self.report

    def _budget(self) -> Budget | None:
        if not self.budget_seconds:
            return None
        costs = self.predictor.ensemble.costs
        return Budget(
            self.budget_seconds, self._levels, self._lengths, self.predictor.ensemble.grid.sample_rate_hz,
            lambda level: sum(costs()[: level.num_scorers]), self.began,
        )  # fmt: skip

    def _publish_now_and_then(self) -> None:
        since = time.monotonic() - self._last_published
        if since * PUBLISH_SHARE > self._publish_seconds:
            self.publish()

    def publish(self) -> None:
        """Replace the submission: rows of what is done, the prior for everything else."""
        began = time.monotonic()
        self.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.out.with_name(f".{self.out.name}.tmp")
        with temporary.open("wb") as file:
            file.write(self.layout.header)
            for recording in self.recordings:
                if recording.relative in self.parts.done:
                    file.writelines(self.parts.rows_of(recording))
                    continue
                num_segments, tail = self._pending[recording.relative]
                for _, line in self.layout.prior_rows(recording, set(), num_segments, tail=tail):
                    file.write(line)
            rest = self.layout.unheard_of(self.recordings) if self.recordings else self.layout.sample_rows()
            file.writelines(rest)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.out)
        self._last_published = time.monotonic()
        self._publish_seconds = self._last_published - began

    def detections(self) -> list[Detections]:
        """Return every recording's events so far; its length is the declared one where it is not whole."""
        found = []
        for one in self.recordings:
            done = self.parts.done.get(one.relative)
            seconds = done.seconds if done and done.whole else self._declared[one.relative]
            found.append(Detections(one, seconds, self.parts.events_of(one)))
        return found

    def time_is_over(self) -> bool:
        """Tell whether there was a budget, and it is used up."""
        return bool(self.budget_seconds) and time.monotonic() > self.began + self.budget_seconds

    def pending_segments(self, recording: Recording) -> tuple[int, bool]:
        """Return how many segments a recording has by its header, and whether the last is not whole."""
        return self._pending[recording.relative]

    def _close_report(self, budget: Budget | None) -> None:
        report, done = self.report, self.parts.done
        report.num_recordings = len(self.recordings)
        report.remarks += self.layout.remarks
        if budget is not None:
            report.remarks += budget.said
        not_reached = [one for one in self.recordings if one.relative not in done]
        if not_reached:
            report.remarks.append(
                f"{len(not_reached)} recordings were not reached in time and have the prior "
                f"({not_reached[0].relative} first); the same command goes on with them"
            )
        for recording in self.recordings:
            one = done.get(recording.relative)
            report.num_rows += one.num_rows if one else self._pending[recording.relative][0]
            if one and one.reasons:
                report.remarks.append(f"{recording.relative}: {'; '.join(one.reasons)}")
        if not self.recordings:
            report.num_rows = len(self.layout.sample_rows())
            report.remarks.append("there are no recordings: the sample submission's rows as they are")
        gone = len(self.layout.unheard_of(self.recordings)) if self.recordings else 0
        report.num_rows += gone
        if gone:
            report.remarks.append(
                f"{gone} rows of the sample submission are of recordings that are not there: the prior"
            )


class _RecordingWriter:
    """Writes pieces of one recording after the other into the parts."""

    def __init__(self, job: PredictionJob) -> None:
        self._job = job
        self._current: Recording | None = None
        self._written: set[str] = set()
        self._num_prior = 0
        self._num_frames = 0

    def write(self, recording: Recording, piece: Piece) -> None:
        """Append a piece; the last one makes the recording done."""
        job = self._job
        ensemble = job.predictor.ensemble
        if self._current is None:
            self._begin(recording)
        lines = job.layout.rows(
            recording, piece.first_segment, piece.segments, piece.valid_samples, ensemble.grid.clip_samples
        )
        self._num_prior += int((piece.valid_samples == 0).sum())
        self._add(lines)
        self._events.add(piece.first_frame, piece.frames)
        for frames in job.frames:
            frames.add(piece.frames)
        self._num_frames = piece.first_frame + len(piece.frames)
        if piece.finding is not None:
            self._finish(piece.finding, piece.duration_seconds, whole=True)

    def _begin(self, recording: Recording) -> None:
        ensemble = self._job.predictor.ensemble
        self._current, self._written, self._num_prior, self._num_frames = recording, set(), 0, 0
        self._events = EventFinder(
            ensemble.taxonomy, self._job.threshold, ensemble.frame_seconds, self._job.rules
        )
        self._job.parts.begin(recording)

    def _add(self, lines: list[tuple[str, bytes]]) -> None:
        self._job.parts.add_rows(b"".join(line for _, line in lines))
        self._written.update(row_id for row_id, _ in lines)

    def give_up(self, why: str) -> None:
        """Finish the recording that was begun, if any, with the prior for the rest of it."""
        if self._current is not None:
            seconds = self._num_frames * self._job.predictor.ensemble.frame_seconds
            self._finish(Finding("ok", (why,)), seconds, whole=False)

    def _finish(self, finding: Finding, seconds: float, *, whole: bool) -> None:
        recording, job = self._current, self._job
        assert recording is not None
        num_segments, tail = job.pending_segments(recording)
        rest = job.layout.prior_rows(recording, self._written, num_segments, tail=tail)
        self._add(rest)
        reasons = finding.reasons
        num_prior = self._num_prior + len(rest)
        if num_prior:
            reasons = (*reasons, f"{num_prior} of its {len(self._written)} rows have the prior")
        for frames in job.frames if whole else ():
            frames.finish(recording)
        events = self._events.events(seconds)
        job.parts.finish(recording, events, len(self._written), finding.status, reasons, seconds, whole=whole)
        self._current = None


def job_facts(
    predictor: Predictor,
    runs: list[str],
    rules: EventRules,
    threshold: np.ndarray,
    layout: Layout,
    frames: str,
    precision: str,
) -> dict[str, Any]:
    """Return everything that decides a row or an event, for `Parts.open`; engine and device do not.

    precision: the one that was asked for, "" for the runs' own.
    """
    return {
        "runs": runs,
        "precision": precision,
        "overlap": predictor.overlap,
        "smoothing": predictor.smoothing,
        "columns": list(layout.species),
        "sample": layout.sample_digest,
        "events": {"join": rules.join, "shortest": rules.shortest, "pad": rules.pad},
        "frames": frames,
        "threshold": [round(float(value), 6) for value in threshold],
    }
