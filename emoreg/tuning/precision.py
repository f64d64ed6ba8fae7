"""What precision ``auto`` means on a CPU in a study: decided once for each backbone, and kept in ``study.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable

import torch

from emoreg.config import StudyConfig
from emoreg.config.trial import Precision
from emoreg.results.records import TrialRecord
from emoreg.results.written import written_of
from emoreg.storage.files import Files


def study_precisions(config: StudyConfig, files: Files, records: Iterable[TrialRecord]) -> dict[str, Precision]:
    """What ``auto`` means on a CPU, by backbone: as the study began or, of a confirmation, as its search; else by measurement.

    Empty where no trial asks, and where trials have a GPU.

    Args:
        config: the study.
        files: of its folder.
        records: of its trials.

    Raises:
        StorageError: for a ``study.json`` that cannot be read.
    """
    trial, space = config.trial, config.search_space
    is_asked = trial.precision == "auto" or "precision" in space
    if not is_asked or (trial.deterministic and "deterministic" not in space):
        return {}
    decided = _recorded(records)
    for written in written_of(config, files):
        decided |= written.precisions
    return decided if torch.cuda.is_available() else {**_measured(config, decided), **decided}


def _recorded(records: Iterable[TrialRecord]) -> dict[str, Precision]:
    """What trials on a CPU have taken ``auto`` for; an emoreg that did not record it computed in float32."""
    return {
        row.backbone: row.precision or "float32"
        for row in records
        if row.device == "CPU" and row.status == "finished" and _leaves_it_open(json.loads(row.config))
    }


def _leaves_it_open(trial: dict[str, object]) -> bool:
    return trial["precision"] == "auto" and not trial["deterministic"]


def _measured(config: StudyConfig, decided: dict[str, Precision]) -> dict[str, Precision]:
    missing = [backbone for backbone in config.backbones() if backbone not in decided]
    if not missing:
        return {}
    from emoreg.training.precision import auto_precision

    found: dict[str, Precision] = {}
    threads = torch.get_num_threads()
    try:
        for backbone in missing:
            torch.set_num_threads(max(1, int(config.trial_resources(backbone).cpus or 1)))
            trial = dataclasses.replace(config.trial, backbone=backbone, precision="auto", deterministic=False)
            found[backbone] = auto_precision(trial, torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    return found
