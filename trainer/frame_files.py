"""Frame-wise probabilities on disk: one .npy (m, K) per recording, and what its axes are."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float32

from shared.documents import UNREADABLE
from shared.taxonomy import Taxonomy
from trainer.recordings import Recording
from trainer.run import write_json

FILE = "frames.json"


class FrameWriter:
    """Writes recordings' frames as they come; a recording's file is there when it is whole."""

    def __init__(
        self, folder: Path, taxonomy: Taxonomy, frame_seconds: float, of: str, *, overwrite: bool,
        kind: type[np.floating[Any]] = np.float16,
    ) -> None:  # fmt: skip
        """Make the folder, or go on with one of the same prediction.

        of: a digest of what decides the frames. kind: of the values.

        Raises:
            ValueError: it holds another prediction's frames, and they are not to be overwritten.
        """
        self._folder, self._num_classes, self._kind = folder, len(taxonomy), np.dtype(kind)
        self._file: BinaryIO | None = None
        facts = {"frame_seconds": frame_seconds, "species": list(taxonomy.species), "of": of}
        if (folder / FILE).is_file() and _facts(folder).get("of") != of:
            if not overwrite:
                raise ValueError(
                    f"{folder} holds frames of another prediction; give another --frames, or replace them "
                    "with --overwrite."
                )
            for path in folder.rglob("*.npy"):
                path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, facts)

    def has(self, recording: Recording) -> bool:
        """Tell whether a recording's frames are there."""
        return self._path(recording).is_file()

    def read(self, recording: Recording) -> np.ndarray:
        """Return a recording's frames (m, K), mapped."""
        found: np.ndarray = np.load(self._path(recording), mmap_mode="r", allow_pickle=False)
        return found

    def _path(self, recording: Recording) -> Path:
        return self._folder / Path(recording.relative).with_suffix(".npy")

    def add(self, frames: Float32[np.ndarray, "m k"]) -> None:
        """Append the next frames of the recording that is being written."""
        if self._file is None:
            self._file = (self._folder / ".values.tmp").open("w+b")
        self._file.write(frames.astype(self._kind).tobytes())

    def finish(self, recording: Recording) -> None:
        """Give the recording's frames their name."""
        self.add(np.zeros((0, self._num_classes), np.float32))
        assert self._file is not None
        num_frames = self._file.tell() // (self._kind.itemsize * self._num_classes)
        self._file.seek(0)
        path = self._path(recording)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / ".frames.tmp"
        with temporary.open("wb") as out:
            shape = (num_frames, self._num_classes)
            header = {"descr": self._kind.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(out, header)
            shutil.copyfileobj(self._file, out)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
        self.forget()

    def forget(self) -> None:
        """Throw away what was added since the last recording."""
        if self._file is not None:
            self._file.close()
            self._file = None
            (self._folder / ".values.tmp").unlink(missing_ok=True)


def _facts(folder: Path) -> dict[str, Any]:
    """Return frames.json; nothing where it is missing or damaged."""
    try:
        facts = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except UNREADABLE:
        return {}
    return facts if isinstance(facts, dict) else {}


@dataclass(frozen=True)
class Frames:
    """A folder of frames: species in column order, and how far frames are apart."""

    folder: Path
    species: tuple[str, ...]
    frame_seconds: float

    def recordings(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield every recording's path without its ending, and its frames (m, K).

        Raises:
            ValueError: a file of another form.
        """
        files = sorted(self.folder.rglob("*.npy"))
        if not files:
            raise ValueError(f"{self.folder} holds no frames.")
        for path in files:
            try:
                values = np.load(path, mmap_mode=None, allow_pickle=False)
            except UNREADABLE as error:
                raise ValueError(f"{path} is damaged: {error}.") from error
            if values.ndim != 2 or values.shape[1] != len(self.species):
                raise ValueError(f"{path} has the shape {values.shape}, not frames x {len(self.species)}.")
            yield path.relative_to(self.folder).with_suffix("").as_posix(), values


def read_frames(folder: Path) -> Frames:
    """Open a folder of frames.

    Raises:
        ValueError: it is none.
    """
    facts = _facts(folder)
    try:
        return Frames(folder, tuple(facts["species"]), float(facts["frame_seconds"]))
    except UNREADABLE as error:
        raise ValueError(
            f"{folder} is no folder of frames ({FILE} is missing or has no valid {error}); make one with "
            "`trainer predict --frames`."
        ) from error
