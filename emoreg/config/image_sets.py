"""Which images a trial learns from, and how they are cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from emoreg.config.validation import BelowOne, Constraint, PositiveInt, Rule, not_empty, validate

Fit = Literal["squeeze", "crop"]
"""How a picture is made square: all of it, out of proportion, or its middle."""
_NumFolds = Annotated[
    int,
    Constraint(
        lambda folds: folds >= 2, "must be 2 or more", "take 5, or leave it out for a single cut by validation_fraction"
    ),
]
_VALIDATION_FRACTION = 0.1
_IMAGE_SET_RULES = (
    Rule(
        "validation_fraction",
        lambda c: c.num_folds is None or c.validation_fraction in (0.0, _VALIDATION_FRACTION),
        "must not be set beside num_folds={c.num_folds}, since one of the folds is the validation split",
        "leave out validation_fraction, or num_folds",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSetConfig:
    """Which images, and which of their labels.

    Example:
        >>> import emoreg
        >>> emoreg.ImageSetConfig(name="fer2013", path="~/data/fer2013", num_images=500).validation_fraction
        0.1
    """

    name: Annotated[str, not_empty("name a reader that `emoreg data list` lists")] = "openmoji"
    """Reader: openmoji, openmoji-objects, fer2013, oasis, emoji, digits, cifar10, cifar100, parquet, folder."""
    path: str | None = None
    """File, folder, archive or URI of the images, for the readers that need one (`emoreg data list` says which, and the
    layout); hub://OWNER/NAME is a set of the Hugging Face hub."""
    target: str | None = None
    """What is learned: a label column or grouping of the reader (oasis: valence, arousal, regression). None: its default
    (in Parquet: label, labels, emotion, expression or class)."""
    image_column: str | None = None
    """Column of the images, in Parquet. None: `image` or `img`, or the one column that holds images."""
    fit: Fit = "squeeze"
    """Pictures that are not square: `squeeze` keeps all of them, out of proportion; `crop` takes their middle."""
    group: str | None = None
    """Images that belong together, such as one person's, and are never on both sides of a cut: a column, in Parquet; levels of
    folders, in a folder, as `class/person` or `person/class`. None: each image by itself (openmoji: each glyph)."""
    num_images: PositiveInt | None = None
    """Keep a stratified subset of this many of the training images that validation leaves. None: all of them."""
    validation_fraction: BelowOne = _VALIDATION_FRACTION
    """Share of the training split, stratified by class, that is held out for validation. 0 for none, which a confirmation takes
    for its task."""
    num_folds: _NumFolds | None = None
    """Cut the training split into this many folds, once for all; fold `split_seed` modulo their number is validation, in place
    of the share."""
    split_seed: int = 0
    """Seed of the subset and of the validation split: fixed across the trial's seeds, so that trials are comparable. A
    confirmation gives each of its seeds its own."""

    def __post_init__(self) -> None:
        validate(self, "ImageSetConfig", _IMAGE_SET_RULES)

    @property
    def is_cut(self) -> bool:
        """Whether a part of the training split is not trained on."""
        return self.num_images is not None or self.num_folds is not None or self.validation_fraction > 0
