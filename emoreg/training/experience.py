"""Experiences: what decides the weights that pre-training leaves, and how a trial comes by them without paying twice.

The key of an experience is the hash of all that decides its weights, except the length: if pre-training's schedule does not
know its end, a longer experience continues a shorter one, and trials that differ in regulation or length share one run. A
cool-down knows its end: its run is another one, whose key has the length, and begins with the state in which the run that all
lengths share is at the branch point.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch

import emoreg
from emoreg.config import ImageSetConfig, TrialConfig
from emoreg.config.resolved import CUTS
from emoreg.config.schedules import length_dependence
from emoreg.config.sharing import hash_of, pretraining_settings
from emoreg.errors import ConfigError, Diverged
from emoreg.storage.files import expand
from emoreg.storage.housekeeping import Use, record_use
from emoreg.training.backbones import code_fingerprint
from emoreg.training.checkpointing import Checkpointer
from emoreg.training.context import TrialContext
from emoreg.training.devices import device_name
from emoreg.training.history import History
from emoreg.training.learners import Learner
from emoreg.training.loop import fit
from emoreg.training.optim import uses_bf16
from emoreg.training.stages import Stage

TRAINER_VERSION = 2
"""Raised when the numbers of pre-training change: old snapshots are then left alone."""

log = logging.getLogger(__name__)


def experience_key(
    config: TrialConfig, source: ImageSetConfig, fingerprint: str, device: torch.device, *, salt: str = ""
) -> str:
    """Sixteen hexadecimal digits that differ whenever the weights would, and with the salt.

    ``source`` says which images of the set are trained on; the set's fingerprint stands for its name, path and target. A CPU
    and a GPU round differently, and the device decides what precision "auto" means.
    """
    return hash_of(_decisive(config, source, fingerprint, device), salt)


@contextmanager
def load_or_pretrain(stage: Stage, learner: Learner, context: TrialContext, history: History) -> Iterator[Checkpointer]:
    """Within, ``fit`` brings a learner's network to the state after pre-training: loaded, continued, or trained from the start.

    If another trial is training the shared run, this one waits for the snapshot that it needs, or for its turn to train. Who is
    to train a cool-down first comes by the state at its branch point, in the same way, and goes on from there. ``history``
    takes over the epochs of the state that pre-training goes on from, whoever trained them.

    Raises:
        Diverged: the run is known to diverge, or does so before its cool-down.
        Interrupted: the trial was asked to stop while it waited, or before its cool-down.
        OSError: the store cannot be read or written.
    """
    trial, store, epochs, before = stage.trial, context.store, stage.epochs, stage.before_cooldown
    key = _key(stage, context)
    use = Use(study=store.user, identity=trial.identity, epochs=epochs, time=time.time())
    with store.acquire(key, use, context.should_stop) as acquired:
        history.waiting_seconds += acquired.waiting_seconds
        if acquired.state is not None:
            history.resume(acquired.state["history"])
        reason = length_dependence(trial.config.pretraining)
        if acquired.is_holder:
            if reason is not None and before is None:  # a cool-down shares all that is before it
                log.warning("%s", reason)
            store.describe(key, *_description(stage, context.device))
        try:
            latest = acquired.state
            if latest is None and before is not None:
                with load_or_pretrain(before, learner, context, history) as shared, context.stopwatch.stage(before.name):
                    latest = fit(before, learner, checkpointer=shared, stopwatch=context.stopwatch).state
            with Checkpointer(
                latest=latest,
                history=history,
                keeps=lambda epoch: epoch == epochs or (reason is None and store.keeps(key, epoch)),
                write=partial(store.write, key),
                seconds=context.checkpoint_seconds,
                should_stop=context.should_stop,
                is_shared=True,
            ) as checkpointer:
                yield checkpointer
        except Diverged as diverged:
            store.note_diverged(key, len(history), diverged.step)
            raise
    _record_use(stage, key, context, history, waiting_seconds=acquired.waiting_seconds)
    if before is not None and acquired.state is not None:  # with which it has had what is before it, too
        _record_use(before, _key(before, context), context, history)


def _record_use(stage: Stage, key: str, context: TrialContext, history: History, *, waiting_seconds: float = 0.0) -> None:
    """Write down what a trial has had of a run, whose epochs begin after those of the run before it."""
    before, store = stage.before_cooldown, context.store
    cost = replace(history.between(0 if before is None else before.epochs, stage.epochs).cost, waiting_seconds=waiting_seconds)
    use = Use(study=store.user, identity=stage.trial.identity, epochs=stage.epochs, time=time.time())
    record_use(store.files, key, replace(use, **asdict(cost)))


def _key(stage: Stage, context: TrialContext) -> str:
    """The key of a run in the store of a trial."""
    salt = context.store.salt(stage.trial.identity)
    return experience_key(stage.trial.config, stage.source, stage.image_set.fingerprint, context.device, salt=salt)


def _decisive(config: TrialConfig, source: ImageSetConfig, fingerprint: str, device: torch.device) -> dict[str, Any]:
    """All that decides the weights after any number of epochs."""
    code = code_fingerprint(config.backbone)
    return {
        **({} if code is None else {"backbone_code": code}),
        "trainer": TRAINER_VERSION,
        "backbone": config.backbone,
        "drop_path": config.drop_path,
        "weights": weights_digest(config.weights),
        "image_size": config.image_size,
        "small_stem": config.has_small_stem,
        # Folds came later: where there are none, the keys are what they were.
        "images": {name: getattr(source, name) for name in CUTS if name != "num_folds" or source.num_folds is not None},
        "fingerprint": fingerprint,
        "pretraining": pretraining_settings(config),
        "seed": config.seed,
        "deterministic": config.deterministic,
        "bf16": uses_bf16(config, device),
        # Compiling and widths came later: where nothing is compiled, or wider, the keys are what they were.
        **({"compiled": True} if config.compile == "on" else {}),
        **({} if config.width == 1 else {"width": config.width}),
        "device": device.type,
    }


def weights_digest(weights: str | None) -> str | None:
    """What tells weights from others: the SHA-256 of a file, and "hub" for timm's.

    Raises:
        ConfigError: for a file that cannot be read.
    """
    if weights is None or weights == "hub":
        return weights
    try:
        with open(expand(weights), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(
            f"Correct the path of weights: it must be a readable file, but {weights!r} is not ({error})"
        ) from error


def _description(stage: Stage, device: torch.device) -> tuple[str, dict[str, Any]]:
    """What makes an experience: in a line, and in full."""
    config = stage.trial.config
    shuffled = " shuffled" if config.pretraining.shuffle_labels else ""
    cooled = f", cooled down after {config.pretraining.epochs} epochs" if config.pretraining.cooldown_epochs else ""
    versions = {"emoreg": emoreg.__version__, "torch": torch.__version__, "python": platform.python_version()}
    settings = _decisive(config, stage.source, stage.image_set.fingerprint, device)
    details = {"settings": settings, "versions": versions, "device": device_name(device)}
    return f"{config.backbone}, {stage.source.name}{shuffled}, seed {config.seed}{cooled}", details
