"""The run folder: everything a trained head needs, in open formats, no pickles.

head.safetensors   weights            run.json         features, fingerprint, split, versions
config.toml        resolved config    taxonomy.csv     column order
metrics.jsonl      one line an epoch  split.csv        recording, fold, side
per_class.csv      held-out scores    out_of_fold.csv  held-out recordings and their logits
leakage.json       what the two sides of the split have in common
network.safetensors     in place of head.safetensors, where the backbone was trained too
checkpoint.safetensors  only while it trains: what --resume goes on from
"""

import csv
import json
import os
import tomllib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from shared.config import as_sections, parse_config, write_toml
from shared.documents import UNREADABLE
from shared.features import FeatureConfig
from shared.taxonomy import Taxonomy, read_taxonomy, write_taxonomy
from trainer.config import TrainConfig, TuneConfig
from trainer.heads import Head
from trainer.network import make_network

RUN_FORMAT = 1


@dataclass
class Run:
    """A run folder with what was trained.

    model: the head, or the network with it where the backbone was trained too; then `tune` says how,
        and train.fit is its [finetune] section.
    facts: run.json: features (path), fingerprint, fingerprint_of, stage, map_shape, frame_hop,
        held_out, seed, epochs_done, finished, software; and kind and bound_to of `claim_folder`.
    """

    path: Path
    train: TrainConfig
    features: FeatureConfig
    taxonomy: Taxonomy
    model: nn.Module
    facts: dict[str, Any]
    tune: TuneConfig | None = None


def create_run(run: Run) -> None:
    """Write all that is known before training."""
    write_config(run.path, run.features, run.train, run.tune)
    write_taxonomy(run.taxonomy, run.path / "taxonomy.csv")


def write_config(path: Path, features: FeatureConfig, train: TrainConfig, tune: TuneConfig | None) -> None:
    """Write config.toml; with [finetune] in place of the head's [fit] and [mixup] where it was tuned."""
    sections = as_sections(features) | as_sections(train)
    if tune is not None:
        sections |= as_sections(tune)
        del sections["fit"], sections["mixup"]
    write_toml(sections, path / "config.toml")


def refuse_full(path: Path, *, resume: bool) -> bool:
    """Tell whether a run's folder holds something.

    Raises:
        ValueError: it does, and nothing is to be resumed.
    """
    is_full = path.exists() and any(path.iterdir())
    if is_full and not resume:
        raise ValueError(f"{path} exists and is not empty; give another --out, or go on with --resume.")
    return is_full


def claim_folder(path: Path, kind: str, bound_to: str, *, resume: bool) -> dict[str, Any]:
    """Make a run's folder, or find it as it was left; return its facts.

    kind: what is in it: "head", "folds" or "grid". bound_to: a digest of what it is of.

    Raises:
        ValueError: it is not empty, and nothing is to be resumed, or what is there is something else.
    """
    if refuse_full(path, resume=resume):
        facts = read_facts(path)
        if facts.get("kind") != kind:
            raise ValueError(f"{path} holds a run of {facts.get('kind')}, not of {kind}; give another --out.")
        if facts.get("bound_to") != bound_to:
            raise ValueError(
                f"{path} is a run with another config, of other recordings or labels, of other views or "
                "backgrounds, or with another split; go on with what it was begun with, or give another "
                "--out."
            )
        return facts
    path.mkdir(parents=True, exist_ok=True)
    facts = {"kind": kind, "bound_to": bound_to}
    write_facts(path, facts)
    return facts


def save_progress(run: Run, history: list[dict[str, Any]]) -> None:
    """Replace weights, metrics and facts: a kill leaves the last whole epoch."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in run.model.state_dict().items()}
    _refuse_not_finite(tensors, "lower learning_rate; the run keeps the epochs before")
    lines = "".join(json.dumps(metrics) + "\n" for metrics in history)
    temporary = run.path / ".metrics.jsonl.tmp"
    temporary.write_text(lines, encoding="utf-8")
    temporary.replace(run.path / "metrics.jsonl")
    write_tensors(weights_file(run.path, run.facts), tensors)
    write_facts(run.path, run.facts)


def weights_file(path: Path, facts: dict[str, Any]) -> Path:
    """Return where a run's weights are."""
    return path / ("network.safetensors" if facts.get("kind") == "network" else "head.safetensors")


def write_tensors(
    path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors under another name, then rename it.

    Not by `save_file`, whose own temporary files have chance names and stay when it is killed.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(save(tensors, metadata))
    temporary.replace(path)


def write_facts(path: Path, facts: dict[str, Any]) -> None:
    """Write run.json."""
    write_json(path / "run.json", {"format": RUN_FORMAT, **facts})


def _refuse_not_finite(tensors: dict[str, torch.Tensor], remedy: str) -> None:
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{bad[0]} holds values that are not finite: {remedy}.")


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document under another name, on the disk, then rename it."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_facts(path: Path) -> dict[str, Any]:
    """Return run.json of a run folder.

    Raises:
        ValueError: no run, of another format, or damaged.
    """
    if not (path / "run.json").is_file():
        raise ValueError(f"{path} is no run folder (no run.json); make one with `trainer fit`.")
    try:
        facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}/run.json is damaged: {error}.") from error
    facts = facts if isinstance(facts, dict) else {}
    if facts.get("format") != RUN_FORMAT:
        raise ValueError(
            f"{path}/run.json has run format {facts.get('format')}; this program reads {RUN_FORMAT}. "
            "Train again with `trainer fit`."
        )
    return facts


def load_run(path: Path) -> Run:
    """Open a run folder with one head, or one network.

    Raises:
        ValueError: no run, of another format, of several folds, or with a damaged file.
    """
    facts = read_facts(path)
    if facts.get("kind") == "export":
        raise ValueError(f"{path} is an exported model, for `trainer predict`; name the run that it is of.")
    if facts.get("kind", "head") not in ("head", "network"):
        first = path / facts["runs"][0] if facts.get("runs") else "a run of `trainer fit`"
        raise ValueError(f"{path} holds no head of its own; name one, as in {first}.")
    try:
        sections = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        tensors = load_file(weights_file(path, facts))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} has a damaged file: {error}.") from error
    missing = {"stage", "map_shape", "fingerprint", "fingerprint_of", "features"} - {*facts}
    if missing:
        raise ValueError(
            f"{path}/run.json lacks {', '.join(sorted(missing))}; train again with `trainer fit`."
        )
    train, features, tune = parse_run_config(sections, facts)
    taxonomy = read_taxonomy(path / "taxonomy.csv")
    num_channels, num_rows, _ = facts["map_shape"]
    model: nn.Module = Head(num_channels, num_rows, len(taxonomy), train.head)
    if tune is not None:
        model = make_network(features, facts["stage"], model, tune.finetune, torch.device("cpu"), bare=True)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        name = weights_file(path, facts).name
        raise ValueError(f"{path}/{name} does not fit config.toml and taxonomy.csv.") from error
    _refuse_not_finite(tensors, f"train {path} again")
    return Run(path, train, features, taxonomy, model.eval(), facts, tune)


def species_prior(path: Path, taxonomy: Taxonomy) -> np.ndarray:
    """Return each species' share of a run's recordings by their first primary label (K,).

    With one more recording of every species, so that none is impossible.

    Raises:
        ValueError: the run's split.csv is missing or damaged.
    """
    try:
        with (path / "split.csv").open(newline="", encoding="utf-8") as file:
            labels = [row["primary_label"] for row in csv.DictReader(file)]
    except UNREADABLE as error:
        raise ValueError(f"{path}/split.csv is missing or damaged: {error}.") from error
    counts = Counter(labels)
    shares = np.array([counts[code] + 1 for code in taxonomy.species], np.float32)
    return shares / np.float32(len(labels) + len(taxonomy))


def parse_run_config(
    sections: dict[str, Any], facts: dict[str, Any]
) -> tuple[TrainConfig, FeatureConfig, TuneConfig | None]:
    """Return the configs that a run's config.toml holds."""
    own, tuning = as_sections(TrainConfig()), as_sections(TuneConfig())
    train = parse_config(TrainConfig, {n: v for n, v in sections.items() if n in own})
    given = {n: v for n, v in sections.items() if n not in own and n not in tuning}
    features = parse_config(FeatureConfig, given)
    if facts.get("kind") != "network":
        return train, features, None
    tune = parse_config(TuneConfig, {n: v for n, v in sections.items() if n in tuning})
    return replace(train, fit=tune.finetune), features, tune


def software_versions() -> dict[str, str]:
    """Return the versions that training numbers depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("dawnchorus", "torch", "numpy")}


def parameter_count(head: torch.nn.Module) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in head.parameters())
