"""Runs whose logits are averaged: windows of waveforms in, clip-wise and frame-wise logits out."""

import threading
from dataclasses import replace

import numpy as np
from jaxtyping import Int16
from scipy.special import expit, logit
from torch import Tensor

from shared.clips import ClipGrid
from shared.mel import MelConfig
from shared.taxonomy import Taxonomy
from trainer.calibration import Calibration
from trainer.scorers import Logits, Scorer


class Ensemble:
    """Members by backbone, those of one path averaged, calibrated, and averaged over the paths.

    taxonomy: the first path's; the others may have its species in another order.
    grid: clips without overlap, with a last one of at least a second.
    threshold: (K,) probabilities to act on; the paths' own averaged as logits.
    prior: (K,) what is said of a segment that nobody heard.
    """

    def __init__(
        self,
        scorers: list[Scorer],
        taxonomies: list[Taxonomy],
        calibrations: list[Calibration],
        prior: np.ndarray,
        grid: ClipGrid,
    ) -> None:
        self.scorers, self.taxonomy, self.prior, self.grid = scorers, taxonomies[0], prior, grid
        self._orders = [
            np.array([taxonomy.column[code] for code in self.taxonomy.species]) for taxonomy in taxonomies
        ]
        self.calibrations = calibrations
        self._num_scored, self._lock = [0] * len(scorers), threading.Lock()
        self.frame_hop = min(scorer.frame_hop for scorer in scorers)
        thresholds = [logit(one.threshold[o]) for one, o in zip(calibrations, self._orders, strict=True)]
        self.threshold: np.ndarray = np.asarray(expit(np.mean(thresholds, axis=0)), np.float32)
        self.batch_clips = min(scorer.batch_clips for scorer in scorers)
        self.streams = min(scorer.streams for scorer in scorers)

    @property
    def segment_seconds(self) -> float:
        """Length of a segment: a clip."""
        return self.grid.clip_samples / self.grid.sample_rate_hz

    @property
    def frame_seconds(self) -> float:
        """How far frames are apart."""
        return self.frame_hop / self.grid.sample_rate_hz

    def costs(self) -> list[float]:
        """Return each scorer's busy seconds per window so far; 1 each before all of them began."""
        busy = [sum(scorer.clock.seconds().values()) for scorer in self.scorers]
        with self._lock:
            scored = list(self._num_scored)
        if not all(scored):
            return [1.0] * len(busy)
        return [seconds / num for seconds, num in zip(busy, scored, strict=True)]

    @property
    def mel(self) -> MelConfig:
        """The first scorer's front end, for pictures."""
        return self.scorers[0].mel

    def score(self, waveforms: Int16[np.ndarray, "b s"], valid: np.ndarray, num_scorers: int) -> Logits:
        """Return the calibrated mean logits of the first scorers; safe in threads."""
        images: dict[str, Tensor] = {}
        by_side: dict[int, list[Logits]] = {}
        for number, scorer in enumerate(self.scorers[:num_scorers]):
            if scorer.front_end not in images:
                images = {scorer.front_end: scorer.images(waveforms)}
            found = scorer(images[scorer.front_end], valid)
            with self._lock:
                self._num_scored[number] += len(valid)
            for side, logits in zip(scorer.sides, found, strict=True):
                by_side.setdefault(side, []).append(self._on_finest_frames(logits, scorer.frame_hop))
        sides = [self._calibrated(side, members) for side, members in by_side.items()]
        return Logits(_mean([s.clip_wise for s in sides]), _mean([s.frame_wise for s in sides]))

    def _on_finest_frames(self, logits: Logits, frame_hop: int) -> Logits:
        return replace(logits, frame_wise=np.repeat(logits.frame_wise, frame_hop // self.frame_hop, axis=1))

    def _calibrated(self, side: int, members: list[Logits]) -> Logits:
        calibration, order = self.calibrations[side], self._orders[side]
        clip_wise = calibration.logits(_mean([one.clip_wise for one in members]))
        frame_wise = calibration.logits(_mean([one.frame_wise for one in members]))
        return Logits(clip_wise[:, order], frame_wise[..., order])


def _mean(parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.asarray(np.mean(parts, axis=0, dtype=np.float32))
