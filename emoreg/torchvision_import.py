"""Lets torchvision, and timm which needs it, be imported beside a torch build that its compiled operators were not made for.

torchvision registers fake kernels for ``torchvision::nms`` and ``torchvision::qnms`` when it is imported, and fails where the
compiled library that defines them does not load: a CUDA build beside a CPU torch, as pip may install them. emoreg calls neither
operator, so it is enough to declare those that are missing just before. ``import emoreg`` arranges it; `emoreg doctor` tells.

It also keeps torch.compile's modules, which take long to import, out of every process until one needs them: torchvision and
timm each have a module that asks for them when it is imported.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Literal

_COMPILER = "torch._dynamo"
_ASKED = f"{_COMPILER}.utils"
_ASKERS = ("torchvision.ops.roi_align", "timm.layers.typing")


class _BeforeTorchvision:
    """Sees to the operators when torchvision is first looked for, and finds the modules that would import the compiler."""

    has_operators = False

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        if fullname == "torchvision" and not self.has_operators:
            self.has_operators = True
            ensure_operators()
        if fullname not in _ASKERS:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _WithoutCompiler(spec.loader.name, spec.loader.path)
        return spec


class _WithoutCompiler(SourceFileLoader):
    """Runs a module that takes a function of the compiler's: it gets one that imports the compiler once it is called."""

    def exec_module(self, module: ModuleType) -> None:
        import torch

        if _COMPILER in sys.modules:
            super().exec_module(module)
            return
        disable = torch.compiler.disable
        torch.compiler.disable = torch._disable_dynamo  # type: ignore[assignment,attr-defined]
        stand_in = ModuleType(_ASKED)
        stand_in.__dict__["is_compile_supported"] = _is_compile_supported
        sys.modules[_ASKED] = stand_in
        try:
            super().exec_module(module)
        finally:
            torch.compiler.disable = disable
            del sys.modules[_ASKED]


def _is_compile_supported(device_type: str) -> bool:
    return bool(importlib.import_module(_ASKED).is_compile_supported(device_type))


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
