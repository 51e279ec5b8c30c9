"""The frozen EfficientNet: images in, un-pooled embedding maps out."""

import hashlib
import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from shared.timm_door import import_timm
from shared.weights import find_weights

ENGINES = ("auto", "torch", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Section [backbone].

    name: any EfficientNet of timm's.
    stages: which maps are stored: "last" (the last block, before conv_head), "conv_head", or
        "blocks.N". Several stand side by side in the store; the first is a head's default.
    weights: "pretrained", "random" (for speed tests), or a file.
    engine, precision: what computes the maps; see shared/engines.py.
    batch_clips: clips per forward pass. It changes the last bits of a convolution, so it is
        part of what a store is bound to.
    """

    name: str = "tf_efficientnetv2_s.in21k"
    stages: tuple[str, ...] = ("last",)
    weights: str = "pretrained"
    engine: str = "auto"
    precision: str = "fp32"
    batch_clips: int = 16

    def __post_init__(self) -> None:
        for stage in self.stages:
            if not re.fullmatch(r"last|conv_head|blocks\.\d+", stage):
                raise ValueError(f"a stage must be last, conv_head or blocks.N; got {stage!r}.")
        if not self.stages or len({*self.stages}) < len(self.stages):
            raise ValueError(f"stages must name at least one, each once; got {list(self.stages)}.")
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {self.engine!r}.")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}.")
        if self.batch_clips < 1:
            raise ValueError(f"batch_clips must be at least 1, got {self.batch_clips}.")


class Backbone(nn.Module):
    """Images (B, 3, M, N) of 0..1 to embedding maps (B, C, F, T), one per stage, frozen.

    Batch norms are folded into the convolutions before them and memory is channels-last,
    which changes the maps by less than 1e-5 of their range.

    stages: the maps' own names, in the order in which `forward` returns them.
    asked_stages: the same in the config's order.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, parts: dict[str, nn.Module], pretrained_cfg: dict[str, Any]) -> None:
        super().__init__()
        self.stages = tuple(parts)
        self.parts = nn.ModuleList(parts.values())
        self.register_buffer("mean", torch.tensor(pretrained_cfg["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(pretrained_cfg["std"]).view(1, 3, 1, 1))
        self.asked_stages: tuple[str, ...] = self.stages
        self.weights_sha256 = ""
        self.weights_source = ""

    @property
    def time_strides(self) -> tuple[int, ...]:
        """Mel frames per frame of each map."""
        strides, product = [], 1
        for part in self.parts:
            convs = [layer for layer in part.modules() if isinstance(layer, nn.Conv2d)]
            product *= math.prod(int(conv.stride[1]) for conv in convs)
            strides.append(product)
        return tuple(strides)

    def normalised(self, images: Float[Tensor, "b 3 m n"]) -> Float[Tensor, "b 3 m n"]:
        """Return images as the weights were trained with them, in the weights' type and memory format."""
        values = ((images - self.mean) / self.std).to(next(self.parts.parameters()).dtype)
        return values.contiguous(memory_format=torch.channels_last)

    def forward(self, images: Float[Tensor, "b 3 m n"]) -> tuple[Tensor, ...]:
        """Return the maps of every image."""
        values = self.normalised(images)
        maps = []
        for part in self.parts:
            values = part(values)
            maps.append(values)
        return tuple(maps)


def load_backbone(config: BackboneConfig, device: torch.device, *, fold: bool = True) -> Backbone:
    """Return the frozen backbone up to the last of its stages, with its weights, on `device`.

    fold: fold its batch norms; without, they are there to be trained.

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
    parts: dict[str, nn.Module] = {name: part.eval() for name, part in _parts(model, config).items()}
    if fold:
        parts = {name: fold_batch_norms(part) for name, part in parts.items()}
    backbone = Backbone(parts, model.pretrained_cfg)
    backbone.weights_sha256, backbone.weights_source = digest, source
    backbone.asked_stages = own_names(config.stages, len(model.blocks))
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


def own_names(stages: tuple[str, ...], num_blocks: int) -> tuple[str, ...]:
    """Return the stages with "last" by its own name, as in blocks.6."""
    return tuple(f"blocks.{num_blocks - 1}" if stage == "last" else stage for stage in stages)


def _parts(model: nn.Module, config: BackboneConfig) -> dict[str, nn.Sequential]:
    """Return the layers up to each stage from the one before it, in the network's order."""
    if not all(hasattr(model, name) for name in ("conv_stem", "bn1", "blocks", "conv_head", "bn2")):
        raise ValueError(f"{config.name} is no EfficientNet of timm's; the backbone must be one.")
    blocks: nn.Sequential = model.blocks  # type: ignore[assignment]
    steps = {f"blocks.{number}": [block] for number, block in enumerate(blocks)}
    steps["blocks.0"] = [model.conv_stem, model.bn1, blocks[0]]  # type: ignore[list-item]
    steps["conv_head"] = [model.conv_head, model.bn2]  # type: ignore[list-item]
    stages = own_names(config.stages, len(blocks))
    for stage in stages:
        if stage not in steps:
            raise ValueError(f"{config.name} has stages blocks.0 to blocks.{len(blocks) - 1}, got {stage}.")
    parts: dict[str, nn.Sequential] = {}
    layers: list[nn.Module] = []
    for name, step in steps.items():
        layers += step
        if name in stages:
            parts[name], layers = nn.Sequential(*layers), []
    return parts


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
