"""Detections cut out of their recordings, to be listened to, the best first."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import soundfile

from trainer.event_tables import Detections
from trainer.events import Event
from trainer.recordings import Recording


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
    for cut in _cuts(found, folder, most):
        try:
            with soundfile.SoundFile(str(cut.recording.path)) as file:
                file.seek(round(cut.event.start * file.samplerate))
                samples = file.read(
                    round((cut.event.stop - cut.event.start) * file.samplerate), dtype="float32"
                )
                rate = file.samplerate
            cut.path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(cut.path, samples.clip(-1, 1), rate, subtype="PCM_16")
            num += 1
        except (soundfile.LibsndfileError, OSError) as error:
            problems.append(f"no clip of {cut.recording.relative} at {cut.event.start:g} s: {error}")
        progress(1)
    return num, problems


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
