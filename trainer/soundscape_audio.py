"""A recording as a page shows it: stretches of bounded length, each with its pictures and its sound."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from shared.audio import ClipDecoder, read_header
from shared.clips import ClipGrid
from shared.media import grey_picture, mp3
from shared.mel import AMIN, LogMelImage, MelConfig

TILE_SECONDS = 30.0
FULL = 0.95  # of full scale: quiet recordings are raised to it, so that they can be heard
FLOOR_PERCENT = 15  # of the picture lies below its black: what is always there
TICKS_HZ = (500, 1000, 2000, 4000, 8000, 12_000)


@dataclass(frozen=True)
class SoundStretch:
    """Part of a recording, from `start` (seconds) on: tiles with start, seconds and picture, and an mp3."""

    start: float
    seconds: float
    tiles: list[dict[str, Any]]
    audio: str


class SoundPages:
    """Decodes recordings, once and front to back, in stretches of `stretch_seconds`."""

    def __init__(self, grid: ClipGrid, mel: MelConfig, stretch_seconds: float) -> None:
        self.grid = grid
        self._image = LogMelImage(mel, grid, torch.device("cpu"))
        self._clip_seconds = grid.clip_samples / grid.sample_rate_hz
        self.clips_each = max(1, round(stretch_seconds / self._clip_seconds))
        self.stretch_seconds = self.clips_each * self._clip_seconds

    def stretches(self, path: Path, wanted: Collection[int]) -> Iterator[tuple[int, SoundStretch]]:
        """Yield the wanted stretches of a recording by number; what cannot be decoded is silent.

        Raises:
            ValueError: it cannot be read at all.
        """
        clips: list[Float32[np.ndarray, " s"]] = []
        valid = 0
        for place, clip in enumerate(ClipDecoder(path, read_header(path), self.grid)):
            number, is_first = place // self.clips_each, place % self.clips_each == 0
            if is_first and clips:
                yield number - 1, self._stretch(clips, valid, number - 1)
                clips = []
            if is_first and number > max(wanted, default=-1):
                return
            if number in wanted:
                clips.append(clip.samples)
                valid = clip.valid_samples or self.grid.clip_samples
        if clips:
            yield number, self._stretch(clips, valid, number)

    def _stretch(self, clips: list[np.ndarray], last_valid: int, number: int) -> SoundStretch:
        rate = self.grid.sample_rate_hz
        samples = np.concatenate(clips)
        samples = samples[: len(samples) - self.grid.clip_samples + last_valid]
        start = number * self.stretch_seconds
        peak = max(float(np.abs(samples).max()), 1e-9)
        sound = mp3((samples * (FULL / peak)).astype(np.float32), rate)
        return SoundStretch(start, len(samples) / rate, self._tiles(clips, len(samples) / rate), sound)

    @torch.inference_mode()
    def _tiles(self, clips: list[np.ndarray], seconds: float) -> list[dict[str, Any]]:
        """Return the log-mel in pictures of TILE_SECONDS, of one scale in dB for the whole stretch."""
        powers = [
            self._image.power(torch.from_numpy(clip[None]))[0, :, : self._image.num_frames] for clip in clips
        ]
        decibels = (10 * torch.log10(torch.cat(powers, dim=1).clamp_min(AMIN))).numpy()
        num = max(1, round(decibels.shape[1] * seconds / (len(clips) * self._clip_seconds)))
        decibels = decibels[:, :num]
        low, high = np.percentile(decibels, FLOOR_PERCENT), float(decibels.max())
        low = max(float(low), high - self._image.config.top_db)
        values = (decibels - low) / max(high - low, 1e-6)
        per_second = num / seconds
        wide = max(1, round(TILE_SECONDS * per_second))
        return [
            {
                "start": first / per_second,
                "seconds": min(wide, num - first) / per_second,
                "picture": grey_picture(values[:, first : first + wide]),
            }
            for first in range(0, num, wide)
        ]


def mel_ticks(mel: MelConfig) -> list[tuple[str, float]]:
    """Return labels of frequencies and where they lie on the mel axis, 0 the bottom and 1 the top."""
    from nnAudio.librosa_functions import mel_frequencies

    centres = mel_frequencies(mel.num_mels + 2, fmin=mel.fmin_hz, fmax=mel.fmax_hz, htk=False)[1:-1]
    places = np.interp(TICKS_HZ, centres, (np.arange(mel.num_mels) + 0.5) / mel.num_mels, left=-1, right=-1)
    return [
        (f"{hertz / 1000:g} kHz", float(place))
        for hertz, place in zip(TICKS_HZ, places, strict=True)
        if 0 < place < 1 and mel.fmin_hz < hertz < mel.fmax_hz
    ]
