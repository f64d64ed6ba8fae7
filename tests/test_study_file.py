from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from emoreg.config import StudyConfig
from emoreg.errors import ConfigError
from emoreg.study_file import find_study, read_study_file, shipped_studies
from tests.helpers.written import made_up_config, write_study

ROOT = Path(__file__).parents[1]
GOOD = """\
from emoreg.config import Float, StudyConfig
def study():
    return StudyConfig(search_space={'drop_path': Float(0, 0.5)})
"""


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_load(name: str) -> None:
    study = read_study_file(name)
    assert isinstance(study, StudyConfig)
    assert study.control_trials()


def test_the_study_in_the_readme_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (text,) = (block for block in blocks if "def study" in block)
    path = tmp_path / "mine_of_the_readme.py"
    path.write_text(text)
    assert read_study_file(str(path)).name == "mine"


def test_every_study_says_how_it_is_run() -> None:
    assert shipped_studies() == sorted(f"studies.{path.stem}" for path in (ROOT / "studies").glob("[a-z]*.py"))
    for name in shipped_studies():
        text = (ROOT / f"{name.replace('.', '/')}.py").read_text()
        assert f"emoreg run {name}" in text.split('"""')[1]


def test_a_file_loads_from_any_directory_with_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "beside_the_study.py").write_text("NUM_TRIALS = 7\n")
    path = tmp_path / "mine" / "my-study.py"
    path.write_text(
        "from __future__ import annotations\nimport dataclasses\nfrom beside_the_study import NUM_TRIALS\n"
        "from emoreg.config import Float, StudyConfig\n"
        "@dataclasses.dataclass\nclass Mine:\n    name: str = 'mine'\n"
        "def study():\n"
        "    return StudyConfig(name=Mine().name, num_trials=NUM_TRIALS, search_space={'drop_path': Float(0, 0.5)})\n"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    for folder, reference in ((tmp_path, "mine/my-study.py"), (tmp_path / "mine", "my-study.py"), (Path("/"), str(path))):
        monkeypatch.chdir(folder)
        assert (read_study_file(reference).name, read_study_file(reference).num_trials) == ("mine", 7)


def test_a_module_of_the_working_directory_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_module_of_mine.py").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert "drop_path" in read_study_file("a_module_of_mine").search_space


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def study(:\n", r"not valid Python: invalid syntax at .*bad\.py:1"),
        ("x = 1\n", r"must define study\(\) -> StudyConfig"),
        ("study = 1\n", r"must define study\(\) -> StudyConfig"),
        ("def study():\n    return 3\n", r"must return a StudyConfig, but .* returns a int"),
        ("import no_such_thing\ndef study(): ...\n", r"cannot be imported: ModuleNotFoundError: .*no_such_thing.*bad\.py:1"),
        ("1 / 0\n", r"cannot be imported: ZeroDivisionError: .*bad\.py:1"),
        ("def study():\n    return {}['a']\n", r"fails: KeyError: 'a' \(.*bad\.py:2"),
        (
            "from emoreg.config import *\ndef study():\n    return StudyConfig()\n",
            r"breaks a rule: Give at least one path, .*: search_space must not be empty, but it is \{\}",
        ),
        (
            "from emoreg.config import *\nTRIAL = TrialConfig(regulation=RegulationConfig(balance=1.5))\n",
            r"breaks a rule: Choose a number in \[0, 1\]: regulation\.balance must lie in \[0, 1\], but it is 1\.5",
        ),
        (
            GOOD.replace("drop_path", "drop_paht"),
            r"breaks a rule: Name a setting such as drop_path.*: a path must lead to a setting of the trial, but 'drop_paht'",
        ),
    ],
)
def test_a_bad_file_is_refused_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_study_file(str(path))


def test_a_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Mine\n")
    with pytest.raises(ConfigError, match=r"must end in \.py, but this is .*README\.md"):
        read_study_file(str(path))


def test_what_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(ConfigError, match=re.escape("no file 'nowhere/study.py': correct the path")):
        read_study_file("nowhere/study.py")
    with pytest.raises(ConfigError, match=r"no module 'studies\.quikstart'.* emoreg ships .*studies\.quickstart"):
        read_study_file("studies.quikstart")


def test_the_wheel_holds_the_studies_and_the_report_s_page(tmp_path: Path) -> None:
    source, target, elsewhere = tmp_path / "source", tmp_path / "target", tmp_path / "elsewhere"
    source.mkdir()
    elsewhere.mkdir()
    for name in ("emoreg", "studies"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("emoreg-*.whl")
    zipfile.ZipFile(wheel).extractall(target)
    assert {path.name for path in (ROOT / "emoreg" / "report").glob("page.*")} == {
        path.name for path in (target / "emoreg" / "report").glob("page.*")
    }, "the report's page"
    (elsewhere / "mine.py").write_text(GOOD)
    script = (
        "import emoreg, studies, sys; from emoreg.study_file import read_study_file;"
        "assert emoreg.__file__.startswith(sys.argv[1]) and studies.__file__.startswith(sys.argv[1]), emoreg.__file__;"
        "print(read_study_file('studies.quickstart').name, read_study_file('mine.py').name, read_study_file('mine').name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["quickstart", "study", "study"]


def test_a_study_that_was_run_is_found_by_any_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = tmp_path / "runs"
    folder = write_study(storage, made_up_config(name="quickstart", num_trials=1), num_seeds=0)
    for reference in ("quickstart", "studies.quickstart", str(folder), f"file://{folder}"):
        assert find_study(reference, str(storage)) in (str(folder), f"file://{folder}")
    file = tmp_path / "mine.py"
    file.write_text(
        "from emoreg.config import *\ndef study():\n    return StudyConfig(name='quickstart', "
        f"storage={str(storage)!r}, search_space={{'regulation.balance': Float(0.0, 1.0)}})\n"
    )
    assert find_study(str(file), None) == str(folder)  # the storage that the file names, unless another one is given
    monkeypatch.chdir(tmp_path)
    assert find_study("studies.quickstart", None) == "runs/quickstart"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("quikstart", r"a study is its name in 'runs', its folder or URI, .* but there is no 'quikstart'"),
        ("nowhere/at/all", "there is no 'nowhere/at/all'"),
        ("studies.quickstart", r"must have been run, but there is none in 'runs/quickstart': `emoreg run studies.quickstart`"),
    ],
)
def test_a_study_that_is_not_there_is_said(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find_study(reference, None)
