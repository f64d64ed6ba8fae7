"""Lets torchvision, and timm which needs it, be imported beside a torch build that its compiled operators were not made for.

torchvision registers fake kernels for ``torchvision::nms`` and ``torchvision::qnms`` when it is imported, and fails where the
compiled library that defines them does not load: a CUDA build beside a CPU torch, as pip may install them. emoreg calls neither
operator, so it is enough to declare those that are missing just before. ``import emoreg`` arranges it; `emoreg doctor` tells.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal


class _BeforeTorchvision:
    """Finds nothing. When torchvision is first looked for, it sees to the operators."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> None:
        if fullname == "torchvision" and self in sys.meta_path:
            sys.meta_path.remove(self)
            ensure_operators()


def install() -> None:
    """Arrange that torchvision finds its operators when it is first imported."""
    if not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


@functools.cache
def ensure_operators() -> Literal["compiled", "declared"]:
    """Load torchvision's compiled operators, or declare those that its import needs.

    Returns:
        "compiled" where the real operators are there, "declared" where only their schemas are.
    """
    import torch

    spec = PathFinder.find_spec("torchvision")
    if spec is not None and spec.origin is not None:
        for library in Path(spec.origin).parent.glob("_C*.so"):
            try:
                torch.ops.load_library(library)
            except OSError:
                break
    missing = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
    for name in missing:
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return "declared" if missing else "compiled"
