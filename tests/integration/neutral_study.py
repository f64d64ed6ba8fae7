"""The tiny study with images without affect beside its stimuli: its confirmation has every control."""

from __future__ import annotations

import dataclasses

import emoreg
from emoreg.config import ImageSetConfig
from tests.integration import tiny_study


def study() -> emoreg.Study:
    tiny = tiny_study.CONFIG
    neutral = ImageSetConfig(name="openmoji-objects", validation_fraction=0.0)
    config = dataclasses.replace(tiny, trial=dataclasses.replace(tiny.trial, neutral=neutral))
    return emoreg.Study.from_config(config)
