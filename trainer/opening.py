"""Run folders and exported models, opened as one ensemble."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared.backbone import Backbone
from shared.clip_array import num_processors
from shared.clips import ClipGrid
from shared.config import differences, digest
from shared.embedder import Embedder
from shared.engines import engine_for
from shared.features import FeatureConfig
from shared.taxonomy import Taxonomy
from trainer.calibration import Calibration, no_calibration, read_calibration
from trainer.ensemble import Ensemble
from trainer.exported import PRIOR, Exported, read_exported
from trainer.network import Network
from trainer.run import Run, load_run, read_facts, species_prior, weights_file
from trainer.scorers import GraphScorer, HeadsOnBackbone, Scorer

MIN_TAIL_SECONDS = 1.0  # of the last segment


@dataclass(frozen=True)
class Opening:
    """How runs are opened.

    weights: a file, in place of the backbone's own. engine, precision: "" leaves the run's own.
    streams: how many threads score at once; on a CPU always a core each.
    """

    device: torch.device
    weights: str | None = None
    engine: str = ""
    precision: str = ""
    streams: int = 1
    calibrated: bool = True


@dataclass(frozen=True)
class _Side:
    """One path of an ensemble: the runs in it, or the exported model."""

    path: Path
    members: list[Run]
    exported: Exported | None = None

    @property
    def taxonomy(self) -> Taxonomy:
        return self.exported.taxonomy if self.exported else self.members[0].taxonomy

    @property
    def grid(self) -> ClipGrid:
        return segment_grid(self.exported.features if self.exported else self.members[0].features)

    @property
    def prior(self) -> np.ndarray:
        return self.exported.prior if self.exported else species_prior(self.path, self.taxonomy)

    def calibration(self, *, calibrated: bool) -> Calibration:
        found = read_calibration(self.path, self.taxonomy) if calibrated else None
        return found or no_calibration(len(self.taxonomy))


def open_ensemble(paths: Sequence[Path], opening: Opening) -> Ensemble:
    """Open runs of heads, networks, or folds (all of them), and exported models, as one ensemble.

    Heads that read one backbone's maps share it, so that all folds of a frozen run cost about one.

    Raises:
        ValueError: no run, runs that do not fit each other, or another backbone's weights.
    """
    if opening.device.type == "cpu":
        opening = replace(opening, streams=num_processors())
    sides = [_read_side(path) for path in paths]
    _refuse_unlike(sides)
    grouped: dict[str, list[tuple[int, Run]]] = {}
    scorers: list[Scorer] = []
    for number, side in enumerate(sides):
        if side.exported:
            scorers += _exported_scorers(side.exported, number, opening)
        for place, run in enumerate(side.members):
            own = f"{number} {place}" if isinstance(run.model, Network) else ""
            key = digest({"own": own, "of": run.facts["fingerprint_of"], "stage": run.facts["stage"]})
            grouped.setdefault(key, []).append((number, run))
    scorers += [_scorer(group, opening) for group in grouped.values()]
    scorers.sort(key=lambda scorer: min(scorer.sides))  # the last ones are shed first
    hops = sorted({scorer.frame_hop for scorer in scorers})
    if any(hop % hops[0] for hop in hops):
        raise ValueError(
            f"the runs' frames are {hops} samples apart: they cannot be averaged frame by frame."
        )
    calibrations = [side.calibration(calibrated=opening.calibrated) for side in sides]
    return Ensemble(scorers, [side.taxonomy for side in sides], calibrations, sides[0].prior, sides[0].grid)


def _read_side(path: Path) -> _Side:
    facts = read_facts(path)
    if facts.get("kind") == "export":
        return _Side(path, [], read_exported(path, facts))
    return _Side(path, members_of(path))


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
        files = [path / name for name in names]
        if facts.get("kind") == "export":
            files += [path / PRIOR, path / "run.json"]  # which holds the digests of the graphs
        else:
            folders = [path / name for name in facts.get("runs", ())] if "runs" in facts else [path]
            files += [weights_file(one, read_facts(one)) for one in folders]
        state = hashlib.sha256()
        for file in files:
            state.update(file.read_bytes() if file.is_file() else b"none")
        found.append(state.hexdigest())
    return found


def segment_grid(features: FeatureConfig) -> ClipGrid:
    """Return the grid of a run's segments: its clips, side by side, the last of at least a second."""
    base = features.clips.grid()
    return ClipGrid(
        sample_rate_hz=base.sample_rate_hz,
        clip_samples=base.clip_samples,
        hop_samples=base.clip_samples,
        min_tail_samples=min(round(MIN_TAIL_SECONDS * base.sample_rate_hz), base.clip_samples),
    )


def _refuse_unlike(sides: list[_Side]) -> None:
    first = sides[0]
    for side in sides[1:]:
        if {*side.taxonomy.species} != {*first.taxonomy.species}:
            raise ValueError(
                f"{side.path} and {first.path} have other species; an ensemble needs the same ones, as "
                "by training with one --taxonomy."
            )
        if side.grid != first.grid:
            raise ValueError(f"{side.path} and {first.path} have clips of another length or sample rate.")


def _exported_scorers(model: Exported, side: int, opening: Opening) -> list[Scorer]:
    """Return what an exported model is run by: its graph, or with torch its modules.

    Raises:
        ValueError: --weights, or an engine that this device or folder does not have.
    """
    if opening.weights:
        raise ValueError(f"--weights: {model.path} holds a backbone of its own.")
    engine = engine_for(opening.engine or "auto", opening.device)
    precision = opening.precision or model.features.backbone.precision
    if engine != "torch":
        if opening.device.type != "cpu":
            raise ValueError(f"--engine {engine} runs on the CPU; give --device cpu.")
        return [GraphScorer(model, engine, precision, opening.streams, side)]
    whole, stage = model.model(), str(model.facts["stage"])
    backbone = replace(model.features.backbone, stages=(stage,), engine="torch", precision=precision)
    config = replace(model.features, backbone=backbone)
    scorers: list[Scorer] = []
    for own, group in whole.groups():
        embedder = Embedder(config, opening.device, streams=opening.streams, backbone=own.to(opening.device))
        scorers.append(HeadsOnBackbone(embedder, stage, group, [side] * len(group)))
    return scorers


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
    if opening.precision:
        backbone = replace(backbone, precision=opening.precision)
    own = _own_backbone(run, opening.device)
    if own is not None and opening.weights:
        raise ValueError(f"--weights: {run.path} holds a backbone of its own, which was trained.")
    config = replace(run.features, backbone=backbone)
    embedder = Embedder(config, opening.device, backbone=own, streams=opening.streams)
    both = run.facts["fingerprint_of"], embedder.fingerprint_of
    given = ["precision"] if opening.precision else []
    lines = differences(*(_what_a_head_sees(one, given) for one in both))
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


def _what_a_head_sees(fingerprint_of: dict[str, Any], given: list[str]) -> dict[str, Any]:
    """Leave out what changes maps by their last bits only, what was given, and stages that no head reads."""
    out = {"engine", "stages", *given}
    backbone = {key: value for key, value in fingerprint_of["backbone"].items() if key not in out}
    return fingerprint_of | {"backbone": backbone}
