"""Everything that a killed training needs to go on, in one file without pickles.

Written after every epoch under another name and then renamed, so it is always one whole epoch's.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trainer.loop import Training
from trainer.run import write_tensors

FILE = "checkpoint.safetensors"


@dataclass
class Progress:
    """How far a training is.

    history: one dict of metrics per epoch. best_epoch, best_score: by the watched fold, where one is
    watched; best_weights: the scored model's of that epoch.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def epochs_done(self) -> int:
        """The number of whole epochs."""
        return len(self.history)


def save_checkpoint(folder: Path, training: Training, progress: Progress, bound_to: str) -> None:
    """Write the weights, the optimiser's state, the averages, and the history.

    bound_to: what the training is of (config, data, split); a checkpoint of another one is refused.
    """
    tensors = {f"model.{name}": value for name, value in training.model.state_dict().items()}
    if training.averaged:
        tensors |= {f"averaged.{n}": v for n, v in training.averaged.model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in progress.best_weights.items()}
    for number, state in training.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{number}.{key}": torch.as_tensor(value) for key, value in state.items()}
    facts = {
        "bound_to": bound_to,
        "steps_done": training.steps_done,
        "scaler": training.precision.scaler.state_dict(),
        "history": progress.history,
        "best_epoch": progress.best_epoch,
        "best_score": progress.best_score,
    }
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    write_tensors(folder / FILE, copies, {"facts": json.dumps(facts)})


def load_checkpoint(folder: Path, training: Training, bound_to: str) -> Progress:
    """Put a checkpoint's state into `training`, a fresh one of the same config; return how far it was.

    Without a checkpoint nothing is done yet.

    Raises:
        ValueError: it cannot be read, or is another training's.
    """
    path = folder / FILE
    if not path.exists():
        return Progress()
    device = training.precision.device
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); remove {folder} and train again.") from error
    if facts["bound_to"] != bound_to:
        raise ValueError(
            f"{folder} is a training with another config, of other recordings or labels, or with another "
            "split; go on with what it was begun with, or give another --out."
        )
    training.model.load_state_dict(_below(tensors, "model."))
    if training.averaged:
        training.averaged.model.load_state_dict(_below(tensors, "averaged."))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimiser.").items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = value.cpu() if key == "step" else value
    groups = training.optimiser.state_dict()["param_groups"]
    training.optimiser.load_state_dict({"state": state, "param_groups": groups})
    training.precision.scaler.load_state_dict(facts["scaler"])
    training.steps_done = facts["steps_done"]
    best = _below(tensors, "best.")
    return Progress(facts["history"], facts["best_epoch"], facts["best_score"], best)


def remove_checkpoint(folder: Path) -> None:
    """Remove it: the training is finished."""
    (folder / FILE).unlink(missing_ok=True)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
