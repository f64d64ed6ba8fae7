"""What sharing left of the pre-training that trials asked for, in epochs. Imports neither torch nor Ray."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from emoreg.config import ResolvedTrial, TrialConfig, from_json
from emoreg.config.sharing import least_epochs
from emoreg.results.records import EpochRecord, TrialRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingEpochs:
    """Epochs of pre-training, cool-downs included.

    Attributes:
        asked: by all trials that have had their experience.
        computed: by whomever, experiences of other studies not counted.
        least: that give each of these trials its experience, from an empty store.
    """

    asked: int
    computed: int
    least: int


def pretraining_epochs(trials: Iterable[TrialRecord], epochs: Iterable[EpochRecord]) -> PretrainingEpochs:
    """Count what the trials asked for, what was computed for it, and what had to be."""
    asked, alike = 0, dict[str, ResolvedTrial]()
    for row in trials:
        if row.experience_seconds is None:
            continue
        settings = json.loads(row.config)
        pretraining = settings["pretraining"]
        asked += pretraining["epochs"] + pretraining["cooldown_epochs"]
        del settings["regulation"]  # of thousands of trials few differ in anything else
        key = json.dumps(settings, sort_keys=True)
        if key not in alike:
            alike[key] = ResolvedTrial(config=from_json(TrialConfig, json.loads(row.config)), identity=row.identity)
    computed = {(row.identity, row.epoch) for row in epochs if row.stage == "pretraining"}
    return PretrainingEpochs(asked=asked, computed=len(computed), least=least_epochs(alike.values()))
