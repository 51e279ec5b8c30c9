"""The whole network, trainable: log-mel images or waveforms to logits, by the backbone and the head."""

import copy
import functools
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shared.audio import FULL_SCALE
from shared.backbone import Backbone, fold_batch_norms, load_backbone
from shared.features import FeatureConfig
from shared.mel import LogMelImage
from trainer.config import FinetuneConfig
from trainer.heads import HeadOutput


@dataclass(frozen=True)
class FrontEnd:
    """Waveforms of -1..1 to images, on whatever device they are. No module: no run folder holds it."""

    features: FeatureConfig

    def __call__(self, waveforms: Float[Tensor, "b s"]) -> Float[Tensor, "b 3 m n"]:
        """Return the images, in fp32; on a GPU too, where convolutions would round to TF32."""
        image = _image_layer(self.features, waveforms.device)
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            images: Tensor = image(waveforms)
        return images


@functools.lru_cache(maxsize=4)
def _image_layer(features: FeatureConfig, device: torch.device) -> LogMelImage:
    return LogMelImage(features.mel, features.clips.grid(), device)


class Network(nn.Module):
    """A backbone whose last stages are trained, and a head behind the map of its one stage.

    It takes what a head takes, with images (B, 3, M, N), or the samples of int16 waveforms (B, S) as
    floats, in place of maps; so the training loop and the scores are the head's own.

    stages: the backbone's layers, the stem with the first block, then a block each.
    """

    def __init__(
        self, backbone: Backbone, head: nn.Module, front_end: FrontEnd, config: FinetuneConfig
    ) -> None:
        super().__init__()
        self.backbone, self.head, self.front_end = backbone, head, front_end
        self._checkpointing = config.checkpointing
        self._trains_norms = config.batch_norm == "trained"
        stages = self.stages
        self._num_frozen = max(0, len(stages) - config.unfreeze_stages)
        for number, stage in enumerate(stages):
            stage.requires_grad_(number >= self._num_frozen)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The same layers as the backbone's, grouped."""
        stages: list[nn.Sequential] = []
        layers: list[nn.Module] = []
        for layer in (layer for part in self.backbone.parts for layer in part.children()):
            layers.append(layer)
            if isinstance(layer, nn.Sequential):  # a block; conv_head stands alone behind the last
                stages.append(nn.Sequential(*layers))
                layers = []
        return [*stages, nn.Sequential(*layers)] if layers else stages

    @property
    def trained_stages(self) -> list[nn.Sequential]:
        """The last stages, those that are trained, in the network's order."""
        return self.stages[self._num_frozen :]

    def train(self, mode: bool = True) -> "Network":
        """Train the head; batch norms only where they are trained, and never those of frozen stages."""
        super().train(mode)
        self.backbone.eval()
        if self._trains_norms:
            for stage in self.trained_stages:
                stage.train(mode)
        return self

    def folded_backbone(self) -> Backbone:
        """Return a copy of the backbone with its batch norms folded and nothing to train, for an engine."""
        backbone = copy.deepcopy(self.backbone).eval().requires_grad_(False)
        backbone.parts = nn.ModuleList(fold_batch_norms(part) for part in backbone.parts)
        return backbone

    def forward(self, values: Float[Tensor, "b ..."], mask: Bool[Tensor, "b t"] | None = None) -> HeadOutput:
        """Return logits; the head computes in its own type, as on stored maps."""
        images = self.front_end(values / FULL_SCALE) if values.ndim == 2 else values
        found = self.backbone.normalised(images)
        for number, stage in enumerate(self.stages):
            if self._checkpointing and self.training and number >= self._num_frozen:
                found = checkpoint(stage, found, use_reentrant=False)
            else:
                found = stage(found)
        output: HeadOutput = self.head(found.to(next(self.head.parameters()).dtype), mask)
        return output


def make_network(
    features: FeatureConfig,
    stage: str,
    head: nn.Module,
    config: FinetuneConfig,
    device: torch.device,
    *,
    bare: bool = False,
    weights: str = "",
) -> Network:
    """Return the network of a head: the backbone that its features were made with, up to its stage.

    bare: without the backbone's weights, for a network that loads its own. weights: a file of them, in
    place of the one that the features name.
    """
    wanted = replace(features.backbone, stages=(stage,))
    if bare or weights:
        wanted = replace(wanted, weights="random" if bare else weights)
    backbone = load_backbone(wanted, device, fold=config.batch_norm == "folded")
    return Network(backbone, head.to(device), FrontEnd(features), config).to(device)
