"""A study of seconds for the integration tests: real image sets, timm's tiny ResNet, deterministic."""

from __future__ import annotations

import emoreg
from emoreg.config import (
    Choice,
    Float,
    ImageSetConfig,
    Objective,
    PretrainingConfig,
    RegulationConfig,
    StudyConfig,
    TrialConfig,
)

CONFIG = StudyConfig(
    name="tiny",
    trial=TrialConfig(
        backbone="test_resnet",
        image_size=8,
        stimuli=ImageSetConfig(name="openmoji", num_images=24, validation_fraction=0.0),
        task=ImageSetConfig(name="digits", num_images=32, validation_fraction=0.02),
        pretraining=PretrainingConfig(epochs=2, batch_size=8),
        regulation=RegulationConfig(epochs=4, batch_size=8),
        deterministic=True,
    ),
    search_space={"regulation.balance": Float(0.1, 0.9), "pretraining.epochs": Choice((1, 2))},
    num_trials=3,
    objectives=(Objective(),),
    controls=("regulated", "plain"),
)
study = emoreg.Study.from_config(CONFIG)
