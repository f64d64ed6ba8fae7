"""The controls of a study that have searches of their own, as they are run: images say how long some of them train."""

from __future__ import annotations

import dataclasses

from emoreg.config import StudyConfig
from emoreg.config.arms import Arm, arms
from emoreg.results.planning import ImageCount, with_passes_of


def searching_arms(config: StudyConfig, images: ImageCount) -> tuple[Arm, ...]:
    """The controls that have searches of their own, those that match passes with the passes of the trial as configured."""
    found = []
    for arm in arms(config):
        trial = with_passes_of(config.trial, arm.config.trial, images)
        found.append(dataclasses.replace(arm, config=dataclasses.replace(arm.config, trial=trial)))
    return tuple(found)
