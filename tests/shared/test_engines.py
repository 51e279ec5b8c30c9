"""Engines and precisions: the same maps, up to what each precision costs, and never by chance."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from shared.backbone import BackboneConfig
from shared.embedder import Embedder
from shared.engines import OpenvinoEngine
from shared.features import FeatureConfig

CPU = torch.device("cpu")
CONFIG = FeatureConfig(backbone=BackboneConfig(name="tf_efficientnet_lite0", engine="torch", batch_clips=4))


def sounds(num: int) -> np.ndarray:
    """Chirps in noise, (num, 160000) int16."""
    rng = np.random.default_rng(0)
    times = np.arange(160_000) / 32_000
    rising = [np.sin(2 * np.pi * (400 + 900 * n + 300 * times) * times) for n in range(num)]
    noise = rng.standard_normal((num, 160_000))
    return np.clip(6000 * (np.stack(rising) + 0.3 * noise), -32767, 32767).astype(np.int16)


def embedder(engine: str, precision: str = "fp32", streams: int = 1) -> Embedder:
    """Return an embedder, or skip where this machine cannot have it."""
    backbone = replace(CONFIG.backbone, engine=engine, precision=precision)
    try:
        return Embedder(replace(CONFIG, backbone=backbone), CPU, streams=streams)
    except ValueError as missing:
        pytest.skip(str(missing))


def maps_of(found: Embedder, waveforms: np.ndarray) -> np.ndarray:
    return found.embed(waveforms).maps["blocks.6"].astype(np.float64)


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    one, two = one.reshape(len(one), -1), two.reshape(len(two), -1)
    return (one * two).sum(1) / np.sqrt((one**2).sum(1) * (two**2).sum(1))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_gives_torchs_maps_in_fp32(engine: str) -> None:
    """Within float16's own rounding of the stored maps."""
    expected, found = (maps_of(embedder(name), sounds(4)) for name in ("torch", engine))
    assert np.abs(found - expected).max() <= 2e-3 * np.abs(expected).max()


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_bf16_is_close_and_not_the_same(engine: str) -> None:
    exact, rounded = (maps_of(embedder(engine, precision), sounds(4)) for precision in ("fp32", "bf16"))
    assert not np.array_equal(exact, rounded)
    assert cosines(exact, rounded).min() > 0.98


def test_openvino_computes_in_the_precision_that_was_asked_for() -> None:
    """Left alone it takes bf16 where the processor has it."""
    engine = embedder("openvino").engine
    assert isinstance(engine, OpenvinoEngine)
    assert str(engine._model._compiled.get_property("INFERENCE_PRECISION_HINT")) in (
        "f32",
        "<Type: 'float32'>",
    )


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_threads_that_embed_at_once_change_no_byte(engine: str) -> None:
    waveforms = sounds(4)
    found = embedder(engine, streams=2)
    expected = found.embed(waveforms).maps["blocks.6"]
    with ThreadPoolExecutor(2) as pool:
        for maps in pool.map(lambda _: found.embed(waveforms).maps["blocks.6"].copy(), range(4)):
            assert np.array_equal(maps, expected)


def test_a_clips_map_does_not_depend_on_how_many_came_with_it() -> None:
    found, waveforms = embedder("torch"), sounds(4)
    alone = found.embed(waveforms[:1]).maps["blocks.6"]
    assert np.array_equal(found.embed(waveforms).maps["blocks.6"][:1], alone)


def test_engine_and_precision_are_part_of_the_fingerprint() -> None:
    fingerprints = {
        embedder("torch").fingerprint, embedder("torch", "bf16").fingerprint, embedder("openvino").fingerprint
    }  # fmt: skip
    assert len(fingerprints) == 3


def test_what_an_engine_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(engine: str, precision: str) -> None:
        backbone = replace(CONFIG.backbone, engine=engine, precision=precision, weights="random")
        Embedder(replace(CONFIG, backbone=backbone), CPU)

    with pytest.raises(ValueError, match="fp16 is for GPUs"):
        made("torch", "fp16")
    monkeypatch.setattr("shared.engines._processor_has_bf16", lambda: False)
    with pytest.raises(ValueError, match="does not compute in bf16"):
        made("torch", "bf16")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'dawnchorus\[openvino\]'"):
        made("openvino", "fp32")
    with pytest.raises(ValueError, match=r"pip install 'dawnchorus\[onnx\]'"):
        made("onnxruntime", "fp32")
    with pytest.raises(ValueError, match="in fp32, not on cpu in bf16"):
        made("onnxruntime", "bf16")
