"""Detections cut out of their recordings, to be listened to, the best first."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from trainer.event_tables import Detections
from trainer.events import Event
from trainer.recordings import Recording

BLOCK_FRAMES = 1 << 20
NAME = r"\d{4}_[01]\.\d{3}_(.*)_\d+\.\ds\.wav"  # of a clip, as _cuts makes them


@dataclass(frozen=True)
class _Cut:
    recording: Recording
    event: Event
    path: Path


def write_clips(
    found: Sequence[Detections], folder: Path, most: int, progress: Callable[[int], object]
) -> tuple[int, list[str]]:
    """Write the `most` detections of highest confidence of every species as wav files.

    They lie in SPECIES/SUB-FOLDER of the recording; names begin with the rank within the species and the
    confidence, so that a folder's listing has the best first. The recording's own rate and channels.

    Returns:
        how many were written, and what went wrong.
    """
    problems: list[str] = []
    num = 0
    cuts = _cuts(found, folder, most)
    for cut in cuts:
        try:
            _copy(cut)
            num += 1
        except (soundfile.LibsndfileError, OSError) as error:
            problems.append(f"no clip of {cut.recording.relative} at {cut.event.start:g} s: {error}")
        progress(1)
    _remove_older(folder, cuts, found)
    return num, problems


def _copy(cut: _Cut) -> None:
    """Write a clip block by block: an event may last a day."""
    cut.path.parent.mkdir(parents=True, exist_ok=True)
    with soundfile.SoundFile(str(cut.recording.path)) as file:
        rate, first = file.samplerate, round(cut.event.start * file.samplerate)
        left = round(cut.event.stop * rate) - first
        file.seek(first)
        with soundfile.SoundFile(str(cut.path), "w", rate, file.channels, "PCM_16", format="WAV") as out:
            while left and len(samples := file.read(min(left, BLOCK_FRAMES), dtype="float32")):
                out.write(samples.clip(-1, 1))
                left -= len(samples)


def _remove_older(folder: Path, cuts: Sequence[_Cut], found: Sequence[Detections]) -> None:
    """Remove clips of these recordings that an earlier call cut and this one did not."""
    now = {cut.path for cut in cuts}
    ours = {Path(one.recording.relative).with_suffix("") for one in found}
    for path in folder.glob("*/**/*.wav"):
        match = re.fullmatch(NAME, path.name)
        if match and path not in now:
            below = Path(*path.parent.relative_to(folder).parts[1:], match[1])
            if below in ours:
                path.unlink()


def _cuts(found: Sequence[Detections], folder: Path, most: int) -> list[_Cut]:
    """Return what is to be cut, recording by recording, so that each is opened where the last one was."""
    by_species: dict[str, list[tuple[Event, Recording]]] = {}
    for one in found:
        for event in one.events:
            by_species.setdefault(event.species, []).append((event, one.recording))
    cuts = []
    for species, events in by_species.items():
        best = sorted(events, key=lambda one: (-one[0].confidence, one[1].relative, one[0].start))[:most]
        for rank, (event, recording) in enumerate(best, 1):
            below = Path(recording.relative)
            name = f"{rank:04d}_{event.confidence:.3f}_{below.stem}_{event.start:.1f}s.wav"
            cuts.append(_Cut(recording, event, folder / species / below.parent / name))
    return sorted(cuts, key=lambda cut: (cut.recording.relative, cut.event.start))


def num_clips(found: Sequence[Detections], most: int) -> int:
    """Return how many clips `write_clips` will write."""
    return len(_cuts(found, Path(), most))
