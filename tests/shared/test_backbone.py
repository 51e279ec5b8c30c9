import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shared.backbone import BackboneConfig, fold_batch_norms, load_backbone
from shared.timm_door import import_timm
from shared.weights import find_weights, lite0_key

CPU = torch.device("cpu")
LITE0 = "tf_efficientnet_lite0"


def images(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.manual_seed(0))


def shake_batch_norms(model: torch.nn.Module) -> None:
    """Give fresh batch norms statistics that folding has to carry."""
    generator = torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                tensor.data.copy_(0.9 + 0.2 * torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias, module.running_mean):
                assert tensor is not None
                tensor.data.copy_(0.05 * torch.randn(tensor.shape, generator=generator))


@pytest.mark.parametrize("name", [LITE0, "tf_efficientnet_b0", "tf_efficientnetv2_s"])
@torch.inference_mode()
def test_folding_batch_norms_changes_nothing_that_counts(name: str) -> None:
    model = import_timm().create_model(name, pretrained=False).eval()
    shake_batch_norms(model)
    expected = model.forward_features(images())
    folded = fold_batch_norms(model)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in folded.modules())
    found = folded.forward_features(images())
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize(
    ("stage", "own_name", "shape"),
    [
        ("last", "blocks.6", (320, 7, 10)),
        ("conv_head", "conv_head", (1280, 7, 10)),
        ("blocks.4", "blocks.4", (112, 14, 20)),
    ],
)
def test_a_stage_has_its_channels_and_stride(stage: str, own_name: str, shape: tuple[int, int, int]) -> None:
    backbone = load_backbone(BackboneConfig(name=LITE0, stages=(stage,), weights="random"), CPU)
    (maps,) = backbone(images(224, 320))
    assert backbone.stages == (own_name,)
    assert maps.shape[1:] == shape
    assert backbone.time_strides[0] * shape[2] == 320


def test_the_lite0_weights_know_a_palace_when_they_see_one() -> None:
    """scikit-learn's china.jpg is the Summer Palace: ImageNet class 698, palace."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    model = import_timm().create_model(LITE0, pretrained=False).eval()
    model.load_state_dict(find_weights("pretrained", LITE0, {}).tensors)
    photo = Image.fromarray(load_sample_image("china.jpg"))
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    square = photo.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        best = model((pixels - 0.5) / 0.5)[0].topk(5).indices.tolist()
    assert 698 in best


def test_every_tensor_of_the_package_has_its_place_in_timms_model() -> None:
    wanted = import_timm().create_model(LITE0, pretrained=False).state_dict()
    found = find_weights("pretrained", LITE0, {}).tensors
    assert {name: t.shape for name, t in found.items()} == {n: t.shape for n, t in wanted.items()}
    assert lite0_key("_blocks.15._project_conv.weight") == "blocks.6.0.conv_pwl.weight"


def test_without_weights_all_ways_out_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"--weights FILE.*lite0.*backbone\.weights=random"):
        load_backbone(BackboneConfig(name="tf_efficientnet_b0.ns_jft_in1k"), CPU)


def test_weights_in_the_hubs_cache_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = import_timm().create_model("tf_efficientnet_b0", pretrained=False)
    shake_batch_norms(model)
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(file))
    backbone = load_backbone(BackboneConfig(name="tf_efficientnet_b0.ns_jft_in1k"), CPU)
    assert backbone.weights_source == "hub timm/tf_efficientnet_b0.ns_jft_in1k"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file_are_those_weights(tmp_path: Path, suffix: str) -> None:
    found = find_weights("pretrained", LITE0, {}).tensors
    state = {name: tensor.contiguous() for name, tensor in found.items()}
    file = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}}, file)
    else:
        save_file(state, file)
    one = load_backbone(BackboneConfig(name=LITE0, weights=str(file)), CPU)
    two = load_backbone(BackboneConfig(name=LITE0), CPU)
    assert torch.equal(one(images())[0], two(images())[0])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file({"conv_stem.weight": torch.zeros(3)}, file)
    with pytest.raises(ValueError, match="do not fit tf_efficientnet_lite0: 294 of 294 tensors"):
        load_backbone(BackboneConfig(name=LITE0, weights=str(file)), CPU)


def test_a_file_that_is_no_weights_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.pth"
    file.write_bytes(b"not weights")
    with pytest.raises(ValueError, match="no weights file"):
        load_backbone(BackboneConfig(name=LITE0, weights=str(file)), CPU)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BackboneConfig(name="tf_eficientnet_lite0"), "timm knows no model"),
        (BackboneConfig(name="tf_efficientnet_b0.nonsense"), "timm cannot make"),
        (BackboneConfig(name="resnet18", weights="random"), "no EfficientNet"),
        (BackboneConfig(name=LITE0, stages=("blocks.9",), weights="random"), "blocks.0 to blocks.6"),
    ],
)
def test_a_wrong_name_or_stage_says_so(config: BackboneConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_backbone(config, CPU)


def test_random_weights_are_the_same_every_time() -> None:
    config = BackboneConfig(name=LITE0, weights="random")
    digests = {load_backbone(config, CPU).weights_sha256 for _ in range(2)}
    assert len(digests) == 1


def test_timm_loads_in_a_fresh_interpreter_without_a_warning() -> None:
    code = "from shared.timm_door import import_timm; import_timm().create_model"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
