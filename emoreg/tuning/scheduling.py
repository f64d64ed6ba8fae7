"""Which of Tune's schedulers stops trials early, and what it compares them with."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from emoreg.config import StudyConfig
from emoreg.tuning.assignment import ASSIGNMENT, Assignment
from emoreg.tuning.tune_results import REGULATION_EPOCH, metric_key

Peers = tuple[str | None, str, str, int]
"""Trials that are compared: those of one search, backbone, task and length."""


def scheduler_of(config: StudyConfig) -> TrialScheduler:
    """Tune's scheduler, comparing regulation epochs: see ``tune_results.epoch_result`` for what it is shown."""
    settings, objective = config.scheduler, config.objectives[0]
    compared = {"time_attr": REGULATION_EPOCH, "metric": metric_key(objective.metric), "mode": objective.mode}

    def asha(epochs: int) -> TrialScheduler:
        grace = min(settings.grace_epochs, epochs)
        return AsyncHyperBandScheduler(**compared, max_t=epochs, grace_period=grace, reduction_factor=settings.reduction_factor)

    def median(epochs: int) -> TrialScheduler:
        # A finite min_time_slice has Tune pause trials that have company.
        return MedianStoppingRule(**compared, grace_period=settings.grace_epochs, min_time_slice=math.inf)

    match settings.name:
        case "none":
            return FIFOScheduler()
        case "asha":
            return AmongPeers(asha)
        case "median":
            return AmongPeers(median)


class AmongPeers(FIFOScheduler):
    """Compares trials with their like alone: a scheduler for each search, backbone, task and number of epochs.

    Else the worse of two backbones would be stopped early for what it is, and a control for being one.
    """

    def __init__(self, create: Callable[[int], TrialScheduler]) -> None:
        """Begin without trials; ``create`` makes a scheduler for trials of so many epochs."""
        super().__init__()
        self._create = create
        self._schedulers: dict[Peers, TrialScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """A trial is there."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """A trial broke."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Whether a trial goes on."""
        return str(self._of(trial).on_trial_result(tune_controller, trial, result))

    def on_trial_complete(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> None:
        """A trial came to its end."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_remove(self, tune_controller: Any, trial: Trial) -> None:
        """A trial is gone."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def debug_string(self) -> str:
        """What Tune prints of it."""
        return f"{len(self._schedulers)} schedulers"

    def _of(self, trial: Trial) -> TrialScheduler:
        peers = _peers(trial.config[ASSIGNMENT])
        if peers not in self._schedulers:
            self._schedulers[peers] = self._create(peers[-1])
        return self._schedulers[peers]


def _peers(assigned: Assignment) -> Peers:
    config = assigned.trial.config
    return assigned.search_of, config.backbone, config.task.name, config.regulation.epochs
