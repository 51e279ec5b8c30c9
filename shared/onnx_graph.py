"""A torch module as an ONNX graph, and the session that runs one."""

import importlib.util
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 18


def need_package(name: str, what: str, remedy: str) -> None:
    """Stop where an optional package is missing.

    Raises:
        ValueError: names it, what wants it and the remedy.
    """
    if importlib.util.find_spec(name) is None:
        raise ValueError(f"{what}: {name} is not installed; {remedy}.")


def write_onnx(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], path: Path, *, dynamic: bool
) -> None:
    """Write a module's graph for these inputs, named; `dynamic` leaves the first axis (B) open.

    Raises:
        ValueError: the packages that write ONNX are not installed.
    """
    for package in ("onnx", "onnxscript"):
        need_package(package, "writing ONNX", "pip install 'dawnchorus[onnx]'")
    clips = torch.export.Dim("clips", min=1, max=4096)
    shapes: Any = tuple({0: clips} for _ in inputs) if dynamic else None
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            module.eval(), tuple(inputs.values()), str(path), dynamo=True, opset_version=OPSET,
            input_names=list(inputs), output_names=list(outputs), dynamic_shapes=shapes,
            external_data=False, verbose=False,
        )  # fmt: skip


def onnx_session(graph: Path | bytes, num_threads: int) -> Any:
    """Return an ONNX Runtime session on the CPU; safe to be run by several threads at once.

    num_threads: of one call.

    Raises:
        ValueError: ONNX Runtime is not installed, or the graph is none.
    """
    need_package("onnxruntime", "the engine onnxruntime", "pip install 'dawnchorus[onnx]', or choose another")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's own classes, which are not public
        name = "the graph" if isinstance(graph, bytes) else str(graph)
        raise ValueError(f"ONNX Runtime cannot open {name}: {str(error).splitlines()[0]}.") from error


def onnx_bytes(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str]) -> bytes:
    """Return the graph for exactly these shapes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        write_onnx(module, inputs, outputs, path, dynamic=False)
        return path.read_bytes()
