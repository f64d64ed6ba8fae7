"""Experiences alone, without the trial around them: a tiny pre-training against a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from emoreg.training.pretrain import EmotionalNet, create_emotional_net

from emoreg.config import TrialConfig
from emoreg.data import cut_validation, load
from emoreg.data.batches import Batches
from emoreg.results.records import EpochRecord
from emoreg.training.experience import ExperienceStore, Gained, gain_experience
from emoreg.training.optim import reproducible
from tests.helpers.trials import CPU


def stimuli_of(config: TrialConfig, storage: Path) -> tuple[EmotionalNet, Batches, str]:
    """The untrained net, its training images, and their fingerprint."""
    images = load(config.stimuli, image_size=config.image_size, storage=storage)
    train, _ = cut_validation(
        images.train,
        config.stimuli.validation_fraction,
        seed=config.stimuli.split_seed,
        num_images=config.stimuli.num_images,
    )
    return create_emotional_net(config, images.num_outputs), Batches(train, device=CPU), images.fingerprint


def gain(
    config: TrialConfig,
    storage: Path,
    store: ExperienceStore,
    *,
    report: Callable[[EpochRecord], None] = lambda row: None,
    checkpoint_seconds: float = 1e9,
    interrupted: Callable[[], bool] = lambda: False,
) -> tuple[Gained, list[int], EmotionalNet]:
    """What it took, the epochs that were reported as paid, and the net."""
    config = config.applied()
    net, batches, fingerprint = stimuli_of(config, storage)
    epochs: list[int] = []

    def remember(row: EpochRecord) -> None:
        epochs.append(row.epoch)
        report(row)

    with reproducible(config.deterministic):
        gained = gain_experience(
            config,
            net,
            batches,
            None,
            regression=False,
            source=config.stimuli,
            fingerprint=fingerprint,
            store=store,
            report=remember,
            checkpoint_seconds=checkpoint_seconds,
            interrupted=interrupted,
        )
    return gained, epochs, net
