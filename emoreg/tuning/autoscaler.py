"""What Ray tells of its autoscaler: whether there is one, what machines it may start, and what it does about a request."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ray
from ray._private import ray_constants, state
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.experimental.internal_kv import _internal_kv_get

Resources = Mapping[str, float]
"""Amounts by Ray's names: CPU, GPU, memory in bytes, accelerator_type:T4."""

_LAUNCHER_FILE = Path("~/ray_bootstrap_config.yaml")
"""Where Ray's cluster launcher leaves its configuration on the head node."""
_ANSWER_SECONDS = 30.0
_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """Ray's autoscaler, and the resources of the machines that it may start, by type, as far as Ray tells."""

    node_types: Mapping[str, Resources]

    def ask(self, wanted: Resources) -> str | None:
        """Show it a request for a while. What it does, to follow "the autoscaler"; None where it says that it never can."""
        group = ray.util.placement_group([dict(wanted)])
        try:
            deadline = time.monotonic() + _ANSWER_SECONDS
            while time.monotonic() < deadline:
                answer = _status().autoscaling_state
                if answer.pending_instance_requests or answer.pending_instances:
                    return "which has begun to start machines"
                for gang in answer.infeasible_gang_resource_requests:
                    if [dict(request.resources_bundle) for request in gang.requests] == [dict(wanted)]:
                        return None
                time.sleep(_LOOK_SECONDS)
        finally:
            ray.util.remove_placement_group(group)
        return "which does not tell what it may start: if none of its machines has it, the study waits for ever"


def find_autoscaler(launcher_file: Path = _LAUNCHER_FILE) -> Autoscaler | None:
    """The autoscaler of the cluster, or None: machines that were started by hand are all that there will be."""
    running = _node_types_in_use()
    if not running:
        return None
    told = state.state.get_cluster_config()
    types = {} if told is None else {group.name: dict(group.resources) for group in told.node_group_configs if group.max_count}
    path = launcher_file.expanduser()
    if not types and path.is_file():
        launched = json.loads(path.read_text())["available_node_types"]
        if running <= launched.keys():  # else it is of another cluster
            types = {name: kind.get("resources") or {} for name, kind in launched.items() if kind.get("max_workers", 1) > 0}
    return Autoscaler(types if all(types.values()) else {})  # machines at hand: known when they have started


def _node_types_in_use() -> set[str]:
    """Types of the running machines as the autoscaler names them; empty where there is none."""
    written = _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)
    if written:  # version 1 writes a status, and gives a type to each machine that was started by hand
        report = json.loads(written).get("autoscaler_report") or {}
        return {name for name in (report.get("node_type_mapping") or {}).values() if not name.startswith("node_")}
    status = _status()
    if not status.autoscaling_state.autoscaler_state_version:
        return set()
    return {node.ray_node_type_name for node in status.cluster_resource_state.node_states} - {""}


def _status() -> GetClusterStatusReply:
    reply = GetClusterStatusReply()
    reply.ParseFromString(ray._private.worker.global_worker.gcs_client.get_cluster_status(timeout_s=_ANSWER_SECONDS))
    return reply
