"""What ends a run from outside, known beforehand: its budget, and Slurm. Trials save before it."""

from __future__ import annotations

import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping

from emoreg.config import StudyConfig
from emoreg.errors import ConfigError
from emoreg.results.analysis import device_hours
from emoreg.results.records import RunRecord
from emoreg.tracking.observer import RunStatus, StudyObserver
from emoreg.tuning.signals import Stop

_CLOSING_SECONDS = 60.0
"""What a driver may take to bring its records to the storage and leave Ray, before Slurm kills it."""
_ANSWER_SECONDS = 10.0


class Budget(StudyObserver):
    """Asks a run to stop ``resources.grace_seconds`` before the first of its ends: hours, device hours, cost, Slurm's."""

    def __init__(
        self, config: StudyConfig, stop: Stop, notify: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin to count the hours of a run.

        Args:
            stop: of the run.
            notify: told why the run stops, and if Slurm does not tell when it will end the job.
            clock: seconds that only grow.
        """
        self._config, self._stop, self._notify, self._clock = config, stop, notify, clock
        self._grace_seconds = config.resources.grace_seconds
        self._ends: list[tuple[float, str]] = []
        if config.budget.hours is not None:
            reason = f"before its {config.budget.hours:g} hours were over (budget.hours)"
            self._ends.append((clock() + 3600 * config.budget.hours, reason))
        left = slurm_seconds_left(os.environ, notify)
        if left is not None:
            reason = f"before Slurm ends job {os.environ['SLURM_JOB_ID']}"
            self._ends.append((clock() + left - _CLOSING_SECONDS, reason))
        self._runs: Mapping[int, RunRecord] = {}

    def check(self, runs: Mapping[int, RunRecord]) -> None:
        """Refuse a run that could do nothing before its end. Later looks count ``runs``, which grows, as the study's.

        Raises:
            ConfigError: for device hours or money that earlier runs have used up.
        """
        self._runs = runs
        most = self._config.budget.most_device_hours
        slots = max((run.slots for run in runs.values()), default=1)
        used, needed = device_hours(self._config, runs.values()), self._saving_hours(slots)
        if used + needed >= most:
            raise ConfigError(
                f"Raise {_names(self._config)} to go on: it must leave the study more than the {needed:.3g} device hours in "
                f"which its trials save, but {used:.4g} of {most:.4g} have been used"
            )

    def on_tick(self, status: RunStatus) -> None:
        """Ask the run to stop where it is time."""
        if self._stop.is_asked:
            return
        reasons = [reason for end, reason in self._ends if self._clock() >= end - self._grace_seconds]
        most = self._config.budget.most_device_hours
        if most < math.inf:
            runs = {**self._runs, status.run.run: status.run}
            if device_hours(self._config, runs.values()) + self._saving_hours(status.num_running) >= most:
                reasons.append(f"before its {most:.4g} device hours were used up, so raise {_names(self._config)}")
        for reason in reasons[:1]:
            self._notify(f"The study stops {reason}")
            self._stop.ask_before(reason)

    def _saving_hours(self, slots: int) -> float:
        """Device hours in which the trials of so many slots save."""
        held = RunRecord(run=0, study="", storage="", started="", slot_seconds=slots * self._grace_seconds)
        return device_hours(self._config, [held])


def _names(config: StudyConfig) -> str:
    """The setting that decides the device hours."""
    return "budget.device_hours" if config.budget.most_device_hours == config.budget.device_hours else "budget.cost"


def slurm_seconds_left(environment: Mapping[str, str], notify: Callable[[str], None]) -> float | None:
    """Seconds until Slurm ends the job that this process belongs to; None outside of one, or where it has no end.

    ``notify`` is told where Slurm does not say.
    """
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return None
    end = environment.get("SLURM_JOB_END_TIME", "")
    if end.isdecimal() and int(end) > time.time():  # else it is 0, or the job was given more time since
        return int(end) - time.time()
    command = ["squeue", "--noheader", f"--job={job}", "--format=%L"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=True)
        return _parse_left(done.stdout.strip())
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        notify(
            f"Give the study an end with --budget.hours, in time before that of Slurm's job {job}: squeue does not tell it "
            f"({error}), so trials may not save before it"
        )
        return None


def _parse_left(text: str) -> float | None:
    """Seconds of what squeue writes, "1-02:03:04", "03:04"; None where a job has no end."""
    if text in ("UNLIMITED", "NOT_SET"):
        return None
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = ([0, 0] + [int(part) for part in clock.split(":")])[-3:]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
