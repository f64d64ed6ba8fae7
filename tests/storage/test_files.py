from __future__ import annotations

import errno
import fcntl
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emoreg.errors import ConfigError, StorageError
from emoreg.storage import files as files_module
from emoreg.storage.files import Files, replacing, scratch_folder, storage_full_error, sweep
from emoreg.storage.retry import Patience
from tests.helpers.filesystems import no_locks
from tests.helpers.waiting import PATIENCE


@pytest.fixture(params=["folder", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    return Files(str(tmp_path / "store") if request.param == "folder" else request.getfixturevalue("bucket"))


def test_files_are_written_read_found_moved_and_removed(files: Files) -> None:
    assert files.find() == []
    files.write("a/one", b"1")
    files.write("a/deep/two", b"22")
    files.write("b", b"")
    files.write("a/one", b"111")
    assert files.read("a/one").to_pybytes() == b"111"
    assert [(found.name, found.size) for found in files.find()] == [("a/deep/two", 2), ("a/one", 3), ("b", 0)]
    assert [found.name for found in files.find("a", deep=False)] == ["a/one"]
    assert files.find("none") == []
    assert files.exists("b")
    assert not files.exists("a")  # a folder
    files.move("b", "a/c")
    files.move("gone", "a/d")
    files.remove("a/one")
    files.remove("gone")
    assert [found.name for found in files.find()] == ["a/c", "a/deep/two"]
    files.remove_folder("a")
    files.remove_folder("gone")
    assert files.find() == []
    with pytest.raises(FileNotFoundError):
        files.read("a/one")


def test_a_store_is_tried_out(files: Files) -> None:
    files.check()
    assert files.find() == []


def test_what_cannot_be_written_is_said(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match=r"Mend the permissions .* must be writable, but '.*file/store' is not"):
        Files(str(tmp_path / "file" / "store")).check()
    with pytest.raises(StorageError, match=r"must be writable, but 's3://\w+:\*\*\*@nowhere/x.*' is not .*bucket does not"):
        Files(bucket.replace("@emoreg", "@nowhere").replace("/store", "/x")).check()


def test_a_full_storage_is_not_told_to_mend_its_permissions() -> None:
    full = storage_full_error(errno.ENOSPC, "records")
    assert full is not None
    assert "run the same command again, for the disk is full: records" in str(full)
    assert storage_full_error(errno.EACCES, "records") is None
    assert storage_full_error(None, "records") is None


def test_an_error_of_the_disk_names_the_file(tmp_path: Path) -> None:
    full_disk = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match=rf"No space left on device: '{tmp_path}/a'"), replacing(tmp_path / "a"):
        os.write(full_disk, b"1")
    os.close(full_disk)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("s4://bucket/x", "Unrecognized filesystem"),
        ("s3://", "Name a bucket or a folder"),
        ("s3://name:secret@bucket/x?colour=red", "Unexpected query parameter"),
        ("s3://name:my@secret@bucket/x", "Write / as %2F, @ as %40"),
        ("s3://name:my/secret@bucket/x", "Write / as %2F, @ as %40"),
        ("s3://name:my secret@bucket/x", "but that of s3://... is not"),
        ("file://host/x", "Unsupported hostname"),
    ],
)
def test_a_uri_that_cannot_be_used(uri: str, said: str) -> None:
    with pytest.raises(StorageError, match=said) as error:
        Files(uri)
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_may_be_written_as_a_uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    same = [Files(uri) for uri in ("store", "~/store", str(tmp_path / "store"), f"file://{tmp_path}/store/")]
    assert {files.folder for files in same} == {tmp_path / "store"}
    assert len({files.location for files in same}) == 1


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    before = os.umask(0o022)
    with replacing(tmp_path / "a") as stream:
        stream.write(b"1")
    os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_block_that_fails_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(TypeError), replacing(tmp_path / "a") as stream:
        stream.writelines([b"new", None])  # type: ignore[list-item]
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


WRITES = """
import sys
from pathlib import Path
from emoreg.storage.files import replacing
with replacing(Path(sys.argv[1])) as stream:
    stream.write(b"new")
    stream.flush()
    print("writing", flush=True)
    sys.stdin.readline()
"""


def test_leftovers_of_the_dead_are_swept_and_what_the_living_write_is_left_alone(tmp_path: Path) -> None:
    names = [tmp_path / "deep" / "living", tmp_path / "dead"]
    command = [sys.executable, "-c", WRITES]
    living, dead = (
        subprocess.Popen([*command, str(name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for name in names
    )
    for process in (living, dead):
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
    dead.send_signal(signal.SIGKILL)
    dead.wait(PATIENCE)
    assert [path.name.startswith(".dead.") for path in sweep(tmp_path)] == [True]
    assert list(tmp_path.glob(".dead.*")) == []
    living.communicate("\n", timeout=PATIENCE)
    assert living.returncode == 0
    assert names[0].read_bytes() == b"new"
    assert sweep(tmp_path) == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "living"]
    dead.communicate()


def test_a_scratch_folder_goes_with_its_block_and_that_of_a_killed_process_with_the_next(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from emoreg.storage.files import scratch_folder
with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "left").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    (left,) = tmp_path.glob("*/left")
    with scratch_folder(tmp_path) as folder:
        assert list(folder.iterdir()) == []
        assert not left.parent.exists()
        with scratch_folder(tmp_path) as other:
            assert folder.is_dir()
            assert other != folder
    assert list(tmp_path.iterdir()) == []


def clean(folder: Path, *, seconds: float) -> None:
    """What systemd-tmpfiles does: remove files of which nothing was read, written or changed for so long."""
    for path in folder.rglob("*"):
        status = path.lstat()
        if not path.is_dir() and max(status.st_atime, status.st_mtime, status.st_ctime) < time.time() - seconds:
            path.unlink()


def test_a_cleaner_of_temporary_folders_leaves_scratch_alone_and_takes_what_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "_LOOK_SECONDS", 0.02)
    (tmp_path / "left").touch()
    with scratch_folder(tmp_path) as folder:
        (folder / "events").mkdir()
        (folder / "events" / "old.end").write_text("x")
        written = (folder / "events" / "old.end").stat().st_mtime_ns
        while (tmp_path / "left").exists():
            clean(tmp_path, seconds=1.0)
        assert (folder / "events" / "old.end").read_text() == "x"
        assert (folder / "events" / "old.end").stat().st_mtime_ns == written, "it would be taken to the storage again"
        assert folder.with_suffix(".lock").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_living_scratch_folder_stays_even_if_its_lock_is_gone(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        folder.with_suffix(".lock").unlink()
        with scratch_folder(tmp_path):
            assert folder.is_dir()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, 524])
def test_where_there_are_no_locks_files_are_written_all_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks(number))
    Files(str(tmp_path)).check()
    (tmp_path / ".living.tmp").touch()
    assert sweep(tmp_path) == [], "nobody knows that its writer is dead"
    (tmp_path / ".living.tmp").unlink()
    with scratch_folder(tmp_path / "scratch") as folder:
        assert folder.is_dir()
    assert [path.name for path in tmp_path.rglob("*")] == ["scratch"]


def test_another_error_of_a_lock_is_no_lack_of_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_locks(errno.EIO))
    with pytest.raises(StorageError, match="the disk reports an error"):
        Files(str(tmp_path)).check()


def test_a_home_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])
    with pytest.raises(ConfigError, match=r"Set HOME, or write the path without ~: '~/runs' .* but user \d+ has none"):
        Files("~/runs")


@pytest.fixture
def frozen() -> Iterator[str]:
    """The address of a server that takes connections, and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_a_frozen_object_store_is_waited_for_aloud_and_not_for_long(frozen: str) -> None:
    said: list[tuple[float, str]] = []
    started = time.monotonic()
    patience = Patience(1.0, notify=lambda text: said.append((time.monotonic() - started, text)))
    files = Files(f"s3://key:secret@bucket/x?endpoint_override={frozen}&scheme=http&region=us-east-1", patience=patience)
    with pytest.raises(OSError, match="Timeout"):
        files.read("a")
    assert time.monotonic() - started < 15, "one request after the patience was spent"
    ((seconds, text),) = said
    assert seconds < 5
    assert text.startswith("s3://bucket does not answer; waiting until ")
    again = time.monotonic()
    for call in (lambda: files.write("a", b""), lambda: files.exists("a"), files.find):
        with pytest.raises(OSError, match="Timeout"):
            call()
    assert time.monotonic() - again < 1, "what cleans up waited another time"


def test_who_is_impatient_asks_once_and_tells(frozen: str) -> None:
    uri = f"s3://key:secret@bucket/x?endpoint_override={frozen}&scheme=http&region=us-east-1"
    started, said = time.monotonic(), list[str]()
    with pytest.raises(OSError, match="Timeout"):
        Files(uri, patience=Patience(60, notify=said.append)).impatient().exists("a")
    assert time.monotonic() - started < 6
    assert len(said) == 1
