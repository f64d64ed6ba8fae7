"""What a worker is given to do. Knows neither Ray nor Optuna, so that a worker need not import what proposes trials."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from emoreg.config import Value
from emoreg.config.resolved import ResolvedTrial
from emoreg.results.records import Role

ASSIGNMENT = "assignment"
"""Key of Tune's trial configuration under which a worker finds its ``Assignment``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A trial for a worker.

    Attributes:
        number: Optuna's, None outside the search.
        params: sampled values by path.
        search_of: the control whose own search proposed it; None of regulation's search and outside of one.
        attempt: from 1.
        repeats: the trial whose proposal it is, with another seed; else None.
    """

    trial: ResolvedTrial
    role: Role
    number: int | None
    params: Mapping[str, Value]
    search_of: str | None
    attempt: int
    repeats: str | None = None
