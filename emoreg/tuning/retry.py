"""Which trials that the machine broke are begun again, and after what pause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emoreg.config import ResourcesConfig
from emoreg.storage.files import is_sick
from emoreg.tuning.queue import Job

_MOST_ATTEMPTS = 100
"""A trial that has lost so many machines may be what breaks them."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pauses double from failure to failure; a machine that was lost is no failure of the trial.

    Attributes:
        resources: of the study.
        is_lost: whether Ray has lost a node, or it is being taken away.
        has_one_disk: whether all trials write to one disk: where that is sick, no other attempt does better.
    """

    resources: ResourcesConfig
    is_lost: Callable[[str], bool] = lambda node_id: False
    has_one_disk: bool = False

    def pause(self, job: Job, errno: int | None = None) -> float | None:
        """Seconds after which a job that broke is begun again; None if it has failed for good.

        Args:
            job: whose failures are counted here.
            errno: number of the system's error that broke it, where one did.
        """
        if self.has_one_disk and is_sick(errno):
            return None
        if job.node_id is not None and self.is_lost(job.node_id):
            job.node_id = None
        else:
            job.failures += 1
        if job.failures > self.resources.max_retries or job.attempts >= _MOST_ATTEMPTS:
            return None
        return self.resources.retry_seconds * 2 ** (job.failures - 1) if job.failures else 0.0

    def forgive(self, job: Job) -> None:
        """Take a failure back if Ray has found out since that the node was lost."""
        if job.node_id is not None and self.is_lost(job.node_id):
            job.failures -= 1
        job.node_id = None
