"""How much disk a study will take, and whether there is so much: known before anything is trained."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import fsum
from pathlib import Path

from emoreg.config import OptimizerConfig, StudyConfig, TrialConfig
from emoreg.config.arms import arms
from emoreg.config.resolved import ResolvedTrial, resolve_trial
from emoreg.config.schedules import length_dependence
from emoreg.config.search_space import each_seed, lengths, num_searched
from emoreg.config.sharing import shared_runs
from emoreg.errors import StorageError
from emoreg.storage.checkpoint import CHECKPOINT
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import entries, size_text
from emoreg.training.backbones import create_encoder
from emoreg.tuning.estimate import draw_trials
from emoreg.tuning.preflight import store_uri, study_files

_FEWEST_DRAWN, _MOST_DRAWN = 64, 1000
_GIB = 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class DiskUse:
    """Bytes that a study takes, at most.

    Attributes:
        networks: that stay when all trials have ended, by ``resources.keep_networks``.
        checkpoints: of the trials that run at once, with their optimizers, and one that is being written.
        experiences: pre-trained encoders with their optimizers, within the store's budget.
    """

    networks: int
    checkpoints: int
    experiences: int

    def __str__(self) -> str:
        """As a person reads it."""
        parts = {"networks": self.networks, "checkpoints of running trials": self.checkpoints, "experiences": self.experiences}
        return ", ".join(f"{name} {size_text(size)}" for name, size in parts.items())


def estimate_disk(config: StudyConfig, *, slots: int) -> DiskUse:
    """Add up what the trials of a study leave, of which ``slots`` run at once. Builds an encoder of each backbone and width.

    Raises:
        UserError: for a backbone that cannot be made, or a search space in which no configuration is valid.
    """
    num_search, searched = config.seeds_per_trial * num_searched(config), _drawn(config)
    tuned = [(config.seeds_per_trial * num_searched(arm), _drawn(arm)) for arm in arms(config)]
    num_tuning = sum(number for number, _ in tuned)
    controls, confirmed = ([*map(resolve_trial, trials)] for trials in (config.control_trials(), config.confirmed))
    every = [*searched, *(trial for _, trials in tuned for trial in trials), *controls, *confirmed]
    by_encoder = {trial.config.encoder: trial.config for trial in every}
    encoders = {encoder: _encoder_bytes(trial) for encoder, trial in by_encoder.items()}
    networks = {trial.identity: _num_encoders(trial) * encoders[trial.config.encoder] for trial in every}
    peak = max((networks[trial.identity] * _copies(trial.config.regulation.optimizer) for trial in every), default=0)

    def mean_of(trials: list[ResolvedTrial]) -> float:
        return fsum(networks[trial.identity] for trial in trials) / max(1, len(trials))

    match config.resources.keep_networks:
        case "none":
            kept = 0.0
        case "all":
            kept = num_search * mean_of(searched) + fsum(number * mean_of(trials) for number, trials in tuned)
            kept += fsum(networks[trial.identity] for trial in (*controls, *confirmed))
        case "best":
            num_best = len(config.backbones()) if len(config.objectives) == 1 else num_search
            kept = min(num_search, num_best) * mean_of(searched)
            kept += fsum(networks[trial.identity] for trial in confirmed if trial.config.control == "regulated")
    experiences, budget = _experiences(config, every, encoders), config.experience.budget_gib
    return DiskUse(
        networks=round(kept),
        checkpoints=(min(slots, num_search + num_tuning + len(controls) + len(confirmed)) + 1) * peak,
        experiences=experiences if budget is None else min(experiences, round(budget * _GIB)),
    )


def _drawn(config: StudyConfig) -> list[ResolvedTrial]:
    """Trials that a search may propose, as many as it will where these are not too many, with each of their seeds."""
    num_search = num_searched(config)
    drawn = max(_FEWEST_DRAWN, min(num_search, _MOST_DRAWN))  # of a few, each might break a rule
    proposed = draw_trials(config, drawn)[:num_search] if num_search else []
    return [resolve_trial(trial) for first in proposed for trial in each_seed(config, first.config)]


def check_disk(config: StudyConfig, use: DiskUse) -> None:
    """Refuse a study for which a disk of this machine has too little room; what it has left there already counts.

    Raises:
        StorageError: naming the folder, what is free there and what the study takes.
    """
    study, store = study_files(config), Files(store_uri(config))
    wanted: dict[int, tuple[Path, int]] = {}
    for files, size in ((study, _lacking(study, use)), (store, _lacking_experiences(store, config, use))):
        if files.folder is not None:
            folder = _existing(files.folder)
            device = folder.stat().st_dev
            wanted[device] = (folder, size + (wanted[device][1] if device in wanted else 0))
    for folder, size in wanted.values():
        free = shutil.disk_usage(folder).free
        if size > free:
            raise StorageError(
                f"Free {size_text(size - free)} in {str(folder)!r}, or ask for less: --resources.keep-networks none, "
                "--experience.budget-gib 1, --resources.max-concurrent 1, or another --storage: there must be room for what "
                f"the study may leave ({use}), but {size_text(free)} of the {size_text(size)} still to come are free"
            )


def _lacking(study: Files, use: DiskUse) -> int:
    """Bytes of networks and checkpoints that are still to come."""
    if study.folder is None:
        return 0
    stored = sum(found.size for found in study.find("trials") if found.name.endswith(CHECKPOINT))
    return max(0, use.networks + use.checkpoints - stored)


def _lacking_experiences(store: Files, config: StudyConfig, use: DiskUse) -> int:
    """Bytes of experiences that are still to come: the store does not grow beyond its budget, whoever filled it."""
    if store.folder is None:
        return 0
    stored = entries(store)
    own = sum(entry.size for entry in stored if any(found.study == config.name for found in entry.uses))
    lacking = max(0, use.experiences - own)
    budget = config.experience.budget_gib
    if budget is None:
        return lacking
    return min(lacking, max(0, round(budget * _GIB) - sum(entry.size for entry in stored)))


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def _encoder_bytes(trial: TrialConfig) -> int:
    encoder = create_encoder(
        trial.backbone,
        image_size=trial.image_size,
        drop_path=trial.drop_path,
        weights=None,
        seed=trial.seed,
        width=trial.width,
    )
    return sum(value.nbytes for value in encoder.state_dict().values())


def _num_encoders(trial: ResolvedTrial) -> int:
    return trial.config.regulation.needs_plain + trial.config.regulation.needs_emotional


def _copies(optimizer: OptimizerConfig) -> int:
    """How often a state holds a weight: itself, and what the optimizer remembers of it."""
    return 3 if optimizer.name == "adamw" else 2


def _experiences(config: StudyConfig, trials: Iterable[ResolvedTrial], encoders: Mapping[tuple[str, int], int]) -> int:
    """Bytes of the snapshots that the shared runs of these trials leave: of powers of two, and of lengths that are searched."""
    runs: dict[object, tuple[ResolvedTrial, set[int]]] = {}
    for trial in trials:
        for name, run in shared_runs(trial).items():
            key = name if config.experience.share else (trial.identity, name)
            runs.setdefault(key, (run, set()))[1].add(run.config.pretraining.total_epochs)
    searched, total = lengths(config), 0
    for trial, asked in runs.values():
        passed = range(1, max(asked) + 1) if config.experience.share and not length_dependence(trial.config.pretraining) else ()
        kept = asked | {epochs for epochs in passed if epochs.bit_count() == 1 or epochs in searched}
        total += len(kept) * encoders[trial.config.encoder] * _copies(trial.config.pretraining.optimizer)
    return total
