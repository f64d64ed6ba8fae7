"""What the processes of a study share on a Ray cluster: who trains which trunk, and that the study is to stop.

Both are Ray actors, owned by a process: where it dies, by kill -9 or with its machine, Ray ends them, and nothing is left held.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import socket
import time
from typing import Any

import ray
from ray._private import state
from ray.exceptions import RayError
from ray.tune.experiment import Trial
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emoreg.storage.files import Files

_NAMESPACE = "emoreg"
_LOOK_SECONDS = 0.2
_ANSWER_SECONDS = 2.0


class _Lease:
    """Holds a name in the cluster, for as long as the process that made it lives."""


class ActorLeases:
    """Leases of trunks in a cluster. An ``experience.Leases``.

    The lease of a trunk is an actor with its name: one process can make it, the others are refused. It belongs to the process
    that made it, and ends with it. It stands on the same machine, so that no other machine takes it along when it is lost.
    """

    def __init__(self, uri: str) -> None:
        """Lease the trunks of one store.

        Args:
            uri: of the store.
        """
        # Its place, so that every way to write its URI means the same, and no password is in a name that Ray shows.
        self._store = hashlib.sha256(Files(uri).place.encode()).hexdigest()[:16]
        self._actor = ray.remote(num_cpus=0)(_Lease)
        self._held: dict[str, Any] = {}

    def try_acquire(self, key: str) -> bool:
        """Take the lease of ``key`` if nobody holds it."""
        node = ray.get_runtime_context().get_node_id()
        is_draining = node in state.state.get_draining_nodes()  # then it starts no actor, and any other must do
        place = None if is_draining else NodeAffinitySchedulingStrategy(node, soft=False)
        name = f"experience {self._store} {key}"
        try:
            self._held[key] = self._actor.options(name=name, namespace=_NAMESPACE, scheduling_strategy=place).remote()
        except ValueError:  # the name is taken
            return False
        return True

    def release(self, key: str) -> None:
        """Give the lease of ``key`` back."""
        ray.kill(self._held.pop(key))


class Machines:
    """Which machine each of Tune's trials ran on, and whether Ray has lost it or it is being taken away. For the driver."""

    def __init__(self) -> None:
        self._nodes: dict[str, str] = {}

    def began(self, trial: Trial) -> None:
        """A trial has a worker."""
        actor = trial.temporary_state.ray_actor._actor_id.hex()
        self._nodes[trial.trial_id] = state.actors(actor)["Address"]["NodeID"]

    def is_lost(self, trial_id: str) -> bool:
        """Whether the machine of a trial is lost, by what Ray knows now, or by its silence: Ray finds out seconds later."""
        node_id = self._nodes.get(trial_id)
        if node_id is None:  # it never had a worker
            return False
        node = next((row for row in ray.nodes() if row["NodeID"] == node_id and row["Alive"]), None)
        return node is None or node_id in state.state.get_draining_nodes() or not _answers(node)


def _answers(node: dict[str, Any]) -> bool:
    """Whether Ray on a machine takes connections."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


class _StopSign:
    """Raised once for all trials of a study."""

    def __init__(self) -> None:
        self._raised = asyncio.Event()

    async def put_up(self) -> None:
        self._raised.set()

    async def wait(self) -> None:
        await self._raised.wait()


class StopSign:
    """Tells the trials of a study, wherever they run, to save and end. Made by the driver; sent to workers by pickling."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lost only with the driver
        self._actor = ray.remote(num_cpus=0, scheduling_strategy=here)(_StopSign).remote()

    def put_up(self) -> None:
        """Tell all trials to stop, those that begin later too."""
        self._actor.put_up.remote()

    def watch(self) -> Watch:
        """Begin to look out for it, in a worker."""
        return Watch(self._actor)


class Watch:
    """Whether the stop sign is up, asked as often as one likes: it looks a few times a second."""

    def __init__(self, actor: Any) -> None:
        self._call = actor.wait.remote()
        self._is_up = False
        self._next_look = 0.0

    def __call__(self) -> bool:
        """Whether this trial is to stop."""
        if not self._is_up and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _LOOK_SECONDS
            ready, _ = ray.wait([self._call], timeout=0)
            if ready:
                try:
                    ray.get(self._call)
                    self._is_up = True
                except RayError:  # it is gone with the driver, and Ray will end this process too
                    self._next_look = math.inf
        return self._is_up

    def close(self) -> None:
        """Look no longer."""
        if not self._is_up:
            ray.cancel(self._call)
