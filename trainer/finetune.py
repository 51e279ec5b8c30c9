"""The recipe of `trainer finetune`: a head's run, its backbone unfrozen, on augmented waveforms."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from shared.audio import FULL_SCALE
from shared.augment import tiled
from shared.augment_policy import Policy
from shared.config import as_sections
from shared.store import FeatureStore
from trainer.config import FinetuneConfig, TrainConfig, TuneConfig
from trainer.heads import Head
from trainer.loop import AnchoredWeights, AveragedWeights
from trainer.mixing import mix_and_draw
from trainer.mixup import Batch
from trainer.network import Network, make_network
from trainer.prepare import Prepared
from trainer.run import Run, weights_file
from trainer.splits import Folds

KEYS = ["source", "filename", "sha256"]


class NetworkRecipe:
    """The whole network of a head's run on a store's waveforms: augmented, mixed, then drawn as images."""

    kind = "network"

    def __init__(
        self, init: Run, tune: TuneConfig, policy: Policy, device: torch.device, weights: str = ""
    ) -> None:
        """Take a head's run, how to tune it, and the file of its backbone's weights where that is needed."""
        self.tune: TuneConfig | None = tune
        self._init, self._tune, self._device = init, tune, device
        self._policy, self._weights = policy, weights
        self._sha256 = hashlib.sha256(weights_file(init.path, init.facts).read_bytes()).hexdigest()
        self._network: Network | None = None

    def model(self, prepared: Prepared, config: TrainConfig, device: torch.device) -> nn.Module:
        """Return the network with the run's own head and the backbone of its features.

        Raises:
            ValueError: the backbone's weights are not those that the features were made with.
        """
        num_channels, num_rows, _ = self._init.facts["map_shape"]
        head = Head(num_channels, num_rows, len(self._init.taxonomy), config.head)
        head.load_state_dict(self._init.model.state_dict())
        stage = str(self._init.facts["stage"])
        self._network = make_network(
            self._init.features, stage, head, self._tune.finetune, device, weights=self._weights
        )
        wanted = self._init.facts["fingerprint_of"]["backbone"]["weights"]
        if self._network.backbone.weights_sha256 != wanted:
            raise ValueError(
                f"the backbone's weights ({self._network.backbone.weights_source}) are not those that the "
                "features were made with; give their file with --weights FILE."
            )
        return self._network

    def release(self) -> None:
        """Let go of the network."""
        self._network = None

    def optimiser(self, model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
        """Return AdamW with a learning rate for the head and one for each trained stage."""
        assert isinstance(model, Network)
        return tuning_optimiser(model, self._tune.finetune)

    def kept(self, model: nn.Module, config: TrainConfig) -> AveragedWeights | AnchoredWeights | None:
        """Return weights between the run's and the trained ones, or their moving average."""
        tuning = self._tune.finetune
        if tuning.interpolation < 1:
            return AnchoredWeights(model, tuning.interpolation)
        return AveragedWeights(model, tuning.ema) if tuning.ema else None

    def mix(self, config: TrainConfig, epoch: int) -> Callable[[Batch], Batch]:
        """Return what makes images of a batch of waveforms: short clips repeated, policy, mixing, log-mel."""
        assert self._network is not None
        seeds = np.random.SeedSequence([config.fit.seed, epoch, 3]).generate_state(2)
        augment_rng = torch.Generator(self._device).manual_seed(int(seeds[0]))
        mixing_rng = np.random.default_rng(int(seeds[1]))
        front_end, policy, mixing = self._network.front_end, self._policy, self._tune.mixing

        @torch.no_grad()
        def images(batch: Batch) -> Batch:
            waveforms = tiled(batch.maps / FULL_SCALE, batch.valid_samples)
            heard = (batch.valid_samples > 0).unsqueeze(1).expand_as(batch.mask)
            batch = batch._replace(maps=policy(waveforms, augment_rng), mask=heard)
            return mix_and_draw(batch, front_end, mixing, mixing_rng)

        return images

    def facts(self) -> dict[str, Any]:
        """Return the head that it begins with, how it is tuned, and what the policy stands on."""
        tune = as_sections(self._tune)
        return {"init_sha256": self._sha256, "tune": tune, "policy": self._policy.identity}


def tuning_optimiser(network: Network, config: FinetuneConfig) -> torch.optim.AdamW:
    """Return AdamW: the head at the full rate, the last stage at `backbone_rate` of it, each one before
    that at `stage_decay` of the one behind; biases and other vectors are not decayed."""
    rates: list[tuple[nn.Module, float]] = [(network.head, config.learning_rate)]
    rate = config.learning_rate * config.backbone_rate
    for stage in reversed(network.trained_stages):
        rates.append((stage, rate))
        rate *= config.stage_decay
    groups = []
    for module, rate in rates:
        trained = [p for p in module.parameters() if p.requires_grad]
        for decay, chosen in (
            (config.weight_decay, [p for p in trained if p.ndim > 1]),
            (0.0, [p for p in trained if p.ndim <= 1]),
        ):
            groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate)


def folds_of_run(run: Run, store: FeatureStore) -> Folds:
    """Return the folds that a run was split by, so that what is tuned is scored on the same recordings.

    Raises:
        ValueError: the store holds other recordings than the run was split over.
    """
    split = pd.read_csv(run.path / "split.csv", dtype=str, keep_default_na=False)
    places = pd.MultiIndex.from_frame(split[KEYS]).get_indexer(
        pd.MultiIndex.from_frame(store.recordings[KEYS].astype(str))
    )
    if (places < 0).any() or len(split) != len(places):
        raise ValueError(
            f"{store.path} holds other recordings than {run.path} was split over: the store has grown or "
            "shrunk since. Run `trainer fit` again, then `trainer finetune` from that."
        )
    fold = split["fold"].astype(int).to_numpy(np.int64)[places]
    return Folds(fold, True, np.zeros((0, 2), np.int64))
