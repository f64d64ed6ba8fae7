"""Where the leases of shared runs stand: beside their holders. Run with the address and the number of nodes of a cluster.

It prints its counts. It waits until Ray knows of so many nodes and no other: one that a test has lost is alive to Ray for
seconds.
"""

from __future__ import annotations

import json
import sys

import ray
from ray._private import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emoreg.tuning.coordination import ActorLocks
from tests.helpers.waiting import wait_for

NUM_LEASES = 4


class Holder:
    def take(self, keys: list[str]) -> list[str]:
        """The ids of the actors that are the leases."""
        self._leases = ActorLocks("/store")
        assert all(self._leases.try_acquire(key) for key in keys)
        return [self._leases._held[key]._actor_id.hex() for key in keys]


def alive() -> list[str]:
    """Ids of the nodes that Ray takes to be there."""
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False)
    wait_for(lambda: len(alive()) == int(sys.argv[2]), told=lambda: f"the cluster has {len(alive())} nodes")
    nodes = alive()
    holder = ray.remote(num_cpus=0)(Holder)
    holders = [holder.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in nodes]
    beside = 0
    for node, held in zip(nodes, holders, strict=True):
        leases = ray.get(held.take.remote([f"{node} {number}" for number in range(NUM_LEASES)]))
        beside += sum(state.actors(lease)["Address"]["NodeID"] == node for lease in leases)
    print(json.dumps({"nodes": len(nodes), "beside": beside}))
