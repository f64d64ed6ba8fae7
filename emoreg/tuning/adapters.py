"""Trials without a study of emoreg's: in this process, under your own tuner of Ray Tune, under your own Optuna study."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from emoreg.config import STORAGE, TrialConfig, Value, replace_paths
from emoreg.config.resolved import ResolvedTrial, resolve_trial, source_of
from emoreg.config.search_space import SearchSpace, suggest
from emoreg.data import LoadImages
from emoreg.errors import ConfigError
from emoreg.results.outcome import EndReason, Outcome
from emoreg.results.records import EpochRecord
from emoreg.storage.checkpoint import CHECKPOINT
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join, scratch
from emoreg.training.context import TrialContext
from emoreg.training.devices import DeviceChoice, pick_device
from emoreg.training.events import Event, Reporter
from emoreg.training.stages import check_images
from emoreg.training.trial import run_trial
from emoreg.tuning.images import image_loader
from emoreg.tuning.preflight import absolute, check_trial

if TYPE_CHECKING:
    import optuna

    from emoreg.tuning.user_code import UserCode

_EPOCH = "epoch"


def resolved_trial(config: TrialConfig, load_images: LoadImages, *, is_tested: bool = False) -> ResolvedTrial:
    """A trial as it is run, its image sets known by their content; prepares them where they are new.

    ``is_tested`` says that it opens the test split, and so needs no validation images.

    Raises:
        UserError: for a backbone or an image set that cannot be had, or not be used as the trial asks.
    """
    check_trial(config)
    trial = resolve_trial(config)
    check_images(trial, load_images, is_tested=is_tested)
    used = [config.task, *((config.stimuli, trial.images_of_pretraining) if trial.images_of_pretraining else ())]
    prints = {
        source_of(images, config.image_size): load_images(images, image_size=config.image_size).fingerprint for images in used
    }
    return resolve_trial(config, prints)


def run_here(config: TrialConfig, *reporters: Reporter, storage: str = STORAGE, device: DeviceChoice = "auto") -> Outcome:
    """Run one trial in this process, from its last checkpoint in the storage where it has one.

    Raises:
        UserError: for a trial that cannot run here, or a storage that is no folder.
    """
    is_here = "://" not in storage or storage.startswith("file://")
    folder = Files(storage).folder if is_here else None
    if folder is None:
        raise ConfigError(
            f"Give a folder of this machine: a trial outside of a study keeps its checkpoint there, not in {storage!r}"
        )
    trial = resolved_trial(config, image_loader(storage))
    return run_trial(trial, TrialContext.local(trial, storage=folder, device=pick_device(device)), *reporters)


def trainable(trial: TrialConfig, *, storage: str = STORAGE) -> Callable[[dict[str, Any]], None]:
    """A function that Ray Tune trains: our trainer, your tuner.

    Its parameters are paths into the trial. It reports ``val_accuracy``, ``val_loss``, ``epoch`` and every metric of the trial
    after each epoch of regulation, with a checkpoint from which Tune restores it on any machine. A trial that diverges reports
    NaN at its end.

    Args:
        trial: what the parameters do not set.
        storage: folder or URI of the experience and the prepared image sets, which trials share.

    Example:
        >>> import emoreg
        >>> train = emoreg.trainable(emoreg.TrialConfig(backbone="test_resnet"))

        >>> from ray import tune  # doctest: +SKIP
        >>> tune.Tuner(train, param_space={"regulation.balance": tune.uniform(0, 1)}).fit()  # doctest: +SKIP
    """
    from emoreg.tuning.user_code import UserCode

    place = absolute(storage)  # Tune works in another folder
    return partial(emoreg_trial, trial=trial, storage=place, user_code=UserCode.collect())


def emoreg_trial(params: dict[str, Any], *, trial: TrialConfig, storage: str, user_code: UserCode) -> None:
    """Train a trial in a worker of Ray Tune, which calls it by this name."""
    from ray import tune

    from emoreg.tuning.trainable import given_device

    user_code.restore()
    values = {path: value.item() if isinstance(value, np.generic) else value for path, value in params.items()}
    load_images = image_loader(storage)
    resolved = resolved_trial(replace_paths(trial, values), load_images)
    cpus = tune.get_context().get_trial_resources().required_resources.get("CPU", 1.0)
    torch.set_num_threads(max(1, int(cpus)))
    with scratch() as folder:
        reporter = _ToTune(folder, num_reported=_restore(folder))
        context = TrialContext(
            load_images=load_images,
            store=ExperienceStore(join(storage, "experience"), user="tune"),
            folder=folder,
            device=given_device(),
        )
        outcome = run_trial(resolved, context, reporter)
    if outcome.end == EndReason.DIVERGED:
        tune.report({"val_accuracy": math.nan, "val_loss": math.nan, _EPOCH: outcome.regulation_epochs})


def _restore(folder: Path) -> int:
    """Bring what an earlier attempt of this trial has saved; how many epochs it had reported."""
    from ray import tune

    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return 0
    checkpoint.to_directory(str(folder))
    return int((folder / _EPOCH).read_text())


@dataclass(slots=True)
class _ToTune:
    """Tells Tune of regulation's epochs, each with the newest checkpoint of the trial in ``folder``. A ``Reporter``."""

    folder: Path
    num_reported: int

    def report(self, event: Event) -> None:
        """Report an epoch that no earlier attempt has reported."""
        from ray import tune

        if not (isinstance(event, EpochRecord) and event.stage == "regulation" and event.epoch > self.num_reported):
            return
        with scratch() as copy:
            (copy / _EPOCH).write_text(str(event.epoch))
            if (self.folder / CHECKPOINT).exists():
                os.link(self.folder / CHECKPOINT, copy / CHECKPOINT)
            values = {"val_accuracy": event.val_accuracy, "val_loss": event.val_loss, _EPOCH: event.epoch}
            tune.report(values | json.loads(event.metrics), checkpoint=tune.Checkpoint.from_directory(str(copy)))


def objective(
    trial: TrialConfig, search_space: SearchSpace, *, storage: str = STORAGE, device: DeviceChoice = "auto"
) -> Callable[[optuna.Trial], float]:
    """An objective that Optuna maximises: the validation accuracy of a trial with the values that Optuna suggests.

    It reports each epoch of regulation, so that Optuna's pruners can stop it. A trial that diverges, or whose values break a
    rule together, is pruned. Run again, a study finds the trials that it has trained in the storage.

    Args:
        trial: what the search space does not set.
        search_space: distributions by path into the trial.
        storage: folder of checkpoints, experience and prepared image sets.
        device: "auto", "cpu" or "cuda".

    Example:
        >>> import emoreg, optuna
        >>> optuna.logging.set_verbosity(optuna.logging.ERROR)
        >>> trial = emoreg.TrialConfig(
        ...     backbone="test_resnet",
        ...     image_size=8,
        ...     stimuli=emoreg.ImageSetConfig(name="digits", num_images=40, validation_fraction=0.0),
        ...     task=emoreg.ImageSetConfig(name="digits", num_images=40),
        ...     pretraining=emoreg.PretrainingConfig(epochs=1),
        ...     regulation=emoreg.RegulationConfig(epochs=1),
        ... )
        >>> search = optuna.create_study(direction="maximize")
        >>> search.optimize(emoreg.objective(trial, {"regulation.balance": emoreg.Float(0, 1)}), n_trials=1)
        >>> 0 <= search.best_value <= 1
        True
    """
    return partial(_evaluate, base=trial, search_space=search_space, storage=storage, device=device)


def _evaluate(
    trial: optuna.Trial, *, base: TrialConfig, search_space: SearchSpace, storage: str, device: DeviceChoice
) -> float:
    import optuna

    params: Mapping[str, Value] = suggest(search_space, base, trial)
    try:
        config = replace_paths(base, params)
    except ConfigError as error:
        raise optuna.TrialPruned(str(error)) from error
    outcome = run_here(config, _ToOptuna(trial, config.regulation.epochs), storage=storage, device=device)
    if outcome.val_accuracy is None or outcome.end == EndReason.DIVERGED:
        raise optuna.TrialPruned(outcome.message)
    return outcome.val_accuracy


@dataclass(frozen=True, slots=True)
class _ToOptuna:
    """Tells Optuna of regulation's epochs, and ends a trial that Optuna prunes. A ``Reporter``."""

    trial: optuna.Trial
    num_epochs: int

    def report(self, event: Event) -> None:
        """Report an epoch. To stop after the last one would save nothing."""
        import optuna

        if isinstance(event, EpochRecord) and event.stage == "regulation" and event.val_accuracy is not None:
            self.trial.report(event.val_accuracy, event.epoch)
            if event.epoch < self.num_epochs and self.trial.should_prune():
                raise optuna.TrialPruned(f"pruned after epoch {event.epoch} of {self.num_epochs}")
