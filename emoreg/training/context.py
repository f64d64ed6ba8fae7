"""What a trial is given besides its configuration: its images, where its state lies, where it computes, what may stop it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import torch

from emoreg.config.resolved import ResolvedTrial
from emoreg.config.trial import Precision
from emoreg.data import LoadImages, load
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import expand
from emoreg.training.devices import pick_device
from emoreg.training.stopwatch import Stopwatch

EvaluatedSplit = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialContext:
    """What a trial runs in.

    Attributes:
        load_images: gives the image sets.
        store: holds the experience.
        folder: the trial's own, for its checkpoint.
        device: where to compute.
        precisions: what precision "auto" means on a CPU, by backbone: see ``precision.settle``.
        compiled: what compile "auto" means, by backbone: see ``settle_compile``.
        evaluate_on: "test" opens the test split, once, at the end.
        checkpoint_seconds: least time between two checkpoints, in mid-epoch too; the end always makes one.
        stopwatch: is told what is done when.
        should_stop: asked after every step, and while the trial waits for an experience.
        on_checkpoint: called when a checkpoint is in ``folder``, by the thread that has written it.
    """

    load_images: LoadImages
    store: ExperienceStore
    folder: Path
    device: torch.device
    precisions: Mapping[str, Precision] = field(default_factory=dict)
    compiled: Mapping[str, bool] = field(default_factory=dict)
    evaluate_on: EvaluatedSplit = "validation"
    checkpoint_seconds: float = 30.0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    should_stop: Callable[[], bool] = lambda: False
    on_checkpoint: Callable[[], None] = lambda: None

    @classmethod
    def local(
        cls,
        trial: ResolvedTrial,
        *,
        storage: str | Path = "runs",
        study_name: str = "trials",
        device: torch.device | None = None,
    ) -> TrialContext:
        """What a trial runs in alone: all that it keeps lies in the folder ``storage``, as if of the study ``study_name``.

        ``device`` None is the GPU if there is one.
        """
        root = expand(storage).resolve()
        return cls(
            load_images=partial(load, storage=root),
            store=ExperienceStore(str(root / "experience"), user=study_name),
            folder=root / study_name / "trials" / trial.identity,
            device=device if device is not None else pick_device("auto"),
        )
