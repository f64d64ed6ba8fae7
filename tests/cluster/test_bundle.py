"""What travels to a cluster, and what stays here."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import emoreg
from emoreg.cluster.bundle import COMMIT_FILE, collect, secrets_of
from emoreg.config import ExperienceConfig
from emoreg.errors import ConfigError
from emoreg.study_file import read_study_file
from tests.helpers.studies import STUDY_FILE, tiny_study

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _modules_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git checkout with an emoreg of its own, which this process takes for the one that it runs from."""
    folder = tmp_path / "checkout"
    write(
        folder, {"emoreg/__init__.py": "", "emoreg/cli.py": "1", "studies/shipped.py": "", "notes": "kept", "runs/x": "large"}
    )
    write(folder, {".gitignore": "data/\n", ".env": "KEY=1", "data/images": "large", "emoreg/__pycache__/cli.pyc": ""})
    git(folder, "init", "--quiet")
    git(folder, "add", "emoreg/__init__.py", "emoreg/cli.py", "studies", "notes")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message", "begin")
    monkeypatch.setattr(emoreg, "__file__", str(folder / "emoreg" / "__init__.py"))
    monkeypatch.chdir(folder)
    return folder


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, text=True).stdout


def test_a_checkout_travels_without_what_is_ignored_hidden_or_a_result(checkout: Path) -> None:
    write(checkout, {"studies/new.py": "", "studies/results/x": "large"})
    bundle = collect("studies/new.py", tiny_study(storage="studies/results"))
    assert set(bundle.files) == {"emoreg/__init__.py", "emoreg/cli.py", "studies/shipped.py", "studies/new.py", "notes"}
    assert bundle.study == "studies/new.py"
    assert bundle.commit == git(checkout, "rev-parse", "HEAD").strip()
    assert str(bundle) == f"5 files, 0.0 MiB, of {checkout} at commit {bundle.commit[:9]}"
    (checkout / "notes").write_text("changed")
    (checkout / "studies" / "shipped.py").unlink()
    bundle = collect("studies/new.py", tiny_study(storage="."))
    assert str(bundle).endswith("+")
    assert "emoreg/cli.py" in bundle.files
    assert "studies/shipped.py" not in bundle.files


def test_an_ignored_study_travels_all_the_same(checkout: Path) -> None:
    write(checkout, {"data/mine.py": ""})
    assert "data/mine.py" in collect("data/mine.py", tiny_study()).files


def test_without_git_the_packages_alone_travel(checkout: Path) -> None:
    (checkout / ".git").rename(checkout / "elsewhere")
    bundle = collect("studies.shipped", tiny_study())
    assert set(bundle.files) == {"emoreg/__init__.py", "emoreg/cli.py", "studies/shipped.py"}
    assert bundle.commit is None


def test_an_environment_in_a_checkout_of_something_else_has_no_commit(checkout: Path) -> None:
    git(checkout, "rm", "--quiet", "-r", "--cached", "emoreg")
    bundle = collect("studies.shipped", tiny_study())
    assert set(bundle.files) == {"emoreg/__init__.py", "emoreg/cli.py", "studies/shipped.py"}
    assert bundle.commit is None


def test_a_study_outside_brings_the_modules_beside_it_that_it_imports(tmp_path: Path) -> None:
    text = "import near_helper, near_package.inner\n" + STUDY_FILE
    helpers = ("near_helper.py", "near_package/__init__.py", "near_package/inner.py", "unused_helper.py")
    write(tmp_path, {"far.py": text} | dict.fromkeys(helpers, ""))
    reference = str(tmp_path / "far.py")
    bundle = collect(reference, read_study_file(reference).config)
    own = {name for name, path in bundle.files.items() if path.is_relative_to(tmp_path)}
    assert own == {"submitted/far.py", "near_helper.py", "near_package/__init__.py", "near_package/inner.py"}
    assert bundle.study == "submitted/far.py"
    assert {"emoreg/cluster/bundle.py", "studies/quickstart.py"} <= bundle.files.keys()


def test_a_module_below_the_working_directory_travels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path,
        {"far_studies/__init__.py": "", "far_studies/one.py": STUDY_FILE},
    )
    monkeypatch.chdir(tmp_path)
    bundle = collect("far_studies.one", read_study_file("far_studies.one").config)
    assert bundle.files["far_studies/one.py"] == tmp_path / "far_studies" / "one.py"
    assert bundle.study == "far_studies.one"


def test_more_than_ray_takes_is_refused_before_it_is_read(checkout: Path) -> None:
    with open(checkout / "weights", "wb") as stream:
        stream.truncate(600 * 2**20)
    with pytest.raises(
        ConfigError, match=r"\.gitignore: .* may take 500 MiB, but it takes 600, most of it in weights \(600 MiB\)"
    ):
        collect("studies/shipped.py", tiny_study())


def test_the_same_files_make_the_same_bundle(checkout: Path, tmp_path: Path) -> None:
    for name in ("one.zip", "two.zip"):
        collect("studies/shipped.py", tiny_study()).write(tmp_path / name)
        (checkout / "notes").touch()
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert archive.read("emoreg/cli.py") == b"1"
        assert archive.read(COMMIT_FILE).decode() == git(checkout, "rev-parse", "HEAD")


URL = "postgresql://anna:pa55word99@db/studies"


@pytest.mark.parametrize("text", [f'URL = "{URL}"\n', 'PASSWORD = "pa55word99"\n'])
def test_a_file_with_a_password_of_the_study_is_refused(text: str, checkout: Path, tmp_path: Path) -> None:
    study = tiny_study(optuna_storage=URL)
    write(checkout, {"studies/mine.py": text})
    with pytest.raises(ConfigError, match=r"must hold no password or key, but .*studies/mine\.py' does") as error:
        collect("studies/mine.py", study).write(tmp_path / "x.zip", secrets_of(study))
    assert "pa55word99" not in str(error.value)


def test_a_password_that_a_study_reads_from_the_environment_hinders_nothing(checkout: Path, tmp_path: Path) -> None:
    study = tiny_study(optuna_storage=URL)
    write(checkout, {"studies/mine.py": 'URL = os.environ["URL"]\n'})
    collect("studies/mine.py", study).write(tmp_path / "x.zip", secrets_of(study))
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        assert all(b"pa55word99" not in archive.read(name) for name in archive.namelist())


def test_every_setting_is_looked_at_for_secrets() -> None:
    study = tiny_study(
        storage="s3://A:secret-of-storage@b/x",
        experience=ExperienceConfig(uri="s3://A:short@b/x"),
        warm_start_from=("s3://A:secret-of-another@b/x",),
    )
    assert secrets_of(study) == {
        "://A:secret-of-storage@",
        '"secret-of-storage"',
        "'secret-of-storage'",
        "://A:short@",
        "://A:secret-of-another@",
        '"secret-of-another"',
        "'secret-of-another'",
    }
