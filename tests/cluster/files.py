"""The files under cluster/, as the tests read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file())
LAUNCHED = ("onprem", "aws", "gcp")
MANIFESTS = sorted(path.name for path in (CLUSTER / "kuberay").glob("*.yaml"))


def load(path: Path) -> Any:
    return yaml.load(path.read_text(), Loader=yaml.CSafeLoader)  # the pure Python one takes seconds for KubeRay's schemas


def launched(name: str) -> Any:
    return load(CLUSTER / f"{name}.yaml")


def manifest(name: str) -> Any:
    return load(CLUSTER / "kuberay" / name)


def argument(name: str) -> str:
    """The default of a build argument of the container file."""
    (value,) = re.findall(rf"^ARG {name}=(\S+)$", (CLUSTER / "Containerfile").read_text(), flags=re.MULTILINE)
    return str(value)


def commands(tool: str) -> list[str]:
    """The commands of README.md that begin with ``tool``, without their comments."""
    lines = re.findall(rf"^    ({tool} .*?)(?:\s+#.*)?$", (CLUSTER / "README.md").read_text(), flags=re.MULTILINE)
    return [str(line) for line in lines]
