"""Whether the machine that a trial ran on is lost."""

from __future__ import annotations

import socket
from typing import Any

import ray

_ANSWER_SECONDS = 2.0


def is_node_lost(node_id: str) -> bool:
    """Whether a node is lost, by what Ray knows now, or by its silence: Ray finds out seconds later."""
    return not any(node["NodeID"] == node_id and node["Alive"] and _answers(node) for node in ray.nodes())


def _answers(node: dict[str, Any]) -> bool:
    """Whether Ray on a machine takes connections."""
    try:
        socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_ANSWER_SECONDS).close()
    except OSError:
        return False
    return True
