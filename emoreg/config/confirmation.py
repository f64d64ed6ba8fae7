"""What a confirmation is asked for, and which images it trains on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from emoreg.config.paths import replace_paths
from emoreg.config.resolved import ResolvedTrial, image_sets
from emoreg.config.trial import TrialConfig
from emoreg.config.validation import NotNegativeInt, Positive, PositiveInt, require, validate

FIRST_SEED = 1000
"""Where the seeds of confirmations begin: far from the small numbers that searches use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmationConfig:
    """What is confirmed of a study, and how.

    Attributes:
        num_seeds: how many seeds; None: as many as the smallest effect takes, by what the search's controls vary.
        top: how many configurations of each backbone.
        first_seed: the first of the seeds, of which none may have been used in the search.
        smallest_effect: the least gain that matters, in points of accuracy; it is kept before the test split is opened.
        looks: 2 to look at the answer after half of the seeds too, and to leave the others out where it is clear by then.
        underpowered: whether to run what would rather not see the smallest effect.
        again: whether the test split may be opened for another plan than before; it is recorded.
    """

    num_seeds: PositiveInt | None = 10
    top: PositiveInt = 1
    first_seed: NotNegativeInt = FIRST_SEED
    smallest_effect: Positive = 0.5
    looks: Literal[1, 2] = 1
    underpowered: bool = False
    again: bool = False

    def __post_init__(self) -> None:
        validate(self, "confirmation")


def with_own_cuts(trial: TrialConfig, seed: int) -> TrialConfig:
    """The trial as a confirmation trains it with a seed: on the whole training split of its task, for it selects nothing.

    What is cut all the same (a subset of ``num_images``, what is held out of the stimuli to tell how well they were learned) is
    cut anew for each seed, and alike for all controls.
    """
    seeds = {f"{role}.split_seed": seed for role in image_sets(trial)}
    cut = replace_paths(trial, {"seed": seed, **seeds})
    return dataclasses.replace(cut, task=dataclasses.replace(cut.task, validation_fraction=0.0, num_folds=None))


def check_own_cuts(trial: ResolvedTrial) -> ResolvedTrial:
    """The trial, of which its control left the cuts as ``with_own_cuts`` made them.

    Raises:
        ConfigError: naming the control.
    """
    config = trial.config
    changed = [role for role, found in image_sets(with_own_cuts(config, config.seed)).items() if found != getattr(config, role)]
    require(
        not changed,
        f"the control {config.control} must not set what is held out of {' and '.join(changed)}, nor the split_seed: a "
        "confirmation trains on the whole training split, with cuts of each seed's own, alike for all controls",
        {role: getattr(config, role) for role in changed},
        "leave validation_fraction, num_folds and split_seed out of the control",
    )
    return trial
