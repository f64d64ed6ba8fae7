"""A program: the head of a private Ray, which lives as long as somebody holds the other end of its standard input.

Run by ``private_ray`` by its path, it imports Ray alone, so that it is up while its driver still imports torch. Of what Ray
starts on a head it leaves out what nobody asks a private one for: the dashboard's server, the autoscaler, and the follower of
logs. They would take three seconds of a core, while the first trial waits.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import ray
from ray._private import services
from ray._private.node import Node

_IDLE = ("start_api_server", "start_monitor", "start_log_monitor")
_PRESTARTED = "--num_prestart_python_workers="


def main(num_workers: int, options: dict[str, Any]) -> None:
    """Start Ray, tell its address, and end it when the input ends.

    Args:
        num_workers: that are started before they are asked for; Ray itself starts one for every core.
        options: of ``ray.init``.
    """
    for name in _IDLE:
        if hasattr(Node, name):
            setattr(Node, name, _do_nothing)
    start = services.start_ray_process

    def start_process(command: list[str], *arguments: Any, **named: Any) -> Any:
        of_ours = [f"{_PRESTARTED}{num_workers}" if part.startswith(_PRESTARTED) else part for part in command]
        return start(of_ours, *arguments, **named)

    services.start_ray_process = start_process
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **options)
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


def _do_nothing(node: Node, **options: Any) -> None:
    """In place of a start."""


if __name__ == "__main__":
    main(**json.loads(sys.stdin.readline()))
