"""Optuna as a searcher of Ray Tune that tells Optuna the truth about every trial.

Finished -> COMPLETE. Stopped by a scheduler -> PRUNED, with its intermediate values. Diverged -> PRUNED, with the step where
it did. Broken by the machine -> begun again from its checkpoint after a pause, and FAIL after the last attempt; broken by a
fault in code -> FAIL. Asked to stop -> left RUNNING, for the next run to take up. The storage holds the search's whole state:
what an interrupted driver left RUNNING is told from the records, or handed out again under its own number.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from emoreg.config import StudyConfig, TrialConfig, Value
from emoreg.config.search_space import grid, num_searched, resolve, suggest
from emoreg.errors import ConfigError, Diverged
from emoreg.results.records import TrialRecord
from emoreg.tuning.coordinator import Coordinator
from emoreg.tuning.messages import EXPERIENCED, FAULT, STATUS, metric_key
from emoreg.tuning.optuna_study import (
    GRID,
    INVALID,
    Outcome,
    count_proposed,
    finished_outcome,
    no_experimental_warnings,
    recorded_outcome,
    sampler_of,
)
from emoreg.tuning.queue import Job, JobQueue
from emoreg.tuning.reconcile import Rerun

_MAX_INVALID = 100
_NOT_LEARNING = ("grid", "random", "qmc")
"""Samplers whose proposals do not depend on results: nothing is lost by asking early."""
_EARLY = 8
"""How many times as many proposals of theirs may wait."""
_MOST_ATTEMPTS = 100
"""A trial that has lost so many machines may be what breaks them."""
_LOOK_SECONDS = 5.0
"""Between two looks at what the other drivers of the study do."""


@dataclass
class _Proposal:
    """A trial that Optuna holds as RUNNING."""

    trial: optuna.Trial
    params: dict[str, Value]
    config: TrialConfig
    identity: str
    intermediate: dict[int, float]
    """Metric by regulation epoch, as Optuna has it."""


@dataclass
class _Run:
    """A trial that Tune was given."""

    job: Job
    proposals: list[_Proposal]
    """Those that it stands for: none for a control, several where Optuna proposed a configuration again."""
    intermediate: dict[int, float] = field(default_factory=dict)
    last: Mapping[str, Any] | None = None
    """The last result that the trial gave by itself."""
    is_placed: bool = False
    """Whether it has a worker."""


class OptunaSearcher(Searcher):
    """Hands out the controls, then what an interrupted driver left, then new proposals, and tells Optuna how they ended.

    ``suggest`` gives Tune ``{"trial": TrialConfig, "role": "control" | "search", "number": int | None, "params": dict,
    "attempt": int, "avoid": tuple[str, ...]}`` (``avoid``: nodes that it must leave to others), or None where every trial left
    waits for an experience that another is training, for a place, or for its pause, and while ``resources.max_concurrent`` run:
    Tune's own limiter would not hear of a trial that Tune drops.
    A proposal whose identity is recorded as finished or pruned is told from the record and not run; one whose identity is
    running or queued is told what that trial ends with. A proposal that breaks a rule of the configuration is told FAIL, with
    the rule in its user attribute ``invalid``, and does not count as one of ``num_trials``.

    It says itself when the search is over: give ``TuneConfig(num_samples=-1)``.

    Several drivers may search one study in a database. Each trial is run by the driver that has its claim; the others come back
    to it until the claim is free, and then find it recorded, or run it, because its driver died.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: StudyConfig,
        *,
        records: Mapping[str, TrialRecord],
        controls: Sequence[TrialConfig] = (),
        confirmed: Sequence[TrialConfig] = (),
        reruns: Sequence[Rerun] = (),
        is_stopping: Callable[[], bool] = lambda: False,
        on_repeat: Callable[[str, int, Mapping[str, Value]], None] = lambda identity, number, params: None,
        coordinator: Coordinator | None = None,
        refresh: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take up what the storage holds.

        Args:
            study: from ``history.open_study(config, ...)``, reconciled with the records.
            config: the study's configuration.
            records: trials that ended, by identity; read anew at each proposal.
            controls: run first, outside Optuna's history, unless recorded as finished or pruned.
            confirmed: the same, and these open the test split.
            reruns: trials that Optuna has been told and that have no record: run again, not told again.
            is_stopping: whether the study has been told to stop: then nothing more is handed out.
            on_repeat: told the identity, number and values of a proposal that a recorded trial, a control's perhaps, stands
                for, before Optuna is.
            coordinator: which of several drivers runs what; None where there is one.
            refresh: brings ``records`` up to what other drivers have recorded.
            clock: seconds that only grow.

        Raises:
            ConfigError: for a grid over a ``Float`` without a step.
        """
        super().__init__()
        self._study = study
        self._config = config
        self._records = records
        self.lookahead = 1
        """Most trials that may wait for an experience before no more are asked of a sampler that learns: the trials at once."""
        self.startable: Callable[[Sequence[str]], Mapping[str, tuple[str, ...]]] = lambda pending: self._anywhere
        """Backbones of which a trial may be handed out, by those of the trials that have no worker yet: see ``placement``."""
        self.is_machine_lost: Callable[[str], bool] = lambda trial_id: False
        """Whether the machine of a trial that broke was lost or is being taken away: no failure of the trial."""
        self._anywhere: dict[str, tuple[str, ...]] = dict.fromkeys(config.backbones(), ())
        self._is_stopping = is_stopping
        self._on_repeat = on_repeat
        self._is_shared = coordinator is not None
        self._coordinator = coordinator
        self._claimed: set[str] = set()
        self._refresh = refresh
        self._clock = clock
        self._next_look = clock() + _LOOK_SECONDS
        self._elsewhere: list[_Proposal] = []
        """Own proposals of configurations that another driver is running."""
        self._num_elsewhere = 0
        """Trials of Optuna's that other drivers run."""
        self._queue = JobQueue(clock=clock, share=config.experience.share)
        self._runs: dict[str, _Run] = {}
        self._retried: set[str] = set()
        self._proposals: dict[str, list[_Proposal]] = {}
        self._num_invalid_in_a_row = 0
        self._is_exhausted = False
        trials = study.get_trials(deepcopy=False)
        self._num_proposed = count_proposed(study)
        self._grid: Iterator[dict[str, Value]] | None = None
        if config.sampler.name == "grid":
            enqueued = {trial.user_attrs.get(GRID) for trial in trials}
            points = grid(config.search_space, config.trial)
            self._grid = (point for point in points if json.dumps(point) not in enqueued)
        for control in controls:
            self._enqueue(Job(config=control, role="control"))
        for trial_config in confirmed:
            self._enqueue(Job(config=trial_config, role="confirm"))
        for rerun in reruns:
            trial_config = resolve(config.trial, rerun.params)
            self._enqueue(Job(config=trial_config, role="search", number=rerun.number, params=rerun.params))
        self._look_around()

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept what ``TuneConfig`` names for its scheduler; the objectives are the study's own."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """The next trial to run, ``Searcher.FINISHED``, or None while there is nothing that can start.

        Raises:
            ConfigError: after 100 proposals in a row that break a rule of the configuration.
        """
        if self._is_stopping():
            return str(Searcher.FINISHED)
        if self._config.resources.max_concurrent == len(self._runs):
            return None
        if self._is_shared and self._clock() >= self._next_look:
            self._look_around()
        startable = self.startable([run.job.config.backbone for run in self._runs.values() if not run.is_placed])
        if not startable:
            return None
        job = self._start(startable)
        may_wait = self.lookahead * (_EARLY if self._config.sampler.name in _NOT_LEARNING else 1)
        while job is None and self._queue.num_held(startable) < may_wait and self._num_proposed < self._config.num_trials:
            if not self._propose_next():
                break
            job = self._start(startable)
        if job is not None:
            self._runs[trial_id] = _Run(job, self._proposals.setdefault(job.identity, []))
            return {
                "trial": job.config,
                "role": job.role,
                "number": job.number,
                "params": dict(job.params),
                "attempt": job.attempts,
                "avoid": startable[job.config.backbone],
            }
        if self._runs or len(self._queue) or self._elsewhere or self._num_elsewhere:  # what runs may break and be run again
            return None
        self._is_exhausted = True
        return str(Searcher.FINISHED)

    @property
    def has_work(self) -> bool:
        """Whether a trial may be missing: a control, one that an interrupted driver left, or a proposal."""
        waits = len(self._elsewhere) + self._num_elsewhere
        return len(self._queue) + waits > 0 or self._num_proposed < num_searched(self._config)

    @property
    def is_done(self) -> bool:
        """Whether every trial was handed out and has ended."""
        return self._is_exhausted and not self._runs

    @property
    def num_running(self) -> int:
        """Trials that were handed out and have not ended."""
        return len(self._runs)

    @property
    def num_waiting(self) -> int:
        """Trials that wait for an experience which another is training."""
        return self._queue.num_waiting

    def is_running(self, trial_id: str) -> bool:
        """Whether a trial was handed out and has not ended."""
        return trial_id in self._runs

    def on_trial_start(self, trial_id: str) -> None:
        """A trial has a worker."""
        self._runs[trial_id].is_placed = True

    def is_retried(self, trial_id: str) -> bool:
        """Whether a trial that the machine broke waits to be begun again."""
        return trial_id in self._retried

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Pass a regulation epoch's metric on to Optuna, and remember a trial's own last result.

        Tune does not call this for the result at which a scheduler stops a trial: ``on_trial_complete`` brings that one.
        """
        run = self._runs.get(trial_id)
        if run is None:
            return
        if STATUS in result:
            run.last = dict(result)
        if EXPERIENCED in result or result.get("stage") == "regulation":
            self._queue.experienced(run.job.identity)
        elif result.get("stage") == "pretraining":
            self._queue.reached(run.job.identity, result["epoch"])
        key = metric_key(self._config.objectives[0].metric)
        if len(self._config.objectives) == 1 and result.get("stage") == "regulation" and key in result:
            run.intermediate[result["epoch"]] = result[key]
            for proposal in run.proposals:
                _report(proposal, run.intermediate)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended, for every proposal that it stands for; or begin it again."""
        if result is not None:
            self.on_trial_result(trial_id, result)
        run = self._runs.pop(trial_id, None)
        if run is None:
            return
        job = self._queue.end(run.job.identity)
        if run.last is not None and run.last[STATUS] == "interrupted":
            if self._is_stopping():
                self._proposals.pop(job.identity, None)
                self._give_back(job.identity)
                return
            run.last, error = None, True  # nobody has asked it to
        elif run.last is not None:
            error = False  # a worker may die after its trial has ended by itself: that stands
        if error and not self.is_machine_lost(trial_id):
            job.failures += 1
            job.failed = trial_id
        if error and job.failures <= self._config.resources.max_retries and job.attempts < _MOST_ATTEMPTS:
            self._retried.add(trial_id)
            pause = self._config.resources.retry_seconds * 2 ** (job.failures - 1) if job.failures else 0.0
            self._queue.add(job, pause=pause)
            return
        proposals = self._proposals.pop(job.identity, [])
        outcome = self._outcome(run, error)
        for proposal in proposals:
            if proposal.trial.number != job.number and self._is_recorded(job.identity):
                self._on_repeat(job.identity, proposal.trial.number, proposal.params)
            self._tell(proposal, outcome)
        self._give_back(job.identity)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: Optuna's storage and the records are the state, and running the study again resumes it."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing, see ``save``."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its TuneConfig into the experiment's folder, where a database's password has no place.
        return {}

    def _enqueue(self, job: Job) -> None:
        if job.identity not in self._queue and not self._is_recorded(job.identity):
            self._queue.add(job)

    def _start(self, backbones: Container[str]) -> Job | None:
        """The first job of these backbones that can start now and is this driver's to run."""
        while (job := self._queue.start(backbones)) is not None:
            if not self._is_shared or self._claim(job.identity):
                self._see(job.identity)
                if not self._is_shared or not self._is_recorded(job.identity):
                    if job.failed is not None and self.is_machine_lost(job.failed):  # which Ray found out since
                        job.failures -= 1
                    job.failed = None
                    return job
            # Another driver runs it, or has run it.
            self._queue.end(job.identity)
            job.attempts -= 1
            if job.identity in self._claimed:
                for proposal in self._proposals.pop(job.identity, []):
                    self._is_told_from_records(proposal)
                self._give_back(job.identity)
            else:
                self._queue.add(job, pause=_LOOK_SECONDS)
        return None

    def _propose_next(self) -> bool:
        """Ask Optuna for one more trial and put it where it belongs; False where there are no more points, or trials to run."""
        with self._turn():
            if self._is_shared:
                self._num_proposed = count_proposed(self._study)
                if self._num_proposed >= self._config.num_trials:
                    return False
                with no_experimental_warnings():  # its seed goes by what all drivers have proposed
                    self._study.sampler = sampler_of(self._config.sampler, self._study.get_trials(deepcopy=False))
            if self._grid is not None and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                point = self._next_point(self._grid)
                if point is None:
                    self._num_proposed = self._config.num_trials
                    return False
                self._study.enqueue_trial(point, user_attrs={GRID: json.dumps(point)})
            self._num_proposed += 1
            self._accept(self._propose(self._study.ask(), {}))
            return True

    def _next_point(self, points: Iterator[dict[str, Value]]) -> dict[str, Value] | None:
        """The next point of the grid that no other driver has proposed."""
        taken = set()
        if self._is_shared:
            taken = {trial.user_attrs.get(GRID) for trial in self._study.get_trials(deepcopy=False)}
        return next((point for point in points if json.dumps(point) not in taken), None)

    def _look_around(self) -> None:
        """Take up what Optuna holds as RUNNING and no living driver has, and what others were running when it was proposed."""
        with self._turn():
            self._refresh()
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            numbers = {trial.number for trial in running}
            waiting, self._elsewhere = self._elsewhere, []
            for proposal in waiting:
                if proposal.trial.number in numbers:  # else another driver has told it
                    self._accept(proposal)
            mine = {proposal.trial.number for proposals in self._proposals.values() for proposal in proposals}
            mine |= {proposal.trial.number for proposal in waiting}
            self._num_elsewhere = 0
            for trial in running:
                identity = trial.user_attrs.get("identity")
                if trial.number in mine:
                    continue
                if identity is not None and not self._claim(identity):
                    self._num_elsewhere += 1
                    continue
                self._accept(self._propose(optuna.Trial(self._study, trial._trial_id), dict(trial.intermediate_values)))
        self._next_look = self._clock() + _LOOK_SECONDS

    def _accept(self, proposal: _Proposal | None) -> None:
        """Queue a proposal, unless a trial that is recorded, queued or running stands for it."""
        if proposal is None:
            return
        if not self._claim(proposal.identity):
            self._elsewhere.append(proposal)
            return
        self._see(proposal.identity)
        if self._is_told_from_records(proposal):
            if proposal.identity not in self._queue:
                self._give_back(proposal.identity)
            return
        self._proposals.setdefault(proposal.identity, []).append(proposal)
        number = proposal.trial.number
        self._enqueue(Job(config=proposal.config, role="search", number=number, params=proposal.params))

    def _turn(self) -> AbstractContextManager[None]:
        return nullcontext() if self._coordinator is None else self._coordinator.turn()

    def _claim(self, identity: str) -> bool:
        if self._coordinator is not None and not self._coordinator.claim(identity):
            return False
        self._claimed.add(identity)
        return True

    def _give_back(self, identity: str) -> None:
        if identity in self._claimed:
            self._claimed.remove(identity)
            if self._coordinator is not None:
                self._coordinator.release(identity)

    def _see(self, identity: str) -> None:
        """Look again whether a trial is recorded that another driver may have had until now."""
        if self._is_shared and identity not in self._records:
            self._refresh()

    def _propose(self, trial: optuna.Trial, intermediate: dict[int, float]) -> _Proposal | None:
        """The trial with its values, which for one taken up again are those it has; None, and FAIL, if they break a rule."""
        params = suggest(self._config.search_space, self._config.trial, trial)
        try:
            config = resolve(self._config.trial, params)
        except ConfigError as error:
            was_counted = INVALID not in trial.user_attrs  # else an earlier driver was killed before it told
            trial.set_user_attr(INVALID, str(error))
            self._study.tell(trial, state=TrialState.FAIL)
            self._num_proposed -= was_counted
            self._num_invalid_in_a_row += 1
            if self._grid is None and self._num_invalid_in_a_row >= _MAX_INVALID:
                raise ConfigError(
                    f"a search space must hold valid configurations, but {_MAX_INVALID} proposals in a row were not, the last "
                    f"with {params!r} ({error}): narrow the ranges, or add a When"
                ) from error
            return None
        self._num_invalid_in_a_row = 0
        trial.set_user_attr("identity", config.identity)
        trial.set_user_attr("seed", config.seed)
        return _Proposal(trial, params, config, config.identity, intermediate)

    def _is_recorded(self, identity: str) -> bool:
        return identity in self._records and self._records[identity].status != "failed"

    def _is_told_from_records(self, proposal: _Proposal) -> bool:
        if not self._is_recorded(proposal.identity):
            return False
        self._on_repeat(proposal.identity, proposal.trial.number, proposal.params)
        self._tell(proposal, recorded_outcome(self._records[proposal.identity], self._config.objectives))
        return True

    def _outcome(self, run: _Run, error: bool) -> Outcome:
        if run.last is not None and run.last[STATUS] == "finished":
            values = {objective.metric: run.last.get(metric_key(objective.metric)) for objective in self._config.objectives}
            return dataclasses.replace(finished_outcome(self._config.objectives, values), intermediate=run.intermediate)
        if run.last is not None and run.last[STATUS] == "broken":
            return Outcome(TrialState.FAIL, intermediate=run.intermediate, attributes={"reason": run.last[FAULT]})
        if run.last is not None:
            stage, step = run.last["diverged_stage"], run.last["diverged_step"]
            attributes = {"reason": str(Diverged(stage, step)), "diverged_stage": stage, "diverged_step": step}
            return Outcome(TrialState.PRUNED, intermediate=run.intermediate, attributes=attributes)
        if error:
            reason = "broken by the machine on every attempt: the record has the log's tail"
            return Outcome(TrialState.FAIL, intermediate=run.intermediate, attributes={"reason": reason})
        reason = f"stopped by the scheduler {self._config.scheduler.name}"
        return Outcome(TrialState.PRUNED, intermediate=run.intermediate, attributes={"reason": reason})

    def _tell(self, proposal: _Proposal, outcome: Outcome) -> None:
        _report(proposal, outcome.intermediate)
        for key, value in outcome.attributes.items():
            proposal.trial.set_user_attr(key, value)
        self._study.tell(proposal.trial, outcome.values, state=outcome.state)


def _report(proposal: _Proposal, intermediate: Mapping[int, float]) -> None:
    # A trial that goes on from its checkpoint may report an epoch again; Optuna keeps the first and warns.
    for epoch in intermediate.keys() - proposal.intermediate.keys():
        proposal.trial.report(intermediate[epoch], step=epoch)
        proposal.intermediate[epoch] = intermediate[epoch]
