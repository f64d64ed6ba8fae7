"""What a study is: a trial, what is searched around it, how it is run. Every default of a study lives here and only here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from emoreg.config.by_hand import check_values
from emoreg.config.distributions import Choice, Distribution
from emoreg.config.paths import Value, read_path, replace_paths
from emoreg.config.registry import CONTROLS
from emoreg.config.resources import BudgetConfig, ResourcesConfig, TrialResources
from emoreg.config.secrets import hide_secrets, shown_url
from emoreg.config.trial import KINDS_WITHOUT_BALANCE, Names, TrialConfig
from emoreg.config.validation import (
    DISTINCT,
    Constraint,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Registered,
    Rule,
    matches,
    not_empty,
    require,
    require_database_url,
    validate,
)

STORAGE = "runs"
"""Where studies lie unless they say otherwise."""

CONFIRM = ".confirm"
"""Ends the name of a confirmation."""

_NAME = matches(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
    "must be 1 to 64 letters, digits, '.', '_' or '-' and begin with a letter or digit",
    "rename the study",
)
_NO_SPACE = not_empty("give at least one path, e.g. {'regulation.balance': Float(0.0, 1.0)} (`emoreg trial` runs one trial)")


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplerConfig:
    """Which Optuna sampler proposes the next trial.

    Example:
        >>> import emoreg
        >>> emoreg.SamplerConfig(name="gp", num_startup_trials=5).seed
        0
    """

    name: Literal["tpe", "gp", "cmaes", "random", "grid", "qmc", "nsga2"] = "tpe"
    """Model-based (tpe, gp, cmaes), evolutionary (nsga2), space-filling (random, qmc), or every combination (grid)."""
    seed: int = 0
    """Seed of the proposals; the trials' own is trial.seed."""
    num_startup_trials: PositiveInt = 10
    """Random trials before a model-based sampler (tpe, gp, cmaes) takes over."""

    def __post_init__(self) -> None:
        validate(self, "sampler")


@dataclass(frozen=True, kw_only=True, slots=True)
class SchedulerConfig:
    """Which Tune scheduler stops trials early. It compares regulation epochs with regulation epochs, never pre-training.

    Example:
        >>> import emoreg
        >>> emoreg.SchedulerConfig(name="asha", grace_epochs=6).reduction_factor
        3
    """

    name: Literal["none", "asha", "median"] = "none"
    """Stop none, the worse at each of ASHA's rungs, or those below the median of the others' running means."""
    grace_epochs: PositiveInt = 1
    """Regulation epochs that every trial gets."""
    reduction_factor: Annotated[int, Constraint(lambda factor: factor >= 2, "must be 2 or more", "try 3")] = 3
    """ASHA keeps the best 1/reduction_factor at each rung (Li et al. 2020)."""

    def __post_init__(self) -> None:
        validate(self, "scheduler")


_BETTER_SMALL = ("val_loss", "device_seconds", "val_nll", "val_ece")

MEASURED = ("val_accuracy", "val_loss", "device_seconds")
"""What every trial has for an objective, whatever its metrics are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What a search makes large or small: a column of the trial records, or a metric of theirs.

    Example:
        >>> import emoreg
        >>> emoreg.Objective(metric="device_seconds", mode="min").metric
        'device_seconds'
    """

    metric: str = "val_accuracy"
    """val_accuracy, val_loss (of regulation's last epoch), val_NAME for a metric in trial.metrics, or device_seconds."""
    mode: Literal["max", "min"] = "max"
    """Whether a large or a small value is better."""

    def __post_init__(self) -> None:
        validate(self, "objective", _OBJECTIVE_RULES)

    @property
    def custom_metric(self) -> str | None:
        """The registered metric that it names; None for what every trial has."""
        return None if self.metric in MEASURED else self.metric.removeprefix("val_")


_OBJECTIVE_RULES = (
    Rule(
        "metric",
        lambda c: c.metric in MEASURED or c.metric.startswith("val_"),
        "must be val_accuracy, val_loss, device_seconds, or val_NAME for a metric NAME of trial.metrics",
        "name one of them",
    ),
    Rule(
        "mode",
        lambda c: c.mode == "min" or c.metric not in _BETTER_SMALL,
        "must fit {c.metric}, which is better where it is small",
        "set mode='min'",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperienceConfig:
    """Where pre-trained encoders are kept, so that no trial pays for one twice.

    Example:
        >>> import emoreg
        >>> emoreg.ExperienceConfig(uri="s3://bucket/experience", budget_gib=200).share
        True
    """

    uri: str | None = None
    """Folder or URI (file://, s3://, gs://) of the store. None: `experience` in the study's storage."""
    budget_gib: Positive | None = 50.0
    """Most disk that the store may take: the least recently used goes first, never what a running study needs. None: no end."""
    share: bool = True
    """Whether trials share pre-training. False: each pays for its own, which must give the same numbers."""

    def __post_init__(self) -> None:
        validate(self, "experience")


_STUDY_RULES = (
    Rule(
        "budget.hours",
        lambda c: c.budget.hours is None or 3600 * c.budget.hours > c.resources.grace_seconds,
        "must be longer than resources.grace_seconds ({c.resources.grace_seconds:g} s), in which trials save at its end",
        "give more, or set resources.grace_seconds lower",
    ),
    Rule(
        "objectives",
        lambda c: len({objective.metric for objective in c.objectives}) == len(c.objectives),
        "must differ in their metrics",
        "drop doubles",
    ),
    Rule(
        "scheduler.name",
        lambda c: c.scheduler.name == "none" or len(c.objectives) == 1,
        "must be 'none' for several objectives, since a scheduler compares one metric",
        "set scheduler.name='none'",
    ),
    Rule(
        "sampler.name",
        lambda c: c.sampler.name != "cmaes" or len(c.objectives) == 1,
        "must be another for several objectives, since CMA-ES optimises one objective",
        "use tpe, nsga2, gp, random or qmc",
    ),
    Rule(
        "scheduler.name",
        lambda c: c.scheduler.name == "none" or c.objectives[0].metric != "device_seconds",
        "must be 'none' for device_seconds, since a scheduler needs a metric that each epoch reports",
        "use val_accuracy or val_loss, or scheduler.name='none'",
    ),
    Rule(
        "scheduler.name",
        lambda c: c.scheduler.name == "none" or "regulation.epochs" not in c.search_space,
        "must be 'none' where regulation.epochs is searched, since a scheduler compares trials of one length",
        "set scheduler.name='none' or fix regulation.epochs",
    ),
    Rule(
        "controls",
        lambda c: "compute_matched" not in c.controls,
        "must be without compute_matched: a confirmation knows how many encoder passes its plain backbone is to be given",
        "take it out, `emoreg confirm` adds it",
    ),
    Rule(
        "controls",
        lambda c: "wide" not in c.controls or (c.trial.weights is None and "weights" not in c.search_space),
        "must be without wide where the encoders start from weights, since there are none for twice the width",
        "take it out, or leave weights out",
    ),
    Rule(
        "controls",
        lambda c: "wide" not in c.controls or c.trial.width == 1,
        "must be without wide where trial.width is {c.trial.width}, so that plain is as wide",
        "take it out, or leave trial.width at 1",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyConfig:
    """A study: a trial, what is searched around it, and the controls beside it.

    Example:
        >>> import emoreg
        >>> emoreg.StudyConfig(name="mine", search_space={"drop_path": emoreg.Float(0, 0.5)}).num_trials
        20
    """

    name: Annotated[str, _NAME] = "study"
    """Folder of the study inside the storage: letters, digits, '.', '_' and '-'."""
    storage: str = STORAGE
    """Folder or URI (file://, s3://, gs://) that holds studies, experience and prepared image sets."""
    trial: TrialConfig = field(default_factory=TrialConfig)
    """Every setting of a trial that the search does not choose."""
    search_space: Annotated[Mapping[str, Distribution], _NO_SPACE] = field(default_factory=dict)
    """Distributions by path into the trial."""
    fixed: Mapping[str, Value] = field(default_factory=dict)
    """Values that searched paths have from now on, wherever they exist; they may change while the study keeps its name."""
    num_trials: NotNegativeInt = 20
    """Trials that the sampler proposes; the controls come on top. 0: the controls alone."""
    seeds_per_trial: PositiveInt = 1
    """Seeds that each proposal is trained with, from the trial's on, one after the other: it counts by their mean. One that is
    worse than the best, by Wilcoxon's test on the seeds of both, gets no more of them."""
    sampler: SamplerConfig = SamplerConfig()
    """What proposes the trials."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """What stops trials early."""
    objectives: Annotated[tuple[Objective, ...], not_empty("add Objective()")] = (Objective(),)
    """One, or several for a Pareto front."""
    controls: tuple[Annotated[str, Registered(CONTROLS)], ...] = ("regulated", "plain", "emotional", "untrained", "shuffled")
    """Run for every backbone and control seed, outside the sampler's history; `regulated` is the trial as configured. A
    confirmation runs every control that there is, but `wide` only where it is named here."""
    controls_search: Literal["none", "required", "all"] = "none"
    """Controls that are tuned as regulation is, each by a search of its own of `num_trials`, over what of the search space
    exists for it: none, those that a verdict depends on, or all. The others are confirmed at regulation's settings alone."""
    control_seeds: Annotated[tuple[NotNegativeInt, ...], DISTINCT] = (0,)
    """Seeds of the controls: several give error bars."""
    confirmed: tuple[TrialConfig, ...] = ()
    """Trials that open the test split: those of a confirmation, which `emoreg confirm` makes of a study."""
    resources: ResourcesConfig = ResourcesConfig()
    """What one trial takes of a machine."""
    budget: BudgetConfig = BudgetConfig()
    """What the study may take: it ends before that."""
    resources_by_backbone: Mapping[str, TrialResources] = field(default_factory=dict)
    """Trials of these backbones ask for something else: set in a study file."""
    loggers: Names = ()
    """Registered loggers that follow the study beside TensorBoard: wandb, mlflow, aim, or one's own."""
    notify: str | None = field(default=None, repr=False)
    """URL that is sent a POST of JSON when a run has ended: how, trials counted, the best. It is kept nowhere."""
    experience: ExperienceConfig = ExperienceConfig()
    """Where pre-trained encoders are kept."""
    warm_start_from: tuple[str, ...] = ()
    """Studies whose recorded trials the sampler learns from first: names in the same storage, or folders."""
    optuna_storage: str | None = None
    """Where Optuna's history lives: None for a journal file in the study's folder, or an RDB URL such as sqlite:///x.db."""

    def __post_init__(self) -> None:
        validate(self, rules=_STUDY_RULES)
        _require_validation(self.trial, "trial.")
        if self.optuna_storage is not None:
            require_database_url("optuna_storage", self.optuna_storage)
        for place, (path, distribution) in enumerate(self.search_space.items()):
            self._check_parameter(path, distribution, list(self.search_space)[:place])
        if self.notify is not None:
            is_url = re.fullmatch(r"https?://[^/\s@]*@?[^/\s@]+(/\S*)?", self.notify) is not None
            require(is_url, "notify must be an http:// or https:// URL", "***", "give one whole")
        object.__setattr__(self, "fixed", check_values(self.search_space, self.fixed))
        self._check_balance()
        for control in self.controls:  # each must be possible for the trial
            dataclasses.replace(self.trial, control=control)
        for metric in (objective.custom_metric for objective in self.objectives):
            require(
                metric is None or metric in self.trial.metrics,
                f"an objective's metric must be measured, so trial.metrics must name {metric!r}",
                self.trial.metrics,
                "add it to trial.metrics",
            )
        for backbone in self.resources_by_backbone:
            require(
                "backbone" not in self.search_space or backbone in self.backbones(),  # else the command line pinned another
                "resources_by_backbone must name backbones of the study",
                backbone,
                f"name one of {', '.join(self.backbones())}, or drop it",
            )

    def _check_parameter(self, path: str, distribution: Distribution, before: list[str]) -> None:
        """Refuse a distribution at ``path`` that the trial cannot have there; ``before`` stand the others' paths."""
        require(
            path not in ("control", "seed", "width"),
            f"{path} is not searched: controls run beside the search, on control_seeds",
            distribution,
            "take it out of the search space",
        )
        if distribution.when is not None:
            read_path(self.trial, distribution.when.path)
            require(
                distribution.when.path in before,
                f"the condition of {path} must look at a path that stands before it in the search space",
                distribution.when.path,
                "move it up, or drop the condition",
            )
        for value in distribution.bounds():
            _require_validation(replace_paths(self.trial, {path: value}), "")

    def _check_balance(self) -> None:
        """Refuse a search that proposes balances to trials that have none."""
        balance = self.search_space.get("regulation.balance")
        if balance is None:
            return
        kinds = self.regulation_kinds()
        if balance.when is not None and balance.when.path == "regulation.kind":
            kinds &= set(balance.when.values)
        without, having = kinds & set(KINDS_WITHOUT_BALANCE), tuple(sorted(kinds - set(KINDS_WITHOUT_BALANCE)))
        narrow = f"give regulation.balance when=When('regulation.kind', {having})"
        require(
            not without,
            "every regulation.kind that regulation.balance is searched for must have a balance setting",
            " or ".join(sorted(without)),
            narrow if having else "take it out of the search space",
        )

    def control_trials(self) -> list[TrialConfig]:
        """The controls: each for every seed and backbone, seeds outermost, so that one seed is whole before the next.

        Those that match the passes of a configuration wait for the confirmation, which has one.
        """
        return [
            dataclasses.replace(self.trial, backbone=backbone, control=control, seed=seed)
            for seed in self.control_seeds
            for backbone in self.backbones()
            for control in self.controls
            if control not in CONTROLS or not CONTROLS[control].match_passes  # no study file that registers it was loaded
        ]

    def without_password(self) -> StudyConfig:
        """The study as it may be written down and shown: passwords in its URLs and URIs are hidden."""
        hidden: StudyConfig = hide_secrets(self)
        return hidden if self.notify is None else dataclasses.replace(hidden, notify=shown_url(self.notify))

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

    def regulation_kinds(self) -> set[str]:
        """The kinds of balance that a trial of the search may have."""
        searched = self.search_space.get("regulation.kind")
        kinds = set() if searched is None else set(map(str, searched.bounds()))
        is_always_searched = searched is not None and searched.when is None
        return kinds if is_always_searched else kinds | {self.trial.regulation.kind}

    def backbones(self) -> tuple[str, ...]:
        """The backbones that the study compares: those searched, or the one that the trial has."""
        searched = self.search_space.get("backbone")
        return tuple(map(str, searched.values)) if isinstance(searched, Choice) else (self.trial.backbone,)


def _require_validation(trial: TrialConfig, prefix: str) -> None:
    """Refuse a trial of a search, or a control beside it, that holds nothing out: only a confirmation selects nothing."""
    require(
        trial.task.validation_fraction > 0 or trial.task.num_folds is not None,
        f"{prefix}task.validation_fraction must be above 0, since a search selects on validation",
        trial.task.validation_fraction,
        "hold out 0.1, say",
    )
