from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from emoreg.errors import StorageError
from emoreg.storage import working_copy as storage
from emoreg.storage.files import Files, Found
from emoreg.storage.working_copy import WorkingCopy, join, only_driver


@pytest.mark.parametrize(
    ("place", "whole"),
    [
        ("runs", "runs/a"),
        ("/a b/", "/a b/a"),
        ("what?", "what?/a"),
        ("s3://bucket/runs", "s3://bucket/runs/a"),
        ("s3://bucket/runs/?region=x&scheme=http", "s3://bucket/runs/a?region=x&scheme=http"),
    ],
)
def test_a_name_goes_before_the_query(place: str, whole: str) -> None:
    assert join(place, "a") == whole


def contents(files: Files) -> dict[str, bytes]:
    return {found.name: files.read(found.name).to_pybytes() for found in files.find()}


def test_a_folder_is_its_own_working_copy(tmp_path: Path) -> None:
    with WorkingCopy(Files(str(tmp_path))) as copy:
        assert copy.folder == tmp_path
        (copy.folder / "a").write_text("a")
        copy.push("a")
        copy.pull("a")
    assert contents(Files(str(tmp_path))) == {"a": b"a"}


def test_a_working_copy_brings_and_takes_what_it_is_asked_to(bucket: str) -> None:
    files = Files(bucket)
    for name in ("records/trials", "records/deep/epochs", "study.json", "other"):
        files.write(name, name.encode())
    with WorkingCopy(files) as copy:
        copy.pull("records", "study.json", "nothing")
        there = {path.relative_to(copy.folder).as_posix() for path in copy.folder.rglob("*") if path.is_file()}
        assert there == {"records/trials", "records/deep/epochs", "study.json"}
        (copy.folder / "records" / "trials").write_text("changed")
        (copy.folder / "records" / "deep" / "epochs").unlink()
        (copy.folder / "records" / ".half.tmp").write_text("not whole")
        (copy.folder / "study.json").write_text("not pushed")
        copy.push("records")
        folder = copy.folder
    assert contents(files) == {"records/trials": b"changed", "study.json": b"study.json", "other": b"other"}
    assert not folder.exists()


def test_a_file_that_goes_while_it_is_brought_is_no_fault(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(bucket)
    for name in ("records/trials", "records/now.1.json"):
        files.write(name, name.encode())

    def find(name: str) -> list[Found]:
        found = list(Files(bucket).find(name))
        files.remove("records/now.1.json")
        return found

    monkeypatch.setattr(files, "find", find)
    with WorkingCopy(files) as copy:
        copy.pull("records")
        assert [path.name for path in (copy.folder / "records").iterdir()] == ["trials"]


def test_an_object_is_read_whole_while_it_is_replaced(bucket: str) -> None:
    versions = [b"a" * 100_000, b"b" * 300_000]
    files = Files(bucket)
    files.write("records", versions[0])
    has_ended = threading.Event()

    def replace() -> None:
        while not has_ended.is_set():
            for version in versions:
                Files(bucket).write("records", version)

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        for _ in range(100):
            assert files.read("records").to_pybytes() in versions
    finally:
        has_ended.set()
        replacing.join()


def test_only_what_changed_travels(bucket: str) -> None:
    files = Files(bucket)
    with WorkingCopy(files) as copy:
        for name in ("a", "b"):
            (copy.folder / name).write_text("first")
        copy.push("a", "b")
        files.write("a", b"by another")
        (copy.folder / "b").write_text("second")
        copy.push("a", "b")
    assert contents(files) == {"a": b"by another", "b": b"second"}


def test_one_driver_at_a_time_in_an_object_store(bucket: str) -> None:
    files = Files(bucket)
    files.write("records/trials.parquet", b"rows")
    with only_driver(files) as copy:
        assert (copy.folder / "records" / "trials.parquet").read_bytes() == b"rows"
        with pytest.raises(StorageError, match=r"another process is running 's3://\*\*\*@emoreg/.* process \d+'"):
            only_driver(files).__enter__()
    assert not files.exists(".driver.json")
    with only_driver(files):
        pass


def test_a_driver_that_died_is_found_out(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(bucket)
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    with only_driver(files):
        holder = json.loads(files.read(".driver.json").to_pybytes())
    files.write(".driver.json", json.dumps({**holder, "process": int(ended.stdout)}).encode())  # here: at once
    with only_driver(files):
        assert json.loads(files.read(".driver.json").to_pybytes())["process"] == os.getpid()
    elsewhere = {**holder, "host": "elsewhere"}
    files.write(".driver.json", json.dumps(elsewhere).encode())
    monkeypatch.setattr(storage, "_STALE_SECONDS", 3.0)
    with only_driver(files):  # it said nothing for so long
        assert json.loads(files.read(".driver.json").to_pybytes())["host"] == platform.node()
    assert not files.exists(".driver.json")


def test_a_driver_on_another_machine_is_heard(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(bucket)
    monkeypatch.setattr(platform, "node", lambda: "elsewhere")
    monkeypatch.setattr(storage, "_BEAT_SECONDS", 0.5)
    with only_driver(files):
        monkeypatch.setattr(platform, "node", lambda: "here")
        with pytest.raises(StorageError, match="elsewhere, process"):
            only_driver(files).__enter__()
