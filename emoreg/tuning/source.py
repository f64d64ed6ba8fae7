"""Optuna as a source of trials: asked for proposals, told how they ended; several searches are one. Knows nothing of Tune.

The storage holds the search's whole state: what an interrupted driver left RUNNING is told from the records, or handed out
again under its own number. Several drivers may ask one storage; each trial belongs to the driver that has its claim.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import optuna
from optuna.trial import TrialState

from emoreg.config import StudyConfig, TrialConfig, Value, replace_paths
from emoreg.config.resolved import ResolvedTrial
from emoreg.config.search_space import each_seed, grid, num_searched, suggest
from emoreg.errors import ConfigError
from emoreg.results.outcome import Outcome
from emoreg.results.records import TrialRecord
from emoreg.results.requests import check_enqueued
from emoreg.tuning.coordinator import Coordinator
from emoreg.tuning.inbox import Inbox
from emoreg.tuning.optuna_study import (
    BY_HAND,
    GRID,
    INVALID,
    count_proposed,
    no_experimental_warnings,
    sampler_of,
    told_together,
)
from emoreg.tuning.queue import Job

_MAX_INVALID = 100
_FEWEST_SEEDS = 2
_WORSE_P = 0.1
"""Of Wilcoxon's test: four seeds of both, at least, are needed for less."""


class TrialSource(Protocol):
    """Proposes trials, and is told how they ended."""

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more will be proposed."""

    @property
    def is_waiting(self) -> bool:
        """Whether trials of the source are run by other drivers, whose results are awaited."""

    def ask(self) -> Job | None:
        """One more proposal as a job; None if it needs no run, or there is no more."""

    def take_up(self) -> list[Job]:
        """Jobs that a dead driver, or another's claim, had left."""

    def epoch(self, identity: str, epoch: int, value: float) -> None:
        """A trial has come to a value of the objective after an epoch of regulation."""

    def tell(self, identity: str, outcome: Outcome) -> list[Job]:
        """A trial has ended, and is recorded; the jobs that follow: the next seeds of proposals."""

    def forget(self, identity: str) -> None:
        """A trial was saved unfinished: the next driver takes it up."""


@dataclass
class _Proposal:
    """A trial that Optuna holds as RUNNING."""

    optuna_trial: optuna.Trial
    params: dict[str, Value]
    trials: Sequence[ResolvedTrial]
    """One a seed; the first stands for them all."""
    reported: dict[int, float]
    """Objective by regulation epoch, or by seed where there are several, as Optuna has it."""
    outcomes: list[Outcome] = field(default_factory=list)
    """Of the seeds so far."""


class OptunaSource:
    """Proposals of an Optuna study. A ``TrialSource``.

    A proposal whose identity is recorded as finished or pruned is told from the record and not run; one whose identity another
    proposal has ends as that one does. A proposal with several seeds is told once, with their means. One that breaks a rule of
    the configuration is told FAIL, with the rule in its user attribute ``invalid``, and is none of ``num_trials``.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: StudyConfig,
        *,
        resolved: Callable[[TrialConfig], ResolvedTrial],
        records: Mapping[str, TrialRecord],
        coordinator: Coordinator,
        inbox: Inbox | None,
        notify: Callable[[str], None],
        on_repeat: Callable[[Job], None],
        search_of: str | None = None,
    ) -> None:
        """Take up what the storage holds.

        Args:
            study: from ``optuna_study.open_study``, reconciled with the records.
            resolved: gives a trial its identity.
            records: trials that ended, by identity.
            inbox: trials that somebody wants to be tried first. They run, and count, even beyond ``num_trials``. None where
                nobody can.
            notify: told of one of them that cannot be.
            on_repeat: told of a proposal that a recorded trial, a control's perhaps, stands for, before Optuna is.
            search_of: the control whose search it is; None of regulation's.

        Raises:
            ConfigError: for a grid over a ``Float`` without a step.
        """
        self._study = study
        if config.seeds_per_trial > 1:
            with no_experimental_warnings():
                study.pruner = optuna.pruners.WilcoxonPruner(p_threshold=_WORSE_P, n_startup_steps=_FEWEST_SEEDS)
        self._config = config
        self._resolved = resolved
        self._records = records
        self._coordinator = coordinator
        self._inbox = inbox
        self._notify = notify
        self._on_repeat = on_repeat
        self._search_of = search_of
        self._open: dict[str, list[_Proposal]] = {}
        self._elsewhere: list[_Proposal] = []
        """Own proposals of configurations that another driver runs."""
        self._num_elsewhere = 0
        """Trials of Optuna's that other drivers run."""
        self._num_invalid_in_a_row = 0
        self._num_proposed = count_proposed(study)
        self._num_wanted = num_searched(config)
        self._grid: Iterator[dict[str, Value]] | None = None
        if config.sampler.name == "grid":
            taken = self._grid_points()
            points = grid(config.search_space, config.trial)
            self._grid = (point for point in points if json.dumps(point) not in taken and self._is_fixed(point))

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more will be proposed."""
        return self._num_proposed >= self._num_wanted and not (self._inbox is not None and self._inbox.trials())

    @property
    def is_waiting(self) -> bool:
        """Whether trials of the source are run by other drivers, whose results are awaited."""
        return bool(self._elsewhere) or self._num_elsewhere > 0

    def ask(self) -> Job | None:
        """One more proposal as a job; None if it needs no run, or there is no more.

        Raises:
            ConfigError: after 100 proposals in a row that break a rule of the configuration.
        """
        with self._coordinator.turn():
            self._num_proposed = count_proposed(self._study)  # others may have proposed
            if not self._enqueue_by_hand() and (self.is_exhausted or not self._enqueue_grid_point()):
                return None
            with no_experimental_warnings():
                self._study.sampler = sampler_of(self._config, self._study.get_trials(deepcopy=False))
            self._num_proposed += 1
            trial = self._study.ask()
            if self._inbox is not None and (request := trial.user_attrs.get(BY_HAND)) is not None:
                self._inbox.remove(request)
            return self._accept(self._propose(trial, {}))

    def take_up(self) -> list[Job]:
        """Jobs that a dead driver, or another's claim, had left."""
        with self._coordinator.turn():
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            numbers = {trial.number for trial in running}
            waiting = [item for item in self._elsewhere if item.optuna_trial.number in numbers]  # the rest was told elsewhere
            self._elsewhere = []
            mine = {item.optuna_trial.number for items in (*self._open.values(), waiting) for item in items}
            jobs = [self._accept(proposal) for proposal in waiting]
            self._num_elsewhere = 0
            for trial in running:
                if trial.number in mine:
                    continue
                identity = trial.user_attrs.get("identity")
                if identity is not None and not self._coordinator.claim(identity):
                    self._num_elsewhere += 1
                    continue
                orphan = optuna.Trial(self._study, trial._trial_id)
                jobs.append(self._accept(self._propose(orphan, dict(trial.intermediate_values))))
        return [job for job in jobs if job is not None]

    def epoch(self, identity: str, epoch: int, value: float) -> None:
        """A trial has come to a value of the objective after an epoch of regulation."""
        if self._config.seeds_per_trial == 1:
            for proposal in self._open.get(identity, ()):
                _report(proposal, {epoch: value})

    def tell(self, identity: str, outcome: Outcome) -> list[Job]:
        """A trial has ended, and is recorded; the jobs that follow: the next seeds of proposals."""
        following = []
        for proposal in self._open.pop(identity, ()):
            if not self._is_told(proposal, outcome) and (job := self._accept(proposal)) is not None:
                following.append(job)
        return following

    def forget(self, identity: str) -> None:
        """A trial was saved unfinished: the next driver takes it up."""
        self._open.pop(identity, None)

    def _enqueue_by_hand(self) -> bool:
        """Have Optuna propose what somebody wants to be tried first; False if there is nothing."""
        if self._inbox is None:
            return False
        trials = self._study.get_trials(deepcopy=False)
        states = {trial.user_attrs[BY_HAND]: trial.state for trial in trials if BY_HAND in trial.user_attrs}
        for wanted in self._inbox.trials():
            if states.get(wanted.name) == TrialState.WAITING:  # behind others
                return True
            if wanted.name not in states:
                try:
                    params = check_enqueued(self._config, wanted.params)
                except ConfigError as error:
                    self._notify(f"A trial that was enqueued is left out, for the study has changed since: {error}")
                else:
                    self._study.enqueue_trial(params, user_attrs={BY_HAND: wanted.name})
                    return True
            self._inbox.remove(wanted.name)  # it cannot be, or a driver that has taken it was killed before it said so
        return False

    def _is_fixed(self, point: Mapping[str, Value]) -> bool:
        return all(point[path] == value for path, value in self._config.fixed.items() if path in point)

    def _grid_points(self) -> set[str | None]:
        return {trial.user_attrs.get(GRID) for trial in self._study.get_trials(deepcopy=False)}

    def _enqueue_grid_point(self) -> bool:
        """Have Optuna propose the grid's next point; False if there is none left."""
        if self._grid is None or self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return True
        taken = self._grid_points()  # by other drivers
        point = next((point for point in self._grid if json.dumps(point) not in taken), None)
        if point is None:
            self._num_proposed = self._num_wanted
            return False
        self._study.enqueue_trial(point, user_attrs={GRID: json.dumps(point)})
        return True

    def _propose(self, trial: optuna.Trial, reported: dict[int, float]) -> _Proposal | None:
        """The trial with its values, which for one taken up again are those it has; None, and FAIL, if they break a rule."""
        params = suggest(self._config.search_space, self._config.trial, trial)
        try:
            trials = [*map(self._resolved, each_seed(self._config, replace_paths(self._config.trial, params)))]
        except ConfigError as error:
            was_counted = INVALID not in trial.user_attrs  # else an earlier driver was killed before it told
            if BY_HAND in trial.user_attrs:
                self._notify(f"A trial that was enqueued is left out, with what the sampler proposed beside it: {error}")
            trial.set_user_attr(INVALID, str(error))
            self._study.tell(trial, state=TrialState.FAIL)
            self._num_proposed -= was_counted
            self._num_invalid_in_a_row += 1
            if self._grid is None and self._num_invalid_in_a_row >= _MAX_INVALID:
                raise ConfigError(
                    "Narrow the ranges of the search space, or add a When: it must hold valid configurations, but "
                    f"{_MAX_INVALID} proposals in a row were not, the last with {params!r} ({error})"
                ) from error
            return None
        self._num_invalid_in_a_row = 0
        trial.set_user_attr("identity", trials[0].identity)
        trial.set_user_attr("seed", trials[0].config.seed)
        return _Proposal(trial, params, trials, reported)

    def _accept(self, proposal: _Proposal | None) -> Job | None:
        """The job of a proposal's next seed; None where it is invalid, recorded to its end, or run by another driver."""
        while proposal is not None:
            identity = proposal.trials[len(proposal.outcomes)].identity
            if not self._coordinator.claim(identity):
                self._elsewhere.append(proposal)
                return None
            record = self._records.get(identity)
            if record is None or record.status == "failed":
                self._open.setdefault(identity, []).append(proposal)
                return self._job(proposal)
            is_told = self._is_told(proposal, record.outcome)
            if identity not in self._open:
                self._coordinator.release(identity)
            if is_told:
                return None
        return None

    def _job(self, proposal: _Proposal) -> Job:
        """The job of a proposal's next seed."""
        first, trial = proposal.trials[0], proposal.trials[len(proposal.outcomes)]
        return Job(
            trial=trial,
            role="search",
            number=proposal.optuna_trial.number if trial is first else None,
            params=proposal.params,
            search_of=self._search_of,
            repeats=None if trial is first else first.identity,
        )

    def _is_told(self, proposal: _Proposal, outcome: Outcome) -> bool:
        """Take how a proposal's next seed ended; whether that was the last one, of which Optuna is told."""
        job = self._job(proposal)
        if job.identity in self._records:
            self._on_repeat(job)
        proposal.outcomes.append(outcome)
        so_far = told_together(proposal.outcomes, self._config.objectives)
        _report(proposal, so_far.intermediate)
        if (
            len(proposal.outcomes) < len(proposal.trials)
            and so_far.state == TrialState.COMPLETE
            and not self._is_worse(proposal)
        ):
            return False
        for key, value in so_far.attributes.items():
            proposal.optuna_trial.set_user_attr(key, value)
        self._study.tell(proposal.optuna_trial, so_far.values, state=so_far.state)
        return True

    def _is_worse(self, proposal: _Proposal) -> bool:
        """Whether further seeds are spared."""
        if len(self._config.objectives) > 1 or len(proposal.outcomes) < _FEWEST_SEEDS:
            return False
        return proposal.optuna_trial.should_prune()


def _report(proposal: _Proposal, values: Mapping[int, float]) -> None:
    # A trial that goes on from its checkpoint may report an epoch again; Optuna keeps the first and warns.
    for epoch in values.keys() - proposal.reported.keys():
        proposal.optuna_trial.report(values[epoch], step=epoch)
        proposal.reported[epoch] = values[epoch]


class Searches:
    """Several searches as one source of trials, asked in turn so that all come equally far. A ``TrialSource``."""

    def __init__(self, sources: Sequence[TrialSource]) -> None:
        """Begin with the first one."""
        self._sources = [*sources]

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing more will be proposed."""
        return all(source.is_exhausted for source in self._sources)

    @property
    def is_waiting(self) -> bool:
        """Whether trials are run by other drivers, whose results are awaited."""
        return any(source.is_waiting for source in self._sources)

    def ask(self) -> Job | None:
        """One more proposal as a job; None if it needs no run, or there is no more."""
        for source in tuple(self._sources):
            self._sources.append(self._sources.pop(0))
            if not source.is_exhausted:
                return source.ask()
        return None

    def take_up(self) -> list[Job]:
        """Jobs that a dead driver, or another's claim, had left."""
        return [job for source in self._sources for job in source.take_up()]

    def epoch(self, identity: str, epoch: int, value: float) -> None:
        """A trial has come to a value of the objective after an epoch of regulation."""
        for source in self._sources:
            source.epoch(identity, epoch, value)

    def tell(self, identity: str, outcome: Outcome) -> list[Job]:
        """A trial has ended, and is recorded; what follows from that."""
        return [job for source in self._sources for job in source.tell(identity, outcome)]

    def forget(self, identity: str) -> None:
        """A trial was saved unfinished: the next driver takes it up."""
        for source in self._sources:
            source.forget(identity)
