"""What a trial is: frozen, typed, validated once. Every default of a trial lives here and only here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from emoreg.config.image_sets import ImageSetConfig
from emoreg.config.registry import CONTROLS
from emoreg.config.validation import (
    DISTINCT,
    BelowOne,
    Constraint,
    Fraction,
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Registered,
    Rule,
    not_empty,
    require,
    validate,
)

Names = Annotated[tuple[Annotated[str, not_empty("name it")], ...], DISTINCT]
_Sampling = Literal["natural", "balanced", "sqrt"]
_ClassWeights = Literal["none", "balanced", "sqrt"]
Precision = Literal["float32", "bf16"]
"""What a trial computes in: bf16 is mixed, by autocast."""
Compile = Literal["auto", "on", "off"]
_ImageSize = Annotated[
    int,
    Constraint(
        lambda side: 8 <= side <= 512,
        "must lie in [8, 512]",
        "take 32, which suits CIFAR, or up to 64, the largest size without ResNet's max-pool",
    ),
]
_Width = Annotated[int, Constraint(lambda width: width in (1, 2), "must be 1 or 2", "leave it at 1: the control wide has 2")]


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationConfig:
    """Random changes of training images, drawn for each image, made in batch on the device.

    Example:
        >>> import emoreg
        >>> emoreg.AugmentationConfig(flip=True, random_erasing=0.25).crop_padding
        4
    """

    crop_padding: NotNegativeInt = 4
    """Pad by this many pixels on each side (reflected), then crop at random. 0 for none."""
    flip: bool = False
    """Mirror left and right with probability 0.5. Wrong for digits and letters."""
    color_jitter: Fraction = 0.0
    """Strength of brightness, contrast and saturation changes: factors from U(1 - s, 1 + s)."""
    random_erasing: Fraction = 0.0
    """Probability that a rectangle of an image is replaced by a random colour (Zhong et al. 2020)."""
    mixup: NotNegative = 0.0
    """Alpha of MixUp's Beta distribution (Zhang et al. 2018). 0 for none."""
    cutmix: NotNegative = 0.0
    """Alpha of CutMix's Beta distribution (Yun et al. 2019). 0 for none; with MixUp, one of the two is drawn per batch."""

    def __post_init__(self) -> None:
        validate(self, "AugmentationConfig")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerConfig:
    """AdamW or SGD with Nesterov momentum; norms, biases and tokens are never decayed.

    Example:
        >>> import emoreg
        >>> emoreg.OptimizerConfig(name="sgd", learning_rate=0.1).momentum
        0.9
    """

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW (Loshchilov and Hutter 2019), or SGD with Nesterov momentum."""
    learning_rate: Positive = 1e-3
    """Peak learning rate, reached after warm-up."""
    weight_decay: NotNegative = 0.05
    """Decay of the weights that are matrices or kernels."""
    momentum: BelowOne = 0.9
    """SGD's momentum; AdamW's first beta."""
    gradient_clip: Positive | None = 1.0
    """Largest norm of the whole gradient. None: no clipping."""

    def __post_init__(self) -> None:
        validate(self, "OptimizerConfig")


_PRETRAINING_RULES = (
    Rule(
        "cooldown_epochs",
        lambda c: c.cooldown_epochs == 0 or c.lr_schedule == "constant",
        "must be 0 for lr_schedule={c.lr_schedule!r}, which goes to 0 by itself",
        "leave out cooldown_epochs, or use lr_schedule='constant'",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainingConfig:
    """Stage 1: the emotional encoder learns the stimuli. Warm-up, then a constant learning rate, or a half cosine.

    Under the constant one the rate at step t never depends on ``epochs``, so a longer pre-training continues a shorter one. A
    cool-down goes on from there: it is shared by trials of the same length alone, and what is before it by all lengths.

    Example:
        >>> import emoreg
        >>> emoreg.PretrainingConfig(epochs=20, augmentation=emoreg.AugmentationConfig(flip=True)).batch_size
        128
    """

    epochs: NotNegativeInt = 10
    """Passes over the stimuli. 0 leaves the emotional encoder as it was initialised."""
    batch_size: PositiveInt = 128
    """Stimuli in a step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Stage 1's optimizer."""
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """After warm-up: constant, or a half cosine to 0, which knows the length: lengths then share no pre-training."""
    warmup_steps: NotNegativeInt = 50
    """Steps of linear warm-up."""
    cooldown_epochs: NotNegativeInt = 0
    """Further passes over the stimuli, after `epochs` at the constant rate, in which it goes linearly to 0. 0 for none."""
    label_smoothing: BelowOne = 0.0
    """Share of each target that is spread over all classes (Szegedy et al. 2016)."""
    sampling: _Sampling = "natural"
    """An epoch is every stimulus once, or as many draws with replacement: classes alike, or as the root of their sizes."""
    class_weights: _ClassWeights = "none"
    """Weight a stimulus's loss by its class: 1 / size or its root, scaled to a mean of 1 over the training images."""
    shuffle_labels: bool = False
    """Permute the labels of the stimuli once (the `shuffled` control)."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of the stimuli."""

    def __post_init__(self) -> None:
        validate(self, "pretraining", _PRETRAINING_RULES)

    @property
    def total_epochs(self) -> int:
        """Passes over the stimuli with those of the cool-down; without ``epochs`` there is nothing to cool down."""
        return self.epochs + self.cooldown_epochs if self.epochs else 0


_REGULATION_RULES = (
    Rule(
        "form",
        lambda c: c.form != "loss" or c.kind in ("fixed", "random"),
        "must not be 'loss' for kind={c.kind!r}, since its balance would follow the lower of two training losses",
        "use form='output', or kind='fixed' or 'random'",
    ),
    Rule(
        "balance",
        lambda c: c.kind not in ("learnable", "dynamic") or 0.0 < c.balance < 1.0,
        "must lie strictly between 0 and 1 for kind={c.kind!r}, which starts from its logit",
        "use kind='fixed' for the end points, or start from 0.5",
    ),
    Rule(
        "mix_space",
        lambda c: c.form != "loss" or c.mix_space == "logits",
        "has no meaning for form='loss', which mixes losses",
        "leave it at 'logits'",
    ),
)


SIZE_OF_OWN_STEM = 96
"""Side in pixels from which a ResNet keeps its own stem, if nothing else is asked for."""
KINDS_WITHOUT_BALANCE = ("random", "random_learnable")
"""Kinds that draw the balance, or where it starts: they have no balance setting."""
KINDS_OF_ONE_LEARNED_BALANCE = ("learnable", "random_learnable")
"""Kinds that learn one balance for all images, with a learning rate of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RegulationConfig:
    """Stage 2: the plain and the emotionally-influenced response are balanced while the task is learned.

    Example:
        >>> import emoreg
        >>> emoreg.RegulationConfig(kind="learnable", epochs=30).balance
        0.5
    """

    form: Literal["output", "conditioned", "loss"] = "output"
    """Where the two meet: mixed responses, a response conditioned on the emotion, or a loss of each, mixed when predicting."""
    kind: Literal["fixed", "learnable", "random", "random_learnable", "dynamic"] = "fixed"
    """How the balance is set: as given, learned, drawn per batch, drawn once then learned, or computed for each image."""
    balance: Fraction = 0.5
    """Weight b of the emotional side: 0 is the plain backbone, 1 the emotional encoder. `random` kinds have none."""
    balance_learning_rate: Positive = 0.1
    """Peak learning rate of the scalar that `learnable` and `random_learnable` learn b by, b = sigmoid(r): it never decays."""
    mix_space: Literal["logits", "probabilities"] = "logits"
    """Mix the logits, or the two softmaxes."""
    freeze_emotional: bool = False
    """Keep the emotional encoder as pre-training left it, but for BatchNorm's statistics. The conditioned form always does."""
    epochs: PositiveInt = 10
    """Passes over the task's training split."""
    batch_size: PositiveInt = 128
    """Task images in a step."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """Stage 2's optimizer, of both encoders, their heads and the balance."""
    emotional_learning_rate: Positive = 1.0
    """Learning rate of the emotional encoder, as a multiple of the optimizer's: below 1 its experience changes more slowly."""
    lr_schedule: Literal["cosine", "warmup_stable_decay"] = "cosine"
    """After warm-up: a half cosine to 0, or constant and then linear to 0 over the last `decay_fraction`."""
    warmup_fraction: BelowOne = 0.05
    """Share of all steps that warms up linearly."""
    decay_fraction: Fraction = 0.2
    """Share of all steps that decays, for warmup_stable_decay."""
    label_smoothing: BelowOne = 0.0
    """Share of each target that is spread over all classes (Szegedy et al. 2016)."""
    sampling: _Sampling = "natural"
    """An epoch is every task image once, or as many draws with replacement: see `pretraining.sampling`."""
    class_weights: _ClassWeights = "none"
    """Weight a task image's loss by its class: see `pretraining.class_weights`. `val_loss` is never weighted."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Random changes of the task's training images."""

    def __post_init__(self) -> None:
        validate(self, "regulation", _REGULATION_RULES)

    @property
    def balance_setting(self) -> float | None:
        """The balance as configured; None for a kind that has none."""
        return None if self.kind in KINDS_WITHOUT_BALANCE else self.balance

    @property
    def is_emotion_frozen(self) -> bool:
        """Whether the emotional encoder stays as pre-training left it."""
        return self.freeze_emotional or self.form == "conditioned"

    @property
    def needs_plain(self) -> bool:
        """Whether the plain encoder has a part in the response: not at b = 1, except to condition the emotional one."""
        return self.form == "conditioned" or not (self.kind == "fixed" and self.balance == 1.0)

    @property
    def needs_emotional(self) -> bool:
        """Whether the emotional encoder has a part in the response: not at b = 0."""
        return not (self.kind == "fixed" and self.balance == 0.0)


_TRIAL_RULES = (
    Rule(
        "width",
        lambda c: c.width == 1 or c.weights is None,
        "must be 1 where the encoders start from weights, since there are none for another width",
        "leave weights out, or the control wide",
    ),
    Rule(
        "precision",
        lambda c: not c.deterministic or c.precision != "bf16",
        "must not be mixed where deterministic=True",
        "use precision='float32' or 'auto'",
    ),
    Rule(
        "compile",
        lambda c: not c.deterministic or c.compile != "on",
        "must not be 'on' where deterministic=True",
        "use compile='auto' or 'off'",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialConfig:
    """Every setting of a trial. What decides its numbers, seed included, makes its identity: see ``resolve_trial``.

    Example:
        >>> import emoreg
        >>> emoreg.TrialConfig(backbone="vit_tiny", task=emoreg.ImageSetConfig(name="cifar10")).image_size
        32
    """

    backbone: Annotated[str, not_empty("name a timm model")] = "resnet18"
    """Any timm model, fitted to small images; vit_tiny, vit_small, or a registered one. Both encoders have it."""
    width: _Width = 1
    """2: twice the channels of a ResNet, or twice the embedding and the heads of a ViT or DeiT, as the control `wide` has."""
    drop_path: BelowOne = 0.0
    """Stochastic depth (Huang et al. 2016) of both encoders, for backbones that have it."""
    stem: Literal["auto", "small", "own"] = "auto"
    """Of the ResNet family: 3x3 with stride 1 for small images, or the model's own. `auto`: its own from 96 px on."""
    weights: str | None = None
    """Start both encoders from a file of weights (plain, or a checkpoint of Lightning, DDP or timm, of which averaged weights
    are taken), or from timm's hub with 'hub'. None: from random."""
    image_size: _ImageSize = 32
    """Side in pixels that stimuli and task images are brought to; both encoders see this size."""
    stimuli: ImageSetConfig = ImageSetConfig(name="openmoji", validation_fraction=0.0)
    """The affective images of stage 1."""
    neutral: ImageSetConfig | None = None
    """The images without affect that the `neutral` control pre-trains on instead."""
    relabelled: ImageSetConfig | None = None
    """A set that has the stimuli's images, the same to the pixel, with labels that are not affective, such as another `target`
    of theirs: the `relabelled` control pre-trains on the stimuli with these labels."""
    task: ImageSetConfig = ImageSetConfig(name="digits")
    """The images of stage 2."""
    exclude_test_images: bool = False
    """Leave out of the stimuli, or of what a control has in their place, the images that are also in the task's test split, as
    they are or mirrored, pixel by pixel. Else such a trial is refused."""
    pretraining: PretrainingConfig = PretrainingConfig()
    """Stage 1: the emotional encoder learns the stimuli."""
    regulation: RegulationConfig = RegulationConfig()
    """Stage 2: the plain and the emotionally-influenced response are balanced while the task is learned."""
    control: Annotated[str, Registered(CONTROLS)] = "regulated"
    """`regulated`: as configured. Else one of plain, compute_matched, ensemble, wide, emotional, untrained,
    untrained_matched, shuffled, relabelled, neutral."""
    metrics: Names = ()
    """Measured on validation after every epoch, besides accuracy and loss: macro_f1, balanced_accuracy, auroc, nll, ece, of
    real-valued stimuli valence_pearson, valence_ccc, arousal_pearson, arousal_ccc, or registered ones."""
    probes: Names = ()
    """Registered probes that look at the network after chosen epochs, and change no number of the trial."""
    probe_every: PositiveInt = 1
    """Probes run after every so many epochs."""
    seed: NotNegativeInt = 0
    """Decides initial weights, order of images, augmentation and random balances."""
    deterministic: bool = False
    """Same numbers to the bit on CPU, run after run; turns mixed precision off."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """`auto`: bf16 autocast where it is faster (a GPU that has it; a CPU that has AMX or AVX512-BF16, by measurement, decided
    once for a study and backbone), unless deterministic."""
    compile: Compile = "auto"
    """Have torch compile whole training batches, which rounds otherwise. `auto`: on a CPU, where the steps of the study repay
    that by measurement, decided once for a study and backbone, unless deterministic. `on` needs a C++ compiler."""

    def __post_init__(self) -> None:
        validate(self, rules=_TRIAL_RULES)
        if self.control in CONTROLS:  # it may be another process's
            images = CONTROLS[self.control].images
            require(
                getattr(self, images) is not None,
                f"the {self.control} control needs the image set `{images}`",
                None,
                f"name one, e.g. {images}=ImageSetConfig(name='openmoji-objects')",
            )

    @property
    def encoder(self) -> tuple[str, int]:
        """Backbone and width: what decides how large an encoder is, and how fast."""
        return self.backbone, self.width

    @property
    def has_small_stem(self) -> bool:
        """Whether a ResNet begins with a stem for small images."""
        return self.stem == "small" or (self.stem == "auto" and self.image_size < SIZE_OF_OWN_STEM)

    @property
    def identity(self) -> str:
        """The identity of the trial while no image set is opened: see ``resolve_trial``."""
        from emoreg.config.resolved import resolve_trial

        return resolve_trial(self).identity
