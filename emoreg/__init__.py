"""Hyperparameter studies of emotional regulation in deep learning: all that a study file or a notebook needs.

    import emoreg

    study = emoreg.Study("mine", search_space={"regulation.balance": emoreg.Float(0.05, 0.95)}, num_trials=40)
    study.run()
    study.confirm(num_seeds=10).verdicts

What needs pyarrow or torch is imported when it is first asked for. The modules behind these names are private.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from emoreg import torchvision_import
from emoreg.config import (
    AugmentationConfig,
    BudgetConfig,
    Choice,
    ExperienceConfig,
    Float,
    ImageSetConfig,
    Int,
    Objective,
    OptimizerConfig,
    PretrainingConfig,
    RegulationConfig,
    ResourcesConfig,
    SamplerConfig,
    SchedulerConfig,
    StudyConfig,
    TrialConfig,
    TrialResources,
    When,
    control,
)
from emoreg.errors import EmoregError

if TYPE_CHECKING:
    from emoreg.data import ImageSetContents, ImageSetRequest, image_set
    from emoreg.study import Study, load_study, run_trial
    from emoreg.tracking.loggers import logger
    from emoreg.tracking.observer import StudyObserver
    from emoreg.training.backbones import backbone
    from emoreg.training.metrics import metric
    from emoreg.training.network import load_network
    from emoreg.training.probes import probe
    from emoreg.tuning.adapters import objective, trainable

__version__ = "0.2.0"

__all__ = [
    "AugmentationConfig",
    "BudgetConfig",
    "Choice",
    "EmoregError",
    "ExperienceConfig",
    "Float",
    "ImageSetConfig",
    "ImageSetContents",
    "ImageSetRequest",
    "Int",
    "Objective",
    "OptimizerConfig",
    "PretrainingConfig",
    "RegulationConfig",
    "ResourcesConfig",
    "SamplerConfig",
    "SchedulerConfig",
    "Study",
    "StudyConfig",
    "StudyObserver",
    "TrialConfig",
    "TrialResources",
    "When",
    "__version__",
    "backbone",
    "control",
    "image_set",
    "load_network",
    "load_study",
    "logger",
    "metric",
    "objective",
    "probe",
    "run_trial",
    "trainable",
]

_LAZY = {
    "ImageSetContents": "emoreg.data",
    "ImageSetRequest": "emoreg.data",
    "Study": "emoreg.study",
    "StudyObserver": "emoreg.tracking.observer",
    "backbone": "emoreg.training.backbones",
    "image_set": "emoreg.data",
    "load_network": "emoreg.training.network",
    "load_study": "emoreg.study",
    "logger": "emoreg.tracking.loggers",
    "metric": "emoreg.training.metrics",
    "objective": "emoreg.tuning.adapters",
    "probe": "emoreg.training.probes",
    "run_trial": "emoreg.study",
    "trainable": "emoreg.tuning.adapters",
}

torchvision_import.install()


def __getattr__(name: str) -> Any:
    """A name of the face that was not imported yet."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
