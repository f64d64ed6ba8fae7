"""The nodes of a Ray cluster, asked one by one.

The functions that run on them travel by value, since a node may lack emoreg, or have another: they use nothing of this module
but each other and its constants, and import what may be missing where they use it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emoreg.storage.files import without_credentials
from emoreg.tuning.joining import ANSWER_SECONDS

_PACKAGES = ("ray", "torch", "timm", "pyarrow", "optuna")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """What Ray declares of a node; memory and object store in bytes."""

    name: str
    ray_id: str
    cpus: float
    gpus: float
    memory: float
    object_store: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a machine says of itself: versions of packages ("none" where missing), free bytes, bytes of cached image sets."""

    versions: Mapping[str, str]
    free_disk: int
    cached: Mapping[str, int]


def list_nodes() -> tuple[list[Node], int]:
    """The nodes that live, the head first, and how many have left."""
    rows = ray.nodes()
    alive = sorted((row for row in rows if row["Alive"]), key=lambda row: "node:__internal_head__" not in row["Resources"])
    addresses = [row["NodeManagerAddress"] for row in alive]
    nodes = []
    for row in alive:
        address, resources = row["NodeManagerAddress"], row["Resources"]
        nodes.append(
            Node(
                name=address if addresses.count(address) == 1 else f"{address} ({row['NodeID'][:6]})",
                ray_id=row["NodeID"],
                cpus=resources.get("CPU", 0.0),
                gpus=resources.get("GPU", 0.0),
                memory=resources.get("memory", 0.0) + resources.get("object_store_memory", 0.0),
                object_store=resources.get("object_store_memory", 0.0),
            )
        )
    return nodes, len(rows) - len(alive)


class _Hands:
    """Calls functions on a node."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Probes:
    """Hands on each of some nodes."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        hands = ray.remote(num_cpus=0)(_Hands)
        self._hands = {
            node.name: hands.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.ray_id, soft=False)).remote()
            for node in nodes
        }

    def ask(
        self,
        names: Iterable[str],
        function: Callable[..., Any],
        *arguments: Any,
        own: Mapping[str, Any] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Call a function on nodes, all at once.

        Args:
            names: of the nodes.
            function: what to call.
            arguments: the same for all nodes.
            own: the last argument of each node, by its name, if the function takes one.
            seconds: how long to wait for answers.

        Returns:
            What it gave on each node, and why it gave nothing on the others.
        """
        calls = {
            name: self._hands[name].call.remote(function, *arguments, *([] if own is None else [own[name]])) for name in names
        }
        answers: dict[str, Any] = {}
        silent: dict[str, str] = {}
        if not calls:
            return answers, silent
        done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds)
        for name, call in calls.items():
            if call not in done:
                silent[name] = f"no answer in {seconds:g} s"
                continue
            try:
                answers[name] = ray.get(call)
            except RayTaskError as error:  # what the function raised
                silent[name] = f"{type(error.cause).__name__}: {' '.join(without_credentials(str(error.cause)).split())}"
            except RayError as error:  # the node is gone
                silent[name] = f"it is lost ({type(error).__name__})"
        return answers, silent


def look() -> dict[str, Any]:
    """The fields of a ``Look``, on any machine."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    copies = Path(tempfile.gettempdir(), f"emoreg-{os.getuid()}", "imagesets").glob("*.arrow")  # storage.node_cache
    return {
        "versions": versions,
        "free_disk": shutil.disk_usage(tempfile.gettempdir()).free,
        "cached": {path.name: path.stat().st_size for path in copies},
    }


def emoreg_code(entry: str) -> dict[str, str]:
    """The version of emoreg and a digest of its code, where its module ``entry`` can be imported."""
    importlib.import_module(entry)
    import emoreg

    digest = hashlib.sha256()
    folder = Path(emoreg.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return {"version": emoreg.__version__, "digest": digest.hexdigest()[:8]}


def visible_gpus() -> list[str]:
    """The names of the GPUs that torch sees."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def write(storage: str, name: str) -> str | None:
    """Write a file with its name in it; the storage's folder if it had to be made."""
    from emoreg.storage.files import Files

    files = Files(storage)
    made = files.folder is not None and not files.folder.exists()
    files.write(name, name.encode())
    return str(files.folder) if made else None


def read(storage: str, names: Iterable[str]) -> list[str]:
    """Which of these files do not hold their name."""
    from emoreg.storage.files import Files

    files = Files(storage)
    missing = []
    for name in names:
        try:
            whole = files.read(name).to_pybytes() == name.encode()
        except FileNotFoundError:
            whole = False
        if not whole:
            missing.append(name)
    return missing


def remove(storage: str, names: Iterable[str], made: Iterable[str]) -> None:
    """Remove these files, and the folders if they are empty."""
    from emoreg.storage.files import Files

    files = Files(storage)
    for name in names:
        files.remove(name)
    for folder in made:
        with suppress(OSError):  # not empty, or another node's
            os.rmdir(folder)
