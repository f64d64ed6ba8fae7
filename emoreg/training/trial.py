"""One trial, whole: pre-train on the stimuli, regulate on the task, say how well it did. Knows neither Ray nor Optuna."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from emoreg.config import AugmentationConfig, ImageSetConfig, TrialConfig
from emoreg.data import ImageSet, LoadImages, Split, cut_validation
from emoreg.data.augmentation import denormalize
from emoreg.data.batches import Batches
from emoreg.errors import ConfigError, ImageSetError, Interrupted
from emoreg.results.records import EpochRecord, Stage, TrialResult
from emoreg.seeding import derive_seed, generator
from emoreg.storage import checkpoint
from emoreg.storage.checkpoint import State
from emoreg.storage.files import sweep
from emoreg.training.backbones import create_encoder
from emoreg.training.events import Confusion, Event, Experienced, ImagesSample, Reporter
from emoreg.training.experience import ExperienceStore, Gained, gain_experience
from emoreg.training.model import Regulation
from emoreg.training.optim import reproducible
from emoreg.training.pretrain import EmotionalNet, create_emotional_net
from emoreg.training.regulate import evaluate, regulate

CHECKPOINT = "trial.ckpt"
EvaluatedSplit = Literal["validation", "test"]
_NUM_SAMPLE_IMAGES = 32


def run_trial(
    config: TrialConfig,
    reporter: Reporter,
    *,
    load_images: LoadImages,
    store: ExperienceStore,
    folder: Path,
    device: torch.device,
    evaluate_on: EvaluatedSplit = "validation",
    checkpoint_seconds: float = 30.0,
    interrupted: Callable[[], bool] = lambda: False,
    on_checkpoint: Callable[[], None] = lambda: None,
) -> TrialResult:
    """Run a trial to its end, from its last checkpoint where it has one.

    Args:
        config: the trial; its control is applied here.
        reporter: told every epoch in order, those of an earlier attempt included; it may raise to stop the trial.
        load_images: gives the image sets.
        store: holds the experience.
        folder: the trial's own, for its checkpoint.
        device: where to compute.
        evaluate_on: "test" opens the test split, once, at the end.
        checkpoint_seconds: least time between two checkpoints, in mid-epoch too; the end always makes one.
        interrupted: asked after every step, and while waiting for an experience, whether to stop.
        on_checkpoint: called when a checkpoint is in ``folder``, by the thread that has written it.

    Raises:
        Diverged: a loss was not finite.
        Interrupted: ``interrupted`` said so, and all that was done is saved.
        UserError: an image set, a backbone or weights that cannot be had.
    """
    config = config.applied()
    history = _History(reporter)
    with reproducible(config.deterministic):
        task, parts = _load_task(config, load_images)
        train, held_out = (Batches(part, device=device) for part in parts)
        sweep(folder)
        start = checkpoint.load(folder / CHECKPOINT)
        gained = Gained(paid_seconds=0.0, cost_seconds=0.0, waiting_seconds=0.0)
        if start is not None:
            gained = Gained(start["pretraining_seconds"], start["experience_seconds"], waiting_seconds=0.0)
            for earlier in start["history"]:
                history.report(EpochRecord(**earlier))
        experience = None
        if config.regulation.needs_emotional:
            stimuli, source = _load_stimuli(config, load_images)
            if stimuli.regression:
                _check_regression(config, stimuli)
            experience = create_emotional_net(config, stimuli.num_outputs).to(device)
            if start is None:  # otherwise the checkpoint holds its weights, and more
                gained = _gain(config, experience, stimuli, source, history, store, checkpoint_seconds, interrupted)
            if config.pretraining.epochs:
                history.report(
                    Experienced(
                        epochs=config.pretraining.epochs,
                        paid_seconds=gained.paid_seconds,
                        cost_seconds=gained.cost_seconds,
                        waiting_seconds=gained.waiting_seconds,
                    )
                )
        network = _network(config, experience, task.num_outputs).to(device)
        history.report(_sample("regulation", train, task, config.regulation.augmentation, config.seed))
        with checkpoint.Writer() as writer:
            keeper = _Keeper(
                path=folder / CHECKPOINT,
                writer=writer,
                config=config,
                history=history,
                gained=gained,
                checkpoint_seconds=checkpoint_seconds,
                interrupted=interrupted,
                on_checkpoint=on_checkpoint,
            )
            relief = regulate(
                config,
                network,
                train,
                held_out,
                num_classes=task.num_outputs,
                start=start,
                relief=gained.relief,
                keeper=keeper,
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
        val_accuracy=result.accuracy,
        val_loss=result.loss,
        measured_balance=float(result.balance.mean()),
        test_accuracy=test_accuracy,
        num_parameters=sum(parameter.numel() for parameter in network.parameters()),
        pretraining_seconds=gained.paid_seconds,
        experience_seconds=gained.cost_seconds,
        regulation_seconds=sum(row.seconds for row in history.epochs if row.stage == "regulation"),
        waiting_seconds=gained.waiting_seconds,
        micro_batch_size=relief.micro_batch_size,
        recomputed=relief.recomputed,
    )


def check_images(config: TrialConfig, load_images: LoadImages) -> None:
    """Refuse a trial whose image sets cannot be used as it asks; prepares them where they are new.

    Raises:
        UserError: for a task without classes or validation images, or too few images.
    """
    config = config.applied()
    _load_task(config, load_images)
    if config.regulation.needs_emotional:
        stimuli, source = _load_stimuli(config, load_images)
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


@dataclass(kw_only=True)
class _Keeper:
    """Writes the checkpoint of regulation in the background, and with it what a resumed trial reports first."""

    path: Path
    writer: checkpoint.Writer
    config: TrialConfig
    history: _History
    gained: Gained
    checkpoint_seconds: float
    interrupted: Callable[[], bool]
    on_checkpoint: Callable[[], None]
    saved: float = field(default_factory=time.monotonic)

    def due(self) -> bool:
        return self.interrupted() or time.monotonic() - self.saved >= self.checkpoint_seconds

    def keep(self, state: State) -> None:
        last = state["epochs"] == self.config.regulation.epochs
        if not (last or self.due()):
            return
        rows = [asdict(row) for row in self.history.epochs]
        if "record" in state:  # an epoch is reported, and so in the history, once it is kept
            rows.append(state["record"])
        seconds = {"pretraining_seconds": self.gained.paid_seconds, "experience_seconds": self.gained.cost_seconds}
        self.writer.submit(self._write, {**state, **seconds, "history": rows})
        self.saved = time.monotonic()
        if self.interrupted() and not last:
            self.writer.flush()
            raise Interrupted(f"trial {self.config.identity} was asked to stop, and all it did is saved: run again, it goes on")

    def _write(self, state: State) -> None:
        checkpoint.save(self.path, state)
        self.on_checkpoint()


def _load_task(config: TrialConfig, load_images: LoadImages) -> tuple[ImageSet, tuple[Split, Split]]:
    """The images of stage 2, and the training and validation parts of them."""
    task = load_images(config.task, image_size=config.image_size)
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


def _load_stimuli(config: TrialConfig, load_images: LoadImages) -> tuple[ImageSet, ImageSetConfig]:
    """The images of stage 1, and which of them: for the neutral control the neutral ones, as many as the stimuli."""
    stimuli = load_images(config.stimuli, image_size=config.image_size)
    if config.control != "neutral":
        return stimuli, config.stimuli
    assert config.neutral is not None
    num_images = len(_parts(stimuli, config.stimuli)[0])
    neutral = load_images(config.neutral, image_size=config.image_size)
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


def _gain(
    config: TrialConfig,
    net: EmotionalNet,
    stimuli: ImageSet,
    source: ImageSetConfig,
    history: _History,
    store: ExperienceStore,
    checkpoint_seconds: float,
    interrupted: Callable[[], bool],
) -> Gained:
    """Give the emotional net its experience."""
    train, held_out = _parts(stimuli, source)
    batches = Batches(train, device=next(net.parameters()).device)
    history.report(_sample("pretraining", batches, stimuli, config.pretraining.augmentation, config.seed))
    return gain_experience(
        config,
        net,
        batches,
        Batches(held_out, device=batches.device) if len(held_out) else None,
        regression=stimuli.regression,
        source=source,
        fingerprint=stimuli.fingerprint,
        store=store,
        report=history.report,
        checkpoint_seconds=checkpoint_seconds,
        interrupted=interrupted,
    )


def _network(config: TrialConfig, experience: EmotionalNet | None, num_classes: int) -> Regulation:
    plain = None
    if config.regulation.needs_plain:
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
