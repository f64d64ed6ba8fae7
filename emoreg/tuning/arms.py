"""The controls of a study that have searches of their own, as they are run: images say how long ``compute_matched`` is."""

from __future__ import annotations

import dataclasses

from emoreg.config import StudyConfig
from emoreg.config.arms import Arm, arms
from emoreg.results.planning import ImageCount, matched_epochs, with_epochs


def searching_arms(config: StudyConfig, images: ImageCount) -> tuple[Arm, ...]:
    """The controls that have searches of their own, ``compute_matched`` with the passes of the trial as configured."""
    found = []
    for arm in arms(config):
        if arm.control == "compute_matched":
            trial = with_epochs(arm.config.trial, matched_epochs(config.trial, images))
            arm = dataclasses.replace(arm, config=dataclasses.replace(arm.config, trial=trial))
        found.append(arm)
    return tuple(found)
