"""What compile ``auto`` means in a study: decided once for each backbone, and kept with its reason in ``study.json``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean

import torch

from emoreg.config import StudyConfig, TrialConfig
from emoreg.config.trial import Precision
from emoreg.results.planning import ImageCount
from emoreg.results.records import TrialRecord
from emoreg.results.written import Compilation, written_of
from emoreg.storage.files import Files
from emoreg.tuning.estimate import draw_trials
from emoreg.tuning.machine import machine_share, num_fit

_AS_BEGUN = Compilation(compiled=False, reason="trials of the study have finished without")
_ON_A_GPU = Compilation(compiled=False, reason="on a GPU nothing was measured: compile='on' compiles there")


def study_compilations(
    config: StudyConfig,
    files: Files,
    records: Iterable[TrialRecord],
    precisions: Mapping[str, Precision],
    count_images: ImageCount,
    notify: Callable[[str], None],
) -> dict[str, Compilation]:
    """What ``auto`` means, by backbone: as the study began or, of a confirmation, as its search; else by measurement.

    Empty where no trial asks.

    Args:
        config: the study.
        files: of its folder.
        records: of its trials.
        precisions: what precision ``auto`` means in the study.
        count_images: counts the images of an epoch of a set.
        notify: told of a measurement that takes a while.

    Raises:
        StorageError: for a ``study.json`` that cannot be read.
    """
    trial, space = config.trial, config.search_space
    if (trial.compile != "auto" and "compile" not in space) or (trial.deterministic and "deterministic" not in space):
        return {}
    decided = written_compilations(config, files)
    finished = {row.backbone for row in records if row.status == "finished" and _leaves_it_open(json.loads(row.config))}
    decided = {**dict.fromkeys(finished, _AS_BEGUN), **decided}
    missing = [backbone for backbone in config.backbones() if backbone not in decided]
    if torch.cuda.is_available():
        return {**dict.fromkeys(missing, _ON_A_GPU), **decided}
    return {**_measured(config, missing, precisions, count_images, notify), **decided}


def written_compilations(config: StudyConfig, files: Files) -> dict[str, Compilation]:
    """What a study has decided or, before a confirmation has, its search: by backbone.

    Raises:
        StorageError: for a ``study.json`` that cannot be read.
    """
    decided: dict[str, Compilation] = {}
    for written in written_of(config, files):
        decided |= written.compilations
    return decided


def encoder_images(config: TrialConfig, count_images: ImageCount) -> int:
    """Images that pass through an encoder while a resolved trial trains, its pre-training included."""
    regulation, images = config.regulation, 0
    if regulation.needs_emotional and config.pretraining.epochs:
        images += config.pretraining.total_epochs * count_images("stimuli", config.stimuli)
    encoders = regulation.needs_plain + (regulation.needs_emotional and not regulation.is_emotion_frozen)
    return images + regulation.epochs * encoders * count_images("task", config.task)


def _leaves_it_open(trial: Mapping[str, object]) -> bool:
    return trial.get("compile", "auto") == "auto" and not trial["deterministic"]


def _measured(
    config: StudyConfig,
    backbones: list[str],
    precisions: Mapping[str, Precision],
    count_images: ImageCount,
    notify: Callable[[str], None],
) -> dict[str, Compilation]:
    if not backbones:
        return {}
    from emoreg.training.compile_choice import auto_compile

    drawn = [trial.config for trial in draw_trials(config)] if config.num_trials else []
    found: dict[str, Compilation] = {}
    threads = torch.get_num_threads()
    try:
        for backbone in backbones:
            base = dataclasses.replace(config.trial, backbone=backbone, deterministic=False)
            asked = config.trial_resources(backbone)
            torch.set_num_threads(max(1, int(asked.cpus or 1)))
            precision: Precision = "float32" if base.precision == "auto" else base.precision
            settled = dataclasses.replace(base, precision=precisions.get(backbone, precision), compile="auto")
            own = [trial for trial in drawn if trial.backbone == backbone] or [base]
            num_trials = config.seeds_per_trial * config.num_trials * len(own) / max(1, len(drawn)) if drawn else 0
            beside = sum(1 for trial in config.control_trials() if trial.backbone == backbone) + len(config.confirmed)
            images = (num_trials + beside) * fmean(encoder_images(trial, count_images) for trial in own)
            slots = max(1, num_fit(dataclasses.replace(asked, gpus=None, accelerator_type=None), machine_share().resources))
            found[backbone] = auto_compile(settled, images, slots, notify)
    finally:
        torch.set_num_threads(threads)
    return found
