"""The kill harness: a study is killed again and again, driver and workers, and ends as if nobody had touched it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pyarrow.parquet as pq
import pytest
from optuna.trial import TrialState

STUDY = Path(__file__).with_name("kill_study.py")
FAULTS = Path(__file__).with_name("faults")
NUM_TRIALS, NUM_CONTROLS = 6, 3
NUM_KILLS = 25
BETWEEN_WRITE_AND_RENAME = ("trial.ckpt", "3.ckpt", "4+1.partial", "trials.parquet", "epochs.parquet", "study.json")
VOLATILE = {
    *("started", "ended", "attempts", "waiting_seconds"),
    *("pretraining_seconds", "experience_seconds", "regulation_seconds", "device_seconds"),
}


class Killed:
    """A study that runs in a process of its own, and what it leaves in ``storage``."""

    def __init__(self, storage: Path, faults: Path) -> None:
        self.folder = storage / "killed"
        self._storage = storage
        self._environment = {
            **os.environ,
            "PYTHONPATH": f"{FAULTS}{os.pathsep}{Path(__file__).parents[2]}",
            "EMOREG_TEST_FAULTS": str(faults),
        }
        self.process = self.start()

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "emoreg", "run", str(STUDY), "--storage", str(self._storage)]
        self.process = subprocess.Popen(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # its own process group: a signal sent to it reaches nothing else
        )
        return self.process

    def num_log_lines(self) -> int:
        return sum(len(path.read_text().splitlines()) for path in self.folder.glob("trials/*/log.txt"))

    def workers(self) -> list[int]:
        """The processes that run trials now."""
        pids = set()
        for path in self.folder.glob("trials/*/log.txt"):
            pids |= set(map(int, re.findall(r"attempt \d+ on \S+, process (\d+)", path.read_text())))
        return sorted(pid for pid in pids if is_alive(pid))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], study: Killed, seconds: float = 120) -> bool:
    """Whether the condition came to hold before the study ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if study.process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.01)  # between two looks at the condition
    return True


def rows(folder: Path, table: str) -> list[dict[str, object]]:
    read: list[dict[str, object]] = pq.read_table(folder / "records" / f"{table}.parquet").to_pylist()
    return read


def settled(folder: Path) -> dict[object, dict[str, object]]:
    """The trials' records without what depends on the clock."""
    return {row["identity"]: {k: v for k, v in row.items() if k not in VOLATILE} for row in rows(folder, "trials")}


def losses(folder: Path) -> dict[tuple[object, ...], object]:
    return {
        (row["identity"], row["epoch"]): (row["train_loss"], row["val_loss"], row["val_accuracy"], row["step"])
        for row in rows(folder, "epochs")
        if row["stage"] == "regulation"
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = Killed(tmp_path_factory.mktemp("undisturbed"), tmp_path_factory.mktemp("no_faults"))
    output, _ = study.process.communicate(timeout=240)
    assert study.process.returncode == 0, output
    return study.folder


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_moment_it_ends_as_if_undisturbed(undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(20261121)
    faults = tmp_path / "faults"
    faults.mkdir()
    for name in BETWEEN_WRITE_AND_RENAME:
        (faults / name).touch()
    storage = tmp_path / "storage"
    study = Killed(storage, faults)
    kills = {"driver": 0, "worker": 0}
    recorded: dict[object, dict[str, object]] = {}

    def num_kills() -> int:
        return sum(kills.values()) + len(BETWEEN_WRITE_AND_RENAME) - len(list(faults.iterdir()))

    outputs = []
    while True:
        moment = study.num_log_lines() + chance.randrange(1, 9)
        if num_kills() < NUM_KILLS and wait_for(lambda moment=moment: study.num_log_lines() >= moment, study):  # type: ignore[misc]
            workers = study.workers()
            if chance.random() < 0.3 or not workers:
                study.process.send_signal(signal.SIGKILL)
                kills["driver"] += 1
            else:
                victim = chance.choice(workers)
                try:
                    os.kill(victim, signal.SIGKILL)
                except ProcessLookupError:
                    continue
                kills["worker"] += 1
                continue
        outputs.append(study.process.communicate(timeout=240)[0])
        now = settled(study.folder) if (study.folder / "records" / "trials.parquet").exists() else {}
        assert {identity: now.get(identity) for identity in recorded} == recorded, "a record was lost or written twice"
        recorded = now
        if study.process.returncode == 0:
            break
        assert study.process.returncode == -signal.SIGKILL, outputs[-1]
        study.start()
    assert num_kills() >= NUM_KILLS, f"only {num_kills()} kills before the study ended"
    assert min(kills.values()) >= 3
    assert not list(faults.iterdir()), "a moment between write and rename never came"

    records = rows(study.folder, "trials")
    assert len(records) == len(settled(study.folder)) == NUM_TRIALS + NUM_CONTROLS
    assert settled(study.folder) == settled(undisturbed)
    assert losses(study.folder) == losses(undisturbed)
    epochs = [(row["identity"], row["stage"], row["epoch"]) for row in rows(study.folder, "epochs")]
    assert len(epochs) == len(set(epochs))
    journal = optuna.storages.journal.JournalFileBackend(str(study.folder / "optuna.journal"))
    trials = optuna.load_study(study_name="killed", storage=optuna.storages.JournalStorage(journal)).trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * NUM_TRIALS
    by_number = {row["number"]: row["val_accuracy"] for row in records if row["number"] is not None}
    assert {trial.number: trial.value for trial in trials} == by_number
    assert not list(storage.rglob("*.tmp"))
    assert not list(storage.rglob("*.bad"))
