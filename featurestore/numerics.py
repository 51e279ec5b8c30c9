"""What decides the last bits of a feature beside the config: device, processor, libraries."""

import platform
from pathlib import Path
from typing import Any

import numpy as np

from shared.embedder import Embedder


def numerics_of(embedder: Embedder) -> dict[str, Any]:
    """Return what decides the last bits of a feature beside the config."""
    return embedder.numerics | {"processor": _processor(), "numpy": np.__version__}


def _processor() -> str:
    """Return the processor's name: kernels are chosen by it, and the last bits with them."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
