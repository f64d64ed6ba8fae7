"""Hyperparameter studies of emotional regulation in deep learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emoreg import torchvision_import

if TYPE_CHECKING:
    from emoreg.results.study import Study as Study
    from emoreg.results.study import load_study as load_study

__version__ = "0.1.0"

torchvision_import.install()


def __getattr__(name: str) -> Any:
    """``load_study`` and ``Study``, imported when they are first asked for: the command line answers without them."""
    if name in ("Study", "load_study"):
        from emoreg.results.study import Study, load_study

        return {"Study": Study, "load_study": load_study}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
