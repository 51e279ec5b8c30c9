"""The only door to timm: lets it load where torchvision's native operators cannot.

timm imports torchvision for a few of its models. A torchvision built for another torch (the
one from PyPI beside a CPU torch, for instance) dies on import with "operator torchvision::nms
does not exist". Nothing here uses those operators, so declaring them is enough.
"""

import sys
from types import ModuleType

import torch

_declared: torch.library.Library | None = None


def import_timm() -> ModuleType:
    """Import timm, mending torchvision's import when, and only when, it needs it."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_operators()
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    import timm

    module: ModuleType = timm
    return module


def _declare_operators() -> None:
    """Declare both operators that torchvision registers fakes for; the library must stay alive."""
    global _declared
    if _declared is None:
        _declared = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            _declared.define(  # type: ignore[no-untyped-call]
                f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
