"""What a study is: frozen, typed, validated once. Every default of emoreg lives here and only here.

A *path* names a value inside a ``TrialConfig`` with dots: ``"regulation.balance"``. Search spaces and command lines use them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from tyro.conf import Suppress

from emoreg.errors import ConfigError

Control = Literal["regulated", "plain", "compute_matched", "emotional", "untrained", "shuffled", "neutral"]
"""What a trial is compared with. ``regulated`` is regulation itself; see ``TrialConfig.applied``."""

CONTROLS: tuple[Control, ...] = ("plain", "compute_matched", "emotional", "untrained", "shuffled", "neutral")

STORAGE = "runs"
"""Where studies lie unless they say otherwise."""

CONFIRM = ".confirm"
"""Ends the name of a confirmation."""

FIRST_SEED = 1000
"""Where the seeds of confirmations begin: far from the small numbers that searches use."""

Value = str | int | float | bool
"""A value that a search may choose."""


SECRETS = (re.compile(r"://[^:/@\s]*:(\S+)@"), re.compile(r"[?&]\w*(?:password|secret|token)\w*=([^&\s'\"]+)"))
"""Find the passwords and keys in URLs: their first group."""


def require(condition: bool, rule: str, value: object, cure: str) -> None:
    """Raise a ``ConfigError`` that names the rule, the value given and the way out, unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{rule}, but it is {value!r}: {cure}")


def without_secrets(text: str) -> str:
    """The text with ``***`` in place of the passwords and keys of its URLs."""
    for pattern in SECRETS:
        text = pattern.sub(lambda match: match[0].replace(match[1], "***"), text)
    return text


def _positive(name: str, value: float | None) -> None:
    if value is not None:
        require(math.isfinite(value) and value > 0, f"{name} must be above 0", value, "give a positive number")


def _not_negative(name: str, value: float | None) -> None:
    if value is not None:
        require(math.isfinite(value) and value >= 0, f"{name} must be 0 or more", value, "give 0 or a positive number")


def _within(name: str, value: float, low: float, high: float, *, below_high: bool = False) -> None:
    inside = low <= value < high if below_high else low <= value <= high
    interval = f"[{low:g}, {high:g}{')' if below_high else ']'}"
    require(inside, f"{name} must lie in {interval}", value, f"choose a number in {interval}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSetConfig:
    """Which images, and which of their labels."""

    name: str = "openmoji"
    """Reader: openmoji, openmoji-objects, fer2013, oasis, emoji, digits, cifar10, cifar100, parquet, folder."""
    path: str | None = None
    """File, folder or URI of the images, for the readers that need one (`emoreg data list` says which, and the layout)."""
    target: str | None = None
    """What is learned: a label column or grouping of the reader (oasis: valence, arousal, regression). None: its default."""
    num_images: int | None = None
    """Keep a stratified subset of this many training images. None: all of them."""
    validation_fraction: float = 0.1
    """Share of the training split, stratified by class, that is held out for validation. 0 for none."""
    split_seed: int = 0
    """Seed of the subset and of the validation split: fixed across the trial's seeds, so that trials are comparable."""

    def __post_init__(self) -> None:
        require(bool(self.name), "an image set needs a name", self.name, "see `emoreg data list`")
        _positive("num_images", self.num_images)
        _within("validation_fraction", self.validation_fraction, 0.0, 1.0, below_high=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """Random changes of training images, drawn for each image, made in batch on the device."""

    crop_padding: int = 4
    """Pad by this many pixels on each side (reflected), then crop at random. 0 for none."""
    flip: bool = False
    """Mirror left and right with probability 0.5. Wrong for digits and letters."""
    color_jitter: float = 0.0
    """Strength of brightness, contrast and saturation changes: factors from U(1 - s, 1 + s)."""
    random_erasing: float = 0.0
    """Probability that a rectangle of an image is replaced by a random colour (Zhong et al. 2020)."""
    mixup: float = 0.0
    """Alpha of MixUp's Beta distribution (Zhang et al. 2018). 0 for none."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta distribution (Yun et al. 2019). 0 for none; with MixUp, one of the two is drawn per batch."""

    def __post_init__(self) -> None:
        _not_negative("crop_padding", self.crop_padding)
        _within("color_jitter", self.color_jitter, 0.0, 1.0)
        _within("random_erasing", self.random_erasing, 0.0, 1.0)
        _not_negative("mixup", self.mixup)
        _not_negative("cutmix", self.cutmix)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW or SGD with Nesterov momentum; norms, biases and tokens are never decayed."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019), or SGD with Nesterov momentum."""
    learning_rate: float = 1e-3
    """Peak learning rate, reached after warm-up."""
    weight_decay: float = 0.05
    """Decay of the weights that are matrices or kernels."""
    momentum: float = 0.9
    """SGD's momentum; AdamW's first beta."""
    gradient_clip: float | None = 1.0
    """Largest norm of the whole gradient. None: no clipping."""

    def __post_init__(self) -> None:
        _positive("learning_rate", self.learning_rate)
        _not_negative("weight_decay", self.weight_decay)
        _within("momentum", self.momentum, 0.0, 1.0, below_high=True)
        _positive("gradient_clip", self.gradient_clip)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingConfig:
    """Stage 1: the emotional encoder learns the stimuli. Warm-up, then a constant learning rate, or a half cosine.

    Under the constant one the rate at step t never depends on ``epochs``, so a longer pre-training continues a shorter one.
    """

    epochs: int = 10
    """Passes over the stimuli. 0 leaves the emotional encoder as it was initialised."""
    batch_size: int = 128
    """Stimuli in a step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Stage 1's optimizer."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant, or a half cosine to 0, which knows the length: lengths then share no pre-training."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes (Szegedy et al. 2016)."""
    shuffle_labels: bool = False
    """Permute the labels of the stimuli once (the `shuffled` control)."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random changes of the stimuli."""

    def __post_init__(self) -> None:
        _not_negative("pretraining.epochs", self.epochs)
        _positive("pretraining.batch_size", self.batch_size)
        _not_negative("pretraining.warmup_steps", self.warmup_steps)
        _within("pretraining.label_smoothing", self.label_smoothing, 0.0, 1.0, below_high=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegulationConfig:
    """Stage 2: the plain and the emotionally-influenced response are balanced while the task is learned."""

    form: Literal["output", "conditioned", "loss"] = "output"
    """Where the two meet: mixed responses, a response conditioned on the emotion, or a mixed loss (method, section 1)."""
    kind: Literal["fixed", "learnable", "random", "random_learnable", "dynamic"] = "fixed"
    """How the balance is set: as given, learned, drawn per batch, drawn once then learned, or computed for each image."""
    balance: float = 0.5
    """Weight b of the emotional side, in [0, 1]: 0 is the plain backbone, 1 the emotional encoder. Learned kinds start here."""
    mix_space: Literal["logits", "probabilities"] = "logits"
    """Mix the logits, or the two softmaxes."""
    freeze_emotional: bool = False
    """Keep the emotional encoder as pre-training left it. The conditioned form always does."""
    epochs: int = 10
    """Passes over the task's training split."""
    batch_size: int = 128
    """Task images in a step."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Stage 2's optimizer, of both encoders, their heads and the balance."""
    lr_schedule: Literal["cosine", "warmup_stable_decay"] = "cosine"
    """After warm-up: a half cosine to 0, or constant and then linear to 0 over the last `decay_fraction`."""
    warmup_fraction: float = 0.05
    """Share of all steps that warms up linearly."""
    decay_fraction: float = 0.2
    """Share of all steps that decays, for warmup_stable_decay."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes (Szegedy et al. 2016)."""
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    """Random changes of the task's training images."""

    def __post_init__(self) -> None:
        _within("regulation.balance", self.balance, 0.0, 1.0)
        if self.kind in ("learnable", "dynamic"):
            require(
                0.0 < self.balance < 1.0,
                f"regulation.balance must lie strictly between 0 and 1 for kind={self.kind!r}, which starts from its logit",
                self.balance,
                "use kind='fixed' for the end points, or start from 0.5",
            )
        if self.form == "loss":
            require(
                self.mix_space == "logits",
                "regulation.mix_space has no meaning for form='loss', which mixes losses",
                self.mix_space,
                "leave it at 'logits'",
            )
        _positive("regulation.epochs", self.epochs)
        _positive("regulation.batch_size", self.batch_size)
        _within("regulation.warmup_fraction", self.warmup_fraction, 0.0, 1.0, below_high=True)
        _within("regulation.decay_fraction", self.decay_fraction, 0.0, 1.0)
        _within("regulation.label_smoothing", self.label_smoothing, 0.0, 1.0, below_high=True)

    @property
    def needs_plain(self) -> bool:
        """Whether the plain encoder has a part in the response: not at b = 1, except to condition the emotional one."""
        return self.form == "conditioned" or not (self.kind == "fixed" and self.balance == 1.0)

    @property
    def needs_emotional(self) -> bool:
        """Whether the emotional encoder has a part in the response: not at b = 0."""
        return not (self.kind == "fixed" and self.balance == 0.0)


def _task_default() -> ImageSetConfig:
    return ImageSetConfig(name="digits")


def _stimuli_default() -> ImageSetConfig:
    return ImageSetConfig(name="openmoji", validation_fraction=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """Everything that decides a trial's numbers. Its hash, seed included, is the trial's identity."""

    backbone: str = "resnet18"
    """Any timm model, fitted to small images; also vit_tiny and vit_small. Both encoders have it."""
    drop_path: float = 0.0
    """Stochastic depth (Huang et al. 2016) of both encoders, for backbones that have it."""
    weights: str | None = None
    """Start both encoders from a file of weights, or from timm's hub with 'hub'. None: from random."""
    image_size: int = 32
    """Side in pixels that stimuli and task images are brought to; both encoders see this size."""
    stimuli: ImageSetConfig = field(default_factory=_stimuli_default)
    """The affective images of stage 1."""
    neutral: ImageSetConfig | None = None
    """The images without affect that the `neutral` control pre-trains on instead."""
    task: ImageSetConfig = field(default_factory=_task_default)
    """The images of stage 2."""
    pretraining: PretrainingConfig = field(default_factory=PretrainingConfig)
    """Stage 1: the emotional encoder learns the stimuli."""
    regulation: RegulationConfig = field(default_factory=RegulationConfig)
    """Stage 2: the plain and the emotionally-influenced response are balanced while the task is learned."""
    control: Control = "regulated"
    """`regulated` is regulation as configured; the others are what it must beat."""
    seed: int = 0
    """Decides initial weights, order of images, augmentation and random balances."""
    deterministic: bool = False
    """Same numbers to the bit on CPU, run after run; turns mixed precision off."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """`auto`: bf16 autocast where the device has it, unless deterministic."""
    metrics: tuple[str, ...] = ()
    """Registered metrics that are measured on validation after every epoch, besides accuracy and loss."""
    probes: tuple[str, ...] = ()
    """Registered probes that look at the network after chosen epochs, and change no number of the trial."""
    probe_every: int = 1
    """Probes run after every so many epochs."""

    def __post_init__(self) -> None:
        require(bool(self.backbone), "a trial needs a backbone", self.backbone, "name a timm model")
        _within("drop_path", self.drop_path, 0.0, 1.0, below_high=True)
        require(
            8 <= self.image_size <= 512,
            "image_size must lie in [8, 512]",
            self.image_size,
            "32 suits CIFAR, 64 is the largest size without ResNet's max-pool",
        )
        require(
            self.task.validation_fraction > 0,
            "task.validation_fraction must be above 0: the metric is validation accuracy",
            self.task.validation_fraction,
            "hold out 0.1, say",
        )
        require(self.seed >= 0, "seed must be 0 or more", self.seed, "give a natural number")
        require(
            self.control != "neutral" or self.neutral is not None,
            "the neutral control needs the image set `neutral`",
            self.neutral,
            "name one, e.g. neutral=ImageSetConfig(name='openmoji-objects')",
        )
        require(
            not (self.deterministic and self.precision == "bf16"),
            "deterministic turns mixed precision off",
            self.precision,
            "use precision='float32' or 'auto'",
        )

    def applied(self) -> TrialConfig:
        """The configuration that is run: this one with its control's meaning written into the fields.

        plain: b = 0. compute_matched: the same, to which a confirmation gives pre-training's images too. emotional: b = 1.
        untrained: no pre-training. shuffled: pre-training on permuted labels. neutral: pre-training on the neutral set, cut
        to as many images as the stimuli have (method, section 1, controls).
        """
        replace = dataclasses.replace
        match self.control:
            case "plain" | "compute_matched" | "emotional":
                balance, epochs = (1.0, self.pretraining.epochs) if self.control == "emotional" else (0.0, 0)
                regulation = replace(self.regulation, form="output", kind="fixed", balance=balance, freeze_emotional=False)
                pretraining = replace(self.pretraining, epochs=epochs)
                return replace(self, regulation=regulation, pretraining=pretraining)
            case "untrained":
                return replace(self, pretraining=replace(self.pretraining, epochs=0))
            case "shuffled":
                return replace(self, pretraining=replace(self.pretraining, shuffle_labels=True))
            case _:
                return self

    @property
    def identity(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the applied configuration, seed included."""
        values = dict(leaves(self.applied()))
        for path, value in values.items():
            if isinstance(value, float) and value.is_integer():  # 1 and 1.0 are one setting
                values[path] = int(value)
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class When:
    """A branch of the search space: the parameter exists only where ``path`` holds one of ``values``."""

    path: str
    values: tuple[Value, ...]

    def __post_init__(self) -> None:
        require(len(self.values) > 0, f"When({self.path!r}) needs values", self.values, "name at least one")


@dataclass(frozen=True, slots=True)
class Float:
    """A real number in [low, high], uniform or uniform in the logarithm, or on a grid of ``step``."""

    low: float
    high: float
    log: bool = field(default=False, kw_only=True)
    step: float | None = field(default=None, kw_only=True)
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, number in (("low", self.low), ("high", self.high), ("step", self.step)):
            if isinstance(number, int):  # what is written down tells a Float from an Int
                object.__setattr__(self, name, float(number))
        _check_range(self.low, self.high, log=self.log, step=self.step)

    def bounds(self) -> tuple[Value, ...]:
        """The ends of the range."""
        return (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number in [low, high], uniform or uniform in the logarithm, or on a grid of ``step``."""

    low: int
    high: int
    log: bool = field(default=False, kw_only=True)
    step: int = field(default=1, kw_only=True)
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_range(self.low, self.high, log=self.log, step=None if self.step == 1 else self.step)

    def bounds(self) -> tuple[Value, ...]:
        """The ends of the range."""
        return (self.low, self.high)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values."""

    values: tuple[Value, ...]
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        require(len(self.values) > 0, "a Choice needs values", self.values, "name at least one")
        require(len(set(self.values)) == len(self.values), "a Choice's values must differ", self.values, "drop doubles")

    def bounds(self) -> tuple[Value, ...]:
        """Every value: each must be valid."""
        return self.values


Distribution = Float | Int | Choice
Config = TypeVar("Config")


def _check_range(low: float, high: float, *, log: bool, step: float | None) -> None:
    require(low <= high, "a range needs low <= high", (low, high), "swap them")
    require(not log or low > 0, "a log range must begin above 0", low, "raise low, or use log=False")
    require(not (log and step), "log and step exclude each other", step, "choose one")
    _positive("step", step)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """Which Optuna sampler proposes the next trial."""

    name: Literal["tpe", "gp", "cmaes", "random", "grid", "qmc", "nsga2"] = "tpe"
    """Model-based (tpe, gp, cmaes), evolutionary (nsga2), space-filling (random, qmc), or every combination (grid)."""
    seed: int = 0
    """Seed of the proposals; the trials' own is trial.seed."""
    num_startup_trials: int = 10
    """Random trials before a model-based sampler (tpe, gp, cmaes) takes over."""

    def __post_init__(self) -> None:
        _positive("sampler.num_startup_trials", self.num_startup_trials)


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """Which Tune scheduler stops trials early. It compares regulation epochs with regulation epochs, never pre-training."""

    name: Literal["none", "asha", "median"] = "none"
    """Stop none, the worse at each of ASHA's rungs, or those below the median of the others' running means."""
    grace_epochs: int = 1
    """Regulation epochs that every trial gets."""
    reduction_factor: int = 3
    """ASHA keeps the best 1/reduction_factor at each rung (Li et al. 2020)."""

    def __post_init__(self) -> None:
        _positive("scheduler.grace_epochs", self.grace_epochs)
        require(self.reduction_factor >= 2, "scheduler.reduction_factor must be 2 or more", self.reduction_factor, "try 3")


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What a search makes large or small: a column of the trial records."""

    metric: Literal["val_accuracy", "val_loss", "device_seconds"] = "val_accuracy"
    """Validation accuracy or loss of regulation's last epoch, or seconds of the device that the trial cost."""
    mode: Literal["max", "min"] = "max"
    """Whether a large or a small value is better."""

    def __post_init__(self) -> None:
        require(
            self.metric == "val_accuracy" or self.mode == "min",
            f"the objective {self.metric} is better where it is small",
            self.mode,
            "set mode='min'",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResources:
    """What one trial takes of a machine. In ``StudyConfig.resources_by_backbone`` None means: as the study says."""

    cpus: float | None = None
    """CPU cores."""
    gpus: float | None = None
    """GPUs, fractions allowed."""
    memory_gib: float | None = None
    """Memory that Ray sets aside, in GiB."""
    accelerator_type: str | None = None
    """Kind of GPU, as Ray names it."""

    def __post_init__(self) -> None:
        _positive("cpus", self.cpus)
        _check_gpus("gpus", self.gpus)
        _positive("memory_gib", self.memory_gib)
        _check_accelerator(self.accelerator_type, self.gpus)


def _check_gpus(name: str, gpus: float | None) -> None:
    _not_negative(name, gpus)
    require(gpus is None or gpus <= 1 or gpus == int(gpus), f"{name} above 1 must be whole", gpus, "0.5, 1 or 2, say")


def _check_accelerator(kind: str | None, gpus: float | None) -> None:
    require(
        kind is None or gpus != 0,
        "a trial without a GPU needs no accelerator_type",
        kind,
        "drop it, or ask for a GPU",
    )
    require(
        kind is None or re.fullmatch(r"[\w.+-]+", kind) is not None,
        "an accelerator_type must be one of Ray's names",
        kind,
        "H100, A100 or T4, say: `ray status -v` lists those of a cluster",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """What one trial takes of a machine, and how many run at once."""

    cpus_per_trial: float = 1.0
    """CPU cores a trial, which are also its threads on a CPU."""
    gpus_per_trial: float | None = None
    """GPUs a trial, fractions allowed. None: one where Ray has or may start GPUs, none elsewhere. 0: CPU."""
    memory_gib_per_trial: float | None = None
    """Memory that Ray sets aside for a trial, in GiB. None: none, so CPUs and GPUs alone say how many fit on a machine."""
    accelerator_type: str | None = None
    """Kind of GPU that trials run on, as Ray names it (H100, A100, T4). None: any."""
    max_concurrent: int | None = None
    """Most trials at once. None: as many as fit."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints of a trial: the most that a killed one does again."""
    max_retries: int = 2
    """How often a trial broken by the machine goes on from its last checkpoint before it counts as failed."""
    retry_seconds: float = 5.0
    """Pause before the first retry of a trial; each further one doubles it."""
    max_failures: int = 3
    """Trials that a fault in code, not the machine, may break before the study stops."""
    grace_seconds: float = 25.0
    """What trials have to save their state after SIGTERM, as Slurm, Kubernetes and spot instances send it."""

    def __post_init__(self) -> None:
        _positive("resources.cpus_per_trial", self.cpus_per_trial)
        _check_gpus("resources.gpus_per_trial", self.gpus_per_trial)
        _positive("resources.memory_gib_per_trial", self.memory_gib_per_trial)
        _check_accelerator(self.accelerator_type, self.gpus_per_trial)
        _positive("resources.max_concurrent", self.max_concurrent)
        _not_negative("resources.checkpoint_seconds", self.checkpoint_seconds)
        _not_negative("resources.max_retries", self.max_retries)
        _not_negative("resources.retry_seconds", self.retry_seconds)
        _positive("resources.max_failures", self.max_failures)
        _positive("resources.grace_seconds", self.grace_seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperienceConfig:
    """Where pre-trained encoders are kept, so that no trial pays for one twice."""

    uri: str | None = None
    """Folder or URI (file://, s3://, gs://) of the store. None: `experience` in the study's storage."""
    budget_gib: float | None = 50.0
    """Most disk that the store may take: the least recently used goes first, never what a running study needs. None: no end."""
    share: bool = True
    """Whether trials share pre-training. False: each pays for its own, which must give the same numbers."""

    def __post_init__(self) -> None:
        _positive("experience.budget_gib", self.budget_gib)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """A study: a trial, what is searched around it, and the controls beside it."""

    name: str = "study"
    """Folder of the study inside the storage: letters, digits, '.', '_' and '-'."""
    storage: str = STORAGE
    """Folder or URI (file://, s3://, gs://) that holds studies, experience and prepared image sets."""
    trial: TrialConfig = field(default_factory=TrialConfig)
    """Every setting of a trial that the search does not choose."""
    search_space: Suppress[Mapping[str, Distribution]] = field(default_factory=dict)
    """Distributions by path into the trial."""
    num_trials: int = 20
    """Trials that the sampler proposes; the controls come on top. 0: the controls alone."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """What proposes the trials."""
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    """What stops trials early."""
    objectives: tuple[Objective, ...] = (Objective(),)
    """One, or several for a Pareto front."""
    controls: tuple[Control, ...] = ("regulated", "plain", "emotional", "untrained", "shuffled")
    """Run for every backbone and control seed, outside the sampler's history; `regulated` is the trial as configured."""
    control_seeds: tuple[int, ...] = (0,)
    """Seeds of the controls: several give error bars."""
    confirmed: Suppress[tuple[TrialConfig, ...]] = ()
    """Trials that open the test split: those of a confirmation, which `emoreg confirm` makes of a study."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """What one trial takes of a machine."""
    resources_by_backbone: Suppress[Mapping[str, TrialResources]] = field(default_factory=dict)
    """Trials of these backbones ask for something else: set in a study file."""
    experience: ExperienceConfig = field(default_factory=ExperienceConfig)
    """Where pre-trained encoders are kept."""
    warm_start_from: tuple[str, ...] = ()
    """Studies whose recorded trials the sampler learns from first: names in the same storage, or folders."""
    optuna_storage: str | None = None
    """Where Optuna's history lives: None for a journal file in the study's folder, or an RDB URL such as sqlite:///x.db."""

    def __post_init__(self) -> None:
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name) is not None,
            "a study's name must be 1 to 64 letters, digits, '.', '_' or '-' and begin with a letter or digit",
            self.name,
            "rename it",
        )
        _not_negative("num_trials", self.num_trials)
        require(
            len(self.search_space) > 0,
            "the search space must not be empty",
            dict(self.search_space),
            "give at least one path, e.g. {'regulation.balance': Float(0.0, 1.0)}; `emoreg trial` runs one trial",
        )
        for path, distribution in self.search_space.items():
            self._check_parameter(path, distribution)
        require(len(self.objectives) > 0, "a study needs an objective", self.objectives, "add Objective()")
        metrics = [objective.metric for objective in self.objectives]
        require(len(set(metrics)) == len(metrics), "objectives must differ", metrics, "drop doubles")
        if len(self.objectives) > 1:
            require(
                self.scheduler.name == "none",
                "a scheduler compares one metric, so it cannot serve several objectives",
                self.scheduler.name,
                "set scheduler.name='none'",
            )
            require(
                self.sampler.name != "cmaes",
                "CMA-ES optimises one objective",
                metrics,
                "use tpe, nsga2, gp, random or qmc",
            )
        require(
            self.scheduler.name == "none" or metrics[0] != "device_seconds",
            "a scheduler needs a metric that each epoch reports",
            metrics[0],
            "use val_accuracy or val_loss, or scheduler.name='none'",
        )
        require(
            self.scheduler.name == "none" or "regulation.epochs" not in self.search_space,
            "a scheduler compares trials of one length, so regulation.epochs cannot be searched beside it",
            self.scheduler.name,
            "set scheduler.name='none' or fix regulation.epochs",
        )
        for reserved in ("control", "seed"):
            require(
                reserved not in self.search_space,
                f"{reserved} is not searched: controls run beside the search, on control_seeds",
                self.search_space.get(reserved),
                "take it out of the search space",
            )
        require(
            "compute_matched" not in self.controls,
            "the compute_matched control is a confirmation's, which knows how many images its plain backbone is to be given",
            self.controls,
            "take it out: `emoreg confirm` adds it",
        )
        require(
            "neutral" not in self.controls or self.trial.neutral is not None,
            "the neutral control needs the image set trial.neutral",
            self.trial.neutral,
            "name one, e.g. ImageSetConfig(name='openmoji-objects')",
        )
        require(
            len(set(self.control_seeds)) == len(self.control_seeds),
            "control_seeds must differ",
            self.control_seeds,
            "drop doubles",
        )
        for backbone in self.resources_by_backbone:
            require(
                "backbone" not in self.search_space or backbone in self.backbones(),  # else the command line pinned another
                "resources_by_backbone must name backbones of the study",
                backbone,
                f"name one of {', '.join(self.backbones())}, or drop it",
            )

    def _check_parameter(self, path: str, distribution: Distribution) -> None:
        if distribution.when is not None:
            seen = list(self.search_space)[: list(self.search_space).index(path)]
            read_path(self.trial, distribution.when.path)
            require(
                distribution.when.path in seen,
                f"the condition of {path} must look at a path that stands before it in the search space",
                distribution.when.path,
                "move it up, or drop the condition",
            )
        for value in distribution.bounds():
            replace_paths(self.trial, {path: value})

    def control_trials(self) -> list[TrialConfig]:
        """The controls: each for every seed and backbone, seeds outermost, so that one seed is whole before the next."""
        return [
            dataclasses.replace(self.trial, backbone=backbone, control=control, seed=seed)
            for seed in self.control_seeds
            for backbone in self.backbones()
            for control in self.controls
        ]

    def without_password(self) -> StudyConfig:
        """The study as it may be written down and shown: passwords in its URLs and URIs are hidden."""
        url, uri = self.optuna_storage, self.experience.uri
        return dataclasses.replace(
            self,
            storage=without_secrets(self.storage),
            optuna_storage=None if url is None else without_secrets(url),
            experience=dataclasses.replace(self.experience, uri=None if uri is None else without_secrets(uri)),
        )

    def trial_resources(self, backbone: str) -> TrialResources:
        """What a trial of this backbone asks for; ``gpus`` None means one where there are GPUs."""
        own, every = self.resources_by_backbone.get(backbone, TrialResources()), self.resources
        gpus = every.gpus_per_trial if own.gpus is None else own.gpus
        return TrialResources(
            cpus=every.cpus_per_trial if own.cpus is None else own.cpus,
            gpus=gpus,
            memory_gib=every.memory_gib_per_trial if own.memory_gib is None else own.memory_gib,
            accelerator_type=None if gpus == 0 else own.accelerator_type or every.accelerator_type,
        )

    def backbones(self) -> tuple[str, ...]:
        """The backbones that the study compares: those searched, or the one that the trial has."""
        searched = self.search_space.get("backbone")
        return tuple(map(str, searched.values)) if isinstance(searched, Choice) else (self.trial.backbone,)


def from_json(kind: type[Config], values: Mapping[str, Any]) -> Config:
    """A configuration from what JSON made of its ``dataclasses.asdict``. Settings that came later have their defaults.

    Raises:
        ConfigError: for settings that there are none of, or values that break a rule.
    """
    import typing

    hints = typing.get_type_hints(kind)
    unknown = values.keys() - hints.keys()
    require(
        not unknown,
        f"{kind.__name__} must have settings that this emoreg knows",
        ", ".join(sorted(unknown)),
        "read it with the emoreg that wrote it",
    )
    return kind(**{name: _from_json(hints[name], value) for name, value in values.items()})


def _from_json(hint: Any, value: Any) -> Any:
    import typing

    options, outer = get_args(hint), typing.get_origin(hint)
    if value is None:
        return None
    if hint == Distribution:
        return _distribution(value)
    if outer is tuple:
        return tuple(_from_json(options[0], item) for item in value)
    if outer is Mapping:
        return {key: _from_json(options[1], item) for key, item in value.items()}
    inner = next((option for option in (hint, *options) if isinstance(option, type) and dataclasses.is_dataclass(option)), None)
    return value if inner is None else from_json(inner, value)


def _distribution(values: Mapping[str, Any]) -> Distribution:
    """A distribution, whose fields tell which one it is."""
    if "values" in values:
        return from_json(Choice, values)
    if all(isinstance(values[name], int) for name in ("low", "high", "step")):
        return from_json(Int, values)
    return from_json(Float, values)


def leaves(config: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every path into a configuration with its value, in the order of the fields."""
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, item.name)
        path = f"{prefix}{item.name}"
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{path}.")
        else:
            yield path, value


def read_path(config: TrialConfig, path: str) -> Any:
    """The value at ``path``.

    Raises:
        ConfigError: for a path that is not there, with the nearest ones that are.
    """
    known = dict(leaves(config))
    if path not in known:
        import difflib

        near = difflib.get_close_matches(path, known, n=3, cutoff=0.4)
        raise ConfigError(f"a path must lead to a setting of the trial, but {path!r} does not: did you mean {near}?")
    return known[path]


def replace_paths(config: TrialConfig, values: Mapping[str, Value]) -> TrialConfig:
    """``config`` with the values at the paths replaced and validated, all at once.

    Raises:
        ConfigError: for an unknown path, a value of the wrong type, or one that breaks a rule.
    """
    for path, value in values.items():
        read_path(config, path)
        _check_type(config, path, value)
    changed: TrialConfig = _replace(config, values)
    return changed


def _replace(config: Any, values: Mapping[str, Value]) -> Any:
    own = {path: value for path, value in values.items() if "." not in path}
    nested: dict[str, dict[str, Value]] = {}
    for path, value in values.items():
        head, _, tail = path.partition(".")
        if tail:
            nested.setdefault(head, {})[tail] = value
    changed = {head: _replace(getattr(config, head), inner) for head, inner in nested.items()}
    return dataclasses.replace(config, **own, **changed)


def _check_type(config: TrialConfig, path: str, value: Value) -> None:
    import typing

    owner: Any = config
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    hint = typing.get_type_hints(type(owner))[name]
    options = get_args(hint)
    if typing.get_origin(hint) is Literal:
        require(value in options, f"{path} must be one of {list(options)}", value, "choose one of them")
        return
    allowed = tuple(option for option in (options or (hint,)) if isinstance(option, type))
    if float in allowed:
        allowed = (*allowed, int)
    right = isinstance(value, allowed) and (bool in allowed or not isinstance(value, bool))
    names = " or ".join(sorted({option.__name__ for option in allowed if option is not type(None)}))
    require(right, f"{path} must be {names}", value, "change its type")
