"""The order in which a study's trials start: none waits inside a worker for pre-training that another is about to finish.

A trial may share its pre-training with others, up to a length. While another trial runs the shared pre-training and is not that
far, the trial stays in the queue and its slot goes to one that can start. It starts as soon as the shared run has reached its
length. A cool-down is a run of its own, after the one that all lengths share: a trial waits for it where another trains it, and
else for the branch point. A trial that the machine broke waits here too, until its pause is over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from emoreg.config import Value
from emoreg.config.resolved import ResolvedTrial
from emoreg.config.sharing import shared_runs
from emoreg.results.records import Role

JOB = "job"
"""Key of Tune's trial configuration under which a worker finds its ``Job``."""


@dataclass(kw_only=True, slots=True)
class Job:
    """A trial that is to run, or runs: what a worker is given. How far it has come does not make two unequal.

    Attributes:
        number: Optuna's, None outside the search.
        params: sampled values by path.
        search_of: the control whose own search proposed it; None of regulation's search and outside of one.
        repeats: the trial whose proposal it is, with another seed; None of the first seed and outside of a search.
        attempts: times that it was begun.
        node_id: on which it runs, or broke last; None where it has none yet, or has lost it.
        failures: times that the machine broke it; lost machines are not counted.
        shared_runs: the pre-training runs that it shares, in order, and the length in epochs that it needs of each.
        not_before: on the queue's clock, in seconds.
        has_experience: whether it runs and its pre-training is done.
    """

    trial: ResolvedTrial
    role: Role
    number: int | None = None
    params: Mapping[str, Value] = field(default_factory=dict)
    search_of: str | None = None
    repeats: str | None = None
    attempts: int = field(default=0, compare=False)
    node_id: str | None = field(default=None, compare=False)
    failures: int = field(default=0, compare=False)
    shared_runs: dict[str, int] = field(default_factory=dict, compare=False)
    not_before: float = field(default=0.0, compare=False)
    has_experience: bool = field(default=False, compare=False)

    @property
    def identity(self) -> str:
        """The trial's."""
        return self.trial.identity


class JobQueue:
    """Jobs that have not started, in order, and those that run."""

    def __init__(self, *, clock: Callable[[], float], share: bool = True) -> None:
        """Begin empty.

        Args:
            clock: seconds that only grow.
            share: whether trials share pre-training: if not, none waits for another.
        """
        self._clock = clock
        self._share = share
        self._jobs: list[Job] = []
        self._running: dict[str, Job] = {}
        self._reached: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __contains__(self, identity: str) -> bool:
        return identity in self._running or any(job.identity == identity for job in self._jobs)

    def add(self, job: Job, *, pause: float = 0.0) -> None:
        """Put a job last, to start after ``pause`` seconds at the earliest."""
        job.not_before = self._clock() + pause
        job.has_experience = False
        runs = shared_runs(job.trial) if self._share else {}
        job.shared_runs = {name: run.config.pretraining.total_epochs for name, run in runs.items()}
        self._jobs.append(job)

    def start(self) -> Job | None:
        """The first job that can start now, which runs from now on; None if all must wait."""
        now = self._clock()
        for job in self._jobs:
            if job.not_before <= now and self._is_ready(job):
                self._jobs.remove(job)
                self._running[job.identity] = job
                job.attempts += 1
                return job
        return None

    @property
    def num_waiting(self) -> int:
        """Jobs whose shared pre-training another trial runs."""
        return sum(not self._is_ready(job) for job in self._jobs)

    def reached(self, identity: str, epochs: int) -> None:
        """A running job has brought its shared pre-training to this length."""
        job = self._running[identity]
        for name, needed in job.shared_runs.items():
            is_last = needed == job.trial.config.pretraining.total_epochs
            length = epochs if is_last else min(epochs, needed)  # what comes after is the cool-down's
            self._reached[name] = max(length, self._reached.get(name, 0))

    def experience_ready(self, identity: str) -> None:
        """The pre-training of a running job is done: another may take the shared run further."""
        job = self._running[identity]
        job.has_experience = True
        self.reached(identity, job.trial.config.pretraining.total_epochs)

    def end(self, identity: str) -> Job:
        """A job no longer runs."""
        return self._running.pop(identity)

    def _is_ready(self, job: Job) -> bool:
        """Whether the job would wait for nobody: its pre-training is there, or nobody runs what it shares."""
        for name, needed in reversed(job.shared_runs.items()):
            if needed <= self._reached.get(name, 0):
                return True
            if any(self._is_training(other, name) for other in self._running.values()):
                return False
        return True

    def _is_training(self, job: Job, name: str) -> bool:
        """Whether a running job has a shared run's length still before it."""
        return not job.has_experience and job.shared_runs.get(name, 0) > self._reached.get(name, 0)
