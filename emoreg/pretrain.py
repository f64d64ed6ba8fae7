"""Stage 1: the emotional encoder learns the stimuli, and so comes by an experience. The loop is written out in full.

Legend: B batch, S side in pixels, O outputs of the emotion head (affect classes, or valence and arousal).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from emoreg.backbones import Encoder, create_encoder
from emoreg.checkpoint import State
from emoreg.config import TrialConfig
from emoreg.errors import Diverged
from emoreg.imagesets.batches import Batches
from emoreg.optimization import (
    CHECK_EVERY,
    EpochTotals,
    autocast,
    build_optimizer,
    rng_state,
    set_learning_rate,
    set_rng_state,
    warmup_then_constant,
)
from emoreg.records import EpochRecord
from emoreg.seeding import derive_seed, generator, global_stream


class EmotionalNet(nn.Module):
    """An encoder g with its emotion head H."""

    def __init__(self, encoder: Encoder, num_outputs: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        with global_stream(seed):
            self.head = nn.Linear(encoder.width, num_outputs)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B O"]:
        """Emotion logits, or estimated valence and arousal."""
        scores: Tensor = self.head(self.encoder(images))
        return scores.float()


def create_emotional_net(config: TrialConfig, num_outputs: int) -> EmotionalNet:
    """The emotional encoder and head before any experience. Its streams depend on the trial's seed alone."""
    encoder = create_encoder(
        config.backbone,
        image_size=config.image_size,
        drop_path=config.drop_path,
        weights=config.weights,
        seed=derive_seed(config.seed, "emotional encoder"),
    )
    return EmotionalNet(encoder, num_outputs, derive_seed(config.seed, "emotion head"))


def pretrain(
    config: TrialConfig,
    net: EmotionalNet,
    stimuli: Batches,
    validation: Batches | None,
    *,
    regression: bool,
    start: State | None,
    save: Callable[[State], None],
    report: Callable[[EpochRecord], None],
) -> None:
    """Train ``net`` on the stimuli until ``config.pretraining.epochs`` epochs are done, on the device of ``stimuli``.

    Args:
        config: the applied configuration.
        net: on the device already; changed in place.
        stimuli: training images; their labels are permuted here if the configuration says so.
        validation: held-out stimuli, or None.
        regression: targets are real numbers, and the loss is their mean squared error.
        start: state of an earlier epoch to continue from, bit for bit, or None for the beginning.
        save: called with the state after every epoch.
        report: called with the record of every epoch.

    Raises:
        Diverged: with the step, as soon as a loss that is not finite is seen.
    """
    settings, device = config.pretraining, stimuli.device
    num_classes = None if regression else net.head.out_features
    optimizer = build_optimizer(net, settings.optimizer)
    draws = generator(config.seed, "pretraining batches")
    torch.manual_seed(derive_seed(config.seed, "pretraining"))  # dropout and stochastic depth
    epochs_done, step = 0, 0
    if start is not None:
        net.load_state_dict(start["net"])
        optimizer.load_state_dict(start["optimizer"])
        draws.set_state(start["draws"].cpu())
        set_rng_state(start["rng"], device)
        epochs_done, step = start["epochs"], start["step"]
    if settings.shuffle_labels:
        stimuli = stimuli.with_permuted_targets(generator(config.seed, "shuffled labels"))

    for epoch in range(epochs_done + 1, settings.epochs + 1):
        started = time.perf_counter()
        totals = EpochTotals("pretraining", first_step=step)
        net.train()
        for images, targets in stimuli.epoch(settings.batch_size, settings.augmentation, num_classes, draws):
            learning_rate = settings.optimizer.learning_rate * warmup_then_constant(step, settings.warmup_steps)
            set_learning_rate(optimizer, learning_rate)
            with autocast(config, device):
                scores = net(images)
            loss = emotion_loss(scores, targets, regression=regression, label_smoothing=settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if settings.optimizer.gradient_clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), settings.optimizer.gradient_clip)
            optimizer.step()
            totals.add(loss, targets, None if regression else scores)
            step += 1
            if step % CHECK_EVERY == 0:
                totals.check_finite()
        totals.check_finite()
        trained = time.perf_counter() - started
        validation_loss, validation_accuracy = None, None
        if validation is not None:
            validation_loss, validation_accuracy = _evaluate(config, net, validation, regression=regression)
            if not math.isfinite(validation_loss):  # the epoch's last update did it: the next one's loss would show it
                raise Diverged("pretraining", step)
        record = EpochRecord(
            identity=config.identity,
            stage="pretraining",
            epoch=epoch,
            step=step,
            loss=totals.loss,
            accuracy=totals.accuracy,
            validation_loss=validation_loss,
            validation_accuracy=validation_accuracy,
            learning_rate=learning_rate,
            images_per_second=totals.num_images / trained,
            seconds=time.perf_counter() - started,
            balance=None,
            balance_std=None,
        )
        save(
            {
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "draws": draws.get_state(),
                "rng": rng_state(device),
                "epochs": epoch,
                "step": step,
                "record": asdict(record),
            }
        )
        report(record)


def emotion_loss(
    scores: Float[Tensor, "B O"],
    targets: Int[Tensor, " B"] | Float[Tensor, "B O"],
    *,
    regression: bool,
    label_smoothing: float,
) -> Float[Tensor, ""]:
    """Mean cross-entropy with class indices or probabilities, or mean squared error for regression."""
    if regression:
        return F.mse_loss(scores, targets)
    return F.cross_entropy(scores, targets, label_smoothing=label_smoothing)


@torch.no_grad()
def _evaluate(config: TrialConfig, net: EmotionalNet, split: Batches, *, regression: bool) -> tuple[float, float | None]:
    """Loss and, for classes, accuracy over a split."""
    net.eval()
    totals = EpochTotals("pretraining", first_step=0)
    for images, targets in split.evaluation():
        with autocast(config, split.device):
            scores = net(images)
        loss = emotion_loss(scores, targets, regression=regression, label_smoothing=0.0)
        totals.add(loss, targets, None if regression else scores)
    return totals.loss, totals.accuracy
