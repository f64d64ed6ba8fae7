"""Makes torchvision importable beside a torch build that its compiled operators were not made for.

torchvision registers fake kernels for ``torchvision::nms`` and ``torchvision::qnms`` at import and fails where the compiled
library that defines them does not load (a CUDA build beside a CPU torch, say). emoreg calls neither operator, so defining
their two schemas, only where they are missing, is enough. Import torchvision or timm only after ``ensure()``.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Literal

import torch

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


@functools.cache  # the declaring library must outlive the call: torch forgets its schemas when it is collected
def _declared(*names: str) -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in names:
        library.define(_SCHEMAS[name])
    return library


@functools.cache
def ensure() -> Literal["compiled", "declared"]:
    """Load torchvision's compiled operators, or declare the schemas that its import needs.

    Returns:
        "compiled" where the real operators are there, "declared" where only the schemas are.
    """
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing and _load_compiled():
        missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if not missing:
        return "compiled"
    _declared(*missing)
    return "declared"


def _load_compiled() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return False
    for library in Path(spec.origin).parent.glob("_C*.so"):
        try:
            torch.ops.load_library(library)
        except OSError:
            return False
        return True
    return False
