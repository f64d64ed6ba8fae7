"""A trial as it is run: its control's meaning written into its settings, its image sets known by their content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from emoreg.config.image_sets import ImageSetConfig
from emoreg.config.paths import changes, leaves, parts
from emoreg.config.registry import CONTROLS
from emoreg.config.trial import KINDS_OF_ONE_LEARNED_BALANCE, KINDS_WITHOUT_BALANCE, SIZE_OF_OWN_STEM, TrialConfig
from emoreg.config.validation import require

Source = tuple[str | int | None, ...]
"""What an image set is prepared from: name, path, target, side in pixels, and of ``_READING`` what is not at its default."""

_READING = ("image_column", "fit", "group")
CUTS = ("num_images", "validation_fraction", "split_seed", "num_folds")
"""The settings of an image set that choose among its images; all others decide what these are."""


def source_of(image_set: ImageSetConfig, image_size: int) -> Source:
    """The source of an image set: two sets of one source have the same images, and so one fingerprint."""
    default = ImageSetConfig()
    others = [f"{name}={value}" for name in _READING if (value := getattr(image_set, name)) != getattr(default, name)]
    return (image_set.name, image_set.path, image_set.target, image_size, *others)


Fingerprints = Mapping[Source, str]
"""Fingerprints of the image sets that a study may use, by source. Sets that are not in here count by their source."""
UNKNOWN: Fingerprints = {}
"""No image set has been opened yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResolvedTrial:
    """A trial as it is run.

    Attributes:
        config: with the control's meaning in its settings; ``config.control`` still names the control.
        identity: twelve hexadecimal digits of the SHA-256 of all that decides the trial's numbers, seed included.
    """

    config: TrialConfig
    identity: str

    @property
    def needs_pretraining(self) -> bool:
        """Whether the trial has an experience to pay for, or to take from the store."""
        return self.config.regulation.needs_emotional and self.config.pretraining.epochs > 0

    @property
    def pretraining_runs(self) -> tuple[ResolvedTrial, ...]:
        """The trial as each run of its pre-training has it, each of which goes on from the one before; none if it needs none.

        The last is the trial itself. A cool-down is a run of its own, and knows its length; the run before it does not.
        """
        pretraining = self.config.pretraining
        if not self.needs_pretraining:
            return ()
        if pretraining.cooldown_epochs == 0:
            return (self,)
        constant = dataclasses.replace(pretraining, cooldown_epochs=0)
        return (dataclasses.replace(self, config=dataclasses.replace(self.config, pretraining=constant)), self)

    @property
    def is_relabelled(self) -> bool:
        """Whether stage 1 is on the stimuli's own images with the labels that another set has for them."""
        return self.config.regulation.needs_emotional and CONTROLS[self.config.control].images == "relabelled"

    @property
    def images_of_pretraining(self) -> ImageSetConfig | None:
        """The image set of stage 1, by the control; None for a trial without an emotional encoder.

        Another set than the stimuli is to be cut to as many training images as the stimuli have or, if ``is_relabelled``, to
        those very images.
        """
        if not self.config.regulation.needs_emotional:
            return None
        image_set: ImageSetConfig = getattr(self.config, CONTROLS[self.config.control].images)
        return image_set


def resolve_trial(config: TrialConfig, fingerprints: Fingerprints = UNKNOWN) -> ResolvedTrial:
    """Apply the control of ``config`` and compute the trial's identity. Resolving a resolved configuration changes nothing.

    Raises:
        ConfigError: for a control that is not registered, or that would change what it has changed again.
    """
    change = CONTROLS.require(config.control, of="control").change
    applied = dataclasses.replace(change(config), control=config.control)
    require(
        dataclasses.replace(change(applied), control=config.control) == applied,
        "a control that is applied twice must change nothing the second time",
        config.control,
        "let it set values that do not depend on what they were",
    )
    text = json.dumps(decisive(applied, fingerprints), sort_keys=True, separators=(",", ":"))
    return ResolvedTrial(config=applied, identity=hashlib.sha256(text.encode()).hexdigest()[:12])


def decisive(applied: TrialConfig, fingerprints: Fingerprints) -> dict[str, Any]:
    """What decides the numbers of a trial whose control is applied, by path: its identity is the hash of this.

    A setting at its default is left out, so that one that is added later changes no identity; so is what the trial cannot use.
    An image set counts by its fingerprint, where that is known, in place of its source.
    """
    unused = set(_unused(applied))
    values = {}
    for path, value in changes(applied):
        if unused.isdisjoint(_prefixes(path)):
            values[path] = int(value) if isinstance(value, float) and value.is_integer() else value  # 1 and 1.0 are one setting
    for role, image_set in image_sets(applied).items():
        fingerprint = fingerprints.get(source_of(image_set, applied.image_size))
        source = [f"{role}.{name}" for name in ("name", "path", "target", *_READING)]
        if fingerprint is not None and role not in unused:
            values = {path: value for path, value in values.items() if path not in source}
            values[f"{role}.fingerprint"] = fingerprint
    return values


def image_sets(trial: TrialConfig) -> dict[str, ImageSetConfig]:
    """The image sets that a trial names, by role."""
    return {role: value for role, value in parts(trial) if isinstance(value, ImageSetConfig)}


def _prefixes(path: str) -> Iterator[str]:
    parts = path.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _unused(trial: TrialConfig) -> Iterator[str]:
    """The settings that the trial cannot use, by path; a path stands for all below it."""
    # What is measured besides changes nothing that is trained, and draws from no stream: a trial that has finished has
    # finished, whatever one would like to have measured of it as well.
    yield from ("metrics", "probes", "probe_every")
    regulation = trial.regulation
    yield from (f"{role}.validation_fraction" for role, found in image_sets(trial).items() if found.num_folds is not None)
    if not trial.task.is_cut:
        yield "task.split_seed"
    if trial.deterministic:
        yield "precision"  # no mixed precision, whether it is "auto" or "float32"
        yield "compile"  # nothing is compiled, whether it is "auto" or "off"
    if trial.has_small_stem == (trial.image_size < SIZE_OF_OWN_STEM):
        yield "stem"  # it is as "auto" has it
    if regulation.kind in KINDS_WITHOUT_BALANCE:
        yield "regulation.balance"
    if regulation.kind not in KINDS_OF_ONE_LEARNED_BALANCE:
        yield "regulation.balance_learning_rate"
    if regulation.lr_schedule != "warmup_stable_decay":
        yield "regulation.decay_fraction"
    if regulation.kind == "fixed" and regulation.balance in (0.0, 1.0):
        yield "regulation.mix_space"  # one response is all there is
    if not (regulation.needs_emotional and regulation.needs_plain):
        yield "regulation.form"
    if not regulation.needs_emotional or regulation.is_emotion_frozen:
        yield "regulation.emotional_learning_rate"
    if not regulation.needs_emotional or regulation.form == "conditioned":  # which always freezes
        yield "regulation.freeze_emotional"
    yield from _unused_of_pretraining(trial)


def _unused_of_pretraining(trial: TrialConfig) -> Iterator[str]:
    role = CONTROLS[trial.control].images
    sets = {"stimuli", "neutral", "relabelled"}
    if not trial.regulation.needs_emotional:
        yield from ("pretraining", "exclude_test_images", *sets)
    elif trial.pretraining.epochs == 0:
        yield from (f"pretraining.{path}" for path, _ in leaves(trial.pretraining) if path != "epochs")
        yield "exclude_test_images"
        if trial.regulation.form != "conditioned":
            yield from sets
        else:  # the number of classes is the width of the emotion head
            yield from sets - {role}
            yield from (f"{role}.{name}" for name in CUTS if role in sets)
    elif role == "stimuli":
        yield from sets - {"stimuli"}
        if not trial.stimuli.is_cut:
            yield "stimuli.split_seed"
    else:  # as many images as the stimuli have, which therefore count too
        yield from sets - {role, "stimuli"}
        if role == "relabelled":
            yield from (f"{role}.{name}" for name in CUTS)
        elif role in sets:
            yield f"{role}.num_images"
