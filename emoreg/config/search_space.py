"""Distributions over paths into a ``TrialConfig``: sampling them, listing them, and putting the values into a configuration.

A search space is define-by-run: parameters are asked for in the order of the mapping, and a conditional one only where its
``When`` holds. Its condition looks at the sampled value of its path; where that path is itself inactive, at the value that
the base configuration has there.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from emoreg.config.distributions import Choice, Distribution, Float, Int, steps
from emoreg.config.paths import Value, read_path
from emoreg.config.study import StudyConfig
from emoreg.config.trial import TrialConfig
from emoreg.errors import ConfigError

SearchSpace = Mapping[str, Distribution]


class Suggester(Protocol):
    """What proposes values, one parameter at a time. Optuna's ``Trial`` is one."""

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        """A real number in [low, high]."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number in [low, high]."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


@dataclass(frozen=True, slots=True)
class Uniform:
    """Values for a search space, uniform or uniform in the logarithm: a ``Suggester``. Steps between reals do not matter."""

    draws: random.Random
    fixed: Mapping[str, Any]

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> float:
        """A real number in [low, high]."""
        if name in self.fixed:
            return float(self.fixed[name])
        return math.exp(self.draws.uniform(math.log(low), math.log(high))) if log else self.draws.uniform(low, high)

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """A whole number in [low, high]."""
        if name in self.fixed:
            return int(self.fixed[name])
        return round(self.suggest_float(name, low, high, log=True)) if log else self.draws.randrange(low, high + 1, step)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        return self.fixed[name] if name in self.fixed else self.draws.choice(list(choices))


def suggest(space: SearchSpace, base: TrialConfig, trial: Suggester) -> dict[str, Value]:
    """Values for the active parameters of ``space``, asked of ``trial`` in order."""
    params: dict[str, Value] = {}
    for path, distribution in space.items():
        if not _is_active(distribution, params, base):
            continue
        match distribution:
            case Float(low=low, step=None, log=log):
                params[path] = trial.suggest_float(path, low, distribution.high, log=log)
            case Float(low=low, step=step):
                params[path] = trial.suggest_float(path, low, steps(distribution)[-1], step=step)
            case Int(low=low, step=step, log=log):
                params[path] = trial.suggest_int(path, low, steps(distribution)[-1], step=step, log=log)
            case Choice(values=values):
                params[path] = trial.suggest_categorical(path, values)
    return params


def grid(space: SearchSpace, base: TrialConfig) -> list[dict[str, Value]]:
    """Every distinct combination of values, the last parameter changing fastest; inactive parameters are left out.

    Raises:
        ConfigError: for a ``Float`` without a step.
    """
    for path, distribution in space.items():
        if _values(distribution) is None:
            raise ConfigError(
                f"Give {path} a step, as in Float(0.0, 1.0, step=0.25), make it a Choice, or take another sampler: a grid "
                f"needs finitely many values, but it is {_as_text(distribution)!r}"
            )
    return [params for params, _ in _branches(space, base, set(space)) or ()]


def size(space: SearchSpace, base: TrialConfig) -> int | None:
    """Number of distinct combinations, or None where a real number without a step makes them infinitely many."""
    conditions = {distribution.when.path for distribution in space.values() if distribution.when is not None}
    branches = _branches(space, base, conditions)
    return None if branches is None else sum(count for _, count in branches)


def _branches(space: SearchSpace, base: TrialConfig, apart: Collection[str]) -> list[tuple[dict[str, Value], int]] | None:
    """Combinations that differ in the paths ``apart``, and how many there are of each; None for infinitely many.

    Paths that conditions look at must be among those.
    """
    branches: list[tuple[dict[str, Value], int]] = [({}, 1)]
    for path, distribution in space.items():
        grown: list[tuple[dict[str, Value], int]] = []
        for params, count in branches:
            if not _is_active(distribution, params, base):
                grown.append((params, count))
                continue
            values = _values(distribution)
            if values is None:
                return None
            if path in apart:
                grown += [({**params, path: value}, count) for value in values]
            else:
                grown.append((params, count * len(values)))
        branches = grown
    return branches


def describe(space: SearchSpace) -> list[tuple[str, str, str]]:
    """Rows of path, distribution and condition, as text; the condition is empty where there is none."""
    rows = []
    for path, distribution in space.items():
        when = distribution.when
        condition = "" if when is None else f"{when.path} in {{{', '.join(map(str, when.values))}}}"
        rows.append((path, _as_text(distribution), condition))
    return rows


def lengths(config: StudyConfig) -> frozenset[int]:
    """Every length of pre-training, in epochs, that a trial of the study may have."""
    searched = config.search_space.get("pretraining.epochs")
    values = () if searched is None else _values(searched) or ()
    return frozenset({config.trial.pretraining.epochs, *map(int, values)})


def _is_active(distribution: Distribution, params: Mapping[str, Value], base: TrialConfig) -> bool:
    when = distribution.when
    if when is None:
        return True
    value = params[when.path] if when.path in params else read_path(base, when.path)
    return value in when.values


def _values(distribution: Distribution) -> Sequence[Value] | None:
    match distribution:
        case Choice(values=values):
            return values
        case Float(step=None) if distribution.low < distribution.high:
            return None
        case _:
            return steps(distribution)


def _as_text(distribution: Distribution) -> str:
    if isinstance(distribution, Choice):
        return f"{{{', '.join(map(str, distribution.values))}}}"
    kind = "real" if isinstance(distribution, Float) else "whole"
    log = ", logarithmic" if distribution.log else ""
    step = f", step {distribution.step:g}" if distribution.step not in (None, 1) else ""
    return f"{kind} in [{distribution.low:g}, {distribution.high:g}]{log}{step}"


def pin(space: SearchSpace, values: Mapping[str, Value]) -> dict[str, Distribution]:
    """``space`` without the paths of ``values``, whose conditions are settled: parameters that hang on another value go."""
    pinned: dict[str, Distribution] = {}
    for path, distribution in space.items():
        when = distribution.when
        if path in values or (when is not None and when.path in values and values[when.path] not in when.values):
            continue
        settled = when is not None and when.path in values
        pinned[path] = dataclasses.replace(distribution, when=None) if settled else distribution
    return pinned


def each_seed(config: StudyConfig, trial: TrialConfig) -> list[TrialConfig]:
    """What a proposal is trained as: once a seed, the first of which stands for it."""
    return [dataclasses.replace(trial, seed=seed) for seed in range(trial.seed, trial.seed + config.seeds_per_trial)]


def num_searched(config: StudyConfig) -> int:
    """Trials that the sampler will propose at most: a grid ends with its last combination."""
    combinations = size(config.search_space, config.trial) if config.sampler.name == "grid" else None
    return config.num_trials if combinations is None else min(config.num_trials, combinations)
