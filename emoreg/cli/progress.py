"""How a study goes on, for the person who waits: a live table in a terminal or a notebook, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Collection
from importlib.util import find_spec
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from emoreg.cli.terminal import plain_table, terminal
from emoreg.config import StudyConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.formatting import by_status, configuration, counted, duration, metric_text
from emoreg.results.analysis import Tally, device_time, objective_value
from emoreg.results.outcome import Status
from emoreg.results.records import EpochRecord, Role, TrialRecord
from emoreg.results.status import RunningTrial, seconds_left, trials_beside
from emoreg.results.written import read_written, stored_rows
from emoreg.storage.files import Files
from emoreg.tracking.observer import RunStatus, StudyObserver

_LINE_SECONDS = 20.0


class Progress(StudyObserver):
    """Shows a study while it runs. A context manager around its run.

    In a terminal, and in a notebook that has ipywidgets: one table, rewritten in place. Elsewhere: a line when a trial is the
    best so far, and every 20 seconds. Failed trials are told at once. Rich draws the table from a thread of its own, so what
    changes is copied before it is read.
    """

    def __init__(self, place: str, console: Console | None = None) -> None:
        """Begin for the study in a folder or at a URI, which need not be there yet; None: the terminal, or the notebook."""
        self._files = Files(place)
        self._console = terminal() if console is None else console
        self._config: StudyConfig | None = None
        self._running: dict[str, tuple[ResolvedTrial, RunningTrial]] = {}
        self._num_waiting = 0
        can_rewrite = self._console.is_terminal and not self._console.is_dumb_terminal
        can_rewrite |= self._console.is_jupyter and find_spec("ipywidgets") is not None
        self._live = Live(console=self._console, get_renderable=self._table, transient=True) if can_rewrite else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        if error is None:
            self._console.print(self.closing_line())

    def on_run_start(self, status: RunStatus) -> None:
        """Begin to count, from what earlier runs of the study have recorded."""
        self._begin(status.trials.values(), status.num_planned)

    def _begin(self, trials: Collection[TrialRecord], num_planned: int) -> None:
        self._config = config = read_written(self._files).config
        self._beside = {*trials_beside(self._files, config, trials)}
        whole = [trial for trial in trials if trial.status != "failed"]  # failed ones are run again
        self._tally: Tally[TrialRecord] = Tally(config.objectives[0], self._beside, whole)
        self._num_before = len(self._tally.trials)
        self._num_planned = num_planned
        self._start = self._last_line = time.monotonic()

    def on_start(self, trial: ResolvedTrial, role: Role) -> None:
        """Show a trial that runs."""
        self._running[trial.identity] = trial, RunningTrial.of(trial, role)
        if role != "search":
            self._beside.add(trial.identity)

    def on_epoch(self, trial: ResolvedTrial, row: EpochRecord) -> None:
        """Show how far a trial is."""
        _, running = self._running[trial.identity]
        self._running[trial.identity] = trial, RunningTrial.of(trial, running.role, row)

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """Count a trial that ended, and tell one that failed or is the best so far."""
        self._running.pop(record.identity, None)
        if record.status == "failed":
            text = f"failed: trial {record.identity}, {record.backbone}: {record.message}"
            self._console.print(text, style="red")
        if self._tally.add(record) and self._live is None:
            self._print_line()

    def on_retry(self, trial: ResolvedTrial, reason: str) -> None:
        """Tell of a trial that the machine broke."""
        self._running.pop(trial.identity, None)
        self.on_message(f"broken, and begun again soon from its checkpoint: trial {trial.identity}: {reason}")

    def on_saved(self, trial: ResolvedTrial) -> None:
        """Tell of a trial that has saved because the study is to stop."""
        if (found := self._running.pop(trial.identity, None)) is not None:
            self._console.print(f"saved on its way: trial {trial.identity}, {found[1].where}")

    def on_stopping(self) -> None:
        """Tell that the study stops."""
        self.on_message("Stopping: running trials finish their step and save. Press Ctrl-C again to leave at once.")

    def on_message(self, message: str) -> None:
        """Print a message."""
        self._console.print(message, style="yellow")

    def on_tick(self, status: RunStatus) -> None:
        """Print a line if it is time for one."""
        self._num_waiting = status.num_waiting
        if self._live is None and time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._print_line()

    def closing_line(self) -> str:
        """What there is in the end: "18 trials: 15 finished, 3 pruned, in 4 min. Device time: 7 min, 2 min to pre-train"."""
        if self._config is None:  # nothing was missing, so no run began
            self._begin(stored_rows(self._files, "trials", TrialRecord) or (), 0)
        trials = self._tally.trials
        now, taken = len(trials) - self._num_before, duration(time.monotonic() - self._start)
        this_run = f"in {taken}" if not self._num_before else f"{now} of them now, in {taken}" if now else "none was missing"
        spent = device_time(trials)
        reused = f"; {duration(spent.reused)} more were reused, {100 * spent.saved:.0f} % saved" if spent.reused else ""
        return (
            f"{counted(len(trials), 'trial')}: {self._by_status()}, {this_run}. "
            f"Device time: {duration(spent.total)}, {duration(spent.paid)} to pre-train{reused}."
        )

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        running = "; ".join(trial.where for _, trial in self._running.values())
        self._console.print(f"{self._counts()} | {self._best_text()}{f' | now: {running}' if running else ''}")

    def _counts(self) -> str:
        waiting = f"{self._num_waiting} waiting for pre-training, " if self._num_waiting else ""
        done = len(self._tally.trials)
        return (
            f"{done}/{self._num_planned} trials: {self._by_status()}, {len(self._running)} running, "
            f"{waiting}{self._time_left(done)}"
        )

    def _by_status(self) -> str:
        statuses: tuple[Status, ...] = ("finished", "pruned", "failed")
        return by_status({status: self._tally.statuses[status] for status in statuses})

    def _best_text(self) -> str:
        assert self._config is not None
        best, objective = self._tally.best, self._config.objectives[0]
        if self._config.confirmed:
            return "accuracies are shown once all trials have ended"
        if best is None:
            return "no searched trial has finished yet" if self._config.num_trials else "nothing is searched"
        value = objective_value(best, objective)
        assert value is not None, "what is best has a value"
        return f"best {metric_text(objective.metric, value)}: {configuration(best.backbone, best.sampled)}"

    def _time_left(self, done: int) -> str:
        running = [trial for _, trial in list(self._running.values())]
        this_run = (time.monotonic() - self._start, done - self._num_before, running)
        left = seconds_left(self._num_planned - done, [this_run])
        return "time left: not known yet" if left is None else f"about {duration(left)} left"

    def _table(self) -> RenderableType:
        if self._config is None:
            return Text("Preparing image sets, starting Ray")
        numbers = ("balance", "epoch", "accuracy, %")
        table = plain_table("trial", "role", "backbone", "balance", "stage", "epoch", "accuracy, %", right=numbers)
        for identity, (trial, running) in list(self._running.items()):
            setting, stage = trial.config.regulation.balance_setting, running.stage or "starting"
            balance = "" if setting is None else f"{setting:.3f}"
            table.add_row(identity, running.what, running.backbone, balance, stage, running.progress, running.score)
        return Group(Text(self._counts(), style="bold"), Text(self._best_text(), style="green"), table)
