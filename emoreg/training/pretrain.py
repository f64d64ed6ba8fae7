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

from emoreg.config import TrialConfig
from emoreg.data.batches import Batches
from emoreg.errors import Diverged
from emoreg.results.records import EpochRecord
from emoreg.seeding import derive_seed, generator, global_stream
from emoreg.storage.checkpoint import Keeper, State
from emoreg.training.backbones import Encoder, create_encoder
from emoreg.training.devices import gpu_utilisation
from emoreg.training.oom import MicroBatches, Relief
from emoreg.training.optim import (
    CHECK_EVERY,
    EpochTotals,
    autocast,
    build_optimizer,
    pretraining_schedule,
    rng_state,
    set_learning_rate,
    set_rng_state,
)


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
    keeper: Keeper,
    report: Callable[[EpochRecord], None],
) -> Relief:
    """Train ``net`` on the stimuli until ``config.pretraining.epochs`` epochs are done, on the device of ``stimuli``.

    Args:
        config: the applied configuration.
        net: on the device already; changed in place.
        stimuli: training images; their labels are permuted here if the configuration says so.
        validation: held-out stimuli, or None.
        regression: targets are real numbers, and the loss is their mean squared error.
        start: what ``keeper`` was given earlier, to continue from there, bit for bit, or None for the beginning.
        keeper: given the state after every epoch, before it is reported, and after the steps for which it asks.
        report: called with the record of every epoch.

    Returns:
        What it took to fit in memory.

    Raises:
        Diverged: with the step, as soon as a loss that is not finite is seen.
        Interrupted: by the keeper.
    """
    settings, device = config.pretraining, stimuli.device
    num_classes = None if regression else net.head.out_features
    num_steps = settings.epochs * stimuli.num_steps(settings.batch_size)
    optimizer = build_optimizer(net, settings.optimizer)
    relief = Relief(**start["relief"]) if start is not None else None
    micro_batches, looks = MicroBatches(net, relief), MicroBatches(net)
    draws = generator(config.seed, "pretraining batches")
    torch.manual_seed(derive_seed(config.seed, "pretraining"))  # dropout and stochastic depth
    epochs, step = 0, 0
    steps, seconds, totals = 0, 0.0, EpochTotals("pretraining", first_step=0)  # of the epoch in progress, so far
    if start is not None:
        net.load_state_dict(start["net"])
        optimizer.load_state_dict(start["optimizer"])
        draws.set_state(start["draws"].cpu())
        set_rng_state(start["rng"], device)
        epochs, step, steps, seconds = start["epochs"], start["step"], start["steps"], start["seconds"]
        totals = EpochTotals("pretraining", first_step=step - steps)
        totals.load_state(start["totals"], device)
    if settings.shuffle_labels:
        stimuli = stimuli.with_permuted_targets(generator(config.seed, "shuffled labels"))

    def forward(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(config, device):
            scores = net(images)
        return emotion_loss(scores, targets, regression=regression, label_smoothing=settings.label_smoothing), scores

    def state() -> State:
        return {
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "draws": epoch_draws,
            "rng": rng_state(device),
            "epochs": epochs,
            "step": step,
            "steps": steps,
            "seconds": seconds,
            "totals": totals.state(),
            "relief": asdict(micro_batches.relief),
        }

    while epochs < settings.epochs:
        started = time.perf_counter() - seconds
        epoch_draws = draws.get_state()  # all that the epoch draws of its batches follows from it
        net.train()
        for images, targets in stimuli.epoch(settings.batch_size, settings.augmentation, num_classes, draws, first=steps):
            learning_rate = settings.optimizer.learning_rate * pretraining_schedule(step, num_steps, settings)
            set_learning_rate(optimizer, learning_rate)
            loss, scores = micro_batches.backward(forward, optimizer, images, targets)
            if settings.optimizer.gradient_clip is not None:
                nn.utils.clip_grad_norm_(net.parameters(), settings.optimizer.gradient_clip)
            optimizer.step()
            totals.add(loss, targets, None if regression else scores)
            step += 1
            steps += 1
            if step % CHECK_EVERY == 0:
                totals.check_finite()
            if keeper.due():
                totals.check_finite()
                seconds = time.perf_counter() - started
                keeper.keep(state())
        totals.check_finite()
        trained = time.perf_counter() - started
        val_loss, val_accuracy = None, None
        if validation is not None:
            val_loss, val_accuracy = _evaluate(config, net, validation, looks, regression=regression)
            if not math.isfinite(val_loss):  # the epoch's last update did it: the next one's loss would show it
                raise Diverged("pretraining", step)
        epochs += 1
        record = EpochRecord(
            identity=config.identity,
            stage="pretraining",
            epoch=epochs,
            step=step,
            train_loss=totals.loss,
            train_accuracy=totals.accuracy,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=optimizer.param_groups[0]["lr"],
            images_per_second=totals.num_images / trained,
            seconds=time.perf_counter() - started,
            measured_balance=None,
            measured_balance_std=None,
            gpu_utilisation=gpu_utilisation(device),
        )
        steps, seconds, totals = 0, 0.0, EpochTotals("pretraining", first_step=step)
        epoch_draws = draws.get_state()
        keeper.keep({**state(), "record": asdict(record)})
        report(record)
    return micro_batches.relief


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
def _evaluate(
    config: TrialConfig, net: EmotionalNet, split: Batches, micro_batches: MicroBatches, *, regression: bool
) -> tuple[float, float | None]:
    """Loss and, for classes, accuracy over a split."""

    def look(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        with autocast(config, split.device):
            scores = net(images)
        loss = emotion_loss(scores, targets, regression=regression, label_smoothing=0.0)
        return loss, targets, None if regression else scores

    net.eval()
    totals = EpochTotals("pretraining", first_step=0)
    for images, targets in split.evaluation():
        for loss, its_targets, scores in micro_batches.evaluate(look, images, targets):
            totals.add(loss, its_targets, scores)
    return totals.loss, totals.accuracy
