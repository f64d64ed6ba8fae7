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

from emoreg.config import TrialConfig
from emoreg.data.batches import Batches
from emoreg.errors import Diverged
from emoreg.results.records import EpochRecord
from emoreg.seeding import derive_seed, generator
from emoreg.storage.checkpoint import Keeper, State
from emoreg.training.devices import gpu_utilisation
from emoreg.training.events import BalanceSample, Event
from emoreg.training.model import Regulation
from emoreg.training.oom import MicroBatches, Relief
from emoreg.training.optim import (
    CHECK_EVERY,
    EpochTotals,
    autocast,
    build_optimizer,
    regulation_schedule,
    rng_state,
    set_learning_rate,
    set_rng_state,
)


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
    relief: Relief | None = None,
    keeper: Keeper,
    report: Callable[[Event], None],
) -> Relief:
    """Train ``network`` on the task until ``config.regulation.epochs`` epochs are done, on the device of ``task``.

    Args:
        config: the applied configuration.
        network: on the device already; changed in place.
        task: the training part of the train split.
        validation: the part held out; looked at after every epoch.
        num_classes: C.
        start: what ``keeper`` was given earlier, to continue from there, bit for bit, or None for the beginning.
        relief: what pre-training took to fit in memory, to begin with; ``start`` knows what it has become since.
        keeper: given the state after every epoch, before it is reported, and after the steps for which it asks.
        report: called with the record of every epoch, and the balance by image where it depends on the image.

    Returns:
        What it took to fit in memory.

    Raises:
        Diverged: with the step, as soon as a loss that is not finite is seen.
        Interrupted: by the keeper.
    """
    settings, device = config.regulation, task.device
    num_steps = settings.epochs * task.num_steps(settings.batch_size)
    optimizer = build_optimizer(network, settings.optimizer)
    if start is not None:
        relief = Relief(**start["relief"])
    micro_batches, looks = MicroBatches(network, relief), MicroBatches(network)
    draws = generator(config.seed, "task batches")
    torch.manual_seed(derive_seed(config.seed, "regulation"))  # dropout and stochastic depth
    epochs, step = 0, 0
    steps, seconds, totals = 0, 0.0, EpochTotals("regulation", first_step=0)  # of the epoch in progress, so far
    if start is not None:
        network.load_state_dict(start["network"])
        optimizer.load_state_dict(start["optimizer"])
        draws.set_state(start["draws"].cpu())
        set_rng_state(start["rng"], device)
        epochs, step, steps, seconds = start["epochs"], start["step"], start["steps"], start["seconds"]
        totals = EpochTotals("regulation", first_step=step - steps)
        totals.load_state(start["totals"], device)

    def forward(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(config, device):
            response = network(images)
        return network.loss(response, targets, settings.label_smoothing), response.logits

    def state() -> State:
        return {
            "network": network.state_dict(),
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
        network.train()
        for images, targets in task.epoch(settings.batch_size, settings.augmentation, num_classes, draws, first=steps):
            learning_rate = settings.optimizer.learning_rate * regulation_schedule(step, num_steps, settings)
            set_learning_rate(optimizer, learning_rate)
            network.draw_balance()
            loss, logits = micro_batches.backward(forward, optimizer, images, targets)
            if settings.optimizer.gradient_clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), settings.optimizer.gradient_clip)
            optimizer.step()
            totals.add(loss, targets, logits)
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
        held_out = evaluate(config, network, validation, num_classes=num_classes, micro_batches=looks)
        if not math.isfinite(held_out.loss):  # the epoch's last update did it: the next one's loss would show it
            raise Diverged("regulation", step)
        epochs += 1
        record = EpochRecord(
            identity=config.identity,
            stage="regulation",
            epoch=epochs,
            step=step,
            train_loss=totals.loss,
            train_accuracy=totals.accuracy,
            val_loss=held_out.loss,
            val_accuracy=held_out.accuracy,
            learning_rate=optimizer.param_groups[0]["lr"],
            images_per_second=totals.num_images / trained,
            seconds=time.perf_counter() - started,
            measured_balance=float(held_out.balance.mean()),
            measured_balance_std=float(held_out.balance.std(correction=0)),
            gpu_utilisation=gpu_utilisation(device),
        )
        steps, seconds, totals = 0, 0.0, EpochTotals("regulation", first_step=step)
        epoch_draws = draws.get_state()
        keeper.keep({**state(), "record": asdict(record)})
        report(record)
        if settings.kind == "dynamic":
            report(BalanceSample(epoch=epochs, balance=held_out.balance.cpu()))
    return micro_batches.relief


@torch.no_grad()
def evaluate(
    config: TrialConfig, network: Regulation, split: Batches, *, num_classes: int, micro_batches: MicroBatches | None = None
) -> Evaluation:
    """Run the network over a split, in evaluation mode and without augmentation.

    Args:
        config: the applied configuration.
        network: on the device of ``split``.
        split: at least one image.
        num_classes: C.
        micro_batches: knows from an earlier evaluation what fits in memory.
    """

    def look(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with autocast(config, split.device):
            response = network(images)
        loss = F.cross_entropy(response.logits, targets, reduction="sum").double()
        return loss, response.logits.argmax(dim=1), response.balance.float().expand(len(targets))

    network.eval()
    micro_batches = micro_batches if micro_batches is not None else MicroBatches(network)
    losses, predictions, balances, truths = [], [], [], []
    for images, targets in split.evaluation():
        truths.append(targets)
        for loss, prediction, balance in micro_batches.evaluate(look, images, targets):
            losses.append(loss)
            predictions.append(prediction)
            balances.append(balance)
    # On the CPU: counting is not deterministic on a GPU, and torch refuses it there in the deterministic mode.
    truth, prediction = torch.cat(truths).cpu(), torch.cat(predictions).cpu()
    confusion = torch.bincount(truth * num_classes + prediction, minlength=num_classes**2).reshape(num_classes, num_classes)
    return Evaluation(
        loss=float(torch.stack(losses).sum()) / len(split),
        accuracy=float((truth == prediction).sum()) / len(split),
        confusion=confusion,
        balance=torch.cat(balances),
    )
