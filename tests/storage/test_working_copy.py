from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from emoreg.errors import StorageError
from emoreg.storage.files import Files, Found
from emoreg.storage.working_copy import WorkingCopy, join


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
    assert contents(files) == {
        "records/trials": b"changed",
        "records/deep/epochs": b"records/deep/epochs",
        "study.json": b"study.json",
        "other": b"other",
    }
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
    def version(number: int) -> bytes:
        return bytes([number % 256]) * (100_000 + 1000 * number)  # no two are of one size

    files = Files(bucket)
    files.write("records", version(0))
    has_ended = threading.Event()

    def replace() -> None:
        number = 1
        while not has_ended.is_set():
            Files(bucket).write("records", version(number))
            number += 1

    replacing = threading.Thread(target=replace)
    replacing.start()
    try:
        for _ in range(5):
            content = files.read("records").to_pybytes()
            assert content == version((len(content) - 100_000) // 1000)
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


def test_what_is_gone_from_a_copy_stays_in_the_store_unless_it_is_removed_on_purpose(bucket: str) -> None:
    files = Files(bucket)
    files.write("records/trials", b"rows of another driver")
    with WorkingCopy(files) as copy:
        copy.pull("records")
        (copy.folder / "records" / "live.1.json").write_text("{}")
        copy.push("records")
        shutil.rmtree(copy.folder / "records")  # as what tidies a machine's temporary files may
        copy.push("records")
        assert contents(files).keys() == {"records/trials", "records/live.1.json"}
        copy.remove("records/live.1.json", "records/nothing")
        assert contents(files) == {"records/trials": b"rows of another driver"}


def test_a_file_of_a_folder_is_removed(tmp_path: Path) -> None:
    with WorkingCopy(Files(str(tmp_path))) as copy:
        (tmp_path / "a").touch()
        copy.remove("a")
        assert not (tmp_path / "a").exists()


def test_nothing_is_written_once_the_study_is_another_s(bucket: str) -> None:
    files = Files(bucket)
    is_lost = False

    def check() -> None:
        if is_lost:
            raise StorageError("lost")

    with WorkingCopy(files, check=check) as copy:
        for name in ("a", "b"):
            (copy.folder / name).write_text("mine")
        copy.push("a")
        files.write("a", b"another's")
        is_lost = True
        (copy.folder / "a").write_text("mine again")
        for change in (copy.push, copy.remove):
            with pytest.raises(StorageError, match="lost"):
                change("a", "b")
        assert contents(files) == {"a": b"another's"}
