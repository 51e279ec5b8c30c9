"""Runs whose logits are averaged: windows of waveforms in, clip-wise and frame-wise logits out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int16
from scipy.special import expit, logit
from torch import Tensor, nn

from shared.backbone import Backbone
from shared.clip_array import num_processors
from shared.clips import ClipGrid
from shared.config import as_sections, differences, digest
from shared.embedder import Embedder
from shared.features import FeatureConfig
from shared.mel import MelConfig
from shared.stage_clock import StageClock
from shared.taxonomy import Taxonomy
from trainer.calibration import Calibration, no_calibration, read_calibration
from trainer.data import frame_mask
from trainer.network import Network
from trainer.run import Run, load_run, read_facts, species_prior, weights_file

MIN_TAIL_SECONDS = 1.0  # of the last segment


@dataclass(frozen=True)
class Logits:
    """clip_wise (B, K), frame_wise (B, T, K), float32."""

    clip_wise: Float32[np.ndarray, "b k"]
    frame_wise: Float32[np.ndarray, "b t k"]


@runtime_checkable
class Scorer(Protocol):
    """One backbone with the heads behind it.

    sides: for every head, the number of the path (of those the ensemble was opened with) it is from.
    front_end: a digest of what decides an image; scorers of one front end share the images.
    batch_clips: how many windows a batch has. streams: how many threads may call it at once.
    """

    sides: list[int]
    frame_hop: int
    front_end: str
    batch_clips: int
    streams: int
    clock: StageClock
    mel: MelConfig

    def images(self, waveforms: Int16[np.ndarray, "b s"]) -> Tensor:
        """Return the images of at most a batch, filled up to a whole one (batch_clips, 3, M, N)."""
        ...

    def __call__(self, images: Tensor, valid: np.ndarray) -> list[Logits]:
        """Return every head's logits for the images of `valid` (B,) samples of audio."""
        ...


class HeadsOnBackbone:
    """Heads of runs behind the backbone that their features were made with, or that was trained with them."""

    def __init__(self, embedder: Embedder, stage: str, heads: list[nn.Module], sides: list[int]) -> None:
        self.embedder, self.sides = embedder, sides
        self.batch_clips, self.streams, self.clock = embedder.batch_clips, embedder.streams, embedder.clock
        self.mel = embedder.config.mel
        self.front_end = front_end_of(embedder.config, embedder.device)
        self.images = embedder.images
        self._stage, self._heads = stage, [head.to(embedder.device).eval() for head in heads]
        self._map_hop = embedder.frame_hops[stage]
        probe = self(embedder.images(np.zeros((1, embedder.grid.clip_samples), np.int16)), np.ones(1))[0]
        map_frames = embedder.map_shapes[stage][2]
        self.frame_hop = self._map_hop * -(-map_frames // probe.frame_wise.shape[1])

    @torch.inference_mode()
    def __call__(self, images: Tensor, valid: np.ndarray) -> list[Logits]:
        """Return every head's logits."""
        maps = self.embedder.embed_images(images, len(valid)).maps[self._stage]
        mask = frame_mask(valid, frame_hop=self._map_hop, num_frames=maps.shape[3])
        device = self.embedder.device
        given = torch.from_numpy(maps).to(device).float(), torch.from_numpy(mask).to(device)
        outputs = [head(*given) for head in self._heads]
        return [
            Logits(one.clip_wise.float().cpu().numpy(), one.frame_wise.float().cpu().numpy())
            for one in outputs
        ]


def front_end_of(config: FeatureConfig, device: torch.device) -> str:
    """Return a digest of what decides a window's image and the size of a batch."""
    sections = as_sections(config)
    sizes = [config.backbone.batch_clips, device.type]
    return digest({"mel": sections["mel"], "clips": sections["clips"], "b": sizes})


@dataclass(frozen=True)
class Opening:
    """How runs are opened: where, with which backbone's weights and engine ("" leaves the run's own)."""

    device: torch.device
    weights: str | None = None
    engine: str = ""
    streams: int = 1
    calibrated: bool = True


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
        self._calibrations = calibrations
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
        """Return how long each scorer was busy so far, the first ones the fuller; 1 each before all began."""
        busy = [sum(scorer.clock.seconds().values()) for scorer in self.scorers]
        return busy if all(busy) else [1.0] * len(busy)

    @property
    def mel(self) -> MelConfig:
        """The first scorer's front end, for pictures."""
        return self.scorers[0].mel

    def score(self, waveforms: Int16[np.ndarray, "b s"], valid: np.ndarray, num_scorers: int) -> Logits:
        """Return the calibrated mean logits of the first scorers; safe in threads."""
        images: dict[str, Tensor] = {}
        by_side: dict[int, list[Logits]] = {}
        for scorer in self.scorers[:num_scorers]:
            if scorer.front_end not in images:
                images = {scorer.front_end: scorer.images(waveforms)}
            found = scorer(images[scorer.front_end], valid)
            for side, logits in zip(scorer.sides, found, strict=True):
                by_side.setdefault(side, []).append(self._on_finest_frames(logits, scorer.frame_hop))
        sides = [self._calibrated(side, members) for side, members in by_side.items()]
        return Logits(_mean([s.clip_wise for s in sides]), _mean([s.frame_wise for s in sides]))

    def _on_finest_frames(self, logits: Logits, frame_hop: int) -> Logits:
        return replace(logits, frame_wise=np.repeat(logits.frame_wise, frame_hop // self.frame_hop, axis=1))

    def _calibrated(self, side: int, members: list[Logits]) -> Logits:
        calibration, order = self._calibrations[side], self._orders[side]
        clip_wise = calibration.logits(_mean([one.clip_wise for one in members]))
        frame_wise = calibration.logits(_mean([one.frame_wise for one in members]))
        return Logits(clip_wise[:, order], frame_wise[..., order])


def _mean(parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.asarray(np.mean(parts, axis=0, dtype=np.float32))


def open_ensemble(paths: Sequence[Path], opening: Opening) -> Ensemble:
    """Open runs of heads, networks, or folds (all of them), as one ensemble.

    Heads that read one backbone's maps share it, so that all folds of a frozen run cost about one.

    Raises:
        ValueError: no run, runs that do not fit each other, or another backbone's weights.
    """
    if opening.device.type == "cpu":
        opening = replace(opening, streams=num_processors())
    runs = [(side, run) for side, path in enumerate(paths) for run in members_of(path)]
    firsts = [next(run for s, run in runs if s == side) for side in range(len(paths))]
    _refuse_unlike(firsts)
    grouped: dict[str, list[tuple[int, Run]]] = {}
    for number, (side, run) in enumerate(runs):
        own = str(number) if isinstance(run.model, Network) else ""
        key = digest({"own": own, "of": run.facts["fingerprint_of"], "stage": run.facts["stage"]})
        grouped.setdefault(key, []).append((side, run))
    scorers = [_scorer(group, opening) for group in grouped.values()]
    hops = sorted({scorer.frame_hop for scorer in scorers})
    if any(hop % hops[0] for hop in hops):
        raise ValueError(
            f"the runs' frames are {hops} samples apart: they cannot be averaged frame by frame."
        )
    taxonomies = [run.taxonomy for run in firsts]
    calibrations = [
        (read_calibration(path, taxonomy) if opening.calibrated else None) or no_calibration(len(taxonomy))
        for path, taxonomy in zip(paths, taxonomies, strict=True)
    ]
    prior = species_prior(paths[0], taxonomies[0])
    return Ensemble(list(scorers), taxonomies, calibrations, prior, segment_grid(firsts[0]))


def members_of(path: Path) -> list[Run]:
    """Return the runs of a path: itself, or those of its folds.

    Raises:
        ValueError: no run, or one of many settings.
    """
    facts = read_facts(path)
    if facts.get("kind") == "folds" and facts.get("runs"):
        return [load_run(path / name) for name in facts["runs"]]
    return [load_run(path)]


def identity_of(paths: Sequence[Path], *, calibrated: bool) -> list[str]:
    """Return a digest for each path of everything in it that decides a prediction."""
    names = ["config.toml", "taxonomy.csv", "split.csv", *(["calibration.json"] if calibrated else [])]
    found = []
    for path in paths:
        facts = read_facts(path)
        folders = [path / name for name in facts.get("runs", ())] if facts.get("kind") == "folds" else [path]
        files = [path / name for name in names] + [weights_file(one, read_facts(one)) for one in folders]
        state = hashlib.sha256()
        for file in files:
            state.update(file.read_bytes() if file.is_file() else b"none")
        found.append(state.hexdigest())
    return found


def segment_grid(run: Run) -> ClipGrid:
    """Return the grid of a run's segments: its clips, side by side, the last of at least a second."""
    base = run.features.clips.grid()
    return ClipGrid(
        sample_rate_hz=base.sample_rate_hz,
        clip_samples=base.clip_samples,
        hop_samples=base.clip_samples,
        min_tail_samples=min(round(MIN_TAIL_SECONDS * base.sample_rate_hz), base.clip_samples),
    )


def _refuse_unlike(runs: list[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if {*run.taxonomy.species} != {*first.taxonomy.species}:
            raise ValueError(
                f"{run.path} and {first.path} have other species; an ensemble needs the same ones, as "
                "by training with one --taxonomy."
            )
        if segment_grid(run) != segment_grid(first):
            raise ValueError(f"{run.path} and {first.path} have clips of another length or sample rate.")


def _scorer(group: list[tuple[int, Run]], opening: Opening) -> Scorer:
    """Return the scorer of runs that share a backbone.

    Raises:
        ValueError: the backbone's weights are not those the runs were trained on.
    """
    run = group[0][1]
    stage = str(run.facts["stage"])
    backbone = replace(run.features.backbone, stages=(stage,))
    if opening.weights:
        backbone = replace(backbone, weights=opening.weights)
    if opening.engine:
        backbone = replace(backbone, engine=opening.engine)
    own = _own_backbone(run, opening.device)
    if own is not None and opening.weights:
        raise ValueError(f"--weights: {run.path} holds a backbone of its own, which was trained.")
    config = replace(run.features, backbone=backbone)
    embedder = Embedder(config, opening.device, backbone=own, streams=opening.streams)
    lines = differences(*map(_what_a_head_sees, (run.facts["fingerprint_of"], embedder.fingerprint_of)))
    if lines and own is None:
        raise ValueError(
            f"{run.path} was trained on other features (run -> now): {'; '.join(lines)}. "
            "Give the backbone's weights file with --weights FILE."
        )
    heads = [one.model.head if isinstance(one.model, Network) else one.model for _, one in group]
    return HeadsOnBackbone(embedder, stage, heads, [side for side, _ in group])


def _own_backbone(run: Run, device: torch.device) -> Backbone | None:
    """Return a run's own trained backbone, ready for an engine; None where it was frozen."""
    return run.model.folded_backbone().to(device) if isinstance(run.model, Network) else None


def _what_a_head_sees(fingerprint_of: dict[str, Any]) -> dict[str, Any]:
    """Leave out what changes maps by their last bits only, and the stages that a head does not read."""
    backbone = {
        key: value for key, value in fingerprint_of["backbone"].items() if key not in ("engine", "stages")
    }
    return fingerprint_of | {"backbone": backbone}
