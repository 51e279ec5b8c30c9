"""A clip as a page shows it: the channels that the network sees, and its sound."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int16

from shared.audio import FULL_SCALE
from shared.features import FeatureConfig
from shared.media import grey_picture, mp3
from shared.mel import LogMelImage

CHANNEL_NAMES = ("log-mel", "first difference", "second difference")
DELTA_CONTRAST = 2.0  # differences are drawn around mid-grey, so much steeper


@dataclass(frozen=True)
class ClipMedia:
    """channels: name and picture of each, as data: addresses; audio: the same of its sound."""

    channels: list[tuple[str, str]]
    audio: str
    seconds: float

    @property
    def num_bytes(self) -> int:
        """What it adds to a page."""
        return len(self.audio) + sum(len(picture) for _, picture in self.channels)


class ClipShower:
    """Makes clips' pictures and sounds by a store's own front end, on the CPU."""

    def __init__(self, config: FeatureConfig) -> None:
        self._grid, self._mel = config.clips.grid(), config.mel
        self._image = LogMelImage(config.mel, self._grid, torch.device("cpu"))

    @torch.inference_mode()
    def __call__(self, waveform: Int16[np.ndarray, " s"]) -> ClipMedia:
        """Return a clip of stored int16 samples; one channel where all three are the same."""
        samples = waveform.astype(np.float32) / FULL_SCALE
        image = self._image(torch.from_numpy(samples[None]))[0].numpy()
        shown = [image[0]]
        if self._mel.channels == "deltas":
            shown += [(channel - 0.5) * DELTA_CONTRAST + 0.5 for channel in image[1:]]
        channels = [
            (name, grey_picture(channel)) for name, channel in zip(CHANNEL_NAMES, shown, strict=False)
        ]
        rate = self._grid.sample_rate_hz
        return ClipMedia(channels, mp3(samples, rate), len(samples) / rate)
