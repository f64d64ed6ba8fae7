"""One trial, whole: pre-train on the stimuli, regulate on the task, say how well it did. Knows neither Ray nor Optuna."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from emoreg.config import TrialConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.config.trial import Precision
from emoreg.data.batches import Batches
from emoreg.errors import Diverged
from emoreg.results.outcome import EndReason, OomState, Outcome
from emoreg.results.records import unfinished_outcome
from emoreg.storage import checkpoint
from emoreg.storage.checkpoint import CHECKPOINT, State
from emoreg.storage.files import Files, sweep
from emoreg.training.checkpointing import Checkpointer
from emoreg.training.compilation import settle_compile
from emoreg.training.context import TrialContext
from emoreg.training.events import Confusion, Experienced, Reporter
from emoreg.training.experience import load_or_pretrain
from emoreg.training.history import History, seconds_of
from emoreg.training.learners import EmotionLearner, Evaluation, RegulationLearner, evaluate
from emoreg.training.loop import Fitted, fit
from emoreg.training.metrics import measure
from emoreg.training.model import create_emotional_net, create_regulation
from emoreg.training.optim import precision_of, reproducible, uses_bf16
from emoreg.training.precision import settle
from emoreg.training.predictions import write_predictions
from emoreg.training.stages import Stage, pretraining_stage, regulation_stage, require_validation


def run_trial(trial: ResolvedTrial, context: TrialContext, *reporters: Reporter) -> Outcome:
    """Run a trial to its end, from its last checkpoint if it has one.

    Args:
        trial: what is run.
        context: what it runs in.
        reporters: told every event in order, the epochs of earlier attempts included; they may raise to stop the trial.

    Returns:
        What it measured or, if it diverged, where.

    Raises:
        Interrupted: the trial was asked to stop, and has saved what it did.
        UserError: an image set, a backbone or weights that cannot be had.
    """
    device, stopwatch, latest = context.device, context.stopwatch, _latest(context)
    trial = settle(trial, device, context.precisions, began_in=_began_in(latest, device))
    compiled = None if latest is None else latest.get("compile", "off")  # an emoreg that compiled nothing left no word of it
    trial = settle_compile(trial, device, context.compiled, began_in=compiled)
    config = trial.config
    history = History(context.store.user, trial.identity, reporters)
    with reproducible(config.deterministic, tf32=device.type == "cuda" and uses_bf16(config, device)):
        task = regulation_stage(trial, context.load_images, device)
        if context.evaluate_on != "test":
            require_validation(task)
        trial_checkpointer = _checkpointer(trial, context, history, latest, task.image_set.class_names)
        emotional_net, affect = None, None
        oom = OomState()
        try:
            if config.regulation.needs_emotional:
                stimuli = pretraining_stage(trial, context.load_images, device)
                affect = stimuli.affect
                emotional_net = create_emotional_net(config, stimuli.image_set.num_outputs).to(device)
                if trial.needs_pretraining and trial_checkpointer.latest is None:  # else that holds the weights, and more
                    history.report(stimuli.sample())
                    student = EmotionLearner(
                        config,
                        emotional_net,
                        regression=stimuli.image_set.regression,
                        class_weights=stimuli.class_weights,
                    )
                    student.affect = affect
                    with load_or_pretrain(stimuli, student, context, history) as checkpointer, stopwatch.stage(stimuli.name):
                        fitted = fit(stimuli, student, checkpointer=checkpointer, stopwatch=stopwatch)
                    oom = fitted.oom if history.ends_with_own else oom
                    del checkpointer, fitted  # the optimizer makes room on the device
                del stimuli  # so do their images
                if trial.needs_pretraining:
                    history.report(Experienced(epochs=config.pretraining.total_epochs, cost=history.cost))
            network = create_regulation(config, emotional_net, task.image_set.num_outputs).to(device)
            learner = RegulationLearner(config, network, class_weights=task.class_weights)
            learner.affect = affect
            if trial_checkpointer.latest is None:
                learner.adapt_frozen(task.train)
            history.report(task.sample())
            with trial_checkpointer, stopwatch.stage(task.name):
                fitted = fit(task, learner, checkpointer=trial_checkpointer, oom=oom, stopwatch=stopwatch)
            held_out = _held_out(task, context)
            evaluations = {
                split: fitted.evaluation if split == "validation" and fitted.evaluation else evaluate(learner, images)
                for split, images in held_out.items()
            }
            if task.validation is None and not all(math.isfinite(found.loss) for found in evaluations.values()):
                raise Diverged(task.name, task.num_steps)  # the last update did it
        except Diverged as diverged:
            return _diverged(diverged, history)
    class_names = task.image_set.class_names
    for split, evaluation in evaluations.items():
        history.report(Confusion(split=split, counts=evaluation.confusion, class_names=class_names))
    write_predictions(context.folder, trial.identity, evaluations, held_out, class_names)
    completed = _completed(config, history, fitted, network, evaluations)
    return replace(completed, precision=precision_of(config, device), compiled=config.compile == "on")


def _held_out(task: Stage, context: TrialContext) -> dict[str, Batches]:
    """The images that the trial is measured on at its end, by split."""
    images: dict[str, Batches] = {} if task.validation is None else {"validation": task.validation}
    if context.evaluate_on == "test":
        images["test"] = Batches(task.image_set.test, device=context.device)
    return images


def _completed(
    config: TrialConfig, history: History, fitted: Fitted, network: nn.Module, evaluations: Mapping[str, Evaluation]
) -> Outcome:
    """The outcome of a trial that came to its end: ``evaluations`` by split, of those that it has."""
    validation, test = evaluations.get("validation"), evaluations.get("test")
    balance = next(iter(evaluations.values())).balance
    metrics = history.value_metrics(config.metrics)
    metrics |= measure(config.metrics, validation, split="val") if validation else {}
    metrics |= measure(config.metrics, test, split="test") if test else {}
    return Outcome(
        end=EndReason.COMPLETED,
        val_accuracy=validation.accuracy if validation else None,
        val_loss=validation.loss if validation else None,
        measured_balance=None if balance is None else float(balance.mean()),
        test_accuracy=test.accuracy if test else None,
        metrics=metrics,
        regulation_epochs=config.regulation.epochs,
        regulation_seconds=seconds_of(history.own, "regulation"),
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        pretraining=history.cost,
        oom=fitted.oom,
    )


def _diverged(diverged: Diverged, history: History) -> Outcome:
    """The outcome of a trial that diverged: it has its experience if it came to regulation."""
    cost = history.cost if diverged.stage == "regulation" else replace(history.cost, experience_seconds=None)
    outcome = unfinished_outcome(history.own, EndReason.DIVERGED, str(diverged), pretraining=cost)
    return replace(outcome, diverged_stage=diverged.stage, diverged_step=diverged.step)


def _latest(context: TrialContext) -> State | None:
    """The last checkpoint of an earlier attempt, if there was one."""
    sweep(context.folder)
    return checkpoint.load(Files(str(context.folder)), CHECKPOINT)


def _began_in(latest: State | None, device: torch.device) -> Precision | None:
    """What an earlier attempt computed in; None where there was none, or the device alone decided it."""
    undecided = "float32" if device.type == "cpu" else None  # of an emoreg that did not measure
    began: Precision | None = None if latest is None else latest.get("precision", undecided)
    return began


def _checkpointer(
    trial: ResolvedTrial, context: TrialContext, history: History, latest: State | None, class_names: tuple[str, ...]
) -> Checkpointer:
    """What saves regulation; the state and the history of an earlier attempt are taken up, if there was one.

    At the end the network alone is left, with the names of its classes: what can be exported.
    """
    files, last_epoch = Files(str(context.folder)), trial.config.regulation.epochs
    if latest is not None:
        history.resume(latest["history"])
    beside = {
        "class_names": list(class_names),
        "precision": precision_of(trial.config, context.device),
        "compile": trial.config.compile,
    }

    def write(state: State, is_kept: bool) -> None:
        checkpoint.save(files, CHECKPOINT, {**state, **beside})
        context.on_checkpoint()

    return Checkpointer(
        latest=latest,
        history=history,
        keeps=lambda epoch: epoch == last_epoch,
        write=write,
        seconds=context.checkpoint_seconds,
        should_stop=context.should_stop,
        last_epoch=last_epoch,
    )
