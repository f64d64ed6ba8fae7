from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from emoreg.storage.files import Files
from emoreg.storage.housekeeping import Use, entries, prune, record_use, running, write_json
from emoreg.storage.locks import FileLocks

MADE = {"description": "resnet18, openmoji, seed 1", "time": 5.0, "settings": {"a": 1}, "versions": {}, "device": "CPU"}


@pytest.fixture(params=["folder", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("bucket"))


@pytest.fixture
def locks(tmp_path: Path) -> FileLocks:
    return FileLocks(tmp_path / "locks")


def key(letter: str) -> str:
    return letter * 16


def use(study: str, ago: float, identity: str = "t", paid: float = 0.0, whole: float = 0.0, epochs: int = 4) -> Use:
    return Use(
        study=study,
        identity=identity,
        epochs=epochs,
        paid_seconds=paid,
        experience_seconds=whole,
        waiting_seconds=0.0,
        time=time.time() - ago,
    )


def put(files: Files, letter: str, *uses: Use, size: int = 1000) -> None:
    files.write(f"{key(letter)}/4.ckpt", b"x" * size)
    for one in uses:
        record_use(files, key(letter), one)


def keys(listed: object) -> list[str]:
    return [entry.key[0] for entry in listed]  # type: ignore[attr-defined]


def test_an_entry_is_all_that_lies_under_a_key(files: Files) -> None:
    put(files, "a", use("one", 50, "t1", paid=10, whole=10), use("two", 20, "t2", paid=0, whole=10))
    files.write(f"{key('a')}/8.ckpt", b"y" * 10)
    files.write(f"{key('a')}/8+3.partial", b"z" * 20)
    files.write(f"{key('a')}/2.ckpt.bad", b"z" * 30)
    write_json(files, f"{key('a')}/made.json", MADE)
    files.write("README", b"not of the store")
    (entry,) = entries(files)
    assert entry.key == key("a")
    assert entry.lengths == (4, 8)
    assert (entry.description, entry.created) == ("resnet18, openmoji, seed 1", 5.0)
    assert entry.size == sum(found.size for found in files.find(key("a")))
    assert {one.study for one in entry.uses} == {"one", "two"}
    assert entry.last_used == max(one.time for one in entry.uses)


def test_notes_that_are_not_ours_are_no_notes(files: Files) -> None:
    files.write(f"{key('a')}/made.json", b"{torn")
    files.write(f"{key('a')}/uses/x.json", b"[1]")
    files.write(f"{key('a')}/uses/y.json", b'{"study": "of another version"}')
    (entry,) = entries(files)
    assert (entry.description, entry.uses, entry.last_used, entry.lengths) == (None, (), 0.0, ())


# Pruning


def test_the_least_recently_used_goes_first_and_no_more_than_must(files: Files, locks: FileLocks) -> None:
    put(files, "a", use("s", 10))
    put(files, "b", use("s", 99), use("t", 30))
    put(files, "c", use("s", 20))
    put(files, "d")  # nobody knows when
    size = sum(entry.size for entry in entries(files))
    assert prune(files, locks, size).removed == ()
    for dry_run in (True, False):
        pruned = prune(files, locks, 2500, dry_run=dry_run)
        assert keys(pruned.removed) == ["d", "b"]
        assert pruned.kept == ()
        assert pruned.size_before == size
        assert pruned.size_after == size - sum(entry.size for entry in pruned.removed) <= 2500
        assert keys(entries(files)) == (["a", "b", "c", "d"] if dry_run else ["a", "c"])
    assert [sentence.split(":")[0] for sentence in pruned.messages] == [f"experience {key(k)} removed" for k in "db"]
    assert files.find(key("b")) == []


def test_what_a_running_study_needs_is_kept_and_said(files: Files, locks: FileLocks) -> None:
    put(files, "a", use("over", 90))
    put(files, "b", use("mine", 80), use("over", 85))  # used by a study that runs, long before it began
    put(files, "c", use("over", 70))
    with running(files, "mine"):
        put(files, "d", use("other", -1))  # used by a study that says nothing, since then
        pruned = prune(files, locks, 0)
        assert keys(pruned.removed) == ["a", "c"]
        assert {entry.key[0]: reason for entry, reason in pruned.kept} == {
            "b": "study 'mine' is running and has used it",
            "d": "it was used since study 'mine' began, which is running",
        }
        assert len(pruned.messages) == 4
    assert keys(prune(files, locks, 0).removed) == ["b", "d"]
    assert [found.name for found in files.find()] == []


def test_what_is_being_trained_is_kept(files: Files, locks: FileLocks, tmp_path: Path) -> None:
    put(files, "a", use("s", 10))
    trainer = FileLocks(tmp_path / "locks")
    assert trainer.try_acquire(key("a"))
    assert [reason for _, reason in prune(files, locks, 0).kept] == ["it is being trained"]
    trainer.release(key("a"))
    assert keys(prune(files, locks, 0).removed) == ["a"]
    assert trainer.try_acquire(key("a"))  # pruning gave the lock back
    trainer.release(key("a"))


def test_what_is_used_meanwhile_is_kept(files: Files, locks: FileLocks, monkeypatch: pytest.MonkeyPatch) -> None:
    put(files, "a", use("over", 10))
    acquire = locks.try_acquire

    def used_meanwhile(locked: str) -> bool:
        record_use(files, locked, use("mine", 0))
        return acquire(locked)

    monkeypatch.setattr(locks, "try_acquire", used_meanwhile)
    with running(files, "mine"):
        assert [reason for _, reason in prune(files, locks, 0).kept] == ["study 'mine' is running and has used it"]
    assert files.exists(f"{key('a')}/4.ckpt")


def test_what_cannot_be_removed_is_kept_and_said(files: Files, locks: FileLocks, monkeypatch: pytest.MonkeyPatch) -> None:
    put(files, "a", use("over", 10))

    def busy(name: str) -> None:
        raise OSError(39, "Directory not empty")

    monkeypatch.setattr(files, "remove_folder", busy)
    pruned = prune(files, locks, 0)
    assert [reason for _, reason in pruned.kept] == ["it could not be removed ([Errno 39] Directory not empty)"]
    assert pruned.size_after == pruned.size_before
    assert locks.try_acquire(key("a"))
    locks.release(key("a"))


def test_partial_results_and_what_was_set_aside_count_and_go(files: Files, locks: FileLocks) -> None:
    files.write(f"{key('a')}/3+1.partial", b"x" * 100)
    files.write(f"{key('a')}/2.ckpt.bad", b"x" * 100)
    pruned = prune(files, locks, 150)
    assert (pruned.size_before, pruned.size_after) == (200, 0)
    assert files.find() == []


def test_a_study_without_a_heartbeat_runs_no_more(files: Files, locks: FileLocks, monkeypatch: pytest.MonkeyPatch) -> None:
    put(files, "a", use("mine", 10))
    context = running(files, "mine")
    beat = context.__enter__()
    now, passed = time.time(), time.monotonic()

    def later(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: now + seconds)
        monkeypatch.setattr(time, "monotonic", lambda: passed + seconds)

    for seconds in (0, 30, 500, 1000):
        later(seconds)
        beat()
    later(1500)
    assert prune(files, locks, 0).removed == ()  # the last beat was 500 seconds ago
    later(1700)
    assert keys(prune(files, locks, 0, dry_run=True).removed) == ["a"]
    with running(files, "other"):  # which forgets those that died
        (note,) = files.find("running")
        assert "other" in note.name
    context.__exit__(None, None, None)
    assert files.find("running") == []


def test_what_a_killed_run_left_is_gone_with_the_next_run_of_its_study(files: Files) -> None:
    runs = [running(files, study) for study in ("mine", "other")]
    for run in runs:
        run.__enter__()
    with running(files, "mine", is_alone=True):
        notes = sorted(found.name.partition("/")[2].partition(".")[0] for found in files.find("running"))
        assert notes == ["mine", "other"]
    assert [found.name.startswith("running/other.") for found in files.find("running")] == [True]
    for run in runs:
        run.__exit__(None, None, None)


def test_a_heartbeat_that_cannot_be_written_breaks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Files(str(tmp_path / "store"))

    def full(name: str, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write", full)
    with running(files, "mine") as beat:
        beat()
    assert "study 'mine' runs: [Errno 28]" in caplog.text


def test_the_locks_of_a_store_are_shared_by_all_who_open_it(
    tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where those of an object store are
    for uri in (str(tmp_path / "store"), bucket):
        one, other = (FileLocks.of(Files(one_way)) for one_way in (uri, uri.replace("key:secret@", "")))
        assert one.try_acquire(key("b"))
        assert not other.try_acquire(key("b"))
        one.release(key("b"))
