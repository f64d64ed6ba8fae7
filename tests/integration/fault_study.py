"""A grid of some twenty seconds for the faults of a cluster: what it runs does not depend on the order in which trials end."""

from __future__ import annotations

import dataclasses

import emoreg
from emoreg.config import Choice, ResourcesConfig, SamplerConfig, replace_paths
from tests.integration import tiny_study

NUM_TRIALS = 5
NUM_REGULATION_EPOCHS = 5
PRETRAINING_EPOCHS = (2, 5)


def study() -> emoreg.Study:
    tiny = tiny_study.CONFIG
    longer = {
        "regulation.epochs": NUM_REGULATION_EPOCHS,
        "regulation.batch_size": 2,
        "task.num_images": 60,
        "pretraining.batch_size": 2,
        "stimuli.num_images": 60,
    }
    config = dataclasses.replace(
        tiny,
        name="faults",
        trial=replace_paths(tiny.trial, longer),
        search_space={"regulation.balance": Choice((0.25, 0.75)), "pretraining.epochs": Choice(PRETRAINING_EPOCHS)},
        num_trials=4,
        sampler=SamplerConfig(name="grid"),
        controls=("plain",),
        resources=ResourcesConfig(checkpoint_seconds=0.5),
    )
    return emoreg.Study.from_config(config)
