"""What a study will cost, measured before it runs: a few training steps of each backbone on the device at hand."""

from __future__ import annotations

import dataclasses
import heapq
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from statistics import fmean, median

import torch

from emoreg.config import ImageSetConfig, StudyConfig, TrialConfig, replace_paths
from emoreg.config.resolved import ResolvedTrial, resolve_trial
from emoreg.config.search_space import Uniform, num_searched, suggest
from emoreg.config.sharing import shared_runs
from emoreg.data import ImageSet, load, parts
from emoreg.data.batches import Batches
from emoreg.errors import ConfigError
from emoreg.training.precision import auto_precision, stepper
from emoreg.tuning.arms import searching_arms
from emoreg.tuning.machine import machine_share, num_fit
from emoreg.tuning.scheduling import shares_at_chance

_TIMED_STEPS = 3
_DRAWN_TRIALS = 64
_FORWARD_SHARE = 1 / 3  # of a training step: what an evaluation costs, and an encoder that is frozen
_START_SECONDS = 10.0  # from the command to the first step (tests/benchmarks/start_up.py): imports, Ray, its workers
_BESIDE_SECONDS = 0.2  # of a trial, beside its training (tests/benchmarks/overhead.py)
_MOST_SCHEDULED = 10_000


Speed = Mapping[tuple[str, int], float]
"""Seconds of an image in a training step of one encoder, by backbone and width."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What the trials of a study take.

    Attributes:
        num_search: trials that the sampler proposes at most.
        num_tuning: trials of the controls' own searches, at most.
        num_controls: controls beside them.
        num_regulation_steps: optimizer steps of the regulation of the trial as configured.
        device_seconds: of all trials together, at most: none stopped early, no pre-training shared.
        expected_seconds: of all trials together, pre-training shared where the study shares it, and as many stopped early as
            its scheduler stops of trials that chance alone makes better or worse.
        wall_seconds: from the command to its end, likewise, so many trials at once.
        concurrency: trials at once on this machine.
        seconds_per_image: of a training step of one encoder, by backbone and width.
    """

    num_search: int
    num_tuning: int
    num_controls: int
    num_regulation_steps: int
    device_seconds: float
    expected_seconds: float
    wall_seconds: float
    concurrency: int
    seconds_per_image: Speed


def estimate_cost(config: StudyConfig, device: torch.device, storage: Path) -> Cost:
    """Measure a step of each backbone and width, and add up what the trials would take on ``device``; prepares the image sets.

    The trials of the search cost what the mean of uniformly drawn ones costs.

    Raises:
        ConfigError: for a search space in which no configuration is valid.
    """
    load_set = partial(load, image_size=config.trial.image_size, storage=storage)
    stimuli, task = load_set(config.trial.stimuli), load_set(config.trial.task)
    sets = {config.trial.stimuli: stimuli, config.trial.task: task}
    searches = [config, *searching_arms(config, lambda _, found: len(parts(sets[found], found)[0]))]
    num_trials = [config.seeds_per_trial * num_searched(search) for search in searches]
    drawn = [draw_trials(search) for search in searches]
    controls = {(resolved := resolve_trial(trial)).identity: resolved for trial in config.control_trials()}
    every = [*controls.values(), *(trial for trials in drawn for trial in trials)]
    slots = _concurrency(config, device)
    speed = _measure(config, {trial.config.width for trial in every}, device, slots)
    num_stimuli = cache(lambda found: len(parts(stimuli, found)[0]))  # trials by the hundred have one cut
    num_task = cache(lambda found: tuple(map(len, parts(task, found))))
    costs = partial(_trial_cost, num_stimuli=num_stimuli, num_task=num_task, speed=speed)
    beside = [(trial, costs(trial.config)) for trial in controls.values()]
    searched = [[(trial, costs(trial.config)) for trial in trials] for trials in drawn]
    means = [fmean(sum(cost) for _, cost in trials) for trials in searched]
    at_most = sum(number * mean for number, mean in zip(num_trials, means, strict=True)) + sum(sum(cost) for _, cost in beside)
    jobs = [*beside]
    for search, trials in zip(searches, searched, strict=True):
        found = [*_fill(trials, num_searched(search), config.seeds_per_trial)]
        shares = shares_at_chance(config, [trial.config for trial, _ in found])
        jobs += [(trial, (before, share * own)) for (trial, (before, own)), share in zip(found, shares, strict=True)]
    taken = [*_paid(jobs, share=config.experience.share)]
    scale = (len(beside) + sum(num_trials)) / max(1, len(jobs))
    return Cost(
        num_search=num_trials[0],
        num_tuning=sum(num_trials[1:]),
        num_controls=len(controls),
        num_regulation_steps=_num_steps(config.trial, task),
        device_seconds=at_most,
        expected_seconds=scale * sum(taken),
        wall_seconds=_START_SECONDS + scale * _makespan((seconds + _BESIDE_SECONDS for seconds in taken), slots),
        concurrency=slots,
        seconds_per_image=speed,
    )


def draw_trials(config: StudyConfig, count: int = _DRAWN_TRIALS) -> list[ResolvedTrial]:
    """Draw so many trials of the search, uniformly; those that break a rule are left out.

    Raises:
        ConfigError: where none is valid.
    """
    uniform = Uniform(random.Random(config.sampler.seed), config.fixed)
    trials = []
    refusal = ""
    for _ in range(count):
        try:
            trials.append(resolve_trial(replace_paths(config.trial, suggest(config.search_space, config.trial, uniform))))
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


def _trial_cost(
    config: TrialConfig,
    *,
    num_stimuli: Callable[[ImageSetConfig], int],
    num_task: Callable[[ImageSetConfig], tuple[int, ...]],
    speed: Speed,
) -> tuple[float, float]:
    """Seconds of a resolved trial's pre-training and of its regulation.

    Args:
        config: of the trial.
        num_stimuli: images that an encoder is pre-trained on.
        num_task: images that networks are trained on, and that are held out.
        speed: seconds an image.
    """
    per_image, regulation = speed[config.encoder], config.regulation
    pretraining = 0.0
    if regulation.needs_emotional:
        pretraining = config.pretraining.total_epochs * num_stimuli(config.stimuli) * per_image
    num_train, num_held_out = num_task(config.task)
    encoders = regulation.needs_plain + regulation.needs_emotional
    trained = encoders - (1 - _FORWARD_SHARE) * (regulation.needs_emotional and regulation.is_emotion_frozen)
    images = trained * num_train + encoders * _FORWARD_SHARE * num_held_out
    return pretraining, regulation.epochs * images * per_image


_Job = tuple[ResolvedTrial, tuple[float, float]]
"""A trial with the seconds of its pre-training and of its regulation."""


def _fill(drawn: list[_Job], number: int, num_seeds: int) -> Iterator[_Job]:
    """So many trials like those that were drawn, each with so many seeds.

    Where they share no pre-training, those that come again share none with the first either: they have another seed.
    """
    runs = [next(iter(shared_runs(trial)), None) for trial, _ in drawn]
    is_finite = len(set(runs)) <= len(drawn) / 2  # as lengths are: another draw would share with these
    for place, (trial, cost) in enumerate(islice(cycle(drawn), min(number, _MOST_SCHEDULED))):
        turn = place // len(drawn)
        for seed in range(num_seeds):
            other = trial.config.seed + seed + (0 if is_finite else turn * num_seeds)
            yield dataclasses.replace(trial, config=dataclasses.replace(trial.config, seed=other)), cost


def _paid(jobs: Iterable[_Job], *, share: bool) -> Iterator[float]:
    """What each trial takes itself: its regulation, and of its pre-training what none before has paid."""
    reached: dict[str, int] = {}
    for trial, (pretraining, regulation) in jobs:
        left, branch = 0, 0
        for name, run in shared_runs(trial).items():
            length, there = run.config.pretraining.total_epochs, reached.get(name, 0) if share else 0
            left = 0 if there >= length else left + length - max(branch, there)
            reached[name], branch = max(length, there), length
        yield pretraining * left / max(1, branch) + regulation


def _makespan(seconds: Iterable[float], slots: int) -> float:
    """When the last trial ends, if each begins where a slot becomes free."""
    ends = [0.0] * slots
    for own in seconds:
        heapq.heapreplace(ends, ends[0] + own)
    return max(ends)


def _measure(config: StudyConfig, widths: Iterable[int], device: torch.device, slots: int) -> Speed:
    """The speed of each backbone in each width, in the precision and with the threads of its trials, and with others beside."""
    at_once = min(slots, math.ceil(machine_share().cpus)) if device.type == "cpu" else 1
    speed = {}
    for backbone in config.backbones():
        trial = dataclasses.replace(config.trial, backbone=backbone)
        with threads_of(trial, config) if device.type == "cpu" else nullcontext():
            precision = auto_precision(trial, device) if trial.precision == "auto" else trial.precision
            for width in sorted({trial.width, *widths}):
                settled = dataclasses.replace(trial, width=width, precision=precision)
                speed[settled.encoder] = _seconds_per_image(settled, device, at_once)
    return speed


@contextmanager
def threads_of(trial: TrialConfig, config: StudyConfig) -> Iterator[None]:
    """Within, torch computes on as many threads as in a trial of the study."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if trial.deterministic else max(1, int(config.trial_resources(trial.backbone).cpus or 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds_per_image(config: TrialConfig, device: torch.device, at_once: int) -> float:
    """Of a step of a trial whose precision is settled, as it is where compile is "auto", while others train beside it.

    The cores of a machine share its memory, and two that one core pretends to be share the core.
    """
    batch_size = config.regulation.batch_size
    steps = [stepper(dataclasses.replace(config, compile="off"), device, batch_size) for _ in range(at_once)]
    for step in steps:
        step()  # the first one builds kernels
    with ThreadPoolExecutor(at_once) as threads:
        return fmean(threads.map(lambda step: median(step() for _ in range(_TIMED_STEPS)), steps)) / batch_size


def _concurrency(config: StudyConfig, device: torch.device) -> int:
    on_gpu = device.type == "cuda"
    here = {**machine_share().resources, "GPU": torch.cuda.device_count()}
    wanted = [config.trial_resources(backbone) for backbone in config.backbones()]
    wanted = [dataclasses.replace(asked, gpus=(asked.gpus or 1.0) * on_gpu, accelerator_type=None) for asked in wanted]
    fits = min(num_fit(asked, here) for asked in wanted)  # of the greatest: no cost is too low
    return max(1, min(fits, config.resources.max_concurrent or fits))
