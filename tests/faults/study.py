"""A grid of seconds for faults: what it runs does not depend on the order in which trials end."""

from __future__ import annotations

import dataclasses

import emoreg
from emoreg.config import Choice, ResourcesConfig, SamplerConfig, StudyConfig, replace_paths
from tests.integration import tiny_study

NAME = "faulted"


def config() -> StudyConfig:
    tiny = tiny_study.CONFIG
    return dataclasses.replace(
        tiny,
        name=NAME,
        trial=replace_paths(tiny.trial, {"regulation.epochs": 6, "pretraining.epochs": 4, "probes": ("agreement",)}),
        search_space={"regulation.balance": Choice((0.25, 0.75)), "pretraining.epochs": Choice((1, 3, 6))},
        num_trials=6,
        sampler=SamplerConfig(name="grid"),
        controls=("regulated", "plain", "shuffled"),
        resources=ResourcesConfig(max_concurrent=2, max_retries=100, retry_seconds=0.1, checkpoint_seconds=0.0),
    )


def study() -> emoreg.Study:
    return emoreg.Study.from_config(config())
