"""Where the leases of trunks stand: beside their holders. For a cluster whose address is the argument; prints its counts."""

from __future__ import annotations

import json
import sys

import ray
from ray._private import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emoreg.cluster.coordination import ActorLeases

NUM_LEASES = 4


class Holder:
    def take(self, keys: list[str]) -> list[str]:
        """The ids of the actors that are the leases."""
        self._leases = ActorLeases("/store")
        assert all(self._leases.try_acquire(key) for key in keys)
        return [self._leases._held[key]._actor_id.hex() for key in keys]


if __name__ == "__main__":
    ray.init(address=sys.argv[1], log_to_driver=False)
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    holder = ray.remote(num_cpus=0)(Holder)
    holders = [holder.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in nodes]
    beside = 0
    for node, held in zip(nodes, holders, strict=True):
        leases = ray.get(held.take.remote([f"{node} {number}" for number in range(NUM_LEASES)]))
        beside += sum(state.actors(lease)["Address"]["NodeID"] == node for lease in leases)
    print(json.dumps({"nodes": len(nodes), "beside": beside}))
