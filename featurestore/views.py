"""Views: augmented versions of every clip, stored beside the clean one, drawn by the clip's own chance."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int16
from numpy import ndarray
from torch import Generator, Tensor

from shared.audio import FULL_SCALE
from shared.augment import tiled
from shared.augment_policy import AugmentConfig, Policy, Step, choices_of, resolved, with_choices
from shared.clips import ClipGrid
from shared.config import as_sections, parse_config
from shared.store import VIEWS

BACKGROUND = "background_noise"


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Section [views].

    count: augmented versions of every clip to store beside the clean one.
    seed: of all their chance.
    """

    count: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"count must be 0 or more, got {self.count}.")


@dataclass(frozen=True, kw_only=True)
class ViewSections:
    """The sections that decide what a store's views are: [views], and the policy, [augment]."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)


class Views:
    """Makes the views of clips.

    A view is decided by the policy, the seed, its number, and the clip's cause (audio sha256 and start),
    whatever the clips beside it: wherever a row moves, it stays as it is.
    """

    def __init__(self, sections: ViewSections, grid: ClipGrid, device: torch.device) -> None:
        """Make the policy ready.

        Raises:
            ValueError: a background or somebody else's transform cannot be used, or two backgrounds could
                not be told apart by their folders' names.
        """
        self._sections, self._device = sections, device
        self.numbers = range(1, sections.views.count + 1)
        steps = sections.augment if sections.views.count else AugmentConfig(steps=())
        self._policy = Policy(steps, grid.sample_rate_hz, grid.clip_samples)
        places = _background_places(steps)
        if len({Path(place).name for place in places}) < len(places):
            raise ValueError(
                f"two backgrounds of [augment] have the same name ({', '.join(sorted(places))}), by which a "
                "store knows them: rename one."
            )

    @property
    def attributes(self) -> dict[str, Any]:
        """What a store says of its views: the policy, every key, and what it stands on; no paths of ours."""
        if not self.numbers:
            return {}
        steps = tuple(
            with_choices(step, lambda choice: _named(resolved(choice)))
            for step in self._sections.augment.steps
        )
        sections = as_sections(replace(self._sections, augment=AugmentConfig(steps=steps)))
        return {**sections["views"], "augment": sections["augment"], **self._policy.identity}

    def refuse_own(self, recordings: pd.DataFrame) -> None:
        """Stop where a background is a recording of the data set: it may be held out, and it has labels.

        Raises:
            ValueError: names it.
        """
        self._policy.refuse_own(recordings)

    def of(
        self, waveforms: Int16[ndarray, "b s"], valid_samples: list[int], causes: list[str], number: int
    ) -> Float[Tensor, "b s"]:
        """Return a view of clips, on the device, in -1..1 and beyond.

        Short clips are repeated first, as in fine-tuning: where a recording ended must not be heard.

        causes: audio sha256 and start of each, as text.
        """
        clips = torch.from_numpy(waveforms).to(self._device).float() / FULL_SCALE
        clips = tiled(clips, torch.tensor(valid_samples, device=self._device))
        seeds = [_seed_of(f"{self._sections.views.seed}/{number}/{cause}") for cause in causes]
        made = [
            self._policy(clip.unsqueeze(0), Generator(self._device).manual_seed(seed))
            for clip, seed in zip(clips, seeds, strict=True)
        ]
        return torch.cat(made)


def _seed_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def _named(choice: Step) -> Step:
    """Return a background with its folder's name in place of the path, and anything else as it is."""
    return choice | {"source": Path(choice["source"]).name} if choice["apply"] == BACKGROUND else choice


def _background_places(config: AugmentConfig) -> set[str]:
    choices = [choice for step in config.steps for choice in choices_of(step)]
    return {str(choice["source"]) for choice in choices if choice["apply"] == BACKGROUND}


def stored_sections(attributes: dict[str, Any], folders: list[Path]) -> ViewSections:
    """Return the sections that a store's views were made by.

    folders: where backgrounds are looked for by their names: they themselves, or below them.

    Raises:
        ValueError: one is not there.
    """
    found = attributes.get(VIEWS)
    if not found:
        return ViewSections()
    sections = {
        VIEWS: {"count": found["count"], "seed": found["seed"]},
        "augment": {
            "steps": [
                with_choices(step, lambda choice: _placed(choice, folders))
                for step in found["augment"]["steps"]
            ]
        },
    }
    return parse_config(ViewSections, sections)


def _placed(choice: Step, folders: list[Path]) -> Step:
    """Return a background with the path of its folder, and anything else as it is."""
    if choice["apply"] != BACKGROUND:
        return choice
    name = choice["source"]
    places = [place for folder in folders for place in (folder, folder / name)]
    found = [place for place in places if place.name == name and place.exists()]
    if not found:
        raise ValueError(
            f"this store's views have backgrounds from {name!r}: name that folder with --audio too."
        )
    return choice | {"source": str(found[0])}
