"""The recordings that are predicted: which files, and the name that their rows get."""

from dataclasses import dataclass
from pathlib import Path

from shared.audio import AUDIO_SUFFIXES


@dataclass(frozen=True)
class Recording:
    """A file, its path below the folder that was given, and the name in front of its row ids."""

    path: Path
    relative: str
    name: str

    def row_id(self, segment: int, segment_seconds: float) -> str:
        """Return the id of a segment, counted from 0: the name and the segment's end second."""
        return f"{self.name}_{(segment + 1) * segment_seconds:g}"


def find_recordings(audio: Path) -> list[Recording]:
    """Return the audio files of a folder and its sub-folders, sorted, or the one file given.

    Rows are named by the file's name without its ending, as in a BirdCLEF submission; where two
    folders hold files of one name, by the path below `audio`.

    Raises:
        ValueError: nothing there, or two files that differ in their ending only.
    """
    if audio.is_file():
        return [Recording(audio, audio.name, audio.stem)]
    if not audio.is_dir():
        raise ValueError(f"{audio} does not exist.")
    files = sorted(path for path in audio.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    relative = [path.relative_to(audio) for path in files]
    stems = [path.stem for path in relative]
    if len(set(stems)) < len(stems):
        stems = [path.with_suffix("").as_posix() for path in relative]
    first: dict[str, Path] = {}
    for stem, path in zip(stems, files, strict=True):
        if stem in first:
            raise ValueError(f"{first[stem]} and {path} would get the same row ids; rename one of them.")
        first[stem] = path
    return [
        Recording(path, below.as_posix(), stem)
        for path, below, stem in zip(files, relative, stems, strict=True)
    ]
