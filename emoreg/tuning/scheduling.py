"""Which of Tune's schedulers stops trials early, and what it compares them with."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from emoreg.config import StudyConfig, TrialConfig
from emoreg.tuning.queue import JOB, Job
from emoreg.tuning.tune_results import REGULATION_EPOCH, metric_key

Peers = tuple[str | None, str, str, int]
"""Trials that are compared: those of one search, backbone, task and length."""
_DRAWS = 20
_MOST_DRAWN = 100
"""Trials of a search, after which as many are stopped as of the later half of these."""


def scheduler_of(config: StudyConfig) -> TrialScheduler:
    """Tune's scheduler, comparing regulation epochs: see ``tune_results.epoch_result`` for what it is shown."""
    return FIFOScheduler() if config.scheduler.name == "none" else AmongPeers(lambda epochs: _create(config, epochs))


def shares_at_chance(config: StudyConfig, trials: Sequence[TrialConfig]) -> list[float]:
    """The share of its epochs that each trial of one search runs, in their order, if chance alone makes one better.

    It is the mean of draws, in each of which a trial is as good at its end as at its beginning. Of a search that finds better
    ones as it goes on, the scheduler stops fewer.
    """
    if config.scheduler.name == "none" or not trials:
        return [1.0] * len(trials)
    drawn, luck = trials[:_MOST_DRAWN], random.Random(config.sampler.seed)
    shares = [fmean(column) for column in zip(*(_draw_shares(config, drawn, luck) for _ in range(_DRAWS)), strict=True)]
    return shares + [fmean(shares[len(shares) // 2 :])] * (len(trials) - len(drawn))


@dataclass(frozen=True)
class _Drawn:
    """All that a scheduler asks of a trial."""

    trial_id: str


def _draw_shares(config: StudyConfig, trials: Sequence[TrialConfig], luck: random.Random) -> list[float]:
    schedulers: dict[Peers, TrialScheduler] = {}
    metric, shares = metric_key(config.objectives[0].metric), []
    for number, trial in enumerate(trials):
        epochs = trial.regulation.epochs
        peers = (None, trial.backbone, trial.task.name, epochs)
        if peers not in schedulers:
            schedulers[peers] = _create(config, epochs)
        told: Any = _Drawn(str(number))
        schedulers[peers].on_trial_add(None, told)
        quality, epoch, is_going_on = luck.random(), 0, True
        while is_going_on and epoch < epochs:
            epoch += 1
            result = {REGULATION_EPOCH: epoch, metric: quality}
            is_going_on = schedulers[peers].on_trial_result(None, told, result) == TrialScheduler.CONTINUE
        shares.append(epoch / epochs)
    return shares


def _create(config: StudyConfig, epochs: int) -> TrialScheduler:
    """What compares trials of so many epochs with each other."""
    settings, objective = config.scheduler, config.objectives[0]
    compared = {"time_attr": REGULATION_EPOCH, "metric": metric_key(objective.metric), "mode": objective.mode}
    if settings.name == "asha":
        grace = min(settings.grace_epochs, epochs)
        return AsyncHyperBandScheduler(**compared, max_t=epochs, grace_period=grace, reduction_factor=settings.reduction_factor)
    # A finite min_time_slice has Tune pause trials that have company.
    return MedianStoppingRule(**compared, grace_period=settings.grace_epochs, min_time_slice=math.inf)


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
        peers = _peers(trial.config[JOB])
        if peers not in self._schedulers:
            self._schedulers[peers] = self._create(peers[-1])
        return self._schedulers[peers]


def _peers(job: Job) -> Peers:
    config = job.trial.config
    return job.search_of, config.backbone, config.task.name, config.regulation.epochs
