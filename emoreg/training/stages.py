"""The stages of a trial: the images of each, checked against what the trial asks of them, and how they are trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from emoreg.config import ImageSetConfig, PretrainingConfig, RegulationConfig, TrialConfig
from emoreg.config.registry import METRICS
from emoreg.config.resolved import ResolvedTrial
from emoreg.data import ImageSet, LoadImages, parts
from emoreg.data.augmentation import denormalize
from emoreg.data.batches import Batch, Batches
from emoreg.errors import ConfigError, ImageSetError
from emoreg.results.records import Stage as StageName
from emoreg.seeding import generator
from emoreg.training.events import ImagesSample
from emoreg.training.learners import Evaluation
from emoreg.training.metrics import ValueMetric, measure, measure_values
from emoreg.training.optim import pretraining_schedule, regulation_schedule

_NUM_SAMPLE_IMAGES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What a learner is trained on, for how long, and how.

    Attributes:
        name: in records; it also names the random stream that dropout and stochastic depth draw from.
        trial: to which it belongs.
        image_set: whole.
        source: which images of the set are used.
        settings: epochs, batch size, optimizer and augmentation.
        schedule: from a step and the number of steps to the factor of the peak learning rate.
        batch_stream: name of the random stream that batches are drawn from.
        train: training images.
        validation: those held out, evaluated after every epoch; None if there are none.
    """

    name: StageName
    trial: ResolvedTrial
    image_set: ImageSet
    source: ImageSetConfig
    settings: PretrainingConfig | RegulationConfig
    schedule: Callable[[int, int], float]
    batch_stream: str
    train: Batches
    validation: Batches | None

    def batches(self, rng: torch.Generator, *, first: int) -> Iterator[Batch]:
        """One epoch of training batches, from its step ``first`` on: see ``Batches.epoch``."""
        num_classes = None if self.image_set.regression else self.image_set.num_outputs
        settings = self.settings
        return self.train.epoch(
            settings.batch_size, settings.augmentation, num_classes, rng, first=first, sampling=settings.sampling
        )

    @property
    def class_weights(self) -> Tensor | None:
        """What the loss of a training image weighs, by class; None for all alike."""
        return self.train.class_weights(self.settings.class_weights, self.image_set.num_outputs)

    def learning_rate_factor(self, step: int) -> float:
        """What the peak learning rates are multiplied by in a step."""
        num_steps = self.settings.epochs * self.train.num_steps(self.settings.batch_size)
        return self.schedule(step, num_steps)

    def measure(self, evaluation: Evaluation) -> dict[str, float]:
        """Metrics on the validation images, by column: the trial's of a task, every registered one of real-valued stimuli."""
        if self.image_set.regression:
            return measure_values(self.image_set.class_names, evaluation)
        return measure(self.trial.config.metrics, evaluation, split="val") if self.name == "regulation" else {}

    def sample(self) -> ImagesSample:
        """A few augmented training images with their labels, drawn from a stream of their own."""
        rng = generator(self.trial.config.seed, "sample", self.name)
        images, targets = next(self.train.epoch(_NUM_SAMPLE_IMAGES, self.settings.augmentation, None, rng))
        if self.image_set.regression:
            captions = tuple(" ".join(f"{value:+.1f}" for value in row) for row in targets.tolist())
        else:
            captions = tuple(self.image_set.class_names[target] for target in targets.tolist())
        return ImagesSample(stage=self.name, images=denormalize(images).cpu(), captions=captions)


def pretraining_stage(trial: ResolvedTrial, load_images: LoadImages, device: torch.device) -> Stage:
    """Stage 1: the stimuli, or what the control has in their place, cut to as many training images.

    Raises:
        UserError: a set that has too few images, targets that the trial has no use for, or a set that cannot be read.
    """
    config, settings = trial.config, trial.config.pretraining
    image_set = load_images(config.stimuli, image_size=config.image_size)
    source = trial.images_of_pretraining
    assert source is not None  # the trial has an emotional encoder
    if source != config.stimuli:
        num_images = len(parts(image_set, config.stimuli)[0])
        image_set = load_images(source, image_size=config.image_size)
        source = _cut_to(num_images, image_set, source)
    if image_set.regression:
        _check_regression(config, image_set.name)
    train, validation = parts(image_set, source)
    if source == config.stimuli:
        _check_value_metrics(config, image_set, len(validation))
    batches = Batches(train, device=device)
    return Stage(
        name="pretraining",
        trial=trial,
        image_set=image_set,
        source=source,
        settings=settings,
        schedule=partial(pretraining_schedule, config=settings),
        batch_stream="pretraining batches",
        train=batches.with_permuted_targets(generator(config.seed, "shuffled labels")) if settings.shuffle_labels else batches,
        validation=Batches(validation, device=device) if len(validation) else None,
    )


def regulation_stage(trial: ResolvedTrial, load_images: LoadImages, device: torch.device) -> Stage:
    """Stage 2: the task.

    Raises:
        UserError: a task without classes or without validation images, or a set that cannot be read.
    """
    config, source = trial.config, trial.config.task
    image_set = load_images(source, image_size=config.image_size)
    if image_set.regression:
        raise ConfigError(
            f"Choose a task.target with classes: a task is classified, but the target {source.target!r} of {image_set.name!r} "
            "is made of real numbers"
        )
    train, validation = parts(image_set, source)
    if len(validation) == 0:
        raise ImageSetError(
            f"Raise task.validation_fraction: a task needs validation images, but {source.validation_fraction:g} of the "
            f"{len(image_set.train)} images of {image_set.name!r} is none"
        )
    return Stage(
        name="regulation",
        trial=trial,
        image_set=image_set,
        source=source,
        settings=config.regulation,
        schedule=partial(regulation_schedule, config=config.regulation),
        batch_stream="task batches",
        train=Batches(train, device=device),
        validation=Batches(validation, device=device),
    )


def check_images(trial: ResolvedTrial, load_images: LoadImages) -> None:
    """Refuse a trial whose image sets cannot be used as it asks; new ones are prepared.

    Raises:
        UserError: as the stages do.
    """
    regulation_stage(trial, load_images, torch.device("cpu"))
    if trial.config.regulation.needs_emotional:
        pretraining_stage(trial, load_images, torch.device("cpu"))


def _cut_to(num_images: int, image_set: ImageSet, source: ImageSetConfig) -> ImageSetConfig:
    """The source with as many training images as the stimuli have."""
    available = len(parts(image_set, replace(source, num_images=None))[0])
    if available < num_images:
        raise ImageSetError(
            f"Choose a larger set than {image_set.name!r}, or set stimuli.num_images: in place of the stimuli it needs as many "
            f"training images, {num_images}, but it has {available}"
        )
    return replace(source, num_images=num_images)


def _check_value_metrics(config: TrialConfig, image_set: ImageSet, num_validation: int) -> None:
    """Refuse metrics of real-valued targets that the stimuli do not have, or without images to measure them on."""
    for name in config.metrics:
        entry = METRICS[name]
        if not isinstance(entry, ValueMetric):
            continue
        if not image_set.regression or entry.target not in image_set.class_names:
            raise ConfigError(
                f"Take {name!r} out of metrics, or choose stimuli whose targets are real numbers: it needs the target "
                f"{entry.target!r}, but those of {image_set.name!r} are {', '.join(image_set.class_names)}"
            )
        if not num_validation and config.pretraining.epochs:
            raise ConfigError(
                f"Raise stimuli.validation_fraction to 0.1, say: the metric {name!r} needs validation images of the stimuli, "
                f"but {config.stimuli.validation_fraction:g} of {image_set.name!r} is none"
            )


def _check_regression(config: TrialConfig, name: str) -> None:
    """Refuse what has no meaning if the stimuli's targets are real numbers."""
    augmentation = config.pretraining.augmentation
    if config.pretraining.epochs and (augmentation.mixup or augmentation.cutmix):
        raise ConfigError(
            f"Set pretraining.augmentation.mixup and cutmix to 0: they mix classes, but the targets of {name!r} are real "
            "numbers"
        )
    if config.pretraining.epochs and (config.pretraining.sampling, config.pretraining.class_weights) != ("natural", "none"):
        raise ConfigError(
            "Set pretraining.sampling to natural and class_weights to none: they go by class, but the targets of "
            f"{name!r} are real numbers"
        )
    if config.regulation.form == "conditioned":
        raise ConfigError(
            "Choose stimuli with classes, or another form: form='conditioned' takes the softmax of emotion classes, but the "
            f"targets of {name!r} are real numbers"
        )
