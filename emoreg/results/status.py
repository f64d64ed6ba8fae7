"""How a study stands, from its records, also while it runs: answered in a second, without torch, Ray, SciPy or Optuna.

Records know what has ended. What runs now is known to the driver alone, which leaves it in ``records/now.RUN.json`` every few
seconds (``Now``). A killed driver leaves that file behind: whether one lives is told by its lock, or by its last sign of life.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emoreg.config import Objective, StudyConfig, TrialConfig, Value
from emoreg.config.search_space import num_searched
from emoreg.formatting import control_name, duration, format_params
from emoreg.results.records import EpochRecord, Role, read_table, utc_now
from emoreg.results.written import read_written
from emoreg.storage.files import Files, replacing, storage_full_error
from emoreg.storage.locks import is_held

log = logging.getLogger(__name__)

State = Literal["running", "ended", "killed", "not run"]
"""``killed``: it stopped without a word. How one ended that did say so is its ``ending``."""

_WRITE_SECONDS = 5.0
_BEAT_SECONDS = 20.0
"""A driver that has not been heard of for so long, on another machine or in a database, is dead."""
_TRIALS = ("identity", "role", "number", "control", "status", "seed", "backbone", "params", "ended")
_RUNS = ("run", "started", "ended", "ending", "slots", "num_trials", "slot_seconds", "waiting_slot_seconds")


@dataclass(kw_only=True, slots=True)
class Running:
    """A trial that runs. ``stage`` is None until its first epoch has ended; ``epochs`` is the stage's number of them."""

    identity: str
    role: Role
    control: str
    backbone: str
    stage: str | None = None
    epoch: int = 0
    epochs: int | None = None
    accuracy: float | None = None


class Now:
    """What runs in a driver now, left for others in a file beside the records."""

    def __init__(self, folder: Path, run: int) -> None:
        """Begin for a run of the study in ``folder``."""
        self.name = f"records/{_name(run)}"
        self._path = folder / self.name
        self._configs: dict[str, TrialConfig] = {}
        self._running: dict[str, Running] = {}
        self._newest: dict[str, EpochRecord] = {}
        self._next_write = 0.0
        files = Files(str(folder))
        for path in self._path.parent.glob(_name("*")):  # of drivers that were killed; others rewrite theirs
            now = _read_now(files, path.name)
            if now is None or _age(now["time"]) > _BEAT_SECONDS:
                path.unlink(missing_ok=True)
        self.write(slots=0, num_waiting=0)  # a sign of life at once, and a whole one at the first step
        self._next_write = 0.0

    def started(self, config: TrialConfig, role: Role) -> None:
        """A trial has a worker."""
        applied, identity = config.applied(), config.identity
        self._configs[identity] = applied
        self._running[identity] = Running(identity=identity, role=role, control=applied.control, backbone=applied.backbone)

    def epoch(self, row: EpochRecord) -> None:
        """A running trial ended an epoch."""
        trial = self._running.get(row.identity)
        if trial is not None:
            config = self._configs[row.identity]
            self._newest[row.identity] = row
            trial.stage, trial.epoch, trial.accuracy = row.stage, row.epoch, row.val_accuracy
            trial.epochs = (config.pretraining if row.stage == "pretraining" else config.regulation).epochs

    def stopped(self, identity: str) -> None:
        """A trial runs no more, whyever."""
        self._running.pop(identity, None)
        self._newest.pop(identity, None)

    @property
    def num_running(self) -> int:
        """Trials that have a worker."""
        return len(self._running)

    @property
    def gpu_utilisation(self) -> float | None:
        """Mean over the running trials' newest epochs, in [0, 1]; None where there is no GPU, or no epoch yet."""
        shares = [row.gpu_utilisation for row in self._newest.values() if row.gpu_utilisation is not None]
        return sum(shares) / len(shares) if shares else None

    def write(self, *, slots: int, num_waiting: int) -> None:
        """Write the file, if it is time: changed or not, since it is a sign of life too.

        Args:
            slots: trials that can run at once.
            num_waiting: trials that wait for an experience which another is training.
        """
        if time.monotonic() < self._next_write:
            return
        running = [dataclasses.asdict(trial) for trial in self._running.values()]
        now = {"time": utc_now(), "slots": slots, "waiting": num_waiting, "running": running}
        try:
            with replacing(self._path) as stream:
                stream.write(json.dumps(now).encode())
        except OSError as error:
            if storage_full_error(error.errno, error):
                raise
            log.warning("what runs now could not be written down: %s", error)  # no reason to end a study
        self._next_write = time.monotonic() + _WRITE_SECONDS

    def end(self) -> None:
        """The run has ended."""
        self._path.unlink(missing_ok=True)


def _name(run: int | str) -> str:
    return f"now.{run}.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trials:
    """Trials of the search and beside it, counted. ``planned``: at most, as a sampler may propose one again."""

    planned: int
    finished: int
    pruned: int
    failed: int

    @property
    def ended(self) -> int:
        """All that have a record."""
        return self.finished + self.pruned + self.failed


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """The best finished trial of the search by the study's first objective."""

    identity: str
    number: int
    backbone: str
    metric: str
    value: float
    params: Mapping[str, Value]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seeds:
    """How much of a confirmation is done: trials, a seed each, of one control of one backbone that finished."""

    backbone: str
    control: str
    finished: int
    planned: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """How a study stands. None: not known, or there is none.

    Attributes:
        ending: of the last run: whole, interrupted or broken.
        num_runs: times that it was run.
        started: the last run, ISO 8601 UTC; None while a driver that has just begun has not said so.
        last_ended: the last trial that ended, ISO 8601 UTC.
        running: what runs now; None where that is not known.
        num_waiting: trials that wait for an experience which another is training.
        slots: trials that can run at once.
        waiting_share: of the slots' time, over all runs, in [0, 1].
        seconds_left: at the pace of this run.
        confirmation: what is done of one; None for a search.
    """

    name: str
    place: str
    state: State
    ending: str | None
    num_runs: int
    started: str | None
    last_ended: str | None
    trials: Trials
    running: tuple[Running, ...] | None
    num_waiting: int | None
    best: Best | None
    slots: int | None
    waiting_share: float | None
    seconds_left: float | None
    confirmation: tuple[Seeds, ...] | None


def print_study_status(place: str, *, as_json: bool) -> int:
    """Print how the study in a folder or at a URI stands, for a person or, as JSON, for a program."""
    status = read_status(place)
    if as_json:
        fields = dataclasses.asdict(status)
        fields["trials"]["ended"] = status.trials.ended
        print(json.dumps(fields, indent=2))
    else:
        _print(status, Console(highlight=False))
    return 0


def read_status(place: str) -> Status:
    """How the study in a folder or at a URI stands. Nothing is written, and a driver is not disturbed.

    Raises:
        ConfigError: where there is no study.
        StorageError: where its files cannot be read.
    """
    files = Files(place)
    config, _ = read_written(files)
    beside = {trial.identity for trial in (*config.control_trials(), *config.confirmed)}
    objective = config.objectives[0]
    columns = _read(files, "trials", dict.fromkeys((*_TRIALS, objective.metric)))
    counted = [
        index
        for index, (identity, role) in enumerate(zip(columns["identity"], columns["role"], strict=True))
        if role == "search" or identity in beside
    ]
    by_status = Counter(columns["status"][index] for index in counted)
    runs = _read(files, "runs", _RUNS)
    open_runs = [index for index, ended in enumerate(runs["ended"]) if ended is None]
    found = {runs["run"][index]: _read_now(files, _name(runs["run"][index])) for index in open_runs}
    live = _live(files, config, found)
    newest = max(range(len(runs["run"])), key=lambda index: runs["run"][index], default=None)
    ending = None if newest is None else runs["ending"][newest]
    state: State = "running" if live is not None else "not run" if newest is None else "killed" if ending is None else "ended"
    trials = Trials(
        planned=len(counted) if (state, ending) == ("ended", "whole") else num_searched(config) + len(beside),
        finished=by_status["finished"],
        pruned=by_status["pruned"],
        failed=by_status["failed"],
    )
    nows = [now for run in live or () if (now := found[run]) is not None]
    pace = sum(
        runs["num_trials"][index] / _age(runs["started"][index]) for index in open_runs if runs["run"][index] in (live or ())
    )
    slot_seconds = sum(runs["slot_seconds"])
    return Status(
        name=config.name,
        place=files.uri,
        state=state,
        ending=None if state == "running" else ending,
        num_runs=len(runs["run"]),
        started=_started(runs, newest, live),
        last_ended=max((columns["ended"][index] for index in counted), default=None),
        trials=trials,
        running=None if state == "running" and not nows else tuple(Running(**row) for now in nows for row in now["running"]),
        num_waiting=sum(now["waiting"] for now in nows) if nows else None,
        best=_best(columns, objective),
        slots=sum(now["slots"] for now in nows) or None if nows else None if newest is None else runs["slots"][newest] or None,
        waiting_share=sum(runs["waiting_slot_seconds"]) / slot_seconds if slot_seconds else None,
        seconds_left=max(0, trials.planned - trials.ended) / pace if pace else None,
        confirmation=_seeds(config, columns, beside) if config.confirmed else None,
    )


def _read(files: Files, table: str, names: Iterable[str]) -> dict[str, list[Any]]:
    """Columns of a table of the records; empty ones where there is no table yet."""
    name = f"records/{table}.parquet"
    try:
        content = files.read(name)
    except FileNotFoundError:
        return {name: [] for name in names}
    columns = read_table(pa.BufferReader(content), f"{name} of {files.uri!r}", list(names))
    return {name: columns[name].to_pylist() for name in names}


def _read_now(files: Files, name: str) -> dict[str, Any] | None:
    """What a driver has left; None where it is gone, or damaged."""
    try:
        now: dict[str, Any] = json.loads(files.read(f"records/{name}").to_pybytes())
        return now if now.keys() >= {"time", "slots", "waiting", "running"} else None
    except (FileNotFoundError, ValueError, AttributeError):
        return None


def _live(files: Files, config: StudyConfig, found: Mapping[int, Mapping[str, Any] | None]) -> list[int] | None:
    """Which of the runs without an end go on, by what they have left; None where no driver lives."""
    if (config.optuna_storage or "").startswith("postgresql"):  # several drivers, and no lock on the folder
        return [run for run, now in found.items() if now is not None and _age(now["time"]) < _BEAT_SECONDS] or None
    return sorted(found)[-1:] if is_held(files) else None


def _started(runs: Mapping[str, list[Any]], newest: int | None, live: Sequence[int] | None) -> str | None:
    if live is None:
        return None if newest is None else str(runs["started"][newest])
    return min((started for run, started in zip(runs["run"], runs["started"], strict=True) if run in live), default=None)


def _age(moment: str) -> float:
    """Seconds since a time of the records; a clock that is ahead has no say."""
    return max(1e-3, (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds())


def _best(columns: Mapping[str, list[Any]], objective: Objective) -> Best | None:
    metric = objective.metric
    candidates = [
        index
        for index, (number, status, value) in enumerate(zip(columns["number"], columns["status"], columns[metric], strict=True))
        if number is not None and status == "finished" and value is not None
    ]
    if not candidates:
        return None
    pick = max if objective.mode == "max" else min
    best = pick(candidates, key=lambda index: columns[metric][index])
    return Best(
        identity=columns["identity"][best],
        number=columns["number"][best],
        backbone=columns["backbone"][best],
        metric=metric,
        value=columns[metric][best],
        params=json.loads(columns["params"][best]),
    )


def _seeds(config: StudyConfig, columns: Mapping[str, list[Any]], planned_now: Set[str]) -> tuple[Seeds, ...]:
    planned = Counter((trial.backbone, trial.control) for trial in config.confirmed)
    finished = Counter(
        (backbone, control)
        for identity, backbone, control, status in zip(
            *(columns[name] for name in ("identity", "backbone", "control", "status")), strict=True
        )
        if status == "finished" and identity in planned_now  # not what a former look ran
    )
    return tuple(
        Seeds(backbone=backbone, control=control, finished=finished[backbone, control], planned=count)
        for (backbone, control), count in planned.items()
    )


def _print(status: Status, console: Console) -> None:
    def say(text: str, style: str | None = None) -> None:
        console.print(text, style=style, markup=False, soft_wrap=True)

    trials = status.trials
    say(f"{status.name}: {_state(status)}", style="bold")
    counts = [f"{trials.finished} finished"]
    counts += [f"{count} {what}" for what, count in (("pruned", trials.pruned), ("failed", trials.failed)) if count]
    if status.running:
        counts.append(f"{len(status.running)} running")
    if status.num_waiting:
        counts.append(f"{status.num_waiting} waiting for pre-training")
    say(f"  trials    {trials.ended}/{trials.planned}: {', '.join(counts)}")
    if status.state == "running":
        left = "not known yet" if status.seconds_left is None else f"about {duration(status.seconds_left)}"
        say(f"  time left {left}")
    if status.slots is not None:
        waiting = "" if status.waiting_share is None else f", {100 * status.waiting_share:.0f} % of their time spent waiting"
        say(f"  slots     {status.slots}{waiting}")
    best = status.best
    if best is not None:
        found = ", ".join([best.backbone, *format_params(best.params)])
        say(f"  best      {best.metric} {best.value:.4g}: {found} (trial {best.identity})", "green")
    elif status.confirmation is None:
        say("  best      no searched trial has finished yet")
    if status.confirmation is not None:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column, justify in (("  seeds done", "left"), ("backbone", "left"), ("finished", "right")):
            table.add_column(column, justify=justify)  # type: ignore[arg-type]
        for row in status.confirmation:
            table.add_row(f"  {control_name(row.control)}", row.backbone, f"{row.finished}/{row.planned}")
        console.print(table)
    if status.running:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("  running now", "trial", "backbone", "stage", "epoch", "accuracy"):
            table.add_column(column, justify="right" if column in ("epoch", "accuracy") else "left")
        for trial in status.running:
            table.add_row(
                "  search" if trial.role == "search" else f"  {control_name(trial.control)}",
                trial.identity,
                Text(trial.backbone),
                trial.stage or "starting",
                "" if trial.stage is None else f"{trial.epoch}/{trial.epochs}",
                "" if trial.accuracy is None else f"{trial.accuracy:.3f}",
            )
        console.print(table)


def _state(status: Status) -> str:
    when = "" if status.last_ended is None else f"; its last trial ended {duration(_age(status.last_ended))} ago"
    match status.state:
        case "running":
            return "starting" if status.started is None else f"running for {duration(_age(status.started))}"
        case "ended":
            words = {
                "whole": "done, every trial has ended",
                "interrupted": "interrupted",
                "broken": "stopped by faults in code",
            }
            go_on = "" if status.ending == "whole" else "; run it again to go on"
            return f"{words[status.ending or 'whole']}{when}{go_on}"
        case "killed":
            return f"killed, for its last run has no end and no driver lives{when}; run it again to go on"
        case "not run":
            return f"not run yet{when}"
