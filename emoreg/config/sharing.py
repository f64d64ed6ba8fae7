"""Which trials share which pre-training, as far as the configuration says it: the driver orders trials by that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from emoreg.config.resolved import ResolvedTrial
from emoreg.config.schedules import length_dependence
from emoreg.config.trial import TrialConfig


def shared_runs(trial: ResolvedTrial) -> dict[str, ResolvedTrial]:
    """The trial's pre-training runs, in order, each by a name that trials have in common if they share it.

    The configuration alone decides it, so that the driver can order trials by it: the images and weights that it names count by
    name and not, as in ``experience_key``, by content.
    """
    return {_name_of(run): run for run in trial.pretraining_runs}


def _name_of(run: ResolvedTrial) -> str:
    config, source = run.config, run.images_of_pretraining
    parts = {
        "backbone": config.backbone,
        "width": config.width,
        "drop_path": config.drop_path,
        "weights": config.weights,
        "image_size": config.image_size,
        "small_stem": config.has_small_stem,
        "stimuli": asdict(config.stimuli),
        "instead": None if source is None or source == config.stimuli else asdict(source),
        "pretraining": pretraining_settings(config),
        "seed": config.seed,
        "deterministic": config.deterministic,
        "precision": config.precision,
        "compile": config.compile,
    }
    return hash_of(parts)


def pretraining_settings(config: TrialConfig) -> dict[str, Any]:
    """The settings of pre-training, with its length only if a longer one does not continue a shorter one."""
    settings = asdict(config.pretraining)
    if config.pretraining.cooldown_epochs == 0:  # it came later: where there is none, the keys are what they were
        del settings["cooldown_epochs"]
    if length_dependence(config.pretraining) is None:
        del settings["epochs"]
    return settings


def least_epochs(trials: Iterable[ResolvedTrial]) -> int:
    """The fewest epochs of pre-training that give every trial its own, cool-downs included, if nothing is there before."""
    longest: dict[str, int] = {}
    for trial in trials:
        branch = 0
        for name, run in shared_runs(trial).items():
            length = run.config.pretraining.total_epochs
            longest[name] = max(length - branch, longest.get(name, 0))
            branch = length
    return sum(longest.values())


def hash_of(parts: Mapping[str, Any], salt: str = "") -> str:
    """Sixteen hexadecimal digits of what can be written as JSON, and a salt."""
    text = json.dumps(parts, sort_keys=True) + salt
    return hashlib.sha256(text.encode()).hexdigest()[:16]
