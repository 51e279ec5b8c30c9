"""Background recordings, from a folder or a store, added at a random signal-to-noise ratio."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Generator

from shared.audio import AUDIO_SUFFIXES, FULL_SCALE, ClipDecoder, read_header, to_int16
from shared.augment import Range, Waveforms, at_snr, uniform
from shared.clips import ClipGrid
from shared.config import digest
from shared.store import FeatureStore

MAX_CLIPS = 1000  # of a folder that are held in memory: 320 MB at 32 kHz and 5 s


class BackgroundNoise:
    """Adds a random clip of other recordings, begun anywhere in it, at a ratio of powers drawn in dB.

    sha256: digest of all that may be added.
    recordings: sha256 of the recordings that it is from.
    """

    def __init__(
        self, *, source: str, sample_rate_hz: int, clip_samples: int, snr_db: Range = (0.0, 20.0)
    ) -> None:
        """Open a store's waveforms, or decode a folder's first MAX_CLIPS clips, dealt over its files.

        Raises:
            ValueError: no such store or folder, no recordings there, or a store of other clips.
        """
        self._snr_db = snr_db
        path = Path(source)
        if path.is_dir() and not (path / "zarr.json").exists():
            held, self.recordings = _clips_of_folder(path, sample_rate_hz, clip_samples)
            self._held: np.ndarray | None = held
            self._num_clips, self.sha256 = len(held), hashlib.sha256(held.tobytes()).hexdigest()
            return
        store = FeatureStore(path)
        rate = store.attributes["config"]["clips"]["sample_rate_hz"]
        if store.waveforms is None:
            raise ValueError(f"{path} holds no waveforms: build it again without --no-waveforms.")
        if (rate, store.waveforms.row_shape) != (sample_rate_hz, (clip_samples,)):
            raise ValueError(
                f"{path} has clips of {store.waveforms.row_shape[0]} samples at {rate} Hz; as background "
                f"they must be {clip_samples} at {sample_rate_hz} Hz."
            )
        self._held, self._stored, self._num_clips = None, store.waveforms, store.num_rows
        audio = store.recordings["sha256"].astype(str).to_numpy()
        causes = [audio[store.clips["recording"]].tolist(), store.clips["start"].tolist()]
        self.sha256 = digest([store.attributes["config"]["clips"], causes])
        self.recordings = frozenset(audio.tolist()) - {""}

    def __call__(self, waveforms: Waveforms, rng: Generator) -> Waveforms:
        """Return the clips with a background each."""
        device = waveforms.device
        drawn = torch.randint(self._num_clips, (len(waveforms),), generator=rng, device=device)
        rows = drawn.cpu().numpy()
        clips = self._held[rows] if self._held is not None else self._stored.read(rows)
        noise = torch.from_numpy(np.ascontiguousarray(clips)).to(device).float() / FULL_SCALE
        offset = (uniform(noise, rng, (0.0, 1.0)) * noise.shape[1]).long()
        place = torch.arange(noise.shape[1], device=device)
        noise = noise.gather(1, (place + offset) % noise.shape[1])
        found = waveforms.float()
        return at_snr(found, noise, uniform(found, rng, self._snr_db)).to(waveforms.dtype)


def _clips_of_folder(
    folder: Path, sample_rate_hz: int, clip_samples: int
) -> tuple[np.ndarray, frozenset[str]]:
    """Return whole int16 clips (N, S) of the recordings below a folder, and the sha256 of these.

    A short one is repeated.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} holds no recordings to use as background.")
    grid = ClipGrid(
        sample_rate_hz=sample_rate_hz, clip_samples=clip_samples, hop_samples=clip_samples,
        min_tail_samples=clip_samples,
    )  # fmt: skip
    share = max(1, MAX_CLIPS // len(files))
    clips: list[np.ndarray] = []
    recordings = set()
    for path in files[:MAX_CLIPS]:
        try:
            decoder = ClipDecoder(path, read_header(path), grid)
            recordings.add(hashlib.sha256(path.read_bytes()).hexdigest())
            for number, clip in enumerate(decoder):
                if number == share:
                    break
                if clip.valid_samples:
                    clips.append(to_int16(np.resize(clip.samples[: clip.valid_samples], clip_samples))[0])
        except ValueError:
            continue  # one that cannot be read is no background
    if not clips:
        raise ValueError(f"none of the {len(files)} recordings in {folder} can be read.")
    return np.stack(clips), frozenset(recordings)
