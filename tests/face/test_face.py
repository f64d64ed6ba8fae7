"""``import emoreg``: every name is there, documented with an example that runs, and costs nothing before it is used."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import emoreg
from tests.helpers.networks import write_untrained
from tests.helpers.waiting import PATIENCE
from tests.helpers.written import made_up_config, write_study

ROOT = Path(__file__).parents[2]
NAMES = [name for name in emoreg.__all__ if name != "__version__"]


def in_a_process(script: str, *, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_are_about_thirty_names_and_dir_tells_them() -> None:
    assert 20 <= len(emoreg.__all__) <= 36
    assert dir(emoreg) == sorted(emoreg.__all__)
    with pytest.raises(AttributeError, match="module 'emoreg' has no attribute 'Sutdy'"):
        emoreg.Sutdy  # noqa: B018


def test_importing_it_is_quick_and_brings_no_heavy_library(tmp_path: Path) -> None:
    heavy = {"torch", "ray", "optuna", "pyarrow", "pandas", "numpy", "scipy", "tyro", "rich", "timm", "tensorboard", "plotly"}
    script = (
        "import sys, time; began = time.process_time(); import emoreg; seconds = time.process_time() - began\n"
        f"assert not {heavy!r} & sys.modules.keys(), {heavy!r} & sys.modules.keys()\n"
        "print(seconds)"
    )
    assert float(in_a_process(script, cwd=tmp_path)) < 0.5


@pytest.fixture(scope="module")
def place(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study in ``runs/mine``, and a network in ``exported``."""
    folder = tmp_path_factory.mktemp("examples")
    write_untrained(folder / "exported")
    write_study(folder / "runs", made_up_config(name="mine"), num_seeds=2)
    (folder / "runs" / "imagesets").symlink_to(prepared / "imagesets")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_documented_with_an_example_that_runs(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    documented: Any = getattr(emoreg, name)
    examples = doctest.DocTestFinder(recurse=False).find(documented, name, globs={"__name__": "example"})
    assert sum(len(example.examples) for example in examples), "it has no example"
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    told: list[str] = []
    for example in examples:
        runner.run(example, out=told.append)
    assert not runner.failures, "".join(told)
