"""The one training loop, of every stage: written out to be read from top to bottom."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from emoreg.errors import Diverged
from emoreg.results.outcome import OomState
from emoreg.results.records import EpochRecord
from emoreg.seeding import derive_seed, generator
from emoreg.storage.checkpoint import State
from emoreg.training.checkpointing import Checkpointer, LoopState
from emoreg.training.devices import gpu_utilisation
from emoreg.training.events import BalanceSample
from emoreg.training.learners import Evaluation, Learner, evaluate
from emoreg.training.oom import MicroBatches
from emoreg.training.optim import build_optimizer, precision_of
from emoreg.training.probes import run_probes
from emoreg.training.stages import Stage
from emoreg.training.stopwatch import Stopwatch

_CHECK_EVERY = 50
"""Steps between two checks of the losses, each of which waits for the device."""
_NOBODY_LISTENS = Stopwatch()


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a stage leaves: its state at the end, with which another can go on, and its last evaluation, if it made one."""

    state: State
    evaluation: Evaluation | None

    @property
    def oom(self) -> OomState:
        """What it took to fit in memory."""
        return OomState(**self.state["oom"])


def fit(
    stage: Stage,
    learner: Learner,
    *,
    checkpointer: Checkpointer,
    oom: OomState | None = None,
    stopwatch: Stopwatch = _NOBODY_LISTENS,
) -> Fitted:
    """Train a learner's network until the stage's epochs are done, on the device of the stage's images.

    Args:
        stage: what is trained on, and how.
        learner: its network is on the device already, and is changed in place.
        checkpointer: gives the state to go on from, to the bit on CPU, and takes the states on the way. Its history takes
            every epoch.
        oom: what an earlier stage took to fit in memory, to begin with; a saved state knows better.
        stopwatch: is told what is done when.

    Raises:
        Diverged: a loss is not finite; at most ``_CHECK_EVERY`` steps later.
        Interrupted: by the checkpointer.
        torch.OutOfMemoryError: nothing helped.
    """
    network, history, saved = learner.network, checkpointer.history, checkpointer.latest
    if saved is not None and saved["epoch"] == stage.epochs:  # only the weights are still needed
        network.load_state_dict(saved["network"])
        return Fitted(saved, evaluation=None)
    state = _begin(stage, learner, saved, oom)
    evaluation: Evaluation | None = None
    evaluation_batches = MicroBatches(network)
    while state.epoch < stage.epochs:
        started = time.perf_counter() - state.seconds
        network.train()
        for images, targets in stopwatch.each("data", stage.batches(state.batches, first=state.step_in_epoch)):
            _step(stage, learner, state, images, targets, stopwatch)
            if state.step % _CHECK_EVERY == 0:
                state.check_finite()
            if checkpointer.should_save():
                state.check_finite()
                state.seconds = time.perf_counter() - started
                with stopwatch.phase("writing"):
                    checkpointer.save(state)
        state.check_finite()
        state.seconds = time.perf_counter() - started
        if stage.validation is not None:
            with stopwatch.phase("evaluation"):
                evaluation = evaluate(learner, stage.validation, evaluation_batches)
            if not math.isfinite(evaluation.loss):  # the epoch's last update did it: the next one's loss would show it
                raise Diverged(stage.name, state.step)
        record = _record(stage, state, evaluation, seconds=time.perf_counter() - started)
        history.add(record, run_probes(stage, learner, record.epoch))
        state.end_epoch()
        with stopwatch.phase("writing"):
            checkpointer.save(state)
            checkpointer.report()
        if learner.balance_by_image and evaluation is not None and evaluation.balance is not None:
            history.report(BalanceSample(epoch=state.epoch, balance=evaluation.balance))
    return Fitted(state.to_dict(), evaluation)


def _step(stage: Stage, learner: Learner, state: LoopState, images: Tensor, targets: Tensor, stopwatch: Stopwatch) -> None:
    """One update of the weights by a batch. It does not wait for the device."""
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak"] * stage.learning_rate_factor(state.step)
    learner.begin_batch()
    with stopwatch.phase("backward"):
        forward = stopwatch.timed("forward", learner.loss)
        loss, scores = state.micro_batches.backward(forward, state.optimizer, images, targets)
    with stopwatch.phase("optimizer"):
        clip = stage.settings.optimizer.gradient_clip
        if clip is not None:
            nn.utils.clip_grad_norm_(learner.network.parameters(), clip)
        state.optimizer.step()
    state.add_step(loss, targets, scores)
    stopwatch.step()


def _begin(stage: Stage, learner: Learner, saved: State | None, oom: OomState | None) -> LoopState:
    seed, network = stage.trial.config.seed, learner.network
    torch.manual_seed(derive_seed(seed, stage.name))  # dropout and stochastic depth
    state = LoopState(
        stage=stage.name,
        network=network,
        device=stage.train.device,
        optimizer=build_optimizer(
            network, stage.settings.optimizer, learner.learning_rates(), fused=not stage.trial.config.deterministic
        ),
        batches=generator(seed, stage.batch_stream),
        micro_batches=MicroBatches(network, oom),
    )
    if saved is not None:
        state.load_dict(saved)
    return state


def _record(stage: Stage, state: LoopState, evaluation: Evaluation | None, *, seconds: float) -> EpochRecord:
    """The row of the epoch that ends; ``state.seconds`` are those of its training alone."""
    balance = evaluation.balance if evaluation is not None else None
    metrics = stage.measure(evaluation) if evaluation is not None else {}
    return EpochRecord(
        identity=stage.trial.identity,
        stage=stage.name,
        epoch=state.epoch + 1,
        step=state.step,
        train_loss=state.train_loss,
        train_accuracy=state.train_accuracy,
        val_loss=evaluation.loss if evaluation is not None else None,
        val_accuracy=evaluation.accuracy if evaluation is not None else None,
        learning_rate=stage.settings.optimizer.learning_rate * stage.learning_rate_factor(state.step - 1),
        images_per_second=sum(state.sizes) / state.seconds,
        seconds=seconds,
        measured_balance=float(balance.mean()) if balance is not None else None,
        measured_balance_std=float(balance.std(correction=0)) if balance is not None else None,
        gpu_utilisation=gpu_utilisation(stage.train.device),
        metrics=json.dumps(metrics),
        precision=precision_of(stage.trial.config, stage.train.device),
        compiled=stage.trial.config.compile == "on",
    )
