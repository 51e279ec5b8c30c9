"""A policy of augmentations: which transforms, how often, over which ranges, all in turn or one of some."""

import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from torch import Generator, Tensor

from shared.augment import TRANSFORMS, TRANSFORMS_VERSION, Waveforms
from shared.background import BackgroundNoise

Step = dict[str, Any]
ABOVE_ZERO = ("rate", "cutoff_hz")
OWN: dict[str, Callable[..., Any]] = {**TRANSFORMS, "background_noise": BackgroundNoise}
GIVEN_KEYS = ("sample_rate_hz", "clip_samples")  # by the clips, not by a policy
OWN_KEYS = ("apply", "probability", "weight")
TRIED_CLIPS = 2

DEFAULT_STEPS: tuple[Step, ...] = (
    {"apply": "circular_shift", "probability": 0.5},
    {
        "one_of": [{"apply": "time_stretch"}, {"apply": "playback_speed"}, {"apply": "pitch_shift"}],
        "probability": 0.2,
    },
    {"one_of": [{"apply": "gaussian_noise"}, {"apply": "pink_noise"}], "probability": 0.5},
    {"one_of": [{"apply": "time_mask"}, {"apply": "frequency_mask"}], "probability": 0.3},
    {"apply": "low_pass", "probability": 0.2},
)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Section [augment].

    steps: tables, used in order. `apply` names a transform of shared/augment.py, "background_noise", or
        any callable of the same form as "module:name"; the other keys are its own, as in snr_db = [5, 30].
        `one_of` is a list of such tables of which one is drawn, by its `weight` (1 where none is given).
        `probability` (1 where none is given) is that of a clip to get the step.
    """

    steps: tuple[Step, ...] = DEFAULT_STEPS

    def __post_init__(self) -> None:
        for number, step in enumerate(self.steps, 1):
            try:
                _check_step(step)
            except ValueError as error:
                raise ValueError(f"steps[{number}]: {error}") from error


def _check_step(step: Step) -> None:
    probability = step.get("probability", 1.0)
    if isinstance(probability, bool) or not (isinstance(probability, int | float) and 0 <= probability <= 1):
        raise ValueError(f"probability must be in 0..1, got {probability!r}.")
    if "one_of" not in step:
        if "weight" in step:
            raise ValueError("a weight is for a table of one_of; a step alone has a probability.")
        _check_choice(step)
        return
    is_list = isinstance(step["one_of"], list | tuple) and step["one_of"]
    if not is_list or set(step) - {"one_of", "probability"}:
        raise ValueError("one_of must be a list of tables, with a probability beside it and nothing else.")
    for choice in step["one_of"]:
        if not isinstance(choice, dict) or "probability" in choice:
            raise ValueError("each of one_of is a table with a weight in place of a probability.")
        weight = choice.get("weight", 1.0)
        if not (type(weight) in (int, float) and 0 < weight < math.inf):
            raise ValueError(f"weight must be above 0, got {weight!r}.")
        _check_choice(choice)


def _check_choice(choice: Step) -> None:
    """Look that the transform exists and takes these keys; somebody else's is imported by `Policy` only."""
    name = choice.get("apply")
    if not isinstance(name, str):
        raise ValueError('each step names its transform, as in apply = "pink_noise", or is a one_of.')
    if re.fullmatch(r"\w+(\.\w+)*:\w+", name):
        return
    if name not in OWN:
        known = ", ".join(sorted(OWN))
        raise ValueError(f"unknown transform {name!r}; known: {known}, or your own as module:name.")
    _check_keys(choice, _keys_of(OWN[name]))


def _check_keys(choice: Step, keys: dict[str, Any]) -> None:
    name = choice["apply"]
    for key, value in choice.items():
        if key in OWN_KEYS:
            continue
        if key not in keys:
            raise ValueError(f"{name} has no {key}; it takes {', '.join(sorted(keys)) or 'nothing'}.")
        if isinstance(keys[key], tuple):
            _check_range(f"{name}.{key}", value, keys[key])
    missing = [
        key for key, default in keys.items() if default is inspect.Parameter.empty and key not in choice
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}.")
    if not isinstance(choice.get("source", ""), str):
        raise ValueError(f"{name}.source must be a folder or a store, got {choice['source']!r}.")


def _check_range(name: str, value: Any, default: tuple[float, float]) -> None:
    numbers = value if isinstance(value, list | tuple) else ()
    if len(numbers) != 2 or not all(type(one) in (int, float) and math.isfinite(one) for one in numbers):
        raise ValueError(f"{name} must be a range, as in {list(default)}; got {value!r}.")
    low, high = numbers
    if low > high:
        raise ValueError(f"{name} must rise, got {list(numbers)}.")
    kind = name.rpartition(".")[2]
    if kind in ABOVE_ZERO and low <= 0:
        raise ValueError(f"{name} must be above 0, got {list(numbers)}.")
    if kind == "share" and not 0 <= low <= high <= 1:
        raise ValueError(f"{name} must be in 0..1, got {list(numbers)}.")


def _imported(name: str) -> Callable[..., Any]:
    """Import a transform of somebody else's.

    Raises:
        ValueError: it cannot be, or is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # whatever their module does
        raise ValueError(
            f"{name} cannot be imported: {error}; Python looks for it along PYTHONPATH."
        ) from error
    if not callable(found):
        raise ValueError(f"{name} is not callable.")
    return found


def _keys_of(transform: Callable[..., Any]) -> dict[str, Any]:
    """Return the keyword parameters of a transform that are a user's, with their defaults."""
    parameters = inspect.signature(transform).parameters.values()
    return {
        p.name: p.default
        for p in parameters
        if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in GIVEN_KEYS
    }


class Policy:
    """Waveforms (B, S) of -1..1 and a generator on their device to augmented waveforms of the same shape."""

    def __init__(self, config: AugmentConfig, sample_rate_hz: int, clip_samples: int) -> None:
        """Make every transform ready.

        Raises:
            ValueError: a background cannot be used, or somebody else's transform cannot.
        """
        given = {"sample_rate_hz": sample_rate_hz, "clip_samples": clip_samples}
        self._steps = []
        for number, step in enumerate(config.steps, 1):
            try:
                self._steps.append(_MadeStep(step, given))
            except ValueError as error:
                raise ValueError(f"augment.steps[{number}]: {error}") from error

    def __call__(self, waveforms: Waveforms, rng: Generator) -> Waveforms:
        """Return new waveforms; the given ones stay as they are."""
        for step in self._steps:
            waveforms = step(waveforms, rng)
        return waveforms

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result beside the config: this code's state, backgrounds, and others' modules."""
        return {
            "transforms": TRANSFORMS_VERSION,
            "backgrounds": [background.sha256 for background in self.backgrounds],
            "modules": {name: digest for step in self._steps for name, digest in step.modules.items()},
        }

    @property
    def backgrounds(self) -> list[BackgroundNoise]:
        """The recordings that it may mix in, in the policy's order."""
        made = [transform for step in self._steps for transform in step.transforms]
        return [transform for transform in made if isinstance(transform, BackgroundNoise)]

    def refuse_own(self, recordings: pd.DataFrame) -> None:
        """Stop where a background is a recording of the data set.

        Raises:
            ValueError: names it.
        """
        for background in self.backgrounds:
            own = recordings["sha256"].astype(str).isin(background.recordings)
            if own.any():
                raise ValueError(
                    f"background_noise of [augment] has {int(own.sum())} recordings of this data set "
                    f"({recordings['filename'][own].iloc[0]} first): they may be held out, and their calls "
                    "would come without their labels. Name other recordings."
                )


class _MadeStep:
    """One step: which clips get it, and which of its transforms each gets."""

    def __init__(self, step: Step, given: Mapping[str, int]) -> None:
        choices = choices_of(step)
        self._probability = float(step.get("probability", 1.0))
        weights = torch.tensor([float(choice.get("weight", 1.0)) for choice in choices])
        self._bounds = (weights.cumsum(0) / weights.sum()).tolist()
        self.transforms = [_made(choice, given) for choice in choices]
        foreign = [str(choice["apply"]) for choice in choices if choice["apply"] not in OWN]
        self.modules = {name: _sha256_of_module(name.partition(":")[0]) for name in foreign}

    def __call__(self, waveforms: Waveforms, rng: Generator) -> Waveforms:
        drawn, choice = torch.rand(2, len(waveforms), generator=rng, device=waveforms.device).cpu()
        number = torch.bucketize(choice, torch.tensor(self._bounds[:-1]), right=True)
        changed = waveforms
        for place, transform in enumerate(self.transforms):
            rows = ((drawn < self._probability) & (number == place)).nonzero().flatten()
            if len(rows):
                if changed is waveforms:
                    changed = waveforms.clone()
                rows = rows.to(waveforms.device)
                changed[rows] = transform(waveforms[rows], rng)
        return changed


def _made(choice: Step, given: Mapping[str, int]) -> Callable[[Tensor, Generator], Tensor]:
    """Bind a transform's keys; one that is a class is made once, and is called afterwards."""
    name = choice["apply"]
    transform = OWN[name] if name in OWN else _imported(name)
    _check_keys(choice, _keys_of(transform))
    keys = {key: tuple(value) if isinstance(value, list) else value
            for key, value in choice.items() if key not in OWN_KEYS}  # fmt: skip
    wanted = inspect.signature(transform).parameters
    keys |= {key: value for key, value in given.items() if key in wanted}
    if inspect.isclass(transform):
        bound = cast(Callable[[Tensor, Generator], Tensor], transform(**keys))
    else:
        bound = functools.partial(transform, **keys)
    return bound if name in OWN else _Tried(name, bound, given["clip_samples"])


class _Tried:
    """Somebody else's transform, tried once before any work; whatever it does wrong is one line."""

    def __init__(self, name: str, transform: Callable[[Tensor, Generator], Tensor], num_samples: int) -> None:
        self._name, self._transform = name, transform
        rng = torch.Generator().manual_seed(0)
        self(torch.randn(TRIED_CLIPS, num_samples, generator=rng) * 0.1, rng)

    def __call__(self, waveforms: Tensor, rng: Generator) -> Tensor:
        try:
            found = self._transform(waveforms, rng)
        except Exception as error:  # whatever their code does
            raise ValueError(f"{self._name} failed: {type(error).__name__}: {error}.") from error
        if not isinstance(found, Tensor) or found.shape != waveforms.shape:
            made = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"{self._name} made {made} of {tuple(waveforms.shape)}: shapes must stay.")
        if not torch.isfinite(found).all():
            raise ValueError(f"{self._name} made samples that are not finite.")
        return found


def _sha256_of_module(name: str) -> str:
    """Return the digest of a module's source; "" where it has none."""
    spec = importlib.util.find_spec(name)
    path = Path(spec.origin) if spec and spec.origin else None
    return hashlib.sha256(path.read_bytes()).hexdigest() if path and path.is_file() else ""


def choices_of(step: Step) -> Sequence[Step]:
    """Return the tables of a step that name a transform: itself, or those of its one_of."""
    choices: Sequence[Step] = step.get("one_of", [step])
    return choices


def with_choices(step: Step, change: Callable[[Step], Step]) -> Step:
    """Return a step with every table that names a transform changed."""
    changed = [change(choice) for choice in choices_of(step)]
    return step | {"one_of": changed} if "one_of" in step else changed[0]


def resolved(choice: Step) -> Step:
    """Return a table with every key of our transform, defaults too; others' defaults are their modules'."""
    keys = _keys_of(OWN[choice["apply"]]) if choice["apply"] in OWN else {}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in keys.items()} | choice
