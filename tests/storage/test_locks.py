from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from emoreg.errors import StorageError
from emoreg.storage import locks
from emoreg.storage.files import Files
from emoreg.storage.locks import Fence, FileLocks, exclusive, has_locks, is_held, study_lock
from emoreg.storage.retry import Patience
from emoreg.storage.sealed import seal, unseal
from emoreg.storage.working_copy import WorkingCopy
from tests.helpers.filesystems import no_locks
from tests.helpers.s3 import s3_server
from tests.helpers.waiting import PATIENCE, wait_for
from tests.integration.gate import Gate

DRIVE = """
import sys
from emoreg.storage import locks
from emoreg.storage.files import Files
locks._BEAT_SECONDS, locks._SETTLE_SECONDS, locks._CHECK_SECONDS = 0.2, 0.1, 0.0
with locks.study_lock(Files(sys.argv[1])) as fence:
    print(fence.token, flush=True)
    while sys.stdin.readline():
        try:
            fence.check()
            print("held", flush=True)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
"""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 0.2)
    monkeypatch.setattr(locks, "_STALE_SECONDS", 2.0)
    monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(locks, "_CHECK_SECONDS", 0.0)


class Driver:
    """A process that holds a study; asked, it says whether it still does."""

    def __init__(self, uri: str) -> None:
        command = [sys.executable, "-c", DRIVE, uri]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.token = self.hear()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self, number: signal.Signals | None = None) -> None:
        if number is not None:
            self.process.send_signal(number)
        self.process.communicate(timeout=PATIENCE)


def holder_in(files: Files) -> dict[str, object]:
    return unseal(files.read(".driver.json"))


def leave(files: Files, **changes: object) -> dict[str, object]:
    """A driver's last word; ``changes`` make it another's."""
    holder = dataclasses.asdict(locks._Holder.of_this_process()) | changes
    files.write(".driver.json", seal(holder))
    return holder


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_one_driver_at_a_time(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    uri: str = str(tmp_path) if kind == "folder" else request.getfixturevalue("bucket")
    files = Files(uri)
    assert not is_held(files)
    driver = Driver(uri)
    assert is_held(files)
    with pytest.raises(StorageError, match="another process is running") as error, study_lock(files):
        pass
    assert "secret" not in str(error.value)
    assert driver.ask() == "held", "the other one disturbed it"
    driver.end()
    assert not is_held(files)
    with study_lock(files) as fence:
        assert is_held(files)
        fence.check()
    assert not is_held(files)


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_driver_that_was_killed_here_has_its_study_no_more(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    uri: str = str(tmp_path) if kind == "folder" else request.getfixturevalue("bucket")
    driver = Driver(uri)
    driver.end(signal.SIGKILL)
    assert not is_held(Files(uri))
    said: list[str] = []
    started = time.monotonic()
    with study_lock(Files(uri), Patience(notify=said.append)):
        assert time.monotonic() - started < 2, "it is certain: nothing is waited for"
    assert said == []


def test_a_driver_that_was_suspended_has_lost_its_study_and_says_to_whom(bucket: str) -> None:
    files = Files(bucket)
    driver = Driver(bucket)
    driver.process.send_signal(signal.SIGSTOP)
    said: list[str] = []
    with study_lock(files, Patience(notify=said.append)) as fence:
        (text,) = said
        assert f"was last run on {platform.node()}, process {driver.process.pid}: waiting up to 2 seconds to see" in text
        driver.process.send_signal(signal.SIGCONT)
        answer = driver.ask()
        assert answer.startswith("StorageError Let the other driver of 's3://")
        assert f"another driver has it now, on {platform.node()}, process {os.getpid()}" in answer
        assert "secret" not in answer
        fence.check()
        assert driver.ask() == answer, "it never has it again"
        token = holder_in(files)["token"]
        driver.end()
        assert holder_in(files)["token"] == token, "it took the other one's away"
    assert not files.exists(".driver.json")


@pytest.mark.slow
def test_a_driver_that_asks_nothing_is_told_within_five_seconds_that_the_store_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locks, "_BEAT_SECONDS", 5.0)
    with s3_server() as server, Gate(server.address) as gate:
        told: list[float] = []
        patience = Patience(notify=lambda text: told.append(time.monotonic()))
        files = Files(server.bucket().replace(server.address, gate.address), patience=patience)
        with study_lock(files, patience):
            with gate.frozen():
                wait_for(lambda: bool(told))
            assert gate.first_held is not None
            assert told[0] - gate.first_held < 5


@pytest.fixture
def sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A silent driver is given up after a second; for tests that hold no study meanwhile."""
    monkeypatch.setattr(locks, "_STALE_SECONDS", 1.0)
    monkeypatch.setattr(locks, "_POLL_SECONDS", 0.1)


@pytest.mark.usefixtures("sooner")
def test_a_driver_that_wakes_after_another_has_ended_has_lost_its_study_too(bucket: str) -> None:
    driver = Driver(bucket)
    driver.process.send_signal(signal.SIGSTOP)
    with study_lock(Files(bucket)):
        pass
    driver.process.send_signal(signal.SIGCONT)
    assert "another driver had it meanwhile" in driver.ask()
    driver.end()
    assert not Files(bucket).exists(".driver.json")


def test_a_driver_hears_within_a_beat_that_another_has_its_study(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_CHECK_SECONDS", 60.0)  # who asks does not look
    files = Files(bucket)
    with study_lock(files) as fence:
        fence.check()
        other = leave(files, host="elsewhere")

        def is_lost() -> bool:
            try:
                fence.check()
            except StorageError as error:
                return "on elsewhere, process" in str(error)
            return False

        wait_for(is_lost)
        assert holder_in(files) == other


@pytest.mark.usefixtures("sooner")
@pytest.mark.parametrize(
    "changes",
    [
        {"host": "elsewhere", "kernel": "another"},
        {"kernel": "this one pid:[1]"},  # another container of this host name, perhaps with this process's number
        {"kernel": ""},
    ],
)
def test_what_is_not_certain_is_waited_for_aloud(bucket: str, changes: dict[str, object]) -> None:
    files = Files(bucket)
    leave(files, **changes)
    said: list[str] = []
    started = time.monotonic()
    with study_lock(files, Patience(notify=said.append)):
        assert 1 <= time.monotonic() - started < 15
    assert len(said) == 1


def test_a_container_begun_again_has_its_own_study_at_once(bucket: str) -> None:
    own = leave(Files(bucket), started=1)  # the same kernel, host name and number, and another process
    started = time.monotonic()
    with study_lock(Files(bucket)):
        assert time.monotonic() - started < 2
        assert holder_in(Files(bucket))["process"] == own["process"]


def test_a_driver_of_the_same_name_and_number_that_lives_is_not_disturbed(bucket: str) -> None:
    with study_lock(Files(bucket)) as fence:
        with pytest.raises(StorageError, match=f"process {os.getpid()}$"), study_lock(Files(bucket)):
            pass
        fence.check()


def test_a_stop_ends_the_wait_for_a_dead_driver(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_STALE_SECONDS", 600.0)
    leave(Files(bucket), kernel="another")
    with pytest.raises(StorageError), study_lock(Files(bucket), Patience(should_stop=lambda: True)):
        pass


@pytest.mark.parametrize("what", ["another program's", "a flipped bit"])
def test_a_damaged_word_of_a_driver_is_no_word(what: str, bucket: str) -> None:
    leave(Files(bucket), kernel="another")
    assert is_held(Files(bucket))
    word = Files(bucket).read(".driver.json").to_pybytes()
    damaged = word.replace(b"another", b"enother") if what == "a flipped bit" else b'{"host": "gone", "process": 1}'
    Files(bucket).write(".driver.json", damaged)
    assert not is_held(Files(bucket))
    with study_lock(Files(bucket)):
        assert is_held(Files(bucket))


def test_a_word_that_is_old_is_a_dead_driver_s(bucket: str) -> None:
    leave(Files(bucket), kernel="another", beat=time.time() - 1)
    assert is_held(Files(bucket))
    leave(Files(bucket), kernel="another", beat=time.time() - 10)
    assert not is_held(Files(bucket))


def test_a_worker_knows_its_driver_by_the_token(bucket: str, tmp_path: Path) -> None:
    with study_lock(Files(bucket)) as fence:
        Fence(Files(bucket), fence.token).check()
        with pytest.raises(StorageError, match="another driver has it now"):
            Fence(Files(bucket), "another token").check()
    with study_lock(Files(str(tmp_path))) as fence:
        assert fence.token is None
        Fence(Files(str(tmp_path)), None).check()


@pytest.fixture
def lockless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose file system has no locks; that of temporary folders has some."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(fcntl, "flock", no_locks(errno.ENOLCK, tmp_path / "lustre"))
    return tmp_path / "lustre"


def test_without_file_locks_a_study_has_one_driver_all_the_same(lockless: Path) -> None:
    files = Files(str(lockless / "study"))
    assert not is_held(files)
    with study_lock(files) as fence:
        assert is_held(files)
        with pytest.raises(StorageError, match=r"another process is running .*lustre/study"), study_lock(files):
            pass
        Fence(files, fence.token).check()
        with WorkingCopy(files, check=Fence(files, "another token").check) as copy, pytest.raises(StorageError):
            copy.push("records")
    assert not is_held(files)
    assert [found.name for found in files.find()] == []


def test_without_file_locks_those_of_this_machine_serve(lockless: Path) -> None:
    one, other = (FileLocks.of(Files(str(lockless))) for _ in range(2))
    assert one.try_acquire("a")
    assert not other.try_acquire("a")
    assert other.try_acquire("b")
    one.release("a")
    assert other.try_acquire("a")
    for key in ("a", "b"):
        other.release(key)
    with exclusive(lockless / "image set.lock"):
        assert not has_locks(lockless)


def test_a_lock_that_a_cleaner_removed_is_not_taken_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def clean_and_lock(stream: BinaryIO, kind: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        (tmp_path / "a.lock").unlink()
        flock(stream, kind)

    monkeypatch.setattr(fcntl, "flock", clean_and_lock)
    one, other = FileLocks(tmp_path), FileLocks(tmp_path)
    assert one.try_acquire("a")
    assert not other.try_acquire("a")
    one.release("a")


def test_two_drivers_that_begin_at_one_moment(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(bucket)
    monkeypatch.setattr(locks.time, "sleep", lambda seconds: leave(files, host="elsewhere"))
    with pytest.raises(StorageError, match=r"another process is running .* on elsewhere"), study_lock(files):
        pass
    assert holder_in(files)["host"] == "elsewhere"


def test_file_locks_have_one_holder_a_key(tmp_path: Path) -> None:
    one, other = FileLocks(tmp_path / "locks"), FileLocks(tmp_path / "locks")
    assert one.try_acquire("a")
    assert not one.try_acquire("a")
    assert not other.try_acquire("a")
    assert other.try_acquire("b")
    one.release("a")
    assert other.try_acquire("a")
    for key in ("a", "b"):
        other.release(key)
