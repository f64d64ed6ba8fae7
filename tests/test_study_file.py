from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import emoreg
from emoreg.errors import ConfigError
from emoreg.provenance import shipped_studies
from emoreg.study_file import find_study, own_modules, read_study_file
from tests.helpers.written import made_up_config, write_study

ROOT = Path(__file__).parents[1]
GOOD = """\
import emoreg
study = emoreg.Study("mine", search_space={'drop_path': emoreg.Float(0, 0.5)})
"""


@pytest.fixture(autouse=True)
def _paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", shipped_studies())
def test_shipped_studies_load(name: str) -> None:
    study = read_study_file(name)
    assert isinstance(study, emoreg.Study)
    assert study.config.control_trials()


def test_the_study_in_the_readme_is_one(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    texts = [block for block in blocks if re.search(r"^(def study|study = emoreg.Study\()", block, re.MULTILINE)]
    assert texts
    for text in texts:
        assert read_study_file(str(write(tmp_path / "mine_of_the_readme.py", text))).name == "faces"


def test_every_study_says_how_it_is_run() -> None:
    assert shipped_studies() == sorted(f"studies.{path.stem}" for path in (ROOT / "studies").glob("[a-z]*.py"))
    for name in shipped_studies():
        text = (ROOT / f"{name.replace('.', '/')}.py").read_text()
        assert f"emoreg run {name}" in text.split('"""')[1]


def test_studies_import_from_the_face_alone() -> None:
    for path in (ROOT / "studies").glob("[a-z]*.py"):
        assert re.findall(r"^(?:from|import) (emoreg\S*)", path.read_text(), re.MULTILINE) == ["emoreg"]


def test_a_file_loads_from_any_directory_with_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "mine" / "beside_the_study.py", "NUM_TRIALS = 7\n")
    path = write(
        tmp_path / "mine" / "my-study.py",
        "from __future__ import annotations\nimport dataclasses, emoreg\nfrom beside_the_study import NUM_TRIALS\n"
        "@dataclasses.dataclass\nclass Mine:\n    name: str = 'mine'\n"
        "def study():\n"
        "    return emoreg.Study(Mine().name, num_trials=NUM_TRIALS, search_space={'drop_path': emoreg.Float(0, 0.5)})\n",
    )
    for folder, reference in ((tmp_path, "mine/my-study.py"), (tmp_path / "mine", "my-study.py"), (Path("/"), str(path))):
        monkeypatch.chdir(folder)
        assert (read_study_file(reference).name, read_study_file(reference).config.num_trials) == ("mine", 7)


def test_a_module_of_the_working_directory_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a_module_of_mine.py", GOOD)
    monkeypatch.chdir(tmp_path)
    assert "drop_path" in read_study_file("a_module_of_mine").config.search_space


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    paths = [write(tmp_path / folder / "mine.py", f"{GOOD}TOKEN = {folder!r}\n") for folder in ("one", "two")]
    for path in paths:
        read_study_file(str(path))
    tokens = [
        vars(module)["TOKEN"]
        for module in list(sys.modules.values())
        if module.__dict__.get("study") and "TOKEN" in vars(module)
    ]
    assert sorted(tokens) == ["one", "two"]


@pytest.mark.slow
def test_a_file_of_a_library_s_name_beside_a_study_hides_no_library(tmp_path: Path) -> None:
    """In a process of its own: the libraries must not be there yet."""
    write(tmp_path / "numpy.py", "raise SystemExit('this is not the library')\n")
    write(tmp_path / "sqlalchemy.py", f"{GOOD}import torch\n")
    write(tmp_path / "mine.py", GOOD)
    script = (
        "import sys\nfrom emoreg.study_file import read_study_file\nread_study_file(sys.argv[1])\n"
        "import numpy, sqlalchemy, torch\nprint(numpy.pi, sqlalchemy.__version__)"
    )
    for name in ("mine.py", "sqlalchemy.py"):
        done = subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("3.14")


RUNS = """\
import emoreg
study = emoreg.Study("mine", search_space={'drop_path': emoreg.Float(0, 0.5)})
if __name__ == "__main__":
    raise AssertionError("this is an import")
"""


@pytest.mark.parametrize("call", ["run", "confirm", "report"])
def test_a_file_that_runs_a_study_when_it_is_imported_is_refused(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_study_file(str(write(tmp_path / "mine.py", RUNS))).name == "mine"
    for text in (f"{RUNS}study.{call}()\n", f"{RUNS}made = study\ndef study():\n    made.{call}()\n"):
        path = write(tmp_path / "runs_at_once.py", text)
        with pytest.raises(
            ConfigError, match=rf'Put study\.{call}\(\) under `if __name__ == "__main__":`: importing a study file'
        ):
            read_study_file(str(path))
    with pytest.raises(ConfigError, match=r"Put emoreg\.run_trial\(\) under"):
        read_study_file(str(write(tmp_path / "trains.py", f"{GOOD}emoreg.run_trial(study.config.trial)\n")))
    assert not list(tmp_path.glob("runs/*"))


def test_what_travels_with_a_study_is_its_module_and_those_of_its_own_folder(tmp_path: Path) -> None:
    write(tmp_path / "project" / "travels_helper.py", "from travels_package import inner\n")
    write(tmp_path / "project" / "travels_package" / "__init__.py", "")
    write(tmp_path / "project" / "travels_package" / "inner.py", "")
    write(tmp_path / "project" / "travels_unused.py", "")
    write(tmp_path / "elsewhere" / "travels_elsewhere.py", "")
    path = write(tmp_path / "project" / "mine.py", f"import travels_helper, travels_elsewhere, json, torch\n{GOOD}")
    sys.path.append(str(tmp_path / "elsewhere"))
    before = set(sys.modules)
    read_study_file(str(path))
    (module,) = [sys.modules[name] for name in sys.modules.keys() - before if name.startswith("emoreg_study_mine")]
    first, *others = own_modules(module)
    assert first is module
    assert {other.__name__ for other in others} == {"travels_helper", "travels_package", "travels_package.inner"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def study(:\n", r"not valid Python: invalid syntax at .*bad\.py:1"),
        ("x = 1\n", r"Define `study` in .*, an emoreg\.Study or a function that returns one, but it is a NoneType"),
        ("study = 1\n", r"Define `study` .* but it is a int"),
        ("def study():\n    return 3\n", r"Define `study` .* but it is a int"),
        ("import no_such_thing\ndef study(): ...\n", r"which fails: ModuleNotFoundError: .*no_such_thing.*bad\.py:1"),
        ("1 / 0\n", r"Correct the study .*bad\.py', which fails: ZeroDivisionError: .*bad\.py:1"),
        ("def study():\n    return {}['a']\n", r"which fails: KeyError: 'a' \(.*bad\.py:2"),
        ("import emoreg\nstudy = emoreg.Study('mine')\n", r"search.space.* must not be empty, but it is \{\}"),
        ("import emoreg\nstudy = emoreg.Study('mine', num_trails=3)\n", r"TypeError: .*num_trails"),
        (
            "import emoreg\nTRIAL = emoreg.TrialConfig(regulation=emoreg.RegulationConfig(balance=1.5))\n",
            r"regulation\.balance must lie in \[0, 1\], but it is 1\.5",
        ),
        (GOOD.replace("drop_path", "drop_paht"), r"Name a setting such as drop_path: .*'drop_paht'"),
    ],
)
def test_a_bad_file_is_refused_with_the_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_study_file(str(write(tmp_path / "bad.py", text)))


def test_a_file_that_is_not_python_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text("# Mine\n")
    with pytest.raises(ConfigError, match=r"must end in \.py, but this is .*README\.md"):
        read_study_file(str(path))


def test_what_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(
        ConfigError,
        match=re.escape("Correct the path: a study is a module or a Python file, but there is no file 'nowhere/study.py'"),
    ):
        read_study_file("nowhere/study.py")
    with pytest.raises(ConfigError, match=r"no module 'studies\.quikstart'; emoreg ships .*studies\.quickstart"):
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
    assert done.stdout.split() == ["quickstart", "mine", "mine"]


def test_a_study_that_was_run_is_found_by_any_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = tmp_path / "runs"
    folder = write_study(storage, made_up_config(name="quickstart", num_trials=1), num_seeds=0)
    for reference in ("quickstart", "studies.quickstart", str(folder), f"file://{folder}"):
        assert find_study(reference, str(storage)) in (str(folder), f"file://{folder}")
    file = tmp_path / "mine.py"
    file.write_text(
        f"import emoreg\nstudy = emoreg.Study('quickstart', storage={str(storage)!r}, "
        "search_space={'regulation.balance': emoreg.Float(0.0, 1.0)})\n"
    )
    assert find_study(str(file), None) == str(folder)  # the storage that the file names, unless another one is given
    monkeypatch.chdir(tmp_path)
    assert find_study("studies.quickstart", None) == "runs/quickstart"


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("quikstart", r"Give --storage, .* is its name in 'runs', its folder or URI, .* but there is no 'quikstart'"),
        ("nowhere/at/all", "there is no 'nowhere/at/all'"),
        ("studies.quickstart", r"Run the study first \(`emoreg run studies.quickstart`\): there is none in 'runs/quickstart'"),
    ],
)
def test_a_study_that_is_not_there_is_said(
    reference: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        find_study(reference, None)
