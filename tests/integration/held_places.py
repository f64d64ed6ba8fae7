"""Trials that take their place in a cluster, say where they are, and compute nothing: Tune with the bundles of a study.

    python -m tests.integration.held_places ADDRESS STUDY FOLDER NUMBER

NUMBER trials of each backbone of STUDY leave a file in FOLDER each, and end once FOLDER/go is there. The GPUs may be declared
ones, which no training could use.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
from ray import tune

from emoreg.study_file import read_study_file
from emoreg.tuning.placement import Placement
from emoreg.tuning.ray_session import ray_session


def hold(assigned: dict[str, Any]) -> None:
    folder = Path(assigned["folder"])
    place = {
        "backbone": assigned["backbone"],
        "node": ray.get_runtime_context().get_node_id(),
        "gpus": ray.get_gpu_ids(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "asked": tune.get_context().get_trial_resources().required_resources,
    }
    path = folder / f"{tune.get_context().get_trial_id()}.json"
    path.with_suffix(".new").write_text(json.dumps(place))
    path.with_suffix(".new").rename(path)
    while not (folder / "go").exists():
        time.sleep(0.05)  # between two looks at the file
    tune.report({"done": True})


if __name__ == "__main__":
    from tests.integration.held_places import hold as imported  # so that workers find it by its name

    address, study, folder, number = sys.argv[1:]
    config = read_study_file(study).config
    with ray_session(address, {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}):
        placement = Placement(config, print)
        placement.check()
        print("slots", placement.slots(), flush=True)
        bundles = placement.bundles
        tune.Tuner(
            tune.with_resources(imported, lambda assigned: bundles[assigned["backbone"]]),
            param_space={"backbone": tune.grid_search(list(config.backbones())), "folder": folder},
            tune_config=tune.TuneConfig(num_samples=int(number)),
            run_config=tune.RunConfig(storage_path=f"{folder}/tune", verbose=0),
        ).fit()
