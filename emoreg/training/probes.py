"""Probes: functions that measure a network after chosen epochs, and change no number of the trial.

Ours measure what the emotional encoder has to do with the response (method, section 1): from its experience, or as any second
encoder has.

Legend: B images of the fixed batch, S their side, D and E features of two encoders.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from emoreg.config.registry import PROBES
from emoreg.data.batches import Batches, Targets
from emoreg.results.records import ProbeRecord
from emoreg.training.learners import Learner
from emoreg.training.model import Regulation, Response
from emoreg.training.stages import Stage

_NUM_IMAGES = 256
_RIDGE = 0.1
"""Of a linear probe, in units of a feature's variance."""
_ROUNDING = 1e-5
"""What varies over images by less, relative to its size, may be rounding: 80 times the distance of float32's numbers."""

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
    return partial(PROBES.add, name)


@torch.no_grad()
def run_probes(stage: Stage, learner: Learner, epoch: int) -> list[ProbeRecord]:
    """Run the trial's probes after an epoch, if it is one of those chosen: every ``probe_every``-th, and the stage's last.

    They see the first validation images or, if there are none, training images without augmentation.
    """
    config = stage.trial.config
    if not config.probes or (epoch % config.probe_every and epoch != stage.epochs):
        return []
    split = stage.validation if stage.validation is not None else stage.train
    images, targets = (part[:_NUM_IMAGES] for part in next(split.evaluation()))
    by_users, seen = PROBES.user_names(), _SeenOnce(learner, images)
    record = partial(ProbeRecord, identity=stage.trial.identity, stage=stage.name, epoch=epoch)
    found = []
    for name in config.probes:
        learner.network.eval()
        with torch.random.fork_rng([split.device] if split.device.type == "cuda" else []):
            numbers = PROBES.require(name, of="probes")(learner if name in by_users else seen, images, targets)
        found += [record(probe=name, name=key, value=float(value)) for key, value in numbers.items()]
    return found


class _SeenOnce(Learner):
    """A learner that answers to the fixed batch once for all of our probes. A user's may change it between two answers."""

    def __init__(self, learner: Learner, images: Float[Tensor, "B 3 S S"]) -> None:
        self.config, self.network, self.affect = learner.config, learner.network, learner.affect
        self.balance_by_image = learner.balance_by_image
        self._learner, self._images = learner, images

    @cached_property
    def _response(self) -> Response:
        return self._learner.respond(self._images)

    def respond(self, images: Float[Tensor, "B 3 S S"]) -> Response:
        return self._response if images is self._images else self._learner.respond(images)

    def loss(self, images: Float[Tensor, "B 3 S S"], targets: Targets) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        return self._learner.loss(images, targets)

    def total_loss(self, response: Response, targets: Targets) -> Float[Tensor, ""]:
        return self._learner.total_loss(response, targets)


@probe("agreement")
def agreement(learner: Learner, images: Float[Tensor, "B 3 S S"], targets: Targets) -> dict[str, float]:
    """Measure the share of images for which both encoders predict the same class, if there are two."""
    predictions = [scores.argmax(dim=1) for scores in learner.sources(images).values()]
    return {"agreement": float((predictions[0] == predictions[1]).double().mean())} if len(predictions) == 2 else {}


@probe("emotion_share")
def emotion_share(learner: Learner, images: Float[Tensor, "B 3 S S"], targets: Targets) -> dict[str, float]:
    """Measure which share of what the response varies by, over images, comes from the emotional encoder.

    The balance does not say it, for the heads are free: the share is sum_k Var_x(c_e,k) / sum_k [Var_x(c_n,k) + Var_x(c_e,k)],
    with c_n = (1 - b) z_n and c_e = b z_e, each centred over the classes k. Where probabilities are mixed, responses do not add
    up, or where they are the same for all images but for rounding, nothing is measured.
    """
    if not isinstance(learner.network, Regulation) or learner.network.config.mix_space != "logits":
        return {}
    response = learner.respond(images)
    if response.plain is None or response.emotional is None or response.balance is None:
        return {}
    b = response.balance.reshape(-1, 1)
    parts = ((1 - b) * response.plain, b * response.emotional)
    plain, emotional = (float((part - part.mean(dim=1, keepdim=True)).double().var(dim=0).sum()) for part in parts)
    rounding = _ROUNDING**2 * sum(float(part.double().square().sum(dim=1).mean()) for part in parts)
    return {"share": emotional / (plain + emotional)} if plain + emotional > rounding else {}


@probe("affect")
def affect(learner: Learner, images: Float[Tensor, "B 3 S S"], targets: Targets) -> dict[str, float]:
    """Measure how well what the stimuli mean is read off each encoder's features, whatever the network is trained on by then.

    A linear probe (Alain and Bengio 2017): ridge regression on one half of a few stimuli, tested on the other half, which
    shares no group with it. Of classes it is balanced accuracy (1 / C is chance), of real numbers the mean R squared.
    Nothing is measured where a trial has no stimuli, nor of features that are not finite, nor of numbers that do not vary.
    """
    if learner.affect is None:
        return {}
    (fitted, taught), (tested, truth) = (_features(learner, half) for half in learner.affect)
    found = {name: _linear_probe(fitted[name], taught, tested[name], truth) for name in fitted}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _features(learner: Learner, batches: Batches) -> tuple[dict[str, Float[Tensor, "N D"]], Tensor]:
    """Of each encoder, with the targets."""
    found = [(learner.features(images), targets) for images, targets in batches.evaluation()]
    features = {name: torch.cat([part[name] for part, _ in found]).double() for name in found[0][0]}
    return features, torch.cat([targets for _, targets in found])


def _linear_probe(fitted: Tensor, taught: Tensor, tested: Tensor, truth: Tensor) -> float:
    is_class = not taught.is_floating_point()
    values = F.one_hot(taught).double() if is_class else taught.double()
    center, scale = fitted.mean(dim=0), fitted.std(dim=0).clamp_min(_ROUNDING)
    inputs, level = (fitted - center) / scale, values.mean(dim=0)
    covariance = inputs.T @ inputs / len(inputs)
    ridge = _RIDGE * torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    weights = torch.linalg.solve(covariance + ridge, inputs.T @ (values - level) / len(inputs))
    answers = (tested - center) / scale @ weights + level
    if not answers.isfinite().all():
        return math.nan
    if is_class:
        right = (answers.argmax(dim=1) == truth).double()
        return float(torch.stack([right[truth == label].mean() for label in truth.unique()]).mean())
    residual, total = (answers - truth).square().sum(dim=0), (truth - truth.double().mean(dim=0)).square().sum(dim=0)
    return float((1 - residual / total).mean())


@probe("usable_information")
def usable_information(learner: Learner, images: Float[Tensor, "B 3 S S"], targets: Targets) -> dict[str, float]:
    """Measure how many bits each encoder, with its own head, and the response tell of the class: H(Y) - CE (Xu et al. 2020)."""
    if targets.is_floating_point():
        return {}
    shares = torch.bincount(targets).double() / len(targets)
    entropy = -torch.xlogy(shares, shares).sum()
    answers = {**learner.sources(images), "response": learner.scores(images)}
    bits = {name: (entropy - F.cross_entropy(scores.double(), targets)) / math.log(2) for name, scores in answers.items()}
    return {name: float(value) for name, value in bits.items()}


@probe("cka")
def cka(learner: Learner, images: Float[Tensor, "B 3 S S"], targets: Targets) -> dict[str, float]:
    """Measure how much the features of both encoders are alike, if there are two: linear CKA without bias."""
    features = learner.features(images)
    if len(features) != 2:
        return {}
    similarity = debiased_cka(features["plain"], features["emotional"])
    return {"cka": similarity} if math.isfinite(similarity) else {}


def debiased_cka(one: Float[Tensor, "B D"], other: Float[Tensor, "B E"]) -> float:
    """Centred kernel alignment of two sets of features by unbiased estimates of HSIC (Song et al. 2012, eq. 5).

    1 for the same features up to a rotation and a factor, 0 on average for independent ones, however few the images are; not a
    number for features without variation. At least four images are needed.
    """
    kernels = [(part.double() @ part.double().T).fill_diagonal_(0) for part in (one, other)]
    own, cross = [_hsic(kernel, kernel) for kernel in kernels], _hsic(*kernels)
    return cross / math.sqrt(own[0] * own[1]) if min(own) > 0 else math.nan


def _hsic(one: Float[Tensor, "B B"], other: Float[Tensor, "B B"]) -> float:
    n = len(one)
    sums = one.sum(dim=0), other.sum(dim=0)
    all_pairs = sums[0].sum() * sums[1].sum() / ((n - 1) * (n - 2))
    return float((one * other).sum() + all_pairs - 2 / (n - 2) * sums[0] @ sums[1]) / (n * (n - 3))
