"""What runs the backbone: torch on any device, ONNX Runtime or OpenVINO on a CPU.

Engines agree to 1e-5 of a map's range in fp32. Engine and precision are part of a store's
fingerprint all the same: its rows are of one kind.
"""

import importlib.util
import platform
import threading
import warnings
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from shared.backbone import ENGINES, Backbone, BackboneConfig
from shared.onnx_graph import need_package, onnx_bytes, onnx_session

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
Images = Float32[Tensor, "b 3 m n"]


@runtime_checkable
class Engine(Protocol):
    """Images (B, 3, M, N) on the device to maps (B, C, F, T), one per stage; safe in threads."""

    name: str

    def __call__(self, images: Images) -> Sequence[Tensor]:
        """Return the maps."""
        ...


def make_engine(
    backbone: Backbone, config: BackboneConfig, shape: tuple[int, ...], device: torch.device, streams: int
) -> Engine:
    """Return the engine that the config asks for; "auto" is OpenVINO on a CPU where it is installed.

    Args:
        shape: of the images; fixed, the last batch of a shard is padded.
        streams: how many threads will call it at once; with one, it uses all cores itself.

    Raises:
        ValueError: the engine is not installed, or cannot compute at this precision here.
    """
    name = engine_for(config.engine, device)
    match name:
        case "torch":
            return TorchEngine(backbone, config.precision, device)
        case "onnxruntime":
            return OnnxruntimeEngine(backbone, config.precision, shape, device, streams)
        case "openvino":
            return OpenvinoEngine(backbone, config.precision, shape, device, streams)
    raise ValueError(f"backbone.engine must be one of {', '.join(ENGINES)}; got {name!r}.")


def engine_for(name: str, device: torch.device) -> str:
    """Return the engine that is meant: "auto" is OpenVINO on a CPU where it is installed, else torch."""
    if name != "auto":
        return name
    installed = importlib.util.find_spec("openvino") is not None
    return "openvino" if device.type == "cpu" and installed else "torch"


class TorchEngine:
    """Folded batch norms, channels-last; on a GPU autocast and compiled for the one shape.

    On a CPU bf16 converts the weights, where the processor computes in it.
    """

    name = "torch"

    def __init__(self, backbone: Backbone, precision: str, device: torch.device) -> None:
        self._device = device
        self._autocast = torch.autocast(
            device.type, DTYPES[precision], enabled=device.type == "cuda" and precision != "fp32"
        )
        if device.type == "cuda":
            self._run: Any = torch.compile(backbone, dynamic=False)
            return
        if precision == "fp16":
            raise ValueError("backbone.precision = fp16 is for GPUs; on a CPU use fp32 or bf16.")
        if precision == "bf16" and not _processor_has_bf16():
            raise ValueError(
                "this processor does not compute in bf16: it would be slower than fp32 and less exact; "
                "use fp32."
            )
        backbone.parts.to(DTYPES[precision])
        self._run = backbone

    def __call__(self, images: Images) -> Sequence[Tensor]:
        """Return the maps."""
        # On a GPU torch lets convolutions round their inputs to TF32.
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        with exact, self._autocast:
            maps: Sequence[Tensor] = self._run(images)
        return maps


def _processor_has_bf16() -> bool:
    """Tell whether the processor multiplies in bf16; one that is no x86 is taken to."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    # Private, but torch has no public word on it.
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


class OnnxruntimeEngine:
    """The same layers as an ONNX graph, run by ONNX Runtime, in fp32 only."""

    name = "onnxruntime"

    def __init__(
        self, backbone: Backbone, precision: str, shape: tuple[int, ...], device: torch.device, streams: int
    ) -> None:
        if device.type != "cpu" or precision != "fp32":
            raise ValueError(
                f"backbone.engine = onnxruntime runs on the CPU in fp32, not on {device.type} in {precision}."
            )
        need_package("onnxruntime", "engine onnxruntime", "pip install 'dawnchorus[onnx]', or use torch")
        stages = [f"maps_{number}" for number in range(len(backbone.stages))]
        graph = onnx_bytes(backbone, {"image": torch.zeros(shape)}, stages)
        self._session = onnx_session(graph, 1 if streams > 1 else torch.get_num_threads())

    def __call__(self, images: Images) -> Sequence[Tensor]:
        """Return the maps."""
        return [torch.from_numpy(found) for found in self._session.run(None, {"image": images.numpy()})]


class OpenvinoEngine:
    """The same layers compiled by OpenVINO.

    The precision is set on purpose: left alone, OpenVINO takes bf16 where the processor has it.
    """

    name = "openvino"

    def __init__(
        self, backbone: Backbone, precision: str, shape: tuple[int, ...], device: torch.device, streams: int
    ) -> None:
        if device.type != "cpu":
            raise ValueError(f"backbone.engine = openvino runs on the CPU, not on {device.type}.")
        need_package("openvino", "engine openvino", "pip install 'dawnchorus[openvino]', or use torch")
        import openvino

        with torch.no_grad(), warnings.catch_warnings():
            # torch would rather export, and traces type checks too where tests put them in.
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(backbone, torch.zeros(shape), check_trace=False)  # type: ignore[no-untyped-call]
            model = openvino.convert_model(traced, input=[list(shape)])
        self._model = OpenvinoModel(model, precision, streams)

    def __call__(self, images: Images) -> Sequence[Tensor]:
        """Return the maps; they are the caller's until its next call."""
        return [torch.from_numpy(found) for found in self._model(images.numpy())]


class OpenvinoModel:
    """A model compiled for the CPU; one request per calling thread.

    model: OpenVINO's own, with fixed shapes. streams: how many threads will call it at once.

    Raises:
        ValueError: the processor does not compute in this precision.
    """

    def __init__(self, model: Any, precision: str, streams: int) -> None:
        import openvino

        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": OPENVINO_HINTS[precision]}
        if streams > 1:
            settings |= {"NUM_STREAMS": str(streams), "INFERENCE_NUM_THREADS": streams}
        else:
            settings |= {"NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        core = openvino.Core()
        capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision.upper() not in capabilities:
            raise ValueError(
                f"this processor does not compute in {precision} (OpenVINO offers "
                f"{', '.join(capabilities)}); use fp32."
            )
        self._compiled = core.compile_model(model, "CPU", settings)
        self._local = threading.local()

    def __call__(self, *inputs: np.ndarray) -> list[np.ndarray]:
        """Return the outputs, in the model's order; they are the caller's until its next call."""
        if not hasattr(self._local, "request"):
            self._local.request = self._compiled.create_infer_request()
        given = dict(enumerate(inputs))
        found = self._local.request.infer(given, share_inputs=True, share_outputs=True)
        return [found[number] for number in range(len(found))]
