"""Stage 2: both responses are balanced while the task is learned, end to end. The loop is written out in full.

Legend: B batch, S side in pixels, C classes of the task, N images of a split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from emoreg.checkpoint import State
from emoreg.config import TrialConfig
from emoreg.errors import Diverged
from emoreg.imagesets.batches import Batches
from emoreg.optimization import (
    CHECK_EVERY,
    EpochTotals,
    autocast,
    build_optimizer,
    regulation_schedule,
    rng_state,
    set_learning_rate,
    set_rng_state,
)
from emoreg.records import EpochRecord
from emoreg.regulation import Regulation
from emoreg.reporter import BalanceSample, Event
from emoreg.seeding import derive_seed, generator


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How a network does on a split: unsmoothed loss, accuracy in [0, 1], counts by true and predicted class, balance."""

    loss: float
    accuracy: float
    confusion: Int[Tensor, "C C"]
    balance: Float[Tensor, " N"]


def regulate(
    config: TrialConfig,
    network: Regulation,
    task: Batches,
    validation: Batches,
    *,
    num_classes: int,
    start: State | None,
    save: Callable[[State, bool], None],
    report: Callable[[Event], None],
) -> None:
    """Train ``network`` on the task until ``config.regulation.epochs`` epochs are done, on the device of ``task``.

    Args:
        config: the applied configuration.
        network: on the device already; changed in place.
        task: the training part of the train split.
        validation: the part held out; looked at after every epoch.
        num_classes: C.
        start: state of an earlier epoch to continue from, bit for bit, or None for the beginning.
        save: called with the state after every epoch, and whether it was the last.
        report: called with the record of every epoch, and the balance by image where it depends on the image.

    Raises:
        Diverged: with the step, as soon as a loss that is not finite is seen.
    """
    settings, device = config.regulation, task.device
    optimizer = build_optimizer(network, settings.optimizer)
    draws = generator(config.seed, "task batches")
    torch.manual_seed(derive_seed(config.seed, "regulation"))  # dropout and stochastic depth
    epochs_done, step = 0, 0
    if start is not None:
        optimizer.load_state_dict(start["optimizer"])
        draws.set_state(start["draws"].cpu())
        set_rng_state(start["rng"], device)
        epochs_done, step = start["epochs"], start["step"]
    num_steps = settings.epochs * task.num_steps(settings.batch_size)

    for epoch in range(epochs_done + 1, settings.epochs + 1):
        started = time.perf_counter()
        totals = EpochTotals("regulation", first_step=step)
        network.train()
        for images, targets in task.epoch(settings.batch_size, settings.augmentation, num_classes, draws):
            learning_rate = settings.optimizer.learning_rate * regulation_schedule(step, num_steps, settings)
            set_learning_rate(optimizer, learning_rate)
            with autocast(config, device):
                response = network(images)
            loss = network.loss(response, targets, settings.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if settings.optimizer.gradient_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.optimizer.gradient_clip)
            optimizer.step()
            totals.add(loss, targets, response.logits)
            step += 1
            if step % CHECK_EVERY == 0:
                totals.check_finite()
        totals.check_finite()
        trained = time.perf_counter() - started
        held_out = evaluate(config, network, validation, num_classes=num_classes)
        if not math.isfinite(held_out.loss):  # the epoch's last update did it: the next one's loss would show it
            raise Diverged("regulation", step)
        record = EpochRecord(
            identity=config.identity,
            stage="regulation",
            epoch=epoch,
            step=step,
            loss=totals.loss,
            accuracy=totals.accuracy,
            validation_loss=held_out.loss,
            validation_accuracy=held_out.accuracy,
            learning_rate=learning_rate,
            images_per_second=totals.num_images / trained,
            seconds=time.perf_counter() - started,
            balance=float(held_out.balance.mean()),
            balance_std=float(held_out.balance.std(correction=0)),
        )
        save(
            {
                "network": network.state_dict(),
                "optimizer": optimizer.state_dict(),
                "draws": draws.get_state(),
                "rng": rng_state(device),
                "epochs": epoch,
                "step": step,
                "record": asdict(record),
            },
            epoch == settings.epochs,
        )
        report(record)
        if settings.kind == "dynamic":
            report(BalanceSample(epoch=epoch, balance=held_out.balance.cpu()))


@torch.no_grad()
def evaluate(config: TrialConfig, network: Regulation, split: Batches, *, num_classes: int) -> Evaluation:
    """Run the network over a split, in evaluation mode and without augmentation."""
    network.eval()
    losses, predictions, balances, truths = [], [], [], []
    for images, targets in split.evaluation():
        with autocast(config, split.device):
            response = network(images)
        losses.append(F.cross_entropy(response.logits, targets, reduction="sum").double())
        predictions.append(response.logits.argmax(dim=1))
        balances.append(response.balance.float().expand(len(targets)))
        truths.append(targets)
    # On the CPU: counting is not deterministic on a GPU, and torch refuses it there in the deterministic mode.
    truth, prediction = torch.cat(truths).cpu(), torch.cat(predictions).cpu()
    confusion = torch.bincount(truth * num_classes + prediction, minlength=num_classes**2).reshape(num_classes, num_classes)
    return Evaluation(
        loss=float(torch.stack(losses).sum()) / len(split),
        accuracy=float((truth == prediction).sum()) / len(split),
        confusion=confusion,
        balance=torch.cat(balances),
    )
