"""What holds for all files under cluster/: their versions agree, they hold no secret, and their commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import emoreg
from emoreg.cli.main import command_of, main
from tests.cluster.files import CLUSTER, FILES, LAUNCHED, MANIFESTS, ROOT, argument, commands, manifest

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONTAINERFILE = (CLUSTER / "Containerfile").read_text()
SECRETS = (
    r"://[^/\s:@]+:[^/\s@]+@",  # a password in a URL
    r"RAY_AUTH_TOKEN=",
    r"(?i)(?:password|secret|token)\s*[:=]\s*[\"']?[0-9a-z+/]{12,}\b",
    r"\bAKIA[0-9A-Z]{16}\b",
    r"PRIVATE KEY",
)


def ids(path: Path) -> str:
    return str(path.relative_to(CLUSTER))


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_no_file_holds_a_secret_or_a_hyperparameter(path: Path) -> None:
    text = path.read_text()
    for pattern in SECRETS:
        assert not re.search(pattern, text), pattern
    assert "--trial." not in text
    assert not re.search(r"epochs|learning.rate|batch.size|search.space", text)


@pytest.mark.parametrize("text", ["postgresql://me:hunter2@host/db", "RAY_AUTH_TOKEN=x", "auth_token: 0123456789abcdef0123"])
def test_a_secret_would_be_found(text: str) -> None:
    assert any(re.search(pattern, text) for pattern in SECRETS)


def test_the_container_file_is_clean() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, CLUSTER / "Containerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_image_has_the_versions_that_the_project_asks_for() -> None:
    asked = {requirement.name: requirement.specifier for requirement in map(Requirement, PROJECT["dependencies"])}
    for package in ("ray", "torch", "torchvision"):
        assert asked[package].contains(argument(f"{package.upper()}_VERSION"))
    assert SpecifierSet(PROJECT["requires-python"]).contains(argument("PYTHON_VERSION"))
    assert manifest("raycluster.yaml")["spec"]["rayVersion"] == argument("RAY_VERSION")


def test_the_image_is_what_all_files_name() -> None:
    named = {tag for path in FILES for tag in re.findall(r"registry\.example\.com/(\S+)", path.read_text())}
    assert named == {f"emoreg:{emoreg.__version__}"}


def test_the_image_asks_for_the_token_and_is_not_root() -> None:
    assert re.search(r"^ENV .*?\bRAY_AUTH_MODE=token\b", CONTAINERFILE, flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^USER (.+)$", CONTAINERFILE, flags=re.MULTILINE) == ["${UID}"]
    assert argument("UID") == str(
        manifest("raycluster.yaml")["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"]["runAsUser"]
    )


def test_the_image_is_built_from_what_is_there() -> None:
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", CONTAINERFILE, flags=re.MULTILINE) for word in line.split()]
    let_in = (CLUSTER / "Containerfile.dockerignore").read_text()
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}\n" in let_in
    extras = re.findall(r'"/opt/emoreg\[(.+)\]"', CONTAINERFILE)
    assert set(extras[0].split(",")) <= PROJECT["optional-dependencies"].keys()


def test_commands_of_emoreg_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^  emoreg (\w+)", capsys.readouterr().out, flags=re.MULTILINE))
    used = {command for path in FILES for command in re.findall(r"(?:^|`| )(?:-m )?emoreg ([a-z]+)\b", path.read_text())}
    assert {"run", "submit", "status", "stop", "logs"} <= used
    assert used <= known


@pytest.mark.parametrize("line", [line for line in commands("emoreg") if line.startswith(("emoreg run", "emoreg submit"))])
def test_a_study_is_understood_as_the_readme_writes_it(line: str) -> None:
    assert callable(command_of(shlex.split(line)[1:]))  # parsed, and not run


def test_the_job_of_kuberay_is_understood() -> None:
    words = shlex.split(manifest("rayjob.yaml")["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "emoreg", "run"]
    assert callable(command_of(words[3:]))


def test_files_that_are_named_exist() -> None:
    for path in FILES:
        for name in re.findall(r"cluster/[\w./-]+\w", path.read_text()):
            assert name == "cluster/cluster" or (ROOT / name).exists(), name
    readme = (CLUSTER / "README.md").read_text()
    for name in (*(f"{name}.yaml" for name in LAUNCHED), *(f"kuberay/{name}" for name in MANIFESTS), "slurm/study.sbatch"):
        assert name in readme


def test_the_batch_script_is_bash() -> None:
    script = CLUSTER / "slurm" / "study.sbatch"
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert text.index("export RAY_AUTH_MODE=token") < text.index("ray start")
    assert "--dashboard-host=127.0.0.1" in text
    assert "ray stop" not in text
