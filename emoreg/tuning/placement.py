"""What each trial asks of Ray, whether the cluster can ever give it, what waits for a machine, and whether one is lost.

Ray places the trials.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emoreg.config import StudyConfig, TrialResources
from emoreg.errors import ConfigError
from emoreg.tuning.machine import GPU_KIND, Resources, bundle, num_fit, with_gpus

_GIB = 2**30
_REFRESH_SECONDS = 0.5
_ANSWER_SECONDS = 60.0
_CONNECT_SECONDS = 2.0
_AHEAD = 4
_NODE_GROUP = "ray.io/node-group"
"""Ray's label of a node that KubeRay or `ray up` started."""
_LAUNCHER_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves the cluster's configuration, as JSON, on the head."""


class Placement:
    """What the trials of a study ask for, against what the cluster has. Ray is running."""

    def __init__(self, config: StudyConfig, notify: Callable[[str], None]) -> None:
        """Settle what a trial of each backbone asks for.

        Args:
            config: of the study.
            notify: told if trials run on CPUs although an autoscaler might bring GPUs.
        """
        self._max_concurrent = config.resources.max_concurrent
        self._searched = config.backbones()
        self._launchable = find_launchable()
        self._nodes = _alive_nodes()
        self._next_refresh = time.monotonic() + _REFRESH_SECONDS
        has_gpus = any(node.get("GPU") for node in (*self._nodes, *(self._launchable or {}).values()))
        self._asked = {
            backbone: with_gpus(config.trial_resources(backbone), has_gpus=has_gpus)
            for backbone in dict.fromkeys((*self._searched, *config.resources_by_backbone))
        }
        if self._launchable == {} and not has_gpus and config.resources.gpus_per_trial is None:
            notify(
                "no machine of the cluster has a GPU now, and Ray does not tell what its autoscaler may start: trials run on "
                "CPUs; ask for GPUs with --resources.gpus-per-trial 1"
            )

    @property
    def bundles(self) -> dict[str, PlacementGroupFactory]:
        """What Tune asks of Ray for a trial, by backbone: of those that the study searches or names."""
        return {backbone: PlacementGroupFactory([bundle(asked)]) for backbone, asked in self._asked.items()}

    def slots(self) -> int:
        """How many trials of the smallest request fit the nodes that are alive now, at least 1; at most ``max_concurrent``."""
        nodes = self._now()
        fit = max(sum(num_fit(asked, node) for node in nodes) for asked in self._asked.values())
        return max(1, fit if self._max_concurrent is None else min(fit, self._max_concurrent))

    @property
    def may_wait(self) -> int:
        """How many trials may wait for a place at once: several if an autoscaler starts machines for those that wait."""
        return 1 if self._launchable is None else _AHEAD

    def check(self) -> None:
        """Refuse a study with a trial that can never be placed.

        Raises:
            ConfigError: naming what the trial asks for and what the cluster has.
        """
        for backbone in self._homeless():
            asked = self._asked[backbone]
            offers = self._launchable
            if offers is not None and (not offers or any(may_hold(asked, kind) for kind in offers.values())):
                continue
            listed = "; ".join(f"{name} ({describe(kind)})" for name, kind in (offers or {}).items())
            raise ConfigError(
                "Ask for less (--resources.cpus-per-trial, --resources.gpus-per-trial, --resources.memory-gib-per-trial, "
                "--resources.accelerator-type, or resources_by_backbone in the study file) or add such a machine: a trial must "
                f"fit on one machine, but {self._misfit(backbone)}" + (f", and may start {listed}" if listed else "")
            )

    def check_gpus(self) -> None:
        """Refuse machines whose GPUs Ray gives away and torch does not see: every trial there would fail.

        Machines that do not answer within a minute are passed over.

        Raises:
            ConfigError: naming them.
        """
        if not any(asked.gpus for asked in self._asked.values()):
            return
        count = ray.remote(num_cpus=0)(_count_gpus)
        asked = {
            count.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(): node
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("GPU")
        }
        answered, _ = ray.wait([*asked], num_returns=len(asked), timeout=_ANSWER_SECONDS) if asked else ([], [])
        blind = []
        for answer in answered:
            with suppress(RayError):  # it has left meanwhile
                if not ray.get(answer):
                    node = asked[answer]
                    blind.append(f"{node['Resources']['GPU']:g} on {node['NodeName']}")
        if blind:
            raise ConfigError(
                "Install a CUDA build of torch there, or start these machines with --num-gpus=0: Ray must give away no GPU "
                f"that torch does not see, but it gives away {', '.join(blind)}, where torch sees none (`emoreg doctor "
                "--address auto` shows all machines)"
            )

    def waiting(self) -> str | None:
        """What waits for a machine that the cluster does not have now; None if every trial fits on a machine that is alive."""
        homeless = self._homeless()
        if not homeless:
            return None
        who = "the autoscaler starts" if self._launchable is not None else "there is"
        return f"{'; '.join(map(self._misfit, homeless))}: such trials wait until {who} a machine that can hold them"

    def _homeless(self) -> list[str]:
        """Backbones whose trials fit on no node that is alive."""
        nodes = self._now()
        return [name for name in self._searched if not any(num_fit(self._asked[name], node) for node in nodes)]

    def _misfit(self, backbone: str) -> str:
        asked = describe(bundle(self._asked[backbone]))
        return f"a trial of backbone {backbone!r} asks for {asked} and the cluster has {table(self._now())}"

    def _now(self) -> list[Resources]:
        if time.monotonic() >= self._next_refresh:
            self._nodes = _alive_nodes()
            self._next_refresh = time.monotonic() + _REFRESH_SECONDS
        return self._nodes


def is_node_lost(node_id: str) -> bool:
    """Whether a node is lost, by what Ray knows now, or by its silence: Ray finds out seconds later."""
    return not any(node["NodeID"] == node_id and node["Alive"] and _answers(node) for node in ray.nodes())


def _answers(node: dict[str, Any]) -> bool:
    """Whether Ray on a machine takes connections."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def may_hold(asked: TrialResources, kind: Resources) -> bool:
    """Whether a machine of a launcher's type may hold the trial; it may have memory and models of GPU that are not told of."""
    return not kind or all(
        kind.get(name, 0.0) >= (amount or 0.0) for name, amount in (("CPU", asked.cpus), ("GPU", asked.gpus))
    )


def find_launchable(launcher_file: Path = _LAUNCHER_FILE) -> dict[str, Resources] | None:
    """The machines that the cluster's autoscaler may start, by type.

    Empty if there may be an autoscaler that does not tell, as KubeRay's; None if the cluster was started by hand, as far as its
    labels and `ray up`'s file on this machine tell: the machines at hand are then all that there will be.
    """
    groups = {node["Labels"].get(_NODE_GROUP) for node in ray.nodes() if node["Alive"]} - {None}
    path = Path(os.path.expanduser(launcher_file))  # as it is where there is no home
    if not path.is_file():
        return {} if groups else None
    types = json.loads(path.read_text())["available_node_types"]
    if not groups <= types.keys():  # the file is of another cluster
        return {}
    return {name: kind.get("resources") or {} for name, kind in types.items() if kind.get("max_workers", 1) > 0}


def describe(resources: Resources) -> str:
    """Resources in words: 8 CPUs, 1 GPU (T4), 32 GiB."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    kinds = [name.removeprefix(GPU_KIND) for name in resources if name.startswith(GPU_KIND)]
    parts = [f"{cpus:g} CPU{'' if cpus == 1 else 's'}"]
    if gpus:
        parts.append(f"{gpus:g} GPU{'s' if gpus > 1 else ''}" + (f" ({', '.join(kinds)})" if kinds else ""))
    if resources.get("memory"):
        parts.append(f"{resources['memory'] / _GIB:.3g} GiB")
    return ", ".join(parts)


def table(nodes: Iterable[Resources]) -> str:
    """Machines in words, equal ones counted, the most frequent first."""
    counts = Counter(map(describe, nodes))
    rows = [f"{number} node{'' if number == 1 else 's'} with {text}" for text, number in counts.most_common()]
    return "; ".join(rows) or "no nodes"


def _count_gpus() -> int:
    """How many GPUs torch sees on a machine, those that Ray hides from a task that asks for none included."""
    import torch

    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    return int(torch.cuda.device_count())


def _alive_nodes() -> list[Resources]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]
