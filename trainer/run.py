"""The run folder: everything a trained head needs, in open formats, no pickles.

head.safetensors   weights          run.json        features, fingerprint, split, versions
config.toml        resolved config  taxonomy.csv    column order
metrics.jsonl      one line an epoch  split.csv     recording, fold, side
per_class.csv      held-out scores per class
"""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from shared.config import as_sections, parse_config, write_toml
from shared.features import FeatureConfig
from shared.taxonomy import Taxonomy, read_taxonomy, write_taxonomy
from trainer.config import TrainConfig
from trainer.heads import Head

RUN_FORMAT = 1


@dataclass
class Run:
    """A run folder with its head.

    facts: run.json: features (path), fingerprint, fingerprint_of, stage, map_shape, frame_hop,
        held_out, seed, epochs_done, software.
    """

    path: Path
    train: TrainConfig
    features: FeatureConfig
    taxonomy: Taxonomy
    head: Head
    facts: dict[str, Any]


def create_run(run: Run) -> None:
    """Write all that is known before training.

    Raises:
        ValueError: the folder exists and is not empty.
    """
    if run.path.exists() and any(run.path.iterdir()):
        raise ValueError(f"{run.path} exists and is not empty; give another --out.")
    run.path.mkdir(parents=True, exist_ok=True)
    write_toml(as_sections(run.features) | as_sections(run.train), run.path / "config.toml")
    write_taxonomy(run.taxonomy, run.path / "taxonomy.csv")


def save_progress(run: Run, metrics: dict[str, Any]) -> None:
    """Add an epoch's line, then replace weights and facts: a kill leaves the last whole epoch."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in run.head.state_dict().items()}
    _refuse_not_finite(tensors, "lower fit.learning_rate; the run keeps the epochs before")
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics) + "\n")
    temporary = run.path / ".head.safetensors.tmp"
    save_file(tensors, temporary)
    temporary.replace(run.path / "head.safetensors")
    _write_json(run.path / "run.json", {"format": RUN_FORMAT, **run.facts})


def _refuse_not_finite(tensors: dict[str, torch.Tensor], remedy: str) -> None:
    bad = [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise ValueError(f"{bad[0]} holds values that are not finite: {remedy}.")


def _write_json(path: Path, document: dict[str, Any]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def load_run(path: Path) -> Run:
    """Open a run folder.

    Raises:
        ValueError: no run, of another format, or with a damaged file.
    """
    if not (path / "run.json").is_file():
        raise ValueError(f"{path} is no run folder (no run.json); make one with `trainer fit`.")
    try:
        facts = json.loads((path / "run.json").read_text(encoding="utf-8"))
        sections = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))
        tensors = load_file(path / "head.safetensors")
    except (json.JSONDecodeError, UnicodeDecodeError, tomllib.TOMLDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} has a damaged file: {error}.") from error
    facts = facts if isinstance(facts, dict) else {}
    missing = {"stage", "map_shape", "fingerprint", "fingerprint_of", "features"} - {*facts}
    if facts.get("format") != RUN_FORMAT or missing:
        raise ValueError(
            f"{path}/run.json has run format {facts.get('format')}; this program reads {RUN_FORMAT}. "
            "Train again with `trainer fit`."
        )
    own = as_sections(TrainConfig())
    train = parse_config(TrainConfig, {n: v for n, v in sections.items() if n in own})
    features = parse_config(FeatureConfig, {n: v for n, v in sections.items() if n not in own})
    taxonomy = read_taxonomy(path / "taxonomy.csv")
    head = Head(facts["map_shape"][0], len(taxonomy), train.head)
    try:
        head.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{path}/head.safetensors does not fit config.toml and taxonomy.csv.") from error
    _refuse_not_finite(tensors, f"train {path} again with `trainer fit`")
    return Run(path, train, features, taxonomy, head.eval(), facts)


def software_versions() -> dict[str, str]:
    """Return the versions that training numbers depend on."""
    from importlib.metadata import version

    return {name: version(name) for name in ("dawnchorus", "torch", "numpy")}


def parameter_count(head: torch.nn.Module) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for parameter in head.parameters())
