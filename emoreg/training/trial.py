"""One trial, whole: pre-train on the stimuli, regulate on the task, say how well it did. Knows neither Ray nor Optuna."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from emoreg.config import TrialConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.data.batches import Batches
from emoreg.errors import Diverged
from emoreg.results.outcome import EndReason, OomState, Outcome
from emoreg.results.records import unfinished_outcome
from emoreg.storage import checkpoint
from emoreg.storage.checkpoint import CHECKPOINT, State
from emoreg.storage.files import Files, sweep
from emoreg.training.checkpointing import Checkpointer
from emoreg.training.context import TrialContext
from emoreg.training.events import Confusion, Experienced, Reporter
from emoreg.training.experience import load_or_pretrain
from emoreg.training.history import History, seconds_of
from emoreg.training.learners import EmotionLearner, Evaluation, RegulationLearner, evaluate
from emoreg.training.loop import Fitted, fit
from emoreg.training.metrics import measure
from emoreg.training.model import EmotionalNet, create_emotional_net, create_regulation
from emoreg.training.optim import reproducible
from emoreg.training.predictions import write_predictions
from emoreg.training.stages import pretraining_stage, regulation_stage


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
    config, device = trial.config, context.device
    history = History(context.store.user, trial.identity, reporters)
    with reproducible(config.deterministic):
        task = regulation_stage(trial, context.load_images, device)
        trial_checkpointer = _checkpointer(trial, context, history, task.image_set.class_names)
        emotional_net: EmotionalNet | None = None
        oom = OomState()
        try:
            if config.regulation.needs_emotional:
                stimuli = pretraining_stage(trial, context.load_images, device)
                emotional_net = create_emotional_net(config, stimuli.image_set.num_outputs).to(device)
                if trial.needs_pretraining and trial_checkpointer.latest is None:  # else that holds the weights, and more
                    history.report(stimuli.sample())
                    student = EmotionLearner(
                        config,
                        emotional_net,
                        regression=stimuli.image_set.regression,
                        class_weights=stimuli.class_weights,
                    )
                    with load_or_pretrain(stimuli, context, history) as checkpointer:
                        fitted = fit(stimuli, student, checkpointer=checkpointer)
                    oom = fitted.oom if history.ends_with_own else oom
                del stimuli  # their images make room on the device
                if trial.needs_pretraining:
                    history.report(Experienced(epochs=config.pretraining.epochs, cost=history.cost))
            network = create_regulation(config, emotional_net, task.image_set.num_outputs).to(device)
            learner = RegulationLearner(config, network, class_weights=task.class_weights)
            if trial_checkpointer.latest is None:
                learner.adapt_frozen(task.train)
            history.report(task.sample())
            with trial_checkpointer:
                fitted = fit(task, learner, checkpointer=trial_checkpointer, oom=oom)
        except Diverged as diverged:
            return _diverged(diverged, history)
        assert task.validation is not None
        evaluations = {"validation": fitted.evaluation or evaluate(learner, task.validation)}
        if context.evaluate_on == "test":
            evaluations["test"] = evaluate(learner, Batches(task.image_set.test, device=device))
    class_names = task.image_set.class_names
    for split, evaluation in evaluations.items():
        history.report(Confusion(split=split, counts=evaluation.confusion, class_names=class_names))
    write_predictions(context.folder, trial.identity, evaluations, class_names)
    return _completed(config, history, fitted, network, evaluations)


def _completed(
    config: TrialConfig, history: History, fitted: Fitted, network: nn.Module, evaluations: Mapping[str, Evaluation]
) -> Outcome:
    """The outcome of a trial that came to its end: ``evaluations`` by split, of the test split too if it was opened."""
    validation, test = evaluations["validation"], evaluations.get("test")
    metrics = history.value_metrics(config.metrics) | measure(config.metrics, validation, split="val")
    metrics |= measure(config.metrics, test, split="test") if test else {}
    return Outcome(
        end=EndReason.COMPLETED,
        val_accuracy=validation.accuracy,
        val_loss=validation.loss,
        measured_balance=None if validation.balance is None else float(validation.balance.mean()),
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


def _checkpointer(trial: ResolvedTrial, context: TrialContext, history: History, class_names: tuple[str, ...]) -> Checkpointer:
    """What saves regulation; the state and the history of an earlier attempt are taken up, if there was one.

    At the end the network alone is left, with the names of its classes: what can be exported.
    """
    sweep(context.folder)
    files, last_epoch = Files(str(context.folder)), trial.config.regulation.epochs
    latest = checkpoint.load(files, CHECKPOINT)
    if latest is not None:
        history.resume(latest["history"])

    def write(state: State, is_kept: bool) -> None:
        checkpoint.save(files, CHECKPOINT, {**state, "class_names": list(class_names)})
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
