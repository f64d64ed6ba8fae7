from __future__ import annotations

import functools
import importlib
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from emoreg.config.code import source_fingerprint
from emoreg.errors import ConfigError

STUDY = '''
"""A study."""
import math
import emoreg.config
from emoreg.config import Float
import beside
from family import helpers

WIDTH = 3

def mine(x):
    """Doubles."""
    # twice
    return WIDTH * 2 * x

class Net:
    depth = 1

    def forward(self):
        return self.depth

def study():
    return 1

if __name__ == "__main__":
    study()
'''
FILES = {
    "the_study.py": STUDY,
    "beside.py": "from family.deep import thing\n",
    "family/__init__.py": "",
    "family/helpers.py": "from . import more\nfrom .deep import thing\n",
    "family/more.py": "NUMBER = 1\n",
    "family/deep.py": "import the_study\nthing = 1\n",
    "unused.py": "x = 1\n",
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Write a study and the modules around it, with changes, and import it anew."""
    monkeypatch.syspath_prepend(tmp_path)
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in FILES]

    def run(**changes: str) -> Any:
        for name in names:
            sys.modules.pop(name, None)
        for name, text in FILES.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(changes.get(path.stem, text))
        importlib.invalidate_caches()
        linecache.clearcache()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        try:
            return importlib.import_module("the_study")
        finally:
            sys.dont_write_bytecode = before

    yield run
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# twice", "# two times"),
        ('"""Doubles."""', '"""Twice as much."""'),
        ("    return 1\n", "    return 2\n"),
        ("Float", "Float, Int"),
        ("    study()", "    print(study())"),
        ("WIDTH = 3", "WIDTH  =  (3)"),
    ],
)
def test_the_study_around_it_does_not_count(write: Callable[..., Any], old: str, new: str) -> None:
    before = source_fingerprint(write().mine)
    assert source_fingerprint(write(the_study=STUDY.replace(old, new)).mine) == before


def test_the_code_and_what_it_is_made_of_counts(write: Callable[..., Any]) -> None:
    module = write()
    prints = [source_fingerprint(module.mine)]
    assert source_fingerprint(module.Net) == prints[0]
    for changes in (
        {"the_study": STUDY.replace("2 * x", "3 * x")},
        {"the_study": STUDY.replace("WIDTH = 3", "WIDTH = 4")},
        {"beside": FILES["beside.py"] + "x = 1\n"},
        {"more": "NUMBER = 2\n"},
        {"deep": "import the_study\nthing = 2\n"},
    ):
        prints.append(source_fingerprint(write(**changes).mine))
    assert len(set(prints)) == len(prints)
    assert source_fingerprint(write(unused="x = 2\n").mine) == prints[0]
    assert source_fingerprint(write().mine) == prints[0]


def test_a_wrapped_function_counts_as_what_it_wraps(write: Callable[..., Any]) -> None:
    mine = write().mine

    @functools.wraps(mine)
    def wrapped(x: int) -> int:
        return int(mine(x + 1))

    assert source_fingerprint(wrapped) == source_fingerprint(mine)


def cell(text: str, name: str) -> Any:
    """What the cell of a notebook defines: code of ``__main__``, whose source Python finds in its line cache alone."""
    file = f"/tmp/ipykernel_1/{abs(hash(text))}.py"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, file, "exec"), namespace)
    return namespace[name]


@pytest.mark.parametrize("name", ["mine", "Net"])
def test_of_a_notebook_only_its_own_source_counts(name: str) -> None:
    text = "x = 1\ndef mine(x):\n    return 2 * x\n\nclass Net:\n    depth = 1\n    def forward(self):\n        return 1\n"
    first = source_fingerprint(cell(text, name))
    assert source_fingerprint(cell(text.replace("x = 1", "x = 3"), name)) == first
    assert source_fingerprint(cell(text.replace("2 * x", "3 * x").replace("depth = 1", "depth = 2"), name)) != first


def test_code_without_source_is_refused() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("def mine(x): return x", namespace)
    with pytest.raises(ConfigError, match=r"Define <function mine.*> in a file or in a notebook's cell"):
        source_fingerprint(namespace["mine"])
