"""Which trial runs next, and what follows when one ends or breaks. Knows neither Ray nor Optuna."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from emoreg.config import StudyConfig
from emoreg.results.outcome import Outcome
from emoreg.results.records import EpochRecord
from emoreg.results.tables import Records
from emoreg.tuning.coordinator import Coordinator
from emoreg.tuning.queue import Job, JobQueue
from emoreg.tuning.retry import RetryPolicy
from emoreg.tuning.source import TrialSource
from emoreg.tuning.tune_results import epoch_metrics

_NOT_LEARNING = ("grid", "random", "qmc")
"""Samplers whose proposals do not depend on results: nothing is lost by asking early."""
_EARLY = 8
"""How many times as many proposals of theirs may wait."""
_ELSEWHERE_SECONDS = 5.0
"""Until a trial that another driver runs is tried again."""


class Dispatcher:
    """Hands out the controls, then what an interrupted driver left, then new proposals.

    It hands out nothing while every trial left waits for pre-training that another runs, or for its pause, while a trial waits
    for a place beyond the slots, and while ``resources.max_concurrent`` run.
    """

    def __init__(
        self,
        config: StudyConfig,
        source: TrialSource,
        records: Records,
        coordinator: Coordinator,
        *,
        retry: RetryPolicy,
        jobs: Iterable[Job] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin with what is not proposed.

        Args:
            source: proposes trials.
            retry: which broken trials are begun again.
            jobs: run first, unless recorded as finished or pruned: controls, confirmed trials, reruns.
            clock: seconds that only grow.
        """
        self._config = config
        self._source = source
        self._records = records
        self._coordinator = coordinator
        self._retry = retry
        self._queue = JobQueue(clock=clock, share=config.experience.share)
        self._runs: dict[str, Job] = {}
        self._num_saved = 0
        for job in (*jobs, *source.take_up()):
            self._enqueue(job)

    def next(self, trial_id: str, *, slots: int, may_wait: int = 1) -> Job | None:
        """The next trial to run; None while there is none that can start.

        Args:
            trial_id: Tune's.
            slots: trials that fit at once; as many proposals of a sampler that learns may wait for pre-training.
            may_wait: trials that may wait for a place beyond the slots: several where they make an autoscaler start machines.

        Raises:
            ConfigError: after many proposals in a row that break a rule of the configuration.
        """
        limit = self._config.resources.max_concurrent
        num_unplaced = sum(job.node_id is None for job in self._runs.values())
        if len(self._runs) == limit or (num_unplaced >= may_wait and len(self._runs) >= slots):
            return None
        if self._coordinator.others_changed():
            self._records.refresh()
            for left in self._source.take_up():
                self._enqueue(left)
        job = self._start()
        most_held = slots * (_EARLY if self._config.sampler.name in _NOT_LEARNING else 1)
        while job is None and self._queue.num_waiting < most_held and not self._source.is_exhausted:
            proposed = self._source.ask()
            if proposed is not None:
                self._enqueue(proposed)
            job = self._start()
        if job is not None:
            self._runs[trial_id] = job
        return job

    @property
    def has_work(self) -> bool:
        """Whether a trial may be missing: a control, one that an interrupted driver left, or a proposal."""
        return len(self._queue) > 0 or self._source.is_waiting or not self._source.is_exhausted

    @property
    def is_done(self) -> bool:
        """Whether every trial was handed out and has ended."""
        return not self._runs and not self._num_saved and not self.has_work

    @property
    def num_running(self) -> int:
        """Trials that were handed out and have not ended."""
        return len(self._runs)

    @property
    def num_waiting(self) -> int:
        """Trials that wait for a shared pre-training which another trial runs."""
        return self._queue.num_waiting

    def is_running(self, trial_id: str) -> bool:
        """Whether a trial was handed out and has not ended."""
        return trial_id in self._runs

    def placed(self, trial_id: str, node_id: str) -> None:
        """A trial runs on a node."""
        self._runs[trial_id].node_id = node_id

    def epoch(self, trial_id: str, row: EpochRecord) -> None:
        """A trial ended an epoch."""
        job = self._runs[trial_id]
        if row.stage == "pretraining":
            self._queue.reached(job.identity, row.epoch)
            return
        self._queue.experience_ready(job.identity)
        metrics, objectives = epoch_metrics(row), self._config.objectives
        if len(objectives) == 1 and objectives[0].metric in metrics:
            self._source.epoch(job.identity, row.epoch, metrics[objectives[0].metric])

    def experience_ready(self, trial_id: str) -> None:
        """The pre-training of a trial is done: those that share it can start."""
        self._queue.experience_ready(self._runs[trial_id].identity)

    def end(self, trial_id: str, outcome: Outcome) -> None:
        """A trial has ended, and is recorded: tell the source."""
        job = self._queue.end(self._runs.pop(trial_id).identity)
        self._tell(job.identity, outcome)

    def saved(self, trial_id: str) -> None:
        """A trial was saved unfinished: the next driver takes it up."""
        job = self._queue.end(self._runs.pop(trial_id).identity)
        self._source.forget(job.identity)
        self._coordinator.release(job.identity)
        self._num_saved += 1

    def broke(self, trial_id: str, errno: int | None = None) -> bool:
        """Whether a trial that the machine broke will be begun again; if not, it still counts as running until its ``end``.

        Args:
            trial_id: Tune's.
            errno: number of the system's error that broke it, where one did.
        """
        job = self._runs[trial_id]
        pause = self._retry.pause(job, errno)
        if pause is None:
            return False
        del self._runs[trial_id]
        self._queue.add(self._queue.end(job.identity), pause=pause)
        return True

    def _tell(self, identity: str, outcome: Outcome) -> None:
        following = self._source.tell(identity, outcome)
        self._coordinator.release(identity)
        for job in following:
            self._enqueue(job)

    def _enqueue(self, job: Job) -> None:
        if job.identity not in self._queue and not self._is_recorded(job.identity):
            self._queue.add(job)

    def _start(self) -> Job | None:
        """The first job that can start now and is this driver's to run."""
        while (job := self._queue.start()) is not None:
            if self._coordinator.claim(job.identity):
                if job.identity not in self._records.trials:  # perhaps another driver had it until now
                    self._records.refresh()
                if not self._is_recorded(job.identity):
                    self._retry.forgive(job)
                    return job
                self._queue.end(job.identity)
                self._tell(job.identity, self._records.trials[job.identity].outcome)
            else:
                job.attempts -= 1
                self._queue.add(self._queue.end(job.identity), pause=_ELSEWHERE_SECONDS)
        return None

    def _is_recorded(self, identity: str) -> bool:
        record = self._records.trials.get(identity)
        return record is not None and record.status != "failed"
