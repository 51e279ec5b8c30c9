"""Recordings of any length, streamed, into one row of probabilities per segment."""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from shared.audio import AUDIO_SUFFIXES, Clip, ClipDecoder, read_header, to_int16
from shared.backbone import Backbone
from shared.clips import ClipGrid
from shared.config import differences
from shared.embedder import Embedder
from shared.prefetch import prefetched
from trainer.data import frame_mask
from trainer.network import Network
from trainer.run import Run

MIN_TAIL_SECONDS = 1.0


@dataclass(frozen=True)
class Segments:
    """Probabilities of consecutive segments of one recording.

    clip_wise: (B, K); frame_wise: (B, T, K); valid_samples: (B,).
    """

    clip_wise: Float32[np.ndarray, "b k"]
    frame_wise: Float32[np.ndarray, "b t k"]
    valid_samples: np.ndarray


class Predictor:
    """A run with the front end and backbone that its features were made with."""

    def __init__(self, run: Run, device: torch.device, weights: str | None = None) -> None:
        """Load the backbone, from `weights` where it is given.

        Raises:
            ValueError: the backbone's weights are not the ones the run was trained on.
        """
        self.stage = str(run.facts["stage"])
        backbone = replace(run.features.backbone, stages=(self.stage,))
        if weights:
            backbone = replace(backbone, weights=weights)
        self.run = run
        own, head = _own_backbone(run, device)
        if own is not None and weights:
            raise ValueError(f"--weights: {run.path} holds a backbone of its own, which was trained.")
        self.embedder = Embedder(replace(run.features, backbone=backbone), device, backbone=own)
        self.frame_hop = self.embedder.frame_hops[self.stage]
        lines = differences(
            *map(_what_a_head_sees, (run.facts["fingerprint_of"], self.embedder.fingerprint_of))
        )
        if lines and own is None:
            raise ValueError(
                f"{run.path} was trained on other features (run -> now): {'; '.join(lines)}. "
                "Give the backbone's weights file with --weights FILE."
            )
        self._head = head.to(device).eval()
        self._device = device
        base = run.features.clips.grid()
        self.grid = ClipGrid(
            sample_rate_hz=base.sample_rate_hz,
            clip_samples=base.clip_samples,
            hop_samples=base.clip_samples,
            min_tail_samples=round(MIN_TAIL_SECONDS * base.sample_rate_hz),
        )

    @property
    def segment_seconds(self) -> float:
        """Length of a segment: a clip."""
        return self.grid.clip_samples / self.grid.sample_rate_hz

    def open(self, path: Path) -> ClipDecoder:
        """Return the decoder of a recording's segments; after the last one it tells what it found.

        Raises:
            ValueError: the recording cannot be read.
        """
        return ClipDecoder(path, read_header(path), self.grid)

    def segments(self, decoder: ClipDecoder) -> Iterator[Segments]:
        """Yield the recording's segments in batches, in bounded memory."""
        for clips in prefetched(_grouped(iter(decoder), self.embedder.batch_clips)):
            yield self._score(clips)

    def row_id(self, path: Path, segment: int) -> str:
        """Return the id of a recording's segment, counted from 0: the stem and its end second."""
        return f"{path.stem}_{(segment + 1) * self.segment_seconds:g}"

    @torch.inference_mode()
    def _score(self, clips: list[Clip]) -> Segments:
        waveforms = np.stack([to_int16(clip.samples)[0] for clip in clips])
        valid = np.array([clip.valid_samples for clip in clips])
        maps = self.embedder.embed(waveforms).maps[self.stage]
        mask = frame_mask(valid, frame_hop=self.frame_hop, num_frames=maps.shape[3])
        output = self._head(
            torch.from_numpy(maps).to(self._device).float(), torch.from_numpy(mask).to(self._device)
        )
        return Segments(
            output.clip_wise.float().sigmoid().cpu().numpy(),
            output.frame_wise.float().sigmoid().cpu().numpy(),
            valid,
        )


def _own_backbone(run: Run, device: torch.device) -> tuple[Backbone | None, nn.Module]:
    """Return a run's own trained backbone, ready for an engine, and the head behind it."""
    if not isinstance(run.model, Network):
        return None, run.model
    return run.model.folded_backbone().to(device), run.model.head


def _what_a_head_sees(fingerprint_of: dict[str, Any]) -> dict[str, Any]:
    """Leave out what changes maps by their last bits only, and the stages that a head does not read."""
    backbone = {
        key: value for key, value in fingerprint_of["backbone"].items() if key not in ("engine", "stages")
    }
    return fingerprint_of | {"backbone": backbone}


def _grouped(clips: Iterator[Clip], size: int) -> Iterator[list[Clip]]:
    group: list[Clip] = []
    for clip in clips:
        group.append(clip)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def find_recordings(audio: Path) -> list[Path]:
    """Return the audio files of a folder and its sub-folders, sorted, or the one file given.

    Raises:
        ValueError: nothing there, or two files whose row ids would be the same.
    """
    if audio.is_file():
        return [audio]
    if not audio.is_dir():
        raise ValueError(f"{audio} does not exist.")
    files = sorted(path for path in audio.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    by_stem: dict[str, Path] = {}
    for path in files:
        if path.stem in by_stem:
            raise ValueError(
                f"{by_stem[path.stem]} and {path} would get the same row ids; rename one of them."
            )
        by_stem[path.stem] = path
    return files


@dataclass(frozen=True)
class SampleSubmission:
    """A sample submission: its species columns in order, and its rows as written."""

    species: tuple[str, ...]
    rows: dict[str, list[str]]


def read_sample_submission(path: Path) -> SampleSubmission:
    """Read header and rows.

    Raises:
        ValueError: the first column is not row_id.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        if header[:1] != ["row_id"]:
            raise ValueError(f"{path} is no sample submission: its first column must be row_id.")
        if len(header) < 2:
            raise ValueError(f"{path} is no sample submission: it has no column for a species.")
        return SampleSubmission(tuple(header[1:]), {row[0]: row[1:] for row in rows if row})


@dataclass
class Report:
    """What a prediction run wrote and what it could not."""

    num_recordings: int = 0
    num_rows: int = 0
    remarks: tuple[str, ...] = ()


def write_submission(
    predictor: Predictor,
    recordings: list[Path],
    out: Path,
    sample: SampleSubmission | None,
    recording_done: Callable[[int], object],
) -> Report:
    """Write row_id and a probability per species for every segment of every recording.

    Every whole segment gets a row, and a trailing part of at least a second too unless a sample
    submission is given that has no such row. A segment of which nothing could be decoded gets
    none. Rows that the sample has for a recording and that were not predicted keep the sample's
    values. Without any recording the sample's rows are written, so that a dry run gets a valid
    file.
    """
    species = sample.species if sample else predictor.run.taxonomy.species
    report = Report()
    temporary = out.with_name(f".{out.name}.tmp")
    out.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = _RowWriter(file, predictor, species, sample)
        report.remarks += writer.remarks
        for path in recordings:
            try:
                problems = writer.write_recording(path)
            except (ValueError, OSError) as error:
                problems = [str(error)]
            if problems:
                report.remarks += (f"{path.name}: {'; '.join(problems)}",)
            recording_done(1)
        writer.write_rest({path.stem for path in recordings} if recordings else None)
        report.num_rows, report.num_recordings = writer.num_rows, len(recordings)
        if writer.num_from_sample:
            report.remarks += (f"{writer.num_from_sample} rows keep the sample submission's values",)
    temporary.replace(out)
    return report


class _RowWriter:
    """Writes rows in the submission's column order and knows which rows are there."""

    def __init__(
        self,
        file: TextIO,
        predictor: Predictor,
        species: tuple[str, ...],
        sample: SampleSubmission | None,
    ) -> None:
        self._csv = csv.writer(file, lineterminator="\n")
        self._csv.writerow(["row_id", *species])
        self._predictor, self._sample = predictor, sample
        column = predictor.run.taxonomy.column
        self._columns = np.array([column.get(code, -1) for code in species])
        self._written: set[str] = set()
        self.num_rows, self.num_from_sample = 0, 0
        self.remarks: tuple[str, ...] = ()
        absent = [code for code in species if code not in column]
        if absent:
            self.remarks += (f"the run knows nothing of {', '.join(absent)}: 0 in every row",)
        unasked = [code for code in column if code not in set(species)]
        if unasked:
            self.remarks += (f"not in the sample submission, left out: {', '.join(unasked)}",)

    def write_recording(self, path: Path) -> list[str]:
        """Write the rows of a recording; return what was wrong with it."""
        decoder = self._predictor.open(path)
        segment = 0
        for segments in self._predictor.segments(decoder):
            for probabilities, valid in zip(segments.clip_wise, segments.valid_samples, strict=True):
                row_id = self._predictor.row_id(path, segment)
                segment += 1
                is_tail = valid < self._predictor.grid.clip_samples
                if not valid or (is_tail and self._sample and row_id not in self._sample.rows):
                    continue
                values = np.where(self._columns >= 0, probabilities[self._columns], 0.0)
                self._write(row_id, [f"{value:.6g}" for value in values])
        return decoder.problems

    def _write(self, row_id: str, values: list[str]) -> None:
        self._csv.writerow([row_id, *values])
        self._written.add(row_id)
        self.num_rows += 1

    def write_rest(self, stems: set[str] | None) -> None:
        """Write the sample's rows of these recordings, or all of them, that are still missing."""
        for row_id, values in (self._sample.rows if self._sample else {}).items():
            known = stems is None or row_id.rpartition("_")[0] in stems
            if known and row_id not in self._written:
                self._write(row_id, values)
                self.num_from_sample += 1
