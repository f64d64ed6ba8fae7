"""``emoreg experience list|prune`` as a user meets it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from emoreg.cli.main import main
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import Use, record_use, running, write_json


def key(letter: str) -> str:
    return letter * 16


def use(study: str, ago: float, identity: str, paid: float = 0.0, whole: float = 0.0) -> Use:
    seconds = {"paid_seconds": paid, "experience_seconds": whole}
    return Use(study=study, identity=identity, epochs=4, time=time.time() - ago, **seconds)


def put(files: Files, letter: str, *uses: Use, size: int) -> None:
    files.write(f"{key(letter)}/4.ckpt", b"x" * size)
    for one in uses:
        record_use(files, key(letter), one)


def experience(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["experience", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Two experiences of three MiB, the second of which was used longer ago."""
    files = Files(str(tmp_path / "runs" / "experience"))
    put(files, "a", use("one", 10, "t1", paid=7200, whole=7200), use("two", 5, "t2", whole=7200), size=3 << 20)
    put(files, "b", use("two", 9000, "t3", paid=60, whole=60), size=3 << 20)
    write_json(files, f"{key('a')}/made.json", {"description": "resnet18, openmoji, seed 1", "time": 5.0})
    return files


def test_the_list_says_what_is_there_who_used_it_and_what_it_saved(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = experience(capsys, "list")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].endswith("runs/experience: 6.0 MiB")
    (first,) = [line for line in lines if line.startswith(key("a"))]
    assert re.fullmatch(rf"{key('a')} 4 3\.0 MiB \d{{4}}-\d\d-\d\d 2 h 0 min 2 h 0 min", first)
    assert lines.index(first) < [line.startswith(key("b")) for line in lines].index(True)  # last used first
    assert lines[lines.index(first) + 1 :][:2] == ["resnet18, openmoji, seed 1", "used by 2 trials of one, two"]
    assert "one 1 2 h 0 min 0 s 0%" in lines
    assert "two 2 60 s 2 h 0 min 99%" in lines
    assert max(map(len, out.splitlines())) <= 80


def test_there_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert experience(capsys, "list") == (0, "There is no experience in runs/experience.\n", "")
    code, out, _ = experience(capsys, "prune", "--budget-gib", "1", "--uri", f"file://{tmp_path}/none")
    assert (code, out) == (0, f"freed 0.0 MiB of 0.0 MiB in file://{tmp_path}/none; budget 1 GiB\n")
    assert not os.listdir(tmp_path)  # looking leaves nothing behind


def test_pruning_says_what_goes_and_what_must_stay(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    budget = ("--budget-gib", "0.003")
    with running(files, "two"):
        code, out, _ = experience(capsys, "prune", *budget)
    assert code == 0
    assert out.count("kept ") == 2
    assert f"kept {key('b')}: 3.0 MiB, study 'two' is running and has used it" in out
    assert "freed 0.0 MiB of 6.0 MiB" in out
    assert "6.0 MiB is left, because it is needed" in out
    _, out, _ = experience(capsys, "prune", *budget, "--dry-run")
    assert f"would remove {key('b')}: unknown, 3.0 MiB, last used 20" in out
    assert "would free 3.0 MiB of 6.0 MiB" in out
    assert files.exists(f"{key('b')}/4.ckpt")
    _, out, _ = experience(capsys, "prune", *budget)
    assert f"removed {key('b')}" in out
    assert not files.exists(f"{key('b')}/4.ckpt")
    assert files.exists(f"{key('a')}/4.ckpt")
    _, out, _ = experience(capsys, "prune", "--budget-gib", "0")
    assert f"removed {key('a')}: resnet18, openmoji, seed 1, 3.0 MiB" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prune",), "Give --budget-gib, .*but it is None"),
        (("prune", "--budget-gib", "-1"), "from 0 upwards, but it is -1.0"),
        (("prune", "--budget-gib", "inf"), "from 0 upwards, but it is inf"),
        (("list", "--uri", "s4://x/y"), "a URI that pyarrow can open .*'s4://x/y' cannot be used"),
        (("list", "--uri", "file"), "must be a folder or bucket that can be read"),
        (("show",), "invalid choice"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    code, out, err = experience(capsys, *arguments)
    assert code == 2
    assert not out
    assert re.search(said, err), err


def test_the_command_needs_no_torch() -> None:
    code = "import sys, emoreg.cli.main, emoreg.cli.inventory; sys.exit(bool({'torch', 'ray'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
