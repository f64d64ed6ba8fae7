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

from emoreg.config import StudyConfig, TrialConfig
from emoreg.config.search_space import num_searched
from emoreg.formatting import control_name, duration, format_params
from emoreg.results.analysis import better, experience_ledger
from emoreg.results.records import EpochRecord, Role, TrialRecord

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
    Failed trials are told at once. Rich draws the table from a thread of its own, so what changes is copied before it is read.
    """

    def __init__(self, config: StudyConfig, records: dict[str, TrialRecord], console: Console) -> None:
        """Begin from the trials that earlier runs of the study have recorded."""
        self._config = config
        self._console = console
        controls = {trial.identity for trial in (*config.control_trials(), *config.confirmed)}
        self._ended = {
            identity: record
            for identity, record in records.items()
            if record.status != "failed" and (record.role == "search" or identity in controls)
        }
        self._num_before = len(self._ended)
        self._running: dict[str, _Running] = {}
        self._num_waiting = 0
        self._best: TrialRecord | None = None
        for record in self._ended.values():
            self._consider(record)
        self._total = num_searched(config) + len(controls)
        self._start = time.monotonic()
        self._last_line = self._start
        self._live: Live | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress while the context is open."""
        if not self._console.is_terminal or self._console.is_dumb_terminal:  # a dumb one cannot rewrite lines
            yield
            return
        with Live(
            console=self._console, refresh_per_second=_REFRESH_PER_SECOND, get_renderable=self._table, transient=True
        ) as self._live:
            yield
        self._live = None

    def started(self, identity: str, config: TrialConfig, role: Role) -> None:
        """A trial began, or began again."""
        self._running[identity] = _Running(config.applied(), role)

    def epoch(self, row: EpochRecord) -> None:
        """A running trial ended an epoch."""
        running = self._running.get(row.identity)
        if running is not None:
            running.stage, running.epoch, running.accuracy = row.stage, row.epoch, row.val_accuracy

    def ended(self, record: TrialRecord) -> None:
        """A trial ended."""
        self._running.pop(record.identity, None)
        self._ended[record.identity] = record
        if record.status == "failed":
            text = f"failed: trial {record.identity}, {record.backbone}: {record.reason}"
            self._console.print(text, style="red", markup=False, soft_wrap=True)
        if self._consider(record) and self._live is None:
            self._print_line()

    def retried(self, identity: str, reason: str) -> None:
        """The machine broke a trial, which will go on from its checkpoint."""
        self._running.pop(identity, None)
        self.say(f"broken, and begun again soon from its checkpoint: trial {identity}: {reason}")

    def stopping(self) -> None:
        """The study was told to stop: running trials save."""
        self.say("Stopping: running trials finish their step and save. Press Ctrl-C again to leave at once.")

    def saved(self, identity: str) -> None:
        """A trial has saved, because the study is to stop."""
        self._running.pop(identity, None)

    def say(self, sentence: str) -> None:
        """Something that a user should know."""
        self._console.print(sentence, style="yellow", markup=False, soft_wrap=True)

    def tick(self, num_waiting: int) -> None:
        """Print a line if it is time for one."""
        self._num_waiting = num_waiting
        if self._live is None and time.monotonic() - self._last_line >= _LOG_SECONDS:
            self._print_line()

    def closing_line(self) -> str:
        """What there is in the end: "18 trials: 15 finished, 3 pruned, in 4 min. Device time: 7 min, 2 min to pre-train"."""
        records = list(self._ended.values())
        now = len(records) - self._num_before
        taken = duration(time.monotonic() - self._start)
        this_run = f"in {taken}" if not self._num_before else f"{now} of them now, in {taken}" if now else "none was missing"
        device = duration(sum(record.pretraining_seconds + record.regulation_seconds for record in records))
        ledger = experience_ledger(records)
        reused = f"; {duration(ledger.reused)} more were reused, {100 * ledger.saved:.0f} % saved" if ledger.reused else ""
        trials = "1 trial" if len(records) == 1 else f"{len(records)} trials"
        pretraining = f"{duration(ledger.paid)} to pre-train{reused}"
        return f"{trials}: {self._by_status()}, {this_run}. Device time: {device}, {pretraining}."

    def _consider(self, record: TrialRecord) -> bool:
        if record.number is None or record.status != "finished":
            return False
        if self._best is None or better(record, self._best, self._config.objectives[0]):
            self._best = record
            return True
        return False

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        running = "; ".join(_describe(trial) for trial in self._running.values())
        text = f"{self._counts()} | {self._best_text()}{f' | now: {running}' if running else ''}"
        self._console.print(text, markup=False, soft_wrap=True)

    def _counts(self) -> str:
        return (
            f"{len(self._ended)}/{self._total} trials: {self._by_status()}, {len(self._running)} running, "
            f"{f'{self._num_waiting} waiting for pre-training, ' if self._num_waiting else ''}{self._time_left()}"
        )

    def _by_status(self) -> str:
        statuses = [record.status for record in list(self._ended.values())]
        counts = {status: statuses.count(status) for status in ("finished", "pruned", "failed")}
        return ", ".join(f"{count} {status}" for status, count in counts.items() if count or status == "finished")

    def _best_text(self) -> str:
        if self._best is None:
            return "no searched trial has finished yet" if self._config.num_trials else "nothing is searched"
        metric = self._config.objectives[0].metric
        params = ", ".join(format_params(self._best.sampled))
        return f"best {metric} {getattr(self._best, metric):.4g}: {self._best.backbone}{f', {params}' if params else ''}"

    def _time_left(self) -> str:
        done = len(self._ended) - self._num_before
        if done == 0:
            return "time left: not known yet"
        left = (time.monotonic() - self._start) / done * max(0, self._total - len(self._ended))
        return f"about {duration(left)} left"

    def _table(self) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("trial", "role", "backbone", "balance", "stage", "epoch", "accuracy"):
            table.add_column(column, justify="right" if column in ("balance", "epoch", "accuracy") else "left")
        for identity, trial in list(self._running.items()):
            table.add_row(
                identity,
                _role(trial),
                trial.config.backbone,
                f"{trial.config.regulation.balance:.3f}",
                trial.stage,
                _epoch(trial),
                "" if trial.accuracy is None else f"{trial.accuracy:.3f}",
            )
        return Group(Text(self._counts(), style="bold"), Text(self._best_text(), style="green"), table)


def _role(trial: _Running) -> str:
    return "search" if trial.role == "search" else control_name(trial.config.control)


def _epoch(trial: _Running) -> str:
    if trial.epoch == 0:
        return ""
    total = trial.config.pretraining.epochs if trial.stage == "pretraining" else trial.config.regulation.epochs
    return f"{trial.epoch}/{total}"


def _describe(trial: _Running) -> str:
    return f"{_role(trial)} {trial.config.backbone} {trial.stage} {_epoch(trial)}".rstrip()
