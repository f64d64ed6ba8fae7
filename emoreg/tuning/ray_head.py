"""A program: the head of a private Ray, which lives as long as somebody holds the other end of its standard input.

Run by ``private_ray`` by its path, it imports Ray alone, so that it is up while its driver still imports torch. Of what Ray
starts on a head it leaves out what nobody asks a private one for: the dashboard's server, the autoscaler, and the follower of
logs. They would take three seconds of a core, while the first trial waits.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import ray
from ray._private import services
from ray._private.node import Node

_IDLE = ("start_api_server", "start_monitor", "start_log_monitor")
_PRESTARTED = "--num_prestart_python_workers="
_NODE_SECONDS = 300.0
"""How long a node may take to come up."""


def main(num_workers: int, options: dict[str, Any]) -> None:
    """Start Ray, tell its address, and end it when the input ends.

    Args:
        num_workers: that are started before they are asked for; Ray itself starts one for every core.
        options: of ``ray.init``.
    """
    for name in _IDLE:
        if hasattr(Node, name):
            setattr(Node, name, _do_nothing)
    start, started = services.start_ray_process, []

    def start_process(command: list[str], *arguments: Any, **named: Any) -> Any:
        of_ours = [f"{_PRESTARTED}{num_workers}" if part.startswith(_PRESTARTED) else part for part in command]
        started.append(start(of_ours, *arguments, **named))
        return started[-1]

    services.start_ray_process = start_process
    services.get_node = patient(services.get_node, lambda: all(one.process.poll() is None for one in started))
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **options)
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


def patient(get_node: Callable[[str, str], Any], may_come: Callable[[], bool] = lambda: True) -> Callable[[str, str], Any]:
    """Ray's look at a node, which waits for one that is not up yet, as long as it may come.

    Ray itself gives up after half a minute. Two slow cores that have other work to do take longer.
    """

    def get(gcs_address: str, node_id: str) -> Any:
        give_up = time.monotonic() + _NODE_SECONDS
        while True:
            try:
                return get_node(gcs_address, node_id)
            except RuntimeError:
                if not may_come() or time.monotonic() > give_up:
                    raise
            time.sleep(0.1)

    return get


def _do_nothing(node: Node, **options: Any) -> None:
    """In place of a start."""


if __name__ == "__main__":
    main(**json.loads(sys.stdin.readline()))
