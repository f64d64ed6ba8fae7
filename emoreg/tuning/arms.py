"""The controls of a study that have searches of their own, as they are run: images say how long some of them train."""

from __future__ import annotations

import dataclasses

from emoreg.config import StudyConfig
from emoreg.config.arms import arms
from emoreg.results.planning import ImageCount, with_passes_of


def searching_arms(config: StudyConfig, images: ImageCount) -> tuple[StudyConfig, ...]:
    """The controls that have searches of their own, those that match passes with the passes of the trial as configured."""
    return tuple(dataclasses.replace(arm, trial=with_passes_of(config.trial, arm.trial, images)) for arm in arms(config))
