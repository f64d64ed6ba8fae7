"""`emoreg run` with trials that take their place in the cluster, say where they are, and compute nothing.

    python -m tests.integration.held_places FOLDER STUDY ...

Each trial leaves a file in FOLDER, and ends where FOLDER/go is there, or FOLDER/IDENTITY.go. The search, the driver, the
records and the placement are the real ones. The GPUs may be declared ones, which no training could use.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import ray
from emoreg.tuning.messages import last_result
from ray import tune

from tests.benchmarks.idle_trials import result_of


def hold(assignment: dict[str, Any], *, workplace: object, folder: Path) -> None:
    """The trial: in place of ``worker.train``."""
    began = time.time()
    identity = assignment["trial"].identity
    own = ray.get_runtime_context().get_node_id()
    place = {
        "identity": identity,
        "backbone": assignment["trial"].backbone,
        "node": own,
        "gpus": ray.get_gpu_ids(),
        "gpus_of_node": next(node["Resources"]["GPU"] for node in ray.nodes() if node["NodeID"] == own),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "process": os.getpid(),
        "asked": tune.get_context().get_trial_resources().required_resources,
        "began": began,
    }
    _leave(folder / f"{identity}.began", place)
    while not (folder / "go").exists() and not (folder / f"{identity}.go").exists():
        time.sleep(0.05)
    _leave(folder / f"{identity}.ended", {**place, "ended": time.time()})
    result = result_of(assignment["trial"], 1.0)
    last = last_result(role=assignment["role"], epochs=1, accuracy=0.5, loss=1.0, device_seconds=1.0)
    tune.report({**last, "result": dataclasses.asdict(result), "device": "none"})


def _leave(path: Path, place: dict[str, Any]) -> None:
    path.with_suffix(".new").write_text(json.dumps(place))
    path.with_suffix(".new").rename(path)


if __name__ == "__main__":
    from emoreg.cli import main as cli
    from emoreg.tuning import study
    from tests.integration.held_places import hold as imported  # so that workers find it by its name

    folder, *arguments = sys.argv[1:]
    vars(study)["train"] = partial(imported, folder=Path(folder))
    vars(study)["Workplace"] = dict  # with the real one each worker would load torch
    cli.main(["run", *arguments])
