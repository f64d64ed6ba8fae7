"""A tiny study whose controls are tuned as regulation is."""

from __future__ import annotations

import dataclasses

import emoreg
from emoreg.config import Float
from tests.integration import tiny_study

RATE = "regulation.optimizer.learning_rate"


def study() -> emoreg.Study:
    config = dataclasses.replace(
        tiny_study.CONFIG,
        controls=("regulated", "plain"),
        controls_search="required",
        search_space={"regulation.balance": Float(0.1, 0.9), RATE: Float(3e-4, 1e-2, log=True)},
        num_trials=2,
    )
    return emoreg.Study.from_config(config)
