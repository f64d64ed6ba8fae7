"""The order in which a study's trials start: none waits inside a worker for an experience that another is about to leave.

A trial needs a *trunk*, the pre-training that it shares with others, up to a length. Where another trial is training that trunk
and has not come so far, the trial stays in the queue and its slot goes to one that can start: of another trunk, or of none.
It starts as soon as the trunk has come to its length. A trial broken by the machine waits here too, until its pause is over.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field

from emoreg.config import TrialConfig, Value
from emoreg.results.records import Role
from emoreg.training.experience import trunk


@dataclass(kw_only=True, slots=True)
class Job:
    """A trial that is to run, or runs.

    Attributes:
        config: not applied.
        number: Optuna's, None outside the search.
        params: sampled values by path.
        attempts: times that it was begun.
        failures: times that the machine broke it, machines that were lost not counted.
        failed: Tune's trial that broke last, until the job is begun again.
        trunk: names the pre-training that it shares, None where it needs none.
        epochs: the length of pre-training that it needs.
        not_before: on the queue's clock, in seconds.
        is_experienced: whether it runs and has its experience.
    """

    config: TrialConfig
    role: Role
    number: int | None = None
    params: Mapping[str, Value] = field(default_factory=dict)
    attempts: int = 0
    failures: int = 0
    failed: str | None = None
    identity: str = ""
    trunk: str | None = None
    epochs: int = 0
    not_before: float = 0.0
    is_experienced: bool = False

    def __post_init__(self) -> None:
        self.identity = self.config.identity
        self.epochs = self.config.applied().pretraining.epochs


class JobQueue:
    """Jobs that have not started, in order, and those that run."""

    def __init__(self, *, clock: Callable[[], float], share: bool = True) -> None:
        """Begin empty.

        Args:
            clock: seconds that only grow.
            share: whether trials share pre-training: where not, none waits for another.
        """
        self._clock = clock
        self._share = share
        self._jobs: list[Job] = []
        self._running: dict[str, Job] = {}
        self._reached: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    def __contains__(self, identity: str) -> bool:
        return identity in self._running or any(job.identity == identity for job in self._jobs)

    def add(self, job: Job, *, pause: float = 0.0) -> None:
        """Put a job last, to start after ``pause`` seconds at the earliest."""
        job.not_before = self._clock() + pause
        job.is_experienced = False
        job.trunk = trunk(job.config) if self._share else None
        self._jobs.append(job)

    def remove(self, job: Job) -> None:
        """Take a job out that is not to run after all."""
        self._jobs.remove(job)

    def start(self, backbones: Container[str] | None = None) -> Job | None:
        """The first job that can start now, of these backbones if named, which runs from now on; None where all must wait."""
        now = self._clock()
        for job in self._jobs:
            if job.not_before <= now and self._has_trunk(job) and (backbones is None or job.config.backbone in backbones):
                self._jobs.remove(job)
                self._running[job.identity] = job
                job.attempts += 1
                return job
        return None

    @property
    def num_waiting(self) -> int:
        """Jobs whose trunk another trial is training."""
        return sum(not self._has_trunk(job) for job in self._jobs)

    def num_held(self, backbones: Container[str]) -> int:
        """Jobs whose trunk another trial is training, or that are of none of these backbones."""
        return sum(not self._has_trunk(job) or job.config.backbone not in backbones for job in self._jobs)

    def reached(self, identity: str, epochs: int) -> None:
        """A running job has brought its trunk to this length."""
        job = self._running[identity]
        if job.trunk is not None:
            self._reached[job.trunk] = max(epochs, self._reached.get(job.trunk, 0))

    def experienced(self, identity: str) -> None:
        """A running job has its experience: another may take the trunk further."""
        job = self._running[identity]
        job.is_experienced = True
        self.reached(identity, job.epochs)

    def end(self, identity: str) -> Job:
        """A job no longer runs."""
        return self._running.pop(identity)

    def _has_trunk(self, job: Job) -> bool:
        """Whether the job would wait for nobody: its experience is there, or nobody is training the trunk."""
        if job.trunk is None or job.epochs <= self._reached.get(job.trunk, 0):
            return True
        return not any(other.trunk == job.trunk and not other.is_experienced for other in self._running.values())
