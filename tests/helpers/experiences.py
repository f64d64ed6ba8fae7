"""Experiences alone, without the trial around them: a tiny pre-training against a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

from emoreg.config import TrialConfig
from emoreg.config.resolved import resolve_trial
from emoreg.data import load
from emoreg.results.outcome import PretrainingCost
from emoreg.results.records import EpochRecord, ProbeRecord
from emoreg.storage.experience import ExperienceStore
from emoreg.training.context import TrialContext
from emoreg.training.events import Event
from emoreg.training.experience import load_or_pretrain
from emoreg.training.history import History
from emoreg.training.learners import EmotionLearner
from emoreg.training.loop import fit
from emoreg.training.model import EmotionalNet, create_emotional_net
from emoreg.training.optim import reproducible
from emoreg.training.stages import Stage, pretraining_stage
from tests.helpers.trials import CPU


def pretraining_of(config: TrialConfig, storage: Path) -> tuple[Stage, EmotionLearner]:
    """Pre-training without validation, and what has had none of it yet."""
    stage = pretraining_stage(resolve_trial(config), partial(load, storage=storage), CPU)
    net = create_emotional_net(stage.trial.config, stage.image_set.num_outputs)
    return replace(stage, validation=None), EmotionLearner(
        stage.trial.config, net, regression=False, class_weights=stage.class_weights
    )


def obtain(
    config: TrialConfig,
    storage: Path,
    store: ExperienceStore,
    *,
    at_epoch: Callable[[EpochRecord], None] = lambda row: None,
    checkpoint_seconds: float = 1e9,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[PretrainingCost, list[int], EmotionalNet]:
    """Load or pre-train; what it took, the epochs that were reported as paid, and the net.

    ``at_epoch`` is called as soon as an epoch is trained, which may be long before it is told.
    """
    epochs: list[int] = []

    class Paid:
        def report(self, event: Event) -> None:
            if isinstance(event, EpochRecord):
                epochs.append(event.epoch)

    class Watched(History):
        def add(self, record: EpochRecord, probes: Iterable[ProbeRecord]) -> None:
            super().add(record, probes)
            at_epoch(record)

    stage, learner = pretraining_of(config, storage)
    history = Watched(store.user, stage.trial.identity, [Paid()])
    context = TrialContext(
        load_images=partial(load, storage=storage),
        store=store,
        folder=storage / "unused",
        device=CPU,
        checkpoint_seconds=checkpoint_seconds,
        should_stop=should_stop,
    )
    with reproducible(config.deterministic), load_or_pretrain(stage, learner, context, history) as checkpointer:
        fit(stage, learner, checkpointer=checkpointer)
    return history.cost, epochs, learner.network
