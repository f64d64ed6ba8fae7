"""Controls: what a trial is compared with. Each says what it changes of a trial, which images it takes, how it is drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from emoreg.config.image_sets import ImageSetConfig
from emoreg.config.registry import CONTROLS
from emoreg.config.study import StudyConfig
from emoreg.config.trial import TrialConfig
from emoreg.config.validation import expectations, require

Change = Callable[[TrialConfig], TrialConfig]


@dataclass(frozen=True, slots=True)
class Rung:
    """What is claimed where regulation beats all of these controls. Those that a confirmation has not run are named."""

    claim: str
    controls: tuple[str, ...]


LADDER = (
    Rung("better than the backbone", ("plain",)),
    Rung("better than its price", ("compute_matched", "ensemble", "wide")),
    Rung("better than two encoders without experience", ("untrained", "untrained_matched")),
    Rung("better than experience without meaning", ("shuffled",)),
    Rung("better than meaning without affect", ("relabelled", "neutral")),
)
ON_LADDER = tuple(control for rung in LADDER for control in rung.controls)
"""Controls that a verdict depends on; what is compared with others is exploratory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """A control, or regulation itself, as ``control`` registers it, which says what each field is.

    ``change`` writes the control's meaning into a trial's settings. What it has changed, it leaves as it is.
    """

    name: str
    change: Change
    images: str
    label: str
    dash: str
    description: str
    opt_in: bool = False
    match_passes: bool = False


def control(
    name: str,
    *,
    images: str = "stimuli",
    label: str | None = None,
    dash: str = "2px,2px",
    description: str | None = None,
    opt_in: bool = False,
    match_passes: bool = False,
) -> Callable[[Change], Change]:
    """Register the decorated function, which takes a ``TrialConfig`` and returns a changed one, as a control.

    Args:
        name: as ``StudyConfig.controls`` names it.
        images: the setting of the trial whose image set pre-training is on: stimuli, neutral, relabelled or task. Another set
            than the stimuli is cut to as many images as the stimuli have; relabelled is to have their very images.
        label: what a reader calls it; the name where left out.
        dash: how its lines are drawn in charts: solid, dot, dash, or lengths such as "5px,2px".
        description: what it shows; the first line of the function's docstring where left out.
        opt_in: whether only a study that names it in ``StudyConfig.controls`` confirms and tunes it; else every study does.
        match_passes: whether a confirmation trains it for as many encoder passes as regulation and its pre-training take: what
            it may gain by more training is then no gain of regulation. A search does not run it beside regulation.

    Raises:
        ConfigError: for images that a trial has no setting for.

    Example:
        >>> import dataclasses, emoreg
        >>> @emoreg.control("half", description="Regulation at b = 0.5: does the balance matter?")
        ... def half(trial):
        ...     return dataclasses.replace(trial, regulation=dataclasses.replace(trial.regulation, balance=0.5))
        >>> emoreg.TrialConfig(control="half").control
        'half'
    """
    sets = [role for role, expected in expectations(TrialConfig).items() if ImageSetConfig in expected.types]
    require(images in sets, "a control's images must be an image set of the trial", images, f"name one of {', '.join(sets)}")

    def register(change: Change) -> Change:
        text = description or (change.__doc__ or "").partition("\n")[0]
        entry = Control(
            name=name,
            change=change,
            images=images,
            label=label or name,
            dash=dash,
            description=text,
            opt_in=opt_in,
            match_passes=match_passes,
        )
        CONTROLS.add(name, entry, origin=change)
        return change

    return register


def control_named(name: str) -> Control:
    """The control of this name; one that is not registered here, since its study file is not loaded, can only be drawn."""

    def refuse(_: TrialConfig) -> TrialConfig:
        return CONTROLS.require(name, of="control").change(_)

    unknown = Control(name=name, change=refuse, images="stimuli", label=name, dash="2px,2px", description="")
    return CONTROLS.get(name, unknown)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The names of controls in the order of tables: as they are registered, then those that are not registered here."""
    found = dict.fromkeys(names)
    return (*(name for name in CONTROLS if name in found), *(name for name in found if name not in CONTROLS))


def available_controls(study: StudyConfig, names: Iterable[str]) -> tuple[str, ...]:
    """Those of the controls whose image sets the trial of a study names; what is opt-in, only where the study names it."""
    return tuple(
        name
        for name in names
        if getattr(study.trial, CONTROLS[name].images) is not None and (name in study.controls or not CONTROLS[name].opt_in)
    )


@control("regulated", label="regulation", dash="solid")
def _regulated(trial: TrialConfig) -> TrialConfig:
    """Regulation as configured: what the controls are compared with."""
    return trial


@control("plain", dash="dash")
def _plain(trial: TrialConfig) -> TrialConfig:
    """The plain backbone alone (b = 0): does regulation help at all?"""
    return _one_sided(trial, balance=0.0, epochs=0)


@control("compute_matched", dash="longdash", match_passes=True)
def _compute_matched(trial: TrialConfig) -> TrialConfig:
    """The plain backbone, to which a confirmation gives as many encoder passes as regulation and its pre-training take."""
    return _one_sided(trial, balance=0.0, epochs=0)


@control("ensemble", dash="3px,3px")
def _ensemble(trial: TrialConfig) -> TrialConfig:
    """Two plain networks of different seeds, trained apart on the same batches and averaged: is it only an ensemble?"""
    regulation = dataclasses.replace(
        trial.regulation, form="loss", kind="fixed", balance=0.5, mix_space="logits", freeze_emotional=False
    )
    regulation = dataclasses.replace(regulation, emotional_learning_rate=1.0)
    return dataclasses.replace(trial, regulation=regulation, pretraining=dataclasses.replace(trial.pretraining, epochs=0))


@control("wide", dash="10px,3px", opt_in=True)
def _wide(trial: TrialConfig) -> TrialConfig:
    """The plain backbone of twice the width, whose weights outnumber those of two encoders: is it only a larger network?"""
    return dataclasses.replace(_one_sided(trial, balance=0.0, epochs=0), width=2)


@control("emotional", dash="dot")
def _emotional(trial: TrialConfig) -> TrialConfig:
    """The emotional encoder alone (b = 1): does the plain response help beside it?"""
    return _one_sided(trial, balance=1.0, epochs=trial.pretraining.epochs)


def _one_sided(trial: TrialConfig, *, balance: float, epochs: int) -> TrialConfig:
    regulation = dataclasses.replace(trial.regulation, form="output", kind="fixed", balance=balance, freeze_emotional=False)
    return dataclasses.replace(trial, regulation=regulation, pretraining=dataclasses.replace(trial.pretraining, epochs=epochs))


@control("untrained", dash="dashdot")
def _untrained(trial: TrialConfig) -> TrialConfig:
    """No pre-training: is it the experience, or only a second encoder?"""
    return dataclasses.replace(trial, pretraining=dataclasses.replace(trial.pretraining, epochs=0))


@control("untrained_matched", dash="8px,2px,2px,2px", opt_in=True, match_passes=True)
def _untrained_matched(trial: TrialConfig) -> TrialConfig:
    """No pre-training, whose encoder passes go into regulation: is it the experience, or two encoders that train for longer?"""
    return _untrained(trial)


@control("shuffled", dash="longdashdot")
def _shuffled(trial: TrialConfig) -> TrialConfig:
    """Pre-training on permuted labels: is it what the stimuli mean?"""
    return dataclasses.replace(trial, pretraining=dataclasses.replace(trial.pretraining, shuffle_labels=True))


@control("relabelled", images="relabelled", dash="6px,2px,2px,2px,2px,2px")
def _relabelled(trial: TrialConfig) -> TrialConfig:
    """Pre-training on the same images with labels that are not affective: is it affect, or any labels that mean something?"""
    return trial


@control("neutral", images="neutral", dash="5px,2px")
def _neutral(trial: TrialConfig) -> TrialConfig:
    """Pre-training on images without affect, as many as the stimuli: is it emotion, or any images?"""
    return trial
