"""Arms: controls that are tuned as regulation is, each by a search of its own over what of the search space exists for it.

An arm is the study as that search sees it: its trial has the control, and its search space what exists for it. It has the same
number of trials, sampler, scheduler, splits and objectives, and its trials run among those of the study.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress

from emoreg.config.controls import ON_LADDER, available_controls
from emoreg.config.distributions import Distribution
from emoreg.config.paths import Value, read_path, replace_paths
from emoreg.config.registry import CONTROLS
from emoreg.config.resolved import resolve_trial
from emoreg.config.search_space import Uniform, pin, suggest
from emoreg.config.study import StudyConfig
from emoreg.config.trial import TrialConfig
from emoreg.errors import ConfigError

_DRAWN, _TRIED = 96, 8
"""Trials that are drawn to see which settings count for a control; of these so many are tried for each setting."""
_Draw = tuple[Mapping[str, Value], TrialConfig]


def tuned_controls(config: StudyConfig) -> tuple[str, ...]:
    """The controls that are tuned for themselves, as ``controls_search`` asks, in the order of tables."""
    match config.controls_search:
        case "none":
            return ()
        case "required":
            names = [name for name in CONTROLS if name in ON_LADDER]
        case "all":
            names = [name for name in CONTROLS if name != "regulated"]
    return tuple(name for name in available_controls(config, names) if name != config.trial.control)


def arms(config: StudyConfig) -> tuple[StudyConfig, ...]:
    """The controls with something to search; of the others the one configuration is their best.

    The epochs of those that match passes are those of the trial as configured: only images tell how many they are to be.
    """
    found = []
    draws = _draws(config) if config.controls_search != "none" else []
    for control in tuned_controls(config):
        trial = as_control(config.trial, control)
        space = _space_of(config.search_space, config.trial, control, draws)
        if not space:
            continue
        arm = dataclasses.replace(
            config,
            trial=trial,
            search_space=space,
            fixed={path: value for path, value in config.fixed.items() if path in space},
            controls=(),
            confirmed=(),
            controls_search="none",
        )
        found.append(arm)
    return tuple(found)


def as_control(trial: TrialConfig, control: str) -> TrialConfig:
    """A trial with a control's meaning in its settings."""
    return resolve_trial(dataclasses.replace(trial, control=control)).config


def _draws(config: StudyConfig) -> list[_Draw]:
    """Trials of a study's search, drawn uniformly, each with its values by path; those that break a rule are left out."""
    uniform = Uniform(random.Random(0), {})
    draws: list[_Draw] = []
    for _ in range(_DRAWN):
        params = suggest(config.search_space, config.trial, uniform)
        with suppress(ConfigError):  # values that break a rule together
            draws.append((params, replace_paths(config.trial, params)))
    return draws


def _space_of(
    space: Mapping[str, Distribution],
    trial: TrialConfig,
    control: str,
    draws: Sequence[_Draw],
) -> dict[str, Distribution]:
    """What of a search space exists for a control: paths whose value some trial of it depends on."""
    counts = set()
    for path, distribution in space.items():
        drawn = [dataclasses.replace(found, control=control) for params, found in draws if path in params][:_TRIED]
        if any(_is_decisive(path, distribution, found) for found in drawn):
            counts.add(path)
    if CONTROLS[control].match_passes:
        counts.discard("regulation.epochs")  # they follow from the passes of regulation
    applied = as_control(trial, control)
    return pin(space, {path: read_path(applied, path) for path in space if path not in counts})


def _is_decisive(path: str, distribution: Distribution, trial: TrialConfig) -> bool:
    """Whether a trial is another one by another value at ``path``."""
    identities = set()
    for value in distribution.bounds():
        with suppress(ConfigError):
            identities.add(resolve_trial(replace_paths(trial, {path: value})).identity)
    return len(identities) > 1
