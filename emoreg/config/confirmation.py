"""What a confirmation is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from emoreg.config.validation import NotNegativeInt, Positive, PositiveInt, validate

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
        underpowered: whether to run what would rather not see the smallest effect.
        again: whether the test split may be opened for another plan than before; it is recorded.
    """

    num_seeds: PositiveInt | None = 10
    top: PositiveInt = 1
    first_seed: NotNegativeInt = FIRST_SEED
    smallest_effect: Positive = 0.5
    underpowered: bool = False
    again: bool = False

    def __post_init__(self) -> None:
        validate(self, "confirmation")
