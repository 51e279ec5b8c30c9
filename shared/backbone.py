"""The frozen EfficientNet: images in, un-pooled embedding maps out."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.timm_door import import_timm
from shared.weights import find_weights


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Section [backbone].

    name: any EfficientNet of timm's.
    stage: "last" (the last block, before conv_head), "conv_head", or "blocks.N".
    weights: "pretrained", "random" (for speed tests), or a file.
    batch_clips: clips per forward pass. It changes the last bits of a convolution, so it is
        part of what a store is bound to.
    """

    name: str = "tf_efficientnetv2_s.in21k"
    stage: str = "last"
    weights: str = "pretrained"
    batch_clips: int = 16

    def __post_init__(self) -> None:
        parts = self.stage.split(".")
        numbered = len(parts) == 2 and parts[0] == "blocks" and parts[1].isdigit()
        if self.stage not in ("last", "conv_head") and not numbered:
            raise ValueError(f"stage must be last, conv_head or blocks.N; got {self.stage!r}.")
        if self.batch_clips < 1:
            raise ValueError(f"batch_clips must be at least 1, got {self.batch_clips}.")


class Backbone(nn.Module):
    """Images (B, 3, M, N) of 0..1 to embedding maps (B, C, F, T), frozen.

    Batch norms are folded into the convolutions before them and memory is channels-last,
    which changes the maps by less than 1e-5 of their range.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, layers: nn.Module, pretrained_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.layers = layers
        self.register_buffer("mean", torch.tensor(pretrained_cfg["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(pretrained_cfg["std"]).view(1, 3, 1, 1))
        self.stage = ""
        self.weights_sha256 = ""
        self.weights_source = ""

    @property
    def time_stride(self) -> int:
        """Mel frames per frame of the map."""
        convs = [layer for layer in self.layers.modules() if isinstance(layer, nn.Conv2d)]
        return math.prod(int(conv.stride[1]) for conv in convs)

    def forward(self, images: Float[Tensor, "b 3 m n"]) -> Float[Tensor, "b c f t"]:
        """Return the map of every image, normalised as the weights were trained."""
        normalised = (images - self.mean) / self.std
        maps: Tensor = self.layers(normalised.contiguous(memory_format=torch.channels_last))
        return maps


def load_backbone(config: BackboneConfig, device: torch.device) -> Backbone:
    """Return the frozen backbone up to `config.stage`, with its weights, on `device`.

    Raises:
        ValueError: an unknown name or stage, no EfficientNet, or weights that do not fit.
    """
    timm = import_timm()
    if not timm.is_model(config.name):
        near = timm.list_models(f"*{config.name.split('.')[0]}*")[:6] or timm.list_models("tf_eff*")
        raise ValueError(f"timm knows no model {config.name!r}; near: {', '.join(near[:6])}.")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            model = timm.create_model(config.name, pretrained=False)
        except RuntimeError as error:  # timm's way to say: unknown tag behind the dot
            raise ValueError(f"timm cannot make {config.name!r}: {error}.") from error
    digest, source = _load_weights(model, config)
    layers, stage = _up_to(model, config)
    backbone = Backbone(fold_batch_norms(layers.eval()), model.pretrained_cfg)
    backbone.stage, backbone.weights_sha256, backbone.weights_source = stage, digest, source
    backbone.requires_grad_(False).eval()
    # torch's own stubs of Module.to leave memory_format out
    return backbone.to(device=device, memory_format=torch.channels_last)  # type: ignore


def _load_weights(model: nn.Module, config: BackboneConfig) -> tuple[str, str]:
    if config.weights == "random":
        state = hashlib.sha256()
        for tensor in model.state_dict().values():
            state.update(tensor.numpy().tobytes())
        return state.hexdigest(), "random"
    pretrained_cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    weights = find_weights(config.weights, config.name, pretrained_cfg)
    wanted = {name: t.shape for name, t in model.state_dict().items() if not _is_classifier(name)}
    found = {name: t for name, t in weights.tensors.items() if not _is_classifier(name)}
    odd = [name for name in wanted if name not in found or found[name].shape != wanted[name]]
    if odd:
        raise ValueError(
            f"the weights from {weights.source} do not fit {config.name}: {len(odd)} of "
            f"{len(wanted)} tensors are missing or of another shape, {odd[0]} first."
        )
    full = model.state_dict() | {name: found[name] for name in wanted}
    same_head = all(
        name in weights.tensors and weights.tensors[name].shape == tensor.shape
        for name, tensor in model.state_dict().items()
    )
    model.load_state_dict(weights.tensors if same_head else full)
    return weights.sha256, weights.source


def _is_classifier(name: str) -> bool:
    return name.startswith("classifier.")


def _up_to(model: nn.Module, config: BackboneConfig) -> tuple[nn.Sequential, str]:
    """Return the layers up to the stage, and the stage's own name."""
    if not all(hasattr(model, name) for name in ("conv_stem", "bn1", "blocks", "conv_head", "bn2")):
        raise ValueError(f"{config.name} is no EfficientNet of timm's; the backbone must be one.")
    blocks: nn.Sequential = model.blocks  # type: ignore[assignment]
    last = len(blocks) - 1
    stage = f"blocks.{last}" if config.stage == "last" else config.stage
    depth = last if stage == "conv_head" else int(stage.split(".")[1])
    if depth > last:
        raise ValueError(f"{config.name} has stages blocks.0 to blocks.{last}, got {stage}.")
    layers = [model.conv_stem, model.bn1, *(blocks[n] for n in range(depth + 1))]
    if stage == "conv_head":
        layers += [model.conv_head, model.bn2]
    return nn.Sequential(*layers), stage  # type: ignore[arg-type]


def fold_batch_norms(module: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution right before it, in place; eval mode only.

    timm's batch norms carry the activation; it stays in their place.
    """
    previous: nn.Module | None = None
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d) and isinstance(previous, nn.Conv2d):
            _fold_into(previous, child)
            setattr(module, name, getattr(child, "act", nn.Identity()))
        else:
            fold_batch_norms(child)
        previous = child
    return module


def _fold_into(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_var is not None
    assert norm.running_mean is not None
    with torch.no_grad():
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        bias = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        conv.weight = nn.Parameter(conv.weight * scale.view(-1, 1, 1, 1))
        conv.bias = nn.Parameter(norm.bias - bias * scale)
