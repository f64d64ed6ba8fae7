"""What a trial takes of a machine, and what a study may take of machines, hours and money."""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import Annotated, Literal

from emoreg.config.validation import NotNegative, NotNegativeInt, Positive, PositiveInt, Rule, matches, validate

_AcceleratorType = Annotated[
    str,
    matches(r"[\w.+-]+", "must be one of Ray's names", "name H100, A100 or T4, say (`ray status -v` lists those of a cluster)"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialResources:
    """What one trial takes of a machine. In ``StudyConfig.resources_by_backbone`` None means: as the study says.

    Example:
        >>> import emoreg
        >>> emoreg.TrialResources(gpus=0.5, accelerator_type="H100").cpus is None
        True
    """

    cpus: Positive | None = None
    """CPU cores."""
    gpus: NotNegative | None = None
    """GPUs: 0, 1, or a fraction of one."""
    memory_gib: Positive | None = None
    """Memory that Ray sets aside, in GiB."""
    accelerator_type: _AcceleratorType | None = None
    """Kind of GPU, as Ray names it."""

    def __post_init__(self) -> None:
        validate(self, "TrialResources", _gpu_rules("gpus"))


def _gpu_rules(gpus: str) -> tuple[Rule, ...]:
    """What GPUs ask for; ``gpus`` is the setting that counts them."""
    count = attrgetter(gpus)
    return (
        Rule(
            gpus,
            lambda c: count(c) is None or count(c) <= 1,
            "must be at most 1, for a trial computes on one GPU: a second one would stand idle",
            "take 1 (more GPUs run more trials at once), or a fraction, so that trials share one",
        ),
        Rule(
            "accelerator_type",
            lambda c: c.accelerator_type is None or count(c) != 0,
            "has no meaning for a trial without a GPU",
            "drop it, or ask for a GPU",
        ),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourcesConfig:
    """What one trial takes of a machine, and how many run at once.

    Example:
        >>> import emoreg
        >>> emoreg.ResourcesConfig(cpus_per_trial=4, gpus_per_trial=0.5).max_retries
        2
    """

    cpus_per_trial: Positive = 1.0
    """CPU cores a trial, which are also its threads on a CPU."""
    gpus_per_trial: NotNegative | None = None
    """GPUs a trial, at most 1; a fraction shares one. None: one where Ray has or may start GPUs, none elsewhere. 0: CPU."""
    memory_gib_per_trial: Positive | None = None
    """Memory that Ray sets aside for a trial, in GiB. None: none, so CPUs and GPUs alone say how many fit on a machine."""
    accelerator_type: _AcceleratorType | None = None
    """Kind of GPU that trials run on, as Ray names it (H100, A100, T4). None: any."""
    max_concurrent: PositiveInt | None = None
    """Most trials at once. None: as many as fit."""
    checkpoint_seconds: NotNegative = 30.0
    """Time between two checkpoints of a trial: the most that a killed one does again."""
    max_retries: NotNegativeInt = 2
    """How often a trial broken by the machine goes on from its last checkpoint before it counts as failed."""
    retry_seconds: NotNegative = 5.0
    """Pause before the first retry of a trial; each further one doubles it."""
    max_failures: PositiveInt = 3
    """Trials that a fault in code, not the machine, may break before the study stops."""
    keep_networks: Literal["best", "all", "none"] = "best"
    """Trained networks that stay when trials have ended, to be exported: the search's best and the confirmed, all, or none."""
    grace_seconds: Positive = 25.0
    """What trials have to save their state after SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2, as clusters and lost terminals send."""

    def __post_init__(self) -> None:
        validate(self, "resources", _gpu_rules("gpus_per_trial"))


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetConfig:
    """What a study may take. It ends before it has taken more, with its trials saved, and goes on when it is run again.

    Example:
        >>> import emoreg
        >>> emoreg.BudgetConfig(device_hours=100, cost=50, price_per_hour=2.5).most_device_hours
        20.0
    """

    hours: Positive | None = None
    """Most wall time of one run. None: no end."""
    device_hours: Positive | None = None
    """Most hours of devices that all runs take together: a trial on half a GPU takes half. None: no end."""
    cost: Positive | None = None
    """Most money that all runs take together, at price_per_hour. None: no end."""
    price_per_hour: Positive | None = None
    """What an hour of the device costs."""

    def __post_init__(self) -> None:
        validate(self, "budget", _BUDGET_RULES)

    @property
    def most_device_hours(self) -> float:
        """What ``device_hours`` and ``cost`` allow together; infinite where both are None."""
        by_cost = None if self.cost is None or self.price_per_hour is None else self.cost / self.price_per_hour
        return min((limit for limit in (self.device_hours, by_cost) if limit is not None), default=math.inf)


_BUDGET_RULES = (
    Rule(
        "price_per_hour",
        lambda c: c.cost is None or c.price_per_hour is not None,
        "must be given for a cost, which it makes of device hours",
        "give what an hour of the device costs",
    ),
)
