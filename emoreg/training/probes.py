"""Probes: functions that measure a network after chosen epochs, and change no number of the trial.

Legend: B images of the fixed batch, S their side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from emoreg.config.registry import PROBES
from emoreg.results.records import ProbeRecord
from emoreg.training.learners import Learner, Targets
from emoreg.training.stages import Stage

_NUM_IMAGES = 256

Probe = Callable[[Learner, Float[Tensor, "B 3 S S"], Targets], Mapping[str, float]]


def probe(name: str) -> Callable[[Probe], Probe]:
    """Register the decorated function as a probe, for ``TrialConfig.probes``.

    It takes a ``Learner``, a fixed batch of images and their targets, and returns numbers by name. The network is in evaluation
    mode, gradients are off (``torch.enable_grad`` turns them on), and torch's random streams are copies. The weights must stay
    as they are.

    Example:
        >>> import emoreg
        >>> @emoreg.probe("confidence")
        ... def confidence(learner, images, targets):
        ...     return {"mean": learner.scores(images).softmax(dim=1).amax(dim=1).mean().item()}
        >>> emoreg.TrialConfig(probes=("confidence",), probe_every=2).probes
        ('confidence',)
    """

    def register(function: Probe) -> Probe:
        PROBES.add(name, function)
        return function

    return register


@torch.no_grad()
def run_probes(stage: Stage, learner: Learner, epoch: int) -> list[ProbeRecord]:
    """Run the trial's probes after an epoch, if it is one of those chosen: every ``probe_every``-th, and the stage's last.

    They see the first validation images or, if there are none, training images without augmentation.

    Raises:
        ConfigError: for a probe that is not registered.
    """
    config = stage.trial.config
    if not config.probes or (epoch % config.probe_every and epoch != stage.settings.epochs):
        return []
    split = stage.validation if stage.validation is not None else stage.train
    images, targets = (part[:_NUM_IMAGES] for part in next(split.evaluation()))
    record = partial(ProbeRecord, identity=stage.trial.identity, stage=stage.name, epoch=epoch)
    found = []
    for name in config.probes:
        learner.network.eval()
        with torch.random.fork_rng([split.device] if split.device.type == "cuda" else []):
            numbers = PROBES.require(name, of="probes")(learner, images, targets)
        found += [record(probe=name, name=key, value=float(value)) for key, value in numbers.items()]
    return found


@probe("agreement")
def agreement(learner: Learner, images: Float[Tensor, "B 3 S S"], targets: Targets) -> dict[str, float]:
    """Measure the share of images for which both encoders predict the same class, if there are two."""
    predictions = [scores.argmax(dim=1) for scores in learner.sources(images).values()]
    return {"agreement": float((predictions[0] == predictions[1]).double().mean())} if len(predictions) == 2 else {}
