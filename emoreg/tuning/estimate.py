"""What a study will cost, measured before it runs: a few training steps of each backbone on the device at hand."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emoreg.config import StudyConfig, TrialConfig
from emoreg.config.resolved import ResolvedTrial, resolve_trial
from emoreg.config.search_space import num_searched, resolve, suggest
from emoreg.data import ImageSet, Split, load, parts
from emoreg.data.batches import Batches
from emoreg.errors import ConfigError
from emoreg.training.learners import EmotionLearner
from emoreg.training.model import create_emotional_net
from emoreg.training.optim import build_optimizer
from emoreg.tuning.machine import machine_share, num_fit

_TIMED_STEPS = 3
_DRAWN_TRIALS = 64
_EVALUATION_SHARE = 1 / 3  # a forward pass costs about a third of a training step


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """An upper estimate: nothing shared, nothing stopped early.

    Attributes:
        num_search: trials that the sampler proposes at most.
        num_controls: controls beside them.
        num_regulation_steps: optimizer steps of the regulation of the trial as configured.
        device_seconds: of all trials together.
        concurrency: trials at once on this machine.
        seconds_per_image: of a training step of one encoder, by backbone.
    """

    num_search: int
    num_controls: int
    num_regulation_steps: int
    device_seconds: float
    concurrency: int
    seconds_per_image: dict[str, float]

    @property
    def wall_seconds(self) -> float:
        """Wall time with ``concurrency`` trials at once."""
        return self.device_seconds / self.concurrency


def estimate_cost(config: StudyConfig, device: torch.device, storage: Path) -> Cost:
    """Measure each backbone's step and add up what the trials would take on ``device``; prepares the image sets.

    The trials of the search cost what the mean of uniformly drawn ones costs.

    Raises:
        ConfigError: for a search space in which no configuration is valid.
    """
    load_set = partial(load, image_size=config.trial.image_size, storage=storage)
    stimuli, task = load_set(config.trial.stimuli), load_set(config.trial.task)
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.resources.cpus_per_trial)))
    try:
        speed = {
            backbone: _seconds_per_image(dataclasses.replace(config.trial, backbone=backbone), task, device)
            for backbone in config.backbones()
        }
    finally:
        torch.set_num_threads(threads)
    seconds = partial(_trial_seconds, stimuli=stimuli, task=task, speed=speed)
    sampled = [seconds(trial.config) for trial in draw_trials(config)]
    num_search = num_searched(config)
    controls = {(resolved := resolve_trial(trial)).identity: resolved.config for trial in config.control_trials()}
    return Cost(
        num_search=num_search,
        num_controls=len(controls),
        num_regulation_steps=_num_steps(config.trial, task),
        device_seconds=num_search * sum(sampled) / len(sampled) + sum(map(seconds, controls.values())),
        concurrency=_concurrency(config, device),
        seconds_per_image=speed,
    )


def draw_trials(config: StudyConfig, count: int = _DRAWN_TRIALS) -> list[ResolvedTrial]:
    """Draw so many trials of the search, uniformly; those that break a rule are left out.

    Raises:
        ConfigError: where none is valid.
    """
    uniform = _Uniform(random.Random(config.sampler.seed), config.fixed)
    trials = []
    refusal = ""
    for _ in range(count):
        try:
            trials.append(resolve_trial(resolve(config.trial, suggest(config.search_space, config.trial, uniform))))
        except ConfigError as error:  # values that break a rule together: the search leaves them out too
            refusal = str(error)
    if not trials:
        raise ConfigError(
            "Narrow the ranges of the search space, or add a When: it must hold valid configurations, but "
            f"{count} draws were not, the last by {refusal}"
        )
    return trials


def _num_steps(config: TrialConfig, task: ImageSet) -> int:
    train, _ = parts(task, config.task)
    batches = Batches(train, device=torch.device("cpu"))
    return config.regulation.epochs * batches.num_steps(config.regulation.batch_size)


def _trial_seconds(config: TrialConfig, *, stimuli: ImageSet, task: ImageSet, speed: dict[str, float]) -> float:
    per_image = speed[config.backbone]
    total = 0.0
    if config.regulation.needs_emotional:
        train, _ = parts(stimuli, config.stimuli)
        total += config.pretraining.epochs * len(train) * per_image
    train, held_out = parts(task, config.task)
    encoders = config.regulation.needs_plain + config.regulation.needs_emotional
    images = len(train) + _EVALUATION_SHARE * len(held_out)
    return total + config.regulation.epochs * images * encoders * per_image


def _seconds_per_image(config: TrialConfig, task: ImageSet, device: torch.device) -> float:
    size = config.regulation.batch_size
    few = Split(images=np.resize(task.train.images, (size, *task.train.images.shape[1:])), targets=np.zeros(size, np.int64))
    batches = Batches(few, device=device)
    net = create_emotional_net(config, task.num_outputs).to(device)
    learner = EmotionLearner(config, net, regression=False)
    optimizer = build_optimizer(net, config.regulation.optimizer)
    times = []
    for _ in range(1 + _TIMED_STEPS):
        started = time.perf_counter()
        for images, targets in batches.epoch(
            size, config.regulation.augmentation, task.num_outputs, torch.Generator().manual_seed(0)
        ):
            optimizer.zero_grad()
            learner.loss(images, targets)[0].backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:]) / size


def _concurrency(config: StudyConfig, device: torch.device) -> int:
    on_gpu = device.type == "cuda"
    here = {**machine_share().resources, "GPU": torch.cuda.device_count()}
    wanted = [config.trial_resources(backbone) for backbone in config.backbones()]
    wanted = [dataclasses.replace(asked, gpus=(asked.gpus or 1.0) * on_gpu, accelerator_type=None) for asked in wanted]
    fits = min(num_fit(asked, here) for asked in wanted)  # of the greatest: no cost is too low
    return max(1, min(fits, config.resources.max_concurrent or fits))


@dataclass(frozen=True, slots=True)
class _Uniform:
    """Values for a search space, uniform or uniform in the logarithm: a ``Suggester``. Steps between reals do not matter."""

    draws: random.Random
    fixed: Mapping[str, Any]

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        if name in self.fixed:
            return float(self.fixed[name])
        return math.exp(self.draws.uniform(math.log(low), math.log(high))) if log else self.draws.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        if name in self.fixed:
            return int(self.fixed[name])
        return round(self.suggest_float(name, low, high, log=True)) if log else self.draws.randrange(low, high + 1, step)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.fixed[name] if name in self.fixed else self.draws.choice(list(choices))
