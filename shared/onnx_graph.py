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


def onnx_session(graph: bytes | Path, num_threads: int) -> Any:
    """Return an ONNX Runtime session on the CPU; safe to be run by several threads at once.

    graph: an ONNX file, or what is in one. num_threads: of one call.

    Raises:
        ValueError: it is no graph that ONNX Runtime can run.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # it has a dozen classes of them, all directly below Exception
        name = "the graph" if isinstance(graph, bytes) else graph
        raise ValueError(f"onnxruntime cannot read {name}: {error}") from error


def onnx_bytes(
    module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], *, any_batch: bool = False
) -> bytes:
    """Return a module's graph for inputs of these shapes, by name.

    any_batch: the first dimension of every input and output may be any; else the shapes are exact.

    Raises:
        ValueError: the packages that write ONNX are not installed.
    """
    for package in ("onnx", "onnxscript"):
        need_package(package, "writing ONNX", "pip install 'dawnchorus[onnx]'")
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        path = Path(folder) / "graph.onnx"
        torch.onnx.export(
            module.eval(), tuple(inputs.values()), str(path), dynamo=True, opset_version=OPSET,
            input_names=list(inputs), output_names=list(outputs), external_data=False, verbose=False,
            dynamic_shapes=[{0: torch.export.Dim("batch")} for _ in inputs] if any_batch else None,
        )  # fmt: skip
        return path.read_bytes()
