"""The tiny study with images without affect beside its stimuli: its confirmation has every control."""

from __future__ import annotations

import dataclasses

from emoreg.config import ImageSetConfig, StudyConfig
from tests.integration import tiny_study


def study() -> StudyConfig:
    tiny = tiny_study.study()
    neutral = ImageSetConfig(name="openmoji-objects", validation_fraction=0.0)
    return dataclasses.replace(tiny, trial=dataclasses.replace(tiny.trial, neutral=neutral))
