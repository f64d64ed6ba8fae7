"""What each trial asks of Ray, whether the cluster can ever give it, and how much of it is free.

Ray places the trials. Decided here is which trial it may be given next, while others wait for a place. By itself it gives a
place that comes free to whoever fits: a trial that needs two GPUs of one machine would wait for as long as smaller ones come;
and if all waited behind it, the smaller machines would stand empty. So the machine that can soonest hold the waiting trial
takes no others, and these go on elsewhere.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray._private import state
from ray.tune import PlacementGroupFactory

from emoreg.config import StudyConfig, TrialResources
from emoreg.errors import ConfigError
from emoreg.tuning.autoscaler import Autoscaler, Resources, find_autoscaler

_KIND = "accelerator_type:"
_SOME = 0.001  # of a kind of GPU, of which a node has 1: Ray's own way to ask for it
_GIB = 2**30
_LOOK_SECONDS = 0.5
_AHEAD = 4
"""Trials that may wait where an autoscaler looks after them, so that it starts several machines at once."""


@dataclass(frozen=True, slots=True)
class Nodes:
    """Machines that run and take trials, by Ray's node id: what they have, and what of it is free."""

    total: Mapping[str, Resources]
    free: Mapping[str, Resources]


def bundle(asked: TrialResources) -> dict[str, float]:
    """What a trial asks, in Ray's names."""
    resources = {
        "CPU": asked.cpus or 0.0,
        "GPU": asked.gpus or 0.0,
        "memory": math.ceil((asked.memory_gib or 0.0) * _GIB),
        f"{_KIND}{asked.accelerator_type}": _SOME if asked.accelerator_type else 0.0,
    }
    return {name: amount for name, amount in resources.items() if amount}


def num_fit(asked: TrialResources, resources: Resources) -> int:
    """How many trials these resources hold at once."""
    return min(math.floor(resources.get(name, 0.0) / amount + 1e-6) for name, amount in bundle(asked).items())


def placed(assignment: Mapping[str, Any], by_backbone: Mapping[str, TrialResources]) -> PlacementGroupFactory:
    """What Tune asks of Ray for the trial that the searcher has assigned: ``tune.with_resources`` takes it."""
    avoid = assignment["avoid"]
    # Only where needed: Tune gives a worker that is free to trials that ask for the same, word for word.
    selector = {"bundle_label_selector": [{"ray.io/node-id": f"!in({','.join(avoid)})"}]} if avoid else {}
    return PlacementGroupFactory([bundle(by_backbone[assignment["trial"].backbone])], **selector)


def startable(
    requests: Iterable[TrialResources], pending: Sequence[TrialResources], nodes: Nodes, *, ahead: int = 0
) -> dict[TrialResources, tuple[str, ...]]:
    """The requests of which a trial may be given to Ray now, each with the nodes that it must leave to others.

    Args:
        requests: of the study's trials.
        pending: requests of the trials that were given to Ray and do not run yet: for want of a place, or on the way to one.
        nodes: as they are now.
        ahead: how many of one kind may wait in any case.
    """
    if not pending:
        return dict.fromkeys(requests, ())
    left_to = {waiting: _soonest(waiting, nodes) for waiting in pending if not _num_free(waiting, nodes)}
    found = {}
    for asked in requests:
        others = {node for waiting, node in left_to.items() if waiting != asked and node is not None}
        avoid = tuple(sorted(node for node in others if num_fit(asked, nodes.total[node])))
        num_same = pending.count(asked)
        if _num_free(asked, nodes, avoid) > num_same or num_same == len(pending) < ahead:
            found[asked] = avoid
    return found


def _num_free(asked: TrialResources, nodes: Nodes, avoid: Sequence[str] = ()) -> int:
    return sum(num_fit(asked, free) for node, free in nodes.free.items() if node not in avoid)


def _soonest(waiting: TrialResources, nodes: Nodes) -> str | None:
    """The node with the largest free share of what the trial asks: taking no others, it stays that."""

    def free_share(node: str) -> float:
        return min(nodes.free.get(node, {}).get(name, 0.0) / amount for name, amount in bundle(waiting).items())

    return max(sorted(node for node, total in nodes.total.items() if num_fit(waiting, total)), key=free_share, default=None)


class Placement:
    """What the trials of a study ask for, against what the cluster has now."""

    def __init__(self, config: StudyConfig, *, say: Callable[[str], None]) -> None:
        """Compare the two, before anything runs.

        Args:
            config: of the study.
            say: told what a user should know: that trials wait for the autoscaler, for one.

        Raises:
            ConfigError: for a trial that can never be placed.
        """
        self._max_concurrent = config.resources.max_concurrent
        self._num_pending = 0
        self._settled = 0.0
        self._nodes = _look()
        self._next_look = time.monotonic() + _LOOK_SECONDS
        totals = list(self._nodes.total.values())
        self._autoscaler = find_autoscaler()
        coming = [] if self._autoscaler is None else list(self._autoscaler.node_types.values())
        gpus = 1.0 if any(node.get("GPU") for node in (*totals, *coming)) else 0.0
        self.by_backbone = {
            backbone: _with_gpus(config.trial_resources(backbone), gpus)
            for backbone in {*config.backbones(), *config.resources_by_backbone}
        }
        """What a trial asks for, by its backbone."""
        if self._autoscaler is not None and not coming and gpus == 0 and config.resources.gpus_per_trial is None:
            say(
                "no machine of the cluster has a GPU now, and Ray does not tell what its autoscaler may start: trials run on "
                "CPUs; ask for GPUs with --resources.gpus-per-trial 1"
            )
        for backbone in config.backbones():
            asked = self.by_backbone[backbone]
            if not any(num_fit(asked, node) for node in totals):
                say(wait_for_autoscaler(backbone, asked, totals, self._autoscaler))

    def slots(self) -> int:
        """How many trials of those that ask the least run at once on what the machines have now."""
        total = self._now().total.values()
        fit = max(sum(num_fit(asked, node) for node in total) for asked in self._requests)
        return max(1, fit if self._max_concurrent is None else min(fit, self._max_concurrent))

    def startable(self, pending: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """The backbones of which a trial may be given to Ray now, each with the nodes that it must leave to others.

        Args:
            pending: backbones of the trials that were given to Ray and do not run yet.
        """
        if len(pending) > self._num_pending and len(self._requests) > 1:  # the next look shows what is left beside the new one
            self._settled = time.monotonic() + _LOOK_SECONDS
        self._num_pending = len(pending)
        if pending and time.monotonic() < self._settled:
            return {}
        waiting = [self.by_backbone[backbone] for backbone in pending]
        ahead = 0 if self._autoscaler is None else _AHEAD
        found = startable(self._requests, waiting, self._now(), ahead=ahead)
        return {backbone: found[asked] for backbone, asked in self.by_backbone.items() if asked in found}

    @property
    def _requests(self) -> set[TrialResources]:
        return set(self.by_backbone.values())

    def _now(self) -> Nodes:
        if time.monotonic() >= self._next_look:
            self._nodes = _look()
            self._next_look = time.monotonic() + _LOOK_SECONDS
        return self._nodes


def _with_gpus(asked: TrialResources, gpus: float) -> TrialResources:
    """The request with the GPUs that it gets where the study does not say."""
    if asked.gpus is not None:
        return asked
    return dataclasses.replace(asked, gpus=1.0 if asked.accelerator_type else gpus)


def _look() -> Nodes:
    draining = state.state.get_draining_nodes()
    total = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in draining}
    free = state.available_resources_per_node()
    return Nodes(total=total, free={node: free[node] for node in total if node in free})


def wait_for_autoscaler(
    backbone: str, asked: TrialResources, totals: Sequence[Resources], autoscaler: Autoscaler | None
) -> str:
    """What to tell of a trial that fits on no machine that runs: that it waits for the autoscaler.

    Raises:
        ConfigError: where it would wait for ever.
    """
    wanted = f"a trial of backbone {backbone!r} asks for {describe(bundle(asked))}"
    have = f"the cluster has {table(totals)}"
    if autoscaler is None:
        may = None
    elif autoscaler.node_types:
        able = [name for name, resources in autoscaler.node_types.items() if may_hold(asked, resources)]
        offered = "; ".join(f"{name} ({describe(resources)})" for name, resources in autoscaler.node_types.items())
        have += f", and its autoscaler may start {offered}"
        may = f"which may start a machine that has it ({', '.join(able)})" if able else None
    else:
        have += ", and its autoscaler can start none that has it"
        may = autoscaler.ask(bundle(asked))
    if may is None:
        raise ConfigError(
            f"a trial must fit on one machine, but {wanted} and {have}: ask for less (--resources.cpus-per-trial, "
            "--resources.gpus-per-trial, --resources.memory-gib-per-trial, --resources.accelerator-type, or "
            "resources_by_backbone in the study file), or add such a machine"
        )
    return f"{wanted} and {have}: it waits for the autoscaler, {may}"


def may_hold(asked: TrialResources, resources: Resources) -> bool:
    """Whether a machine of this type may hold the trial; it may have memory and kinds of GPU that are not told of."""
    told = {name.partition(":")[0] for name in resources}
    known = {"memory", _KIND[:-1]} & told
    return all(
        resources.get(name, 0.0) >= amount
        for name, amount in bundle(asked).items()
        if name in ("CPU", "GPU") or name.partition(":")[0] in known
    )


def describe(resources: Resources) -> str:
    """Resources in words: 8 CPUs, 1 GPU (T4), 32 GiB."""
    cpus, gpus = resources.get("CPU", 0.0), resources.get("GPU", 0.0)
    kinds = [name.removeprefix(_KIND) for name in resources if name.startswith(_KIND)]
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
