"""What the processes of a study share: the locks of pre-training runs, and the signal that the study is to stop.

On a Ray cluster both are actors, owned by a process: where it dies, by kill -9 or with its machine, Ray ends them, and nothing
is left held.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private import state
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emoreg.storage.files import Files
from emoreg.storage.locks import FileLocks, Locks
from emoreg.storage.retry import Patience
from emoreg.tuning.private_ray import IS_LIGHT

_NAMESPACE = "emoreg"
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 2.0


class _Lock:
    """Holds a name in the cluster, for as long as the process that made it lives."""


class ActorLocks:
    """Locks of shared pre-training runs in a cluster. A ``Locks``.

    A lock is an actor with its name: one process can make it, the others are refused. It belongs to the process that made it,
    and ends with it. It stands on the same machine, so that no other machine takes it along when it is lost.
    """

    def __init__(self, uri: str) -> None:
        """Lock what lies in the experience store at ``uri``."""
        # Its location, so that every way to write its URI means the same, and no password is in a name that Ray shows.
        self._store = hashlib.sha256(Files(uri).location.encode()).hexdigest()[:16]
        self._actor = ray.remote(num_cpus=0)(_Lock)
        self._held: dict[str, Any] = {}

    def try_acquire(self, key: str) -> bool:
        """Take the lock of ``key`` if nobody has it."""
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
        """Give the lock of ``key`` back."""
        ray.kill(self._held.pop(key))


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedRunLocks:
    """Where the locks of a study's shared pre-training runs are. Travels to workers in memory: it may hold passwords.

    Attributes:
        store: URI of the experience store.
        is_cluster: whether trials may run on several machines of one Ray cluster.
        database: where the study's drivers meet, if it may have several.
    """

    store: str = field(repr=False)
    is_cluster: bool
    database: str | None = field(default=None, repr=False)

    def open(self, patience: Patience) -> Locks:
        """The locks, for one process."""
        if self.database is not None:
            from emoreg.tuning.postgres import PostgresLocks  # which takes a while to import

            return PostgresLocks(self.database, f"experience {Files(self.store).location}", patience)
        if self.is_cluster:
            return ActorLocks(self.store)
        return FileLocks.of(Files(self.store))


class _StopSignal:
    def __init__(self) -> None:
        self._asked: set[str | None] = set()
        self._changed = asyncio.Condition()

    async def set(self, identity: str | None) -> None:
        async with self._changed:
            self._asked.add(identity)
            self._changed.notify_all()

    async def wait(self, identity: str) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: bool(self._asked & {None, identity}))


class StopSignal:
    """Tells trials of a study, wherever they run, to save and end. Made by the driver; sent to workers by pickling."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # lost only with the driver
        light = {"env_vars": {IS_LIGHT: "1"}}  # so that it takes no worker that is ready for a trial
        self._actor = ray.remote(num_cpus=0, scheduling_strategy=here, runtime_env=light)(_StopSignal).remote()

    def set(self, identity: str | None = None) -> None:
        """Tell a trial to stop, or all, those that begin later too."""
        self._actor.set.remote(identity)

    def watch(self, identity: str) -> StopWatcher:
        """Begin to watch it for a trial, in its worker."""
        return StopWatcher(self._actor.wait.remote(identity))


class StopWatcher:
    """Whether the stop signal is set, asked as often as one likes: it looks a few times a second."""

    def __init__(self, call: Any) -> None:
        """Look whether ``call`` has returned."""
        self._call = call
        self._is_set = False
        self._next_poll = 0.0

    def __call__(self) -> bool:
        """Whether this trial is to stop."""
        if not self._is_set and time.monotonic() >= self._next_poll:
            self._next_poll = time.monotonic() + _POLL_SECONDS
            ready, _ = ray.wait([self._call], timeout=0)
            if ready:
                try:
                    ray.get(self._call)
                    self._is_set = True
                except RayError:  # it is gone with the driver, and Ray will end this process too
                    self._next_poll = math.inf
        return self._is_set

    def close(self) -> None:
        """Watch no longer."""
        if not self._is_set:
            ray.cancel(self._call)
