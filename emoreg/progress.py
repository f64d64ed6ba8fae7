"""How a study goes on, for the person who waits: a live table in a terminal, a line now and then in a log file."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from emoreg.analysis import better
from emoreg.config import StudyConfig, TrialConfig
from emoreg.records import EpochRecord, Role, TrialRecord

_LOG_SECONDS = 20.0
_REFRESH_PER_SECOND = 4


@dataclass(slots=True)
class _Running:
    config: TrialConfig
    role: Role
    stage: str = "starting"
    epoch: int = 0
    accuracy: float | None = None


class StudyProgress:
    """Counts what happens in a study and shows it. A ``study.Progress``.

    In a terminal: one table, rewritten in place. Elsewhere: a line when a trial is the best so far, and every 20 seconds.
    """

    def __init__(self, config: StudyConfig, records: dict[str, TrialRecord], console: Console) -> None:
        """Begin from the trials that earlier runs of the study have recorded."""
        self._config = config
        self._console = console
        self._ended = {identity: record for identity, record in records.items() if record.role != "trial"}
        self._num_before = len(self._ended)
        self._running: dict[str, _Running] = {}
        self._best: TrialRecord | None = None
        for record in self._ended.values():
            self._consider(record)
        self._total = config.num_trials + len({trial.identity for trial in config.control_trials()})
        self._start = time.monotonic()
        self._last_line = self._start
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress while the context is open."""
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=_REFRESH_PER_SECOND, get_renderable=self._table) as self._live:
            yield
        self._live = None

    def started(self, identity: str, config: TrialConfig, role: Role) -> None:
        """A trial began, or began again."""
        self._running[identity] = _Running(config.applied(), role)

    def epoch(self, row: EpochRecord) -> None:
        """A running trial ended an epoch."""
        running = self._running.get(row.identity)
        if running is not None:
            running.stage, running.epoch, running.accuracy = row.stage, row.epoch, row.validation_accuracy

    def ended(self, record: TrialRecord) -> None:
        """A trial ended."""
        self._running.pop(record.identity, None)
        self._ended[record.identity] = record
        if self._consider(record) and self._live is None:
            self._print_line()

    def tick(self) -> None:
        """Print a line if it is time for one."""
        if self._live is None and time.monotonic() - self._last_line >= _LOG_SECONDS:
            self._print_line()

    @property
    def num_missing(self) -> int:
        """Trials that have not ended."""
        return self._total - len(self._ended)

    def _consider(self, record: TrialRecord) -> bool:
        if record.role != "search" or record.status != "finished":
            return False
        if self._best is None or better(record, self._best, self._config.objectives[0]):
            self._best = record
            return True
        return False

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        running = "; ".join(_describe(trial) for trial in self._running.values())
        self._console.print(f"{self._counts()} | {self._best_text()}{f' | now: {running}' if running else ''}", soft_wrap=True)

    def _counts(self) -> str:
        by_status = {
            status: sum(record.status == status for record in self._ended.values())
            for status in ("finished", "pruned", "failed")
        }
        counted = ", ".join(f"{count} {status}" for status, count in by_status.items() if count or status == "finished")
        return f"{len(self._ended)}/{self._total} trials: {counted}, {len(self._running)} running, {self._time_left()}"

    def _best_text(self) -> str:
        if self._best is None:
            return "no searched trial has finished yet"
        metric = self._config.objectives[0].metric
        return f"best {metric} {getattr(self._best, metric):.4g}: {self._best.params}"

    def _time_left(self) -> str:
        done = len(self._ended) - self._num_before
        if done == 0:
            return "time left: not known yet"
        left = (time.monotonic() - self._start) / done * (self._total - len(self._ended))
        return f"about {duration(left)} left"

    def _table(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("trial", "role", "backbone", "balance", "stage", "epoch", "accuracy"):
            table.add_column(column, justify="right" if column in ("balance", "epoch", "accuracy") else "left")
        for identity, trial in self._running.items():
            total = trial.config.pretraining.epochs if trial.stage == "pretraining" else trial.config.regulation.epochs
            table.add_row(
                identity,
                _role(trial),
                trial.config.backbone,
                f"{trial.config.regulation.balance:.3f}",
                trial.stage,
                f"{trial.epoch}/{total}",
                "" if trial.accuracy is None else f"{trial.accuracy:.3f}",
            )
        return Group(Text(self._counts(), style="bold"), Text(self._best_text(), style="green"), table)


def _role(trial: _Running) -> str:
    return "search" if trial.role == "search" else "as configured" if trial.config.control == "none" else trial.config.control


def _describe(trial: _Running) -> str:
    return f"{_role(trial)} {trial.config.backbone} {trial.stage} {trial.epoch}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "45 s", "3 min", "2 h 10 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
