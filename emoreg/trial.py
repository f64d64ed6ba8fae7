"""One trial, whole: pre-train on the stimuli, regulate on the task, say how well it did. Knows neither Ray nor Optuna."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch

from emoreg import checkpoint
from emoreg.backbones import create_encoder
from emoreg.checkpoint import State
from emoreg.config import AugmentationConfig, ImageSetConfig, TrialConfig
from emoreg.errors import ConfigError, ImageSetError
from emoreg.experience import gain_experience
from emoreg.imagesets import ImageSet, Split, cut_validation, load
from emoreg.imagesets.augmentation import denormalize
from emoreg.imagesets.batches import Batches
from emoreg.optimization import reproducible
from emoreg.pretrain import EmotionalNet, create_emotional_net
from emoreg.records import EpochRecord, Stage, TrialResult
from emoreg.regulate import evaluate, regulate
from emoreg.regulation import Regulation, needs_emotional, needs_plain
from emoreg.reporter import Confusion, Event, ImagesSample, Reporter
from emoreg.seeding import derive_seed, generator

CHECKPOINT = "trial.ckpt"
EvaluatedSplit = Literal["validation", "test"]
_NUM_SAMPLE_IMAGES = 32


def run_trial(
    config: TrialConfig,
    reporter: Reporter,
    *,
    storage: Path,
    folder: Path,
    device: torch.device,
    evaluate_on: EvaluatedSplit = "validation",
    checkpoint_seconds: float = 30.0,
) -> TrialResult:
    """Run a trial to its end, from its last checkpoint where it has one.

    Args:
        config: the trial; its control is applied here.
        reporter: told every epoch in order, those of an earlier attempt included; it may raise to stop the trial.
        storage: holds the prepared image sets and the experience.
        folder: the trial's own, for its checkpoint.
        device: where to compute.
        evaluate_on: "test" opens the test split, once, at the end.
        checkpoint_seconds: least time between two checkpoints; the end always makes one.

    Raises:
        Diverged: a loss was not finite.
        UserError: an image set, a backbone or weights that cannot be had.
    """
    config = config.applied()
    history = _History(reporter)
    with reproducible(config.deterministic):
        task, parts = _load_task(config, storage)
        train, held_out = (Batches(part, device=device) for part in parts)
        start = checkpoint.load(folder / CHECKPOINT)
        pretraining_seconds, experience_seconds = 0.0, 0.0
        for earlier in start["history"] if start is not None else ():
            history.report(EpochRecord(**earlier))
        experience = None
        if needs_emotional(config.regulation):
            experience, pretraining_seconds, experience_seconds = _experience(
                config, history, storage, device, bare=start is not None
            )
        if start is not None:
            pretraining_seconds, experience_seconds = start["pretraining_seconds"], start["experience_seconds"]
        network = _network(config, experience, task.num_outputs).to(device)
        if start is not None:
            network.load_state_dict(start["network"])
        history.report(_sample("regulation", train, task, config.regulation.augmentation, config.seed))

        saved = time.monotonic()

        def save(state: State, last: bool) -> None:
            nonlocal saved
            if last or time.monotonic() - saved >= checkpoint_seconds:
                past = [asdict(row) for row in history.epochs] + [state["record"]]
                seconds = {"pretraining_seconds": pretraining_seconds, "experience_seconds": experience_seconds}
                state = {**state, **seconds, "history": past}
                checkpoint.save(folder / CHECKPOINT, state)
                saved = time.monotonic()

        regulate(
            config,
            network,
            train,
            held_out,
            num_classes=task.num_outputs,
            start=start,
            save=save,
            report=history.report,
        )
        result = evaluate(config, network, held_out, num_classes=task.num_outputs)
        history.report(Confusion(split="validation", counts=result.confusion, class_names=task.class_names))
        test_accuracy = None
        if evaluate_on == "test":
            test = evaluate(config, network, Batches(task.test, device=device), num_classes=task.num_outputs)
            history.report(Confusion(split="test", counts=test.confusion, class_names=task.class_names))
            test_accuracy = test.accuracy
    return TrialResult(
        identity=config.identity,
        accuracy=result.accuracy,
        loss=result.loss,
        final_balance=float(result.balance.mean()),
        test_accuracy=test_accuracy,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        pretraining_seconds=pretraining_seconds,
        experience_seconds=experience_seconds,
        regulation_seconds=sum(row.seconds for row in history.epochs if row.stage == "regulation"),
    )


def check_images(config: TrialConfig, storage: Path) -> None:
    """Refuse a trial whose image sets cannot be used as it asks; prepares them where they are new.

    Raises:
        UserError: for a task without classes or validation images, or too few images.
    """
    config = config.applied()
    _load_task(config, storage)
    if needs_emotional(config.regulation):
        stimuli, source = _load_stimuli(config, storage)
        if stimuli.regression:
            _check_regression(config, stimuli)
        _parts(stimuli, source)


class _History:
    """Passes events on and remembers the epochs, which checkpoints carry."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self.epochs: list[EpochRecord] = []

    def report(self, event: Event) -> None:
        if isinstance(event, EpochRecord):
            self.epochs.append(event)
        self._reporter.report(event)


def _load_task(config: TrialConfig, storage: Path) -> tuple[ImageSet, tuple[Split, Split]]:
    """The images of stage 2, and the training and validation parts of them."""
    task = load(config.task, image_size=config.image_size, storage=storage)
    if task.regression:
        raise ConfigError(
            f"a task is classified, but the target {config.task.target!r} of {task.name!r} is made of real numbers: "
            "choose a target with classes"
        )
    parts = _parts(task, config.task)
    if len(parts[1]) == 0:
        raise ImageSetError(
            f"a task needs validation images, but {config.task.validation_fraction:g} of the {len(task.train)} images of "
            f"{task.name!r} is none: raise task.validation_fraction"
        )
    return task, parts


def _load_stimuli(config: TrialConfig, storage: Path) -> tuple[ImageSet, ImageSetConfig]:
    """The images of stage 1, and which of them: for the neutral control the neutral ones, as many as the stimuli."""
    stimuli = load(config.stimuli, image_size=config.image_size, storage=storage)
    if config.control != "neutral":
        return stimuli, config.stimuli
    assert config.neutral is not None
    num_images = len(_parts(stimuli, config.stimuli)[0])
    neutral = load(config.neutral, image_size=config.image_size, storage=storage)
    num_neutral = len(_parts(neutral, replace(config.neutral, num_images=None))[0])
    if num_neutral < num_images:
        raise ImageSetError(
            f"the neutral set needs as many training images as the stimuli, {num_images}, but {neutral.name!r} has "
            f"{num_neutral}: choose a larger one, or set stimuli.num_images"
        )
    return neutral, replace(config.neutral, num_images=num_images)


def _check_regression(config: TrialConfig, stimuli: ImageSet) -> None:
    """Refuse what has no meaning where the stimuli's targets are real numbers."""
    augmentation = config.pretraining.augmentation
    if config.pretraining.epochs and (augmentation.mixup or augmentation.cutmix):
        raise ConfigError(
            f"MixUp and CutMix mix classes, but the targets of {stimuli.name!r} are real numbers: set "
            "pretraining.augmentation.mixup and cutmix to 0"
        )
    if config.regulation.form == "conditioned":
        raise ConfigError(
            f"form='conditioned' takes the softmax of emotion classes, but the targets of {stimuli.name!r} are real numbers: "
            "choose a target with classes, or another form"
        )


def _parts(image_set: ImageSet, config: ImageSetConfig) -> tuple[Split, Split]:
    """The training and validation parts of the train split."""
    return cut_validation(image_set.train, config.validation_fraction, seed=config.split_seed, num_images=config.num_images)


def _experience(
    config: TrialConfig, history: _History, storage: Path, device: torch.device, *, bare: bool
) -> tuple[EmotionalNet, float, float]:
    """The emotional net with its experience, and the seconds paid and cost; bare where a checkpoint holds its weights."""
    stimuli, source = _load_stimuli(config, storage)
    if stimuli.regression:
        _check_regression(config, stimuli)
    net = create_emotional_net(config, stimuli.num_outputs).to(device)
    if bare:
        return net, 0.0, 0.0
    train, held_out = _parts(stimuli, source)
    batches = Batches(train, device=device)
    history.report(_sample("pretraining", batches, stimuli, config.pretraining.augmentation, config.seed))
    paid, cost = gain_experience(
        config,
        net,
        batches,
        Batches(held_out, device=device) if len(held_out) else None,
        regression=stimuli.regression,
        source=source,
        fingerprint=stimuli.fingerprint,
        storage=storage,
        report=history.report,
    )
    return net, paid, cost


def _network(config: TrialConfig, experience: EmotionalNet | None, num_classes: int) -> Regulation:
    plain = None
    if needs_plain(config.regulation):
        plain = create_encoder(
            config.backbone,
            image_size=config.image_size,
            drop_path=config.drop_path,
            weights=config.weights,
            seed=derive_seed(config.seed, "plain encoder"),
        )
    return Regulation(
        config.regulation,
        plain=plain,
        emotional=experience.encoder if experience is not None else None,
        emotion_head=experience.head if experience is not None else None,
        num_classes=num_classes,
        seed=config.seed,
    )


def _sample(stage: Stage, batches: Batches, image_set: ImageSet, augmentation: AugmentationConfig, seed: int) -> ImagesSample:
    """A few augmented training images with the names of their classes, drawn from a stream of their own."""
    images, targets = next(batches.epoch(_NUM_SAMPLE_IMAGES, augmentation, None, generator(seed, "sample", stage)))
    if image_set.regression:
        captions = tuple(" ".join(f"{value:+.1f}" for value in row) for row in targets.tolist())
    else:
        captions = tuple(image_set.class_names[target] for target in targets.tolist())
    return ImagesSample(stage=stage, images=denormalize(images).cpu(), captions=captions)
