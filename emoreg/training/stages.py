"""The stages of a trial: the images of each, checked against what the trial asks of them, and how they are trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from emoreg.config import ImageSetConfig, PretrainingConfig, RegulationConfig, TrialConfig
from emoreg.config.registry import METRICS
from emoreg.config.resolved import CUTS, ResolvedTrial
from emoreg.config.schedules import pretraining_schedule, regulation_schedule
from emoreg.data import ImageSet, LoadImages, parts
from emoreg.data.augmentation import denormalize
from emoreg.data.batches import Batch, Batches
from emoreg.data.duplicates import find_duplicates, without_copies
from emoreg.data.relabelled import relabel
from emoreg.data.splits import cut_validation, parts_as
from emoreg.errors import ConfigError, ImageSetError
from emoreg.results.records import Stage as StageName
from emoreg.seeding import generator
from emoreg.training.events import ImagesSample
from emoreg.training.learners import Evaluation
from emoreg.training.metrics import ValueMetric, measure, measure_values

_NUM_SAMPLE_IMAGES = 32
_NUM_EXAMPLES = 3
_NUM_AFFECT = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """What a learner is trained on, for how long, and how.

    Attributes:
        name: in records; it also names the random stream that dropout and stochastic depth draw from.
        trial: to which it belongs.
        image_set: whole.
        source: which images of the set are used.
        settings: batch size, optimizer and augmentation.
        epochs: in all, with those of a cool-down.
        schedule: from a step and the number of steps to the factor of the peak learning rate.
        batch_stream: name of the random stream that batches are drawn from.
        train: training images.
        validation: those held out, evaluated after every epoch; None if there are none.
        affect: of the pre-training of a trial with probes, a few of its stimuli with what they mean, whatever a control learns
            in their place, in two halves that share no group; None where they are too few.
    """

    name: StageName
    trial: ResolvedTrial
    image_set: ImageSet
    source: ImageSetConfig
    settings: PretrainingConfig | RegulationConfig
    epochs: int
    schedule: Callable[[int, int], float]
    batch_stream: str
    train: Batches
    validation: Batches | None
    affect: tuple[Batches, Batches] | None = None

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

    @property
    def num_steps(self) -> int:
        """Updates of the weights in all of its epochs."""
        return self.epochs * self.train.num_steps(self.settings.batch_size)

    @property
    def before_cooldown(self) -> Stage | None:
        """Pre-training up to its cool-down, where it has one: the same images and streams, at a rate that knows no end."""
        runs = self.trial.pretraining_runs
        return replace(self, **_length_of(runs[0])) if len(runs) > 1 else None

    def learning_rate_factor(self, step: int) -> float:
        """What the peak learning rates are multiplied by in a step."""
        return self.schedule(step, self.num_steps)

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
    """Stage 1: the stimuli, or what the control has in their place: the same images with other labels, or as many others.

    Raises:
        UserError: a set that has too few images, targets that the trial has no use for, or a set that cannot be read.
    """
    config, settings = trial.config, trial.config.pretraining
    excludes = trial.needs_pretraining and config.exclude_test_images
    load_unseen = partial(load_stimuli, config, load_images) if excludes else load_images
    image_set = load_unseen(config.stimuli, image_size=config.image_size)
    affect = _affect(config, image_set, device) if config.probes else None
    source = trial.images_of_pretraining
    assert source is not None  # the trial has an emotional encoder
    if trial.is_relabelled:
        relabelled = relabel(image_set, load_unseen(source, image_size=config.image_size))
        train, validation = parts_as(image_set, config.stimuli, relabelled.train)
        image_set, source = relabelled, replace(source, **{name: getattr(config.stimuli, name) for name in CUTS})
    else:
        if source != config.stimuli:
            num_images = len(parts(image_set, config.stimuli)[0])
            image_set = load_unseen(source, image_size=config.image_size)
            source = cut_to(num_images, image_set, source)
        train, validation = parts(image_set, source)
    if image_set.regression:
        _check_regression(config, image_set.name)
    if trial.images_of_pretraining == config.stimuli:
        _check_value_metrics(config, image_set, len(validation))
    batches = Batches(train, device=device)
    return Stage(
        name="pretraining",
        image_set=image_set,
        source=source,
        **_length_of(trial),
        batch_stream="pretraining batches",
        train=batches.with_permuted_targets(generator(config.seed, "shuffled labels")) if settings.shuffle_labels else batches,
        validation=Batches(validation, device=device) if len(validation) else None,
        affect=affect,
    )


def _affect(config: TrialConfig, stimuli: ImageSet, device: torch.device) -> tuple[Batches, Batches] | None:
    images, _ = parts(stimuli, config.stimuli)
    few, _ = cut_validation(images, 0.0, 0, min(_NUM_AFFECT, len(images)))
    try:
        one, other = cut_validation(few, 0.5, 0)
    except ImageSetError:  # too few groups
        return None
    return (Batches(one, device=device), Batches(other, device=device)) if len(other) else None


def _length_of(trial: ResolvedTrial) -> dict[str, Any]:
    """What a cool-down changes of stage 1."""
    settings = trial.config.pretraining
    schedule = partial(pretraining_schedule, config=settings)
    return {"trial": trial, "settings": settings, "epochs": settings.total_epochs, "schedule": schedule}


def regulation_stage(trial: ResolvedTrial, load_images: LoadImages, device: torch.device) -> Stage:
    """Stage 2: the task.

    Raises:
        UserError: a task without classes, or a set that cannot be read.
    """
    config, source = trial.config, trial.config.task
    image_set = load_images(source, image_size=config.image_size)
    if image_set.regression:
        raise ConfigError(
            f"Choose a task.target with classes: a task is classified, but the target {source.target!r} of {image_set.name!r} "
            "is made of real numbers"
        )
    train, validation = parts(image_set, source)
    return Stage(
        name="regulation",
        trial=trial,
        image_set=image_set,
        source=source,
        settings=config.regulation,
        epochs=config.regulation.epochs,
        schedule=partial(regulation_schedule, config=config.regulation),
        batch_stream="task batches",
        train=Batches(train, device=device),
        validation=Batches(validation, device=device) if len(validation) else None,
    )


def require_validation(task: Stage) -> None:
    """Refuse a task without validation images, on which a trial is measured that does not open the test split.

    Raises:
        ImageSetError: for a task that holds nothing out.
    """
    if task.validation is None:
        raise ImageSetError(
            f"Raise task.validation_fraction: a task needs validation images, but {task.source.validation_fraction:g} of the "
            f"{len(task.image_set.train)} images of {task.image_set.name!r} is none"
        )


def check_images(trial: ResolvedTrial, load_images: LoadImages, *, is_tested: bool = False) -> None:
    """Refuse a trial whose image sets cannot be used as it asks; new ones are prepared.

    ``is_tested`` says that it opens the test split, and so needs no validation images.

    Raises:
        UserError: as the stages do.
    """
    task = regulation_stage(trial, load_images, torch.device("cpu"))
    if not is_tested:
        require_validation(task)
    source = trial.images_of_pretraining
    if trial.needs_pretraining and source is not None:
        load_stimuli(trial.config, load_images, source, image_size=trial.config.image_size)  # which refuses test images
    if trial.config.regulation.needs_emotional:
        pretraining_stage(trial, load_images, torch.device("cpu"))


def load_stimuli(config: TrialConfig, load_images: LoadImages, source: ImageSetConfig, *, image_size: int) -> ImageSet:
    """The images of a source for the pre-training of a trial: none of its training images is in the task's test split.

    Raises:
        ImageSetError: where some are, as they are or mirrored, and the trial does not say to leave them out.
    """
    image_set, task = (load_images(one, image_size=image_size) for one in (source, config.task))
    found = find_duplicates(image_set.train, task.test, exact_only=True)
    if len(found.exact) == 0 or config.exclude_test_images:
        return without_copies(image_set, found)
    copies = dict(found.exact.tolist())
    shown = ", ".join(f"{ours} ({theirs})" for ours, theirs in list(copies.items())[:_NUM_EXAMPLES])
    more = ", …" if len(copies) > _NUM_EXAMPLES else ""
    raise ImageSetError(
        "Set exclude_test_images=True, which leaves these images out, or choose other ones: pre-training must see no test "
        f"image of the task, but {len(copies)} of the {len(image_set.train)} training images of {image_set.name!r} are, as "
        f"they are or mirrored, test images of {task.name!r}; by their places in the splits {shown}{more}"
    )


def cut_to(num_images: int, image_set: ImageSet, source: ImageSetConfig) -> ImageSetConfig:
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
