"""Waveforms into whole batches of images: what a backbone sees, on whatever device it is."""

import numpy as np
import torch
from jaxtyping import Float, Int16
from torch import Tensor

from shared.audio import FULL_SCALE
from shared.features import FeatureConfig
from shared.mel import LogMelImage
from shared.stage_clock import StageClock

Waveforms = Int16[np.ndarray, "b s"] | Float[Tensor, "b s"]


class ImageMaker:
    """At most a batch of waveforms, int16 as stored or -1..1 on the device, to a whole batch of images.

    streams: how many threads may call it at once, each on one core.
    """

    def __init__(self, config: FeatureConfig, device: torch.device, streams: int, clock: StageClock) -> None:
        self.batch_clips, self.device, self.streams, self.clock = (
            config.backbone.batch_clips, device, streams, clock,
        )  # fmt: skip
        grid = config.clips.grid()
        self.image = LogMelImage(config.mel, grid, device)
        self.shape = (self.batch_clips, 3, config.mel.num_mels, config.mel.num_frames(grid))

    @torch.inference_mode()
    def __call__(self, batch: Waveforms) -> Float[Tensor, "n_batch 3 m n"]:
        """Return the images, filled up to a whole batch (batch_clips, 3, M, N) with silence."""
        if self.streams > 1 and torch.get_num_threads() > 1:
            torch.set_num_threads(1)  # counts for the calling thread: its stream is one core
        with self.clock.measured("log-mel"):
            waveforms = batch if isinstance(batch, Tensor) else self._on_device(batch).float() / FULL_SCALE
            if len(batch) < self.batch_clips:
                padding = waveforms.new_zeros(self.batch_clips - len(batch), waveforms.shape[1])
                waveforms = torch.cat([waveforms, padding])
            images: Tensor = self.image(waveforms).contiguous()
            return images

    def _on_device(self, batch: Int16[np.ndarray, "b s"]) -> Tensor:
        waveforms = torch.from_numpy(batch)
        if self.device.type != "cuda":
            return waveforms
        return waveforms.pin_memory().to(self.device, non_blocking=True)
