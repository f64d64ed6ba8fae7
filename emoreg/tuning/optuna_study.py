"""Optuna's history of a study: opened, with its sampler, and what a trial's ending is in it.

Here metric and mode become Optuna's directions; ``optuna_storage`` keeps it, ``reconcile`` and ``source`` read and write it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from emoreg.config import Choice, Distribution, Float, Int, Objective, SamplerConfig, StudyConfig
from emoreg.errors import StorageError
from emoreg.results.outcome import Outcome
from emoreg.seeding import derive_seed
from emoreg.storage.retry import Patience
from emoreg.tuning.optuna_storage import open_database, open_journal

# User attributes of Optuna's trials. A proposal that is valid has ``identity`` and ``seed`` too.
INVALID = "invalid"
"""Of a proposal that breaks a rule of the configuration: the rule."""
GRID = "grid"
"""Of a trial of the grid sampler: its point as JSON."""
BY_HAND = "by_hand"
"""Of a trial that somebody wanted to be tried first: the name of the request."""
REPLACES = "replaces"
"""Of a trial that stands for another from now on: that one's number."""
RESTORED = "restored"
"""Of a trial that was added because the records had it and Optuna had not."""
WARM_START = "warm_start"
"""Of a trial that another study ran: ``study/identity``."""


History = optuna.Study
"""Optuna's history of a search."""


@dataclass(frozen=True)
class Told:
    """How a trial ended, as Optuna is told."""

    state: TrialState
    values: list[float] | None = None
    intermediate: Mapping[int, float] = field(default_factory=dict)
    """Objective by regulation epoch."""
    attributes: Mapping[str, str | int] = field(default_factory=dict)


def open_study(config: StudyConfig, folder: Path, patience: Patience | None = None) -> optuna.Study:
    """Optuna's study of this name, begun or taken up again: a journal in ``folder``, or the database of ``optuna_storage``.

    Raises:
        StorageError: for a storage that cannot be opened, or that holds a study with other objectives or other kinds of
            parameters.
    """
    if config.optuna_storage is None:
        study = _create(config, open_journal(folder / "optuna.journal"))
    else:
        study = open_database(config.optuna_storage, partial(_create, config), patience or Patience())
    _check_same_search(study, config)
    with no_experimental_warnings():
        if study.metric_names is None:
            study.set_metric_names([objective.metric for objective in config.objectives])
    return study


def open_beside(study: optuna.Study, arm: StudyConfig) -> optuna.Study:
    """Optuna's study of a control's own search, begun or taken up again, in the storage of that of regulation's.

    Raises:
        StorageError: see ``open_study``.
    """
    name = f"{study.study_name}/{arm.trial.control}"  # which is no name of a study of ours
    beside = _create(arm, study._storage, name)
    _check_same_search(beside, arm)
    return beside


def _create(config: StudyConfig, storage: optuna.storages.BaseStorage, name: str | None = None) -> optuna.Study:
    # Optuna tells of each study that it creates or loads, on stderr, at INFO.
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        return optuna.create_study(
            study_name=name or config.name,
            storage=storage,
            directions=["maximize" if objective.mode == "max" else "minimize" for objective in config.objectives],
            load_if_exists=True,
            pruner=optuna.pruners.NopPruner(),  # Tune's schedulers prune
        )
    finally:
        optuna.logging.set_verbosity(before)


def _check_same_search(study: optuna.Study, config: StudyConfig) -> None:
    def refuse(what: str, kept: object, given: object) -> StorageError:
        return StorageError(
            f"Give the study another name, or restore its {what}: it keeps them, but the storage of {config.name!r} has {kept} "
            f"and the configuration {given}"
        )

    kept = [
        (name, "max" if direction == optuna.study.StudyDirection.MAXIMIZE else "min")
        for name, direction in zip(
            study.metric_names or [item.metric for item in config.objectives], study.directions, strict=False
        )
    ]
    given = [(objective.metric, objective.mode) for objective in config.objectives]
    if kept != given:
        raise refuse("objectives", kept, given)
    for trial in study.get_trials(deepcopy=False):
        for path, old in trial.distributions.items():
            new = config.search_space.get(path)
            if new is not None and not _is_compatible(old, new):
                raise refuse(f"kind of parameter {path}", old, new)


def _is_compatible(old: optuna.distributions.BaseDistribution, new: Distribution) -> bool:
    """Whether Optuna can go on: ranges may change, kinds, log and choices may not."""
    match new:
        case Choice():
            return isinstance(old, CategoricalDistribution) and old.choices == new.values
        case Float():
            return isinstance(old, FloatDistribution) and old.log == new.log
        case Int():
            return isinstance(old, IntDistribution) and old.log == new.log


@contextmanager
def no_experimental_warnings() -> Iterator[None]:
    """Within, Optuna does not warn that a part of it is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def sampler_of(config: StudyConfig, trials: Sequence[FrozenTrial]) -> optuna.samplers.BaseSampler:
    """The sampler of the next proposal of a study whose storage holds ``trials``; what the study fixes, it does not choose."""
    sampler = _free_sampler(config.sampler, trials)
    return optuna.samplers.PartialFixedSampler(dict(config.fixed), sampler) if config.fixed else sampler


def _free_sampler(config: SamplerConfig, trials: Sequence[FrozenTrial]) -> optuna.samplers.BaseSampler:
    """The sampler that chooses everything: its seed depends on how many of the trials are the study's own.

    A proposal is thus a function of the study's seed, its own number, and what the sampler learns from: a search that goes on
    after a kill proposes what it would have, and not what it has proposed before.
    """
    samplers = optuna.samplers
    number = sum(WARM_START not in trial.user_attrs for trial in trials)
    seed = derive_seed(config.seed, "sampler", number) % 2**32
    startup = config.num_startup_trials
    match config.name:
        case "tpe":
            return samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True)
        case "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        case "random" | "grid":
            return samplers.RandomSampler(seed=seed)
        case "qmc":
            # The storage remembers the place in the sequence, which is one sequence only as long as its seed stays. A storage
            # that lost its history has lost the place too: another sequence, for the first would begin with points that ran.
            num_restored = sum(RESTORED in trial.user_attrs for trial in trials)
            return samplers.QMCSampler(
                seed=derive_seed(config.seed, "sampler", num_restored) % 2**32,
                scramble=True,
                independent_sampler=samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        case "nsga2":
            # Its first generation is random.
            return samplers.NSGAIISampler(seed=seed, population_size=max(2, startup))


def told(outcome: Outcome, objectives: Sequence[Objective]) -> Told:
    """How Optuna is told of a trial.

    Completed: COMPLETE with its objectives, or FAIL if one of them is not a finite number. Stopped by a scheduler or diverged:
    PRUNED, with the last value of a single objective. Broken: FAIL.
    """
    values = [outcome.value(objective.metric) for objective in objectives]
    if outcome.status == "finished":
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if len(finite) == len(values):
            return Told(TrialState.COMPLETE, values=finite)
        named = {objective.metric: value for objective, value in zip(objectives, values, strict=True)}
        return Told(TrialState.FAIL, attributes={"reason": f"finished, but an objective is not a finite number: {named}"})
    attributes: dict[str, str | int] = {"reason": outcome.message or outcome.end.value}
    if outcome.diverged_stage is not None and outcome.diverged_step is not None:
        attributes |= {"diverged_stage": outcome.diverged_stage, "diverged_step": outcome.diverged_step}
    if outcome.status == "failed":
        return Told(TrialState.FAIL, attributes=attributes)
    # The seconds of a trial that was cut short would look like a cheap trial.
    is_reported = len(objectives) == 1 and objectives[0].metric != "device_seconds" and outcome.regulation_epochs > 0
    intermediate = {outcome.regulation_epochs: values[0]} if is_reported and values[0] is not None else {}
    return Told(TrialState.PRUNED, intermediate=intermediate, attributes=attributes)


def told_together(outcomes: Sequence[Outcome], objectives: Sequence[Objective]) -> Told:
    """How Optuna is told of a proposal that was trained with several seeds: by means or, where the last broke off, as of it.

    Values by seed are its intermediate ones, which Wilcoxon's test compares.
    """
    each = [told(outcome, objectives) for outcome in outcomes]
    if len(each) == 1 or each[-1].state != TrialState.COMPLETE:
        return each[-1]
    values = [fmean(of_seeds) for of_seeds in zip(*(found.values or () for found in each), strict=True)]
    by_seed = dict(enumerate((found.values or [math.nan])[0] for found in each)) if len(objectives) == 1 else {}
    return Told(TrialState.COMPLETE, values=values, intermediate=by_seed, attributes={"seeds": len(each)})


def count_proposed(study: optuna.Study) -> int:
    """How many trials of the storage count towards ``num_trials``."""
    trials = study.get_trials(deepcopy=False)
    gone = replaced(trials)
    return sum(is_own(trial) and trial.state != TrialState.WAITING and trial.number not in gone for trial in trials)


def is_own(trial: FrozenTrial) -> bool:
    """Whether a trial is the study's own, and valid: not one that another study ran."""
    return INVALID not in trial.user_attrs and WARM_START not in trial.user_attrs


def replaced(trials: Sequence[FrozenTrial]) -> set[int]:
    """Numbers of the trials that others stand for."""
    return {trial.user_attrs[REPLACES] for trial in trials if REPLACES in trial.user_attrs}
