"""A study in processes of its own, which faults disturb, and which is compared with the undisturbed one, to the bit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import optuna
import pyarrow.parquet as pq

from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy, join
from tests.faults.study import NAME
from tests.helpers.waiting import PATIENCE

STUDY = Path(__file__).with_name("study.py")
SHIM = Path(__file__).with_name("shim")
ROOT = Path(__file__).parents[2]
VOLATILE = {
    *("started", "ended", "attempts", "waiting_seconds"),
    *("pretraining_seconds", "experience_seconds", "regulation_seconds", "device_seconds"),
    *("seconds", "images_per_second", "gpu_utilisation"),
}
"""Columns that depend on the clock, or on who paid."""
MOST_RUNS = 60
"""Runs of a study, each ended by a fault, after which it is given up."""

Row = dict[str, Any]


@dataclass
class Tally:
    """What faults of a kind have done.

    Attributes:
        tried: faults.
        lost: trials, epochs or proposals that an undisturbed study has and this one has not.
        doubled: those that are there twice, were done again after they were recorded, or that nobody asked for.
        changed: those with other numbers.
        silent: damages that were used without a word.
        tracebacks: seen by a user, or of an error that is none of emoreg's own.
        silence: longest time, in seconds, from the begin of a wait until a word about it; None where nothing waits.
        answers: what was said or done, and how often.
        notes: what a reader should look at.
    """

    tried: int = 0
    lost: int = 0
    doubled: int = 0
    changed: int = 0
    silent: int = 0
    tracebacks: int = 0
    silence: float | None = None
    answers: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing went wrong."""
        counts = (self.lost, self.doubled, self.changed, self.silent, self.tracebacks)
        return not any(counts) and not self.notes

    def waited(self, seconds: float) -> None:
        """Count a wait by the time that passed before a word about it."""
        self.silence = max(seconds, self.silence or 0.0)

    def __add__(self, other: Tally) -> Tally:
        silences = [tally.silence for tally in (self, other) if tally.silence is not None]
        return Tally(
            **{name: getattr(self, name) + getattr(other, name) for name in vars(self) if name != "silence"},
            silence=max(silences, default=None),
        )


@dataclass(frozen=True)
class Left:
    """What a study has left in its storage: rows of the records, and Optuna's trials."""

    trials: list[Row] = field(default_factory=list)
    epochs: list[Row] = field(default_factory=list)
    proposed: list[Row] = field(default_factory=list)

    @classmethod
    def of(cls, storage: str, database: str | None = None, *, name: str = NAME) -> Left:
        """What a study of this name has left by now: nothing where there is no record yet."""
        with WorkingCopy(Files(join(storage, name))) as copy:
            copy.pull("records", "optuna.journal")
            if not (copy.folder / "records" / "trials.parquet").exists():
                return cls()
            return cls(
                trials=_rows(copy.folder / "records" / "trials.parquet"),
                epochs=_rows(copy.folder / "records" / "epochs.parquet"),
                proposed=_proposed(name, copy.folder / "optuna.journal", database),
            )

    def keyed(self) -> Iterator[tuple[str, str]]:
        """Everything that counts: what it is, and its numbers, exactly.

        Trials of one trunk share its pre-training, whichever of them pays for an epoch: its numbers say which epoch it is.
        """
        for row in self.trials:
            yield f"trial {row['identity']}", _settled(row)
        for row in self.epochs:
            if row["stage"] == "regulation":
                yield f"epoch {row['epoch']} of {row['identity']}", _settled(row)
            else:
                yield f"pre-training {_settled(row, 'identity')}", ""
        for row in self.proposed:
            yield f"proposal {row['number']}", _settled(row)

    def compare(self, whole: Left, tally: Tally) -> None:
        """Count what differs from the undisturbed study."""
        wanted, found = dict(whole.keyed()), dict(self.keyed())
        often = Counter(key for key, _ in self.keyed())
        for key in wanted.keys() - found.keys():
            tally.lost += 1
            tally.notes.append(f"lost: {key}")
        for key in sorted(found.keys() - wanted.keys() | {key for key, count in often.items() if count > 1}):
            tally.doubled += 1
            tally.notes.append(f"doubled: {key}")
        for key in sorted(key for key in wanted.keys() & found.keys() if wanted[key] != found[key]):
            tally.changed += 1
            tally.notes.append(f"changed: {key}: {wanted[key]} -> {found[key]}")


def _settled(row: Row, *without: str) -> str:
    return repr({name: value for name, value in row.items() if name not in VOLATILE and name not in without})


def _rows(path: Path) -> list[Row]:
    with pq.ParquetFile(path) as stored:  # opened once: its driver may replace it
        rows: list[Row] = stored.read().to_pylist()
    return rows


def _proposed(name: str, journal: Path, database: str | None) -> list[Row]:
    """Optuna's trials, without times."""
    if database is None:
        storage: Any = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    else:
        storage = optuna.storages.RDBStorage(database.replace("postgresql:", "postgresql+psycopg:"))
    try:
        trials = optuna.load_study(study_name=name, storage=storage).trials
    finally:
        if database is not None:
            storage.remove_session()
            storage.engine.dispose()
    return [{"number": trial.number, "state": trial.state.name, "values": trial.values, **trial.params} for trial in trials]


class Driver:
    """`emoreg run` in a process of its own, whose lines are kept with the moments at which they came.

    Attributes:
        process: the driver.
        began: when it was started, by ``time.monotonic``.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str]) -> None:
        self.began = time.monotonic()
        self._lines: list[tuple[float, str]] = []
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a signal sent to its process group reaches nothing else
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """What it has said so far."""
        return "".join(line for _, line in self._lines)

    def wait_for(self, condition: Callable[[], bool], seconds: float = PATIENCE, pause: float = 0.01) -> bool:
        """Whether the condition came to hold before the driver ended. It is looked at after each ``pause``.

        Raises:
            AssertionError: where neither has happened for so long.
        """
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < deadline, f"the moment never came; the driver has said:\n{self.output}"
            time.sleep(pause)
        return True

    def wait_for_word(self, words: str, since: float, seconds: float = 60) -> float:
        """Seconds from a moment until the driver said these words; all of them where it ended without."""

        def said() -> bool:
            return self._said_at(words, since) is not None

        self.wait_for(said, seconds)
        self._reader.join(timeout=0 if self.process.poll() is None else 10)
        return (self._said_at(words, since) or time.monotonic()) - since

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code, once it has ended.

        Raises:
            AssertionError: where it does not; it is killed then.
        """
        try:
            code = self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.signal_all(signal.SIGKILL)
            raise AssertionError(f"a study did not end; it has said:\n{self.output}") from None
        self._reader.join(timeout=PATIENCE)
        return code

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the driver and all processes below it: its private Ray and the workers."""
        for pid in family(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _said_at(self, words: str, since: float) -> float | None:
        return next((moment for moment, line in [*self._lines] if moment >= since and words in line), None)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self._lines.append((time.monotonic(), line))


def family(pid: int) -> list[int]:
    """A process and all below it, itself first."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for member in found:
        found += children.get(member, [])
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Disturbed:
    """A study that is run again until it has ended, whatever is done to it.

    Attributes:
        storage: of the study alone.
        tally: what has come of it.
        driver: the last one.
    """

    def __init__(self, whole: Left, storage: str, *, database: str | None = None, moments: Path | None = None) -> None:
        """Begin with nothing.

        Args:
            whole: what an undisturbed study has left.
            storage: of the study.
            database: of Optuna's history; None for a journal.
            moments: a folder of exact moments: see the shim.
        """
        self.storage = storage
        self.tally = Tally()
        self._whole = whole
        self._database = database
        self._command = [sys.executable, "-m", "emoreg", "run", str(STUDY)]
        self._command += [] if database is None else ["--optuna-storage", database]
        self._environment = {**os.environ, "PYTHONPATH": f"{SHIM}{os.pathsep}{ROOT}"}
        self._environment.pop("EMOREG_TEST_FAULTS", None)
        if moments is not None:
            self._environment["EMOREG_TEST_FAULTS"] = str(moments)
        self._recorded: dict[str, Row] = {}
        self._drivers: list[Driver] = []
        self._codes: dict[Driver, int] = {}

    @property
    def driver(self) -> Driver:
        return self._drivers[-1]

    def start(self, storage: str | None = None) -> Driver:
        """A driver, which reaches the storage by another URI where one is given."""
        self._drivers.append(Driver([*self._command, "--storage", storage or self.storage], self._environment))
        return self.driver

    def recorded(self) -> list[Row]:
        """The rows of the trials that have ended."""
        with WorkingCopy(Files(join(self.storage, NAME))) as copy:
            copy.pull("records/trials.parquet")
            path = copy.folder / "records" / "trials.parquet"
            return _rows(path) if path.exists() else []

    def comes_to(self, num_trials: int) -> bool:
        """Whether so many trials are recorded before the last driver ends."""
        return self.driver.wait_for(lambda: len(self.recorded()) >= num_trials, pause=0.2)

    def num_log_lines(self) -> int:
        return sum(len(path.read_text().splitlines()) for path in Path(self.storage).glob(f"{NAME}/trials/*/log.txt"))

    def workers(self) -> list[int]:
        """The processes that run trials now."""
        pids: set[int] = set()
        for path in Path(self.storage).glob(f"{NAME}/trials/*/log.txt"):
            pids |= set(map(int, re.findall(r"attempt \d+ on \S+, process (\d+)", path.read_text())))
        return sorted(pid for pid in pids if is_alive(pid))

    def waited(self, driver: Driver, words: str, since: float) -> None:
        """Count how long a driver is silent from a moment on until it says these words."""
        try:
            self.tally.waited(driver.wait_for_word(words, since))
        except AssertionError as error:
            self.tally.silent += 1
            self.tally.notes.append(f"without the words {words!r}: {error}")

    def ended(self, driver: Driver) -> int:
        """The exit code of a driver, once it has ended; what it said, and did to what was recorded before, is counted then."""
        if driver in self._codes:
            return self._codes[driver]
        code = self._codes[driver] = driver.wait()
        self.tally.answers[f"exit {code}"] += 1
        tracebacks = driver.output.count("Traceback (most recent call last)")
        self.tally.tracebacks += tracebacks
        if tracebacks or code not in (0, 2, -signal.SIGKILL):
            self.tally.notes.append(f"exit {code}: {driver.output}")
        now = {row["identity"]: row for row in self.recorded()}
        for identity, row in self._recorded.items():
            self.tally.lost += identity not in now
            if now.get(identity, row) != row:
                self.tally.doubled += 1
                self.tally.notes.append(f"done again after it was recorded: trial {identity}")
        self._recorded = now
        return code

    def finish(self) -> Tally:
        """Run the study until it says that it has ended, then compare it with the undisturbed one."""
        while self.ended(self.driver) != 0:
            assert len(self._drivers) < MOST_RUNS, f"it did not end:\n{self.driver.output}"
            self.start()
        before = len(self.tally.notes)
        Left.of(self.storage, self._database).compare(self._whole, self.tally)
        self.tally.silent += len(self.tally.notes) - before  # it said that it had ended well
        if "://" not in self.storage:
            rest = [path for end in ("tmp", "bad") for path in Path(self.storage).rglob(f"*.{end}")]
            self.tally.notes += [f"left behind: {path.relative_to(self.storage)}" for path in rest]
        return self.tally

    def clear(self) -> None:
        """End what runs."""
        for driver in self._drivers:
            if driver.process.poll() is None:
                driver.signal_all(signal.SIGKILL)
                driver.process.wait()


class Ground:
    """Where faults happen: folders of their own, and the undisturbed study to compare with.

    Attributes:
        kills: that each study suffers that is killed at random.
        flips: bits that are flipped in each kind of stored file.
    """

    def __init__(self, folder: Path, *, kills: int = 12, flips: int = 100) -> None:
        self.kills = kills
        self.flips = flips
        self._folder = folder
        self._undisturbed: Path | None = None
        self._whole = Left()

    def new_folder(self, name: str) -> Path:
        """An empty folder of this name, which is not made, in one of its own."""
        parent = self._folder / f"{len([*self._folder.iterdir()])}"
        parent.mkdir()
        return parent / name

    @property
    def undisturbed(self) -> Path:
        """The storage of a study that nobody disturbed, run when it is first asked for."""
        if self._undisturbed is None:
            storage = self.new_folder("undisturbed")
            study = Disturbed(Left(), str(storage))
            try:
                code = study.start().wait()
                assert code == 0, study.driver.output
            finally:
                study.clear()
            self._undisturbed, self._whole = storage, Left.of(str(storage))
        return self._undisturbed

    @contextmanager
    def study(
        self, storage: str | None = None, *, database: str | None = None, moments: Path | None = None
    ) -> Iterator[Disturbed]:
        """A study to disturb, in a new folder or elsewhere; its processes have ended after the block."""
        _ = self.undisturbed
        place = str(self.new_folder("storage")) if storage is None else storage
        study = Disturbed(self._whole, place, database=database, moments=moments)
        try:
            yield study
        finally:
            study.clear()


Fault = Callable[[Ground, Random], Tally]
FAULTS: dict[str, Fault] = {}
"""Every fault by what it is called in the table."""


def fault(name: str) -> Callable[[Fault], Fault]:
    """Give a fault its row in the table."""

    def register(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return register


def total(tallies: Iterable[Tally]) -> Tally:
    return sum(tallies, Tally())
