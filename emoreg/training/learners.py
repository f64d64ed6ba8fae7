"""Learners: what the loop trains. It knows their protocol and nothing behind it.

Legend: B images of a batch, N of a split, S their side, C scores for each: classes, or real-valued targets, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from emoreg.config import TrialConfig
from emoreg.config.trial import KINDS_OF_ONE_LEARNED_BALANCE
from emoreg.data.batches import Batches, Targets
from emoreg.training.backbones import recompute_statistics
from emoreg.training.model import EmotionalNet, Regulation, Response, class_loss
from emoreg.training.oom import MicroBatches
from emoreg.training.optim import autocast


@runtime_checkable  # tests check it in signatures
class Learner(Protocol):
    """A network with its loss.

    Attributes:
        config: of the trial.
        network: what is trained.
        balance_by_image: whether its balance depends on the image.
        affect: a few of the stimuli with what they mean, in two halves, where a trial has stimuli and probes to look at them.
    """

    config: TrialConfig
    network: nn.Module
    balance_by_image: bool = False
    affect: tuple[Batches, Batches] | None = None

    def learning_rates(self) -> Mapping[nn.Parameter, float]:
        """Peak learning rates of the parameters that have others than their stage's optimizer says."""
        return {}

    def begin_batch(self) -> None:
        """Draw what a batch has at random, before it is trained on as a whole or in parts."""
        return

    def respond(self, images: Float[Tensor, "B 3 S S"]) -> Response:
        """The network's response, in the precision of the trial."""
        with autocast(self.config, images.device):
            response: Response = self.network(images)
        return response

    def loss(self, images: Float[Tensor, "B 3 S S"], targets: Targets) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """Mean loss over the images, which training minimises, and their scores."""

    def total_loss(self, response: Response, targets: Targets) -> Float[Tensor, ""]:
        """Sum of the unsmoothed losses of the images, in float64: what an evaluation adds up."""

    def scores(self, images: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C"]:
        """Scores of the images, the largest of which is the prediction."""
        return self.respond(images).logits

    def sources(self, images: Float[Tensor, "B 3 S S"]) -> Mapping[str, Float[Tensor, "B C"]]:
        """Scores by each encoder with its own head, plain and emotional, as far as they are there: what probes compare."""
        response = self.respond(images)
        responses = {"plain": response.plain, "emotional": response.emotional}
        return {name: scores for name, scores in responses.items() if scores is not None}

    def features(self, images: Float[Tensor, "B 3 S S"]) -> Mapping[str, Float[Tensor, "B D"]]:
        """Features of each encoder, plain and emotional, as far as they are there: what probes compare too."""
        return {name: found.float() for name, found in self.respond(images).features.items()}


class EmotionLearner(Learner):
    """Stage 1: the emotional net learns affect from the stimuli."""

    network: EmotionalNet

    def __init__(
        self,
        config: TrialConfig,
        network: EmotionalNet,
        *,
        regression: bool,
        class_weights: Float[Tensor, " C"] | None = None,
    ) -> None:
        """Learn classes, weighted or alike, or with ``regression`` real numbers by their mean squared error."""
        self.network = network
        self._class_weights = class_weights
        self.config = config
        self._regression = regression

    def loss(self, images: Float[Tensor, "B 3 S S"], targets: Targets) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """Mean cross-entropy or squared error, and the scores."""
        scores = self.scores(images)
        return self._loss(scores, targets, self.config.pretraining.label_smoothing, self._class_weights), scores

    def total_loss(self, response: Response, targets: Targets) -> Float[Tensor, ""]:
        """Sum of cross-entropies or squared errors."""
        return self._loss(response.logits, targets).double() * len(targets)

    def _loss(
        self, scores: Tensor, targets: Tensor, label_smoothing: float = 0.0, class_weights: Tensor | None = None
    ) -> Tensor:
        if self._regression:
            return F.mse_loss(scores, targets)
        return class_loss(scores, targets, label_smoothing, class_weights)


class RegulationLearner(Learner):
    """Stage 2: both responses are balanced while the task is learned, end to end."""

    network: Regulation

    def __init__(self, config: TrialConfig, network: Regulation, *, class_weights: Float[Tensor, " C"] | None = None) -> None:
        """Learn the task's classes, weighted or alike."""
        self.network = network
        self._class_weights = class_weights
        self.balance_by_image = config.regulation.kind == "dynamic"
        self.config = config

    def learning_rates(self) -> Mapping[nn.Parameter, float]:
        """Those of the emotional encoder, whose experience is to last, and of a learned balance, which has further to go."""
        settings, network = self.config.regulation, self.network
        rates: dict[nn.Parameter, float] = {}
        if network.emotional is not None:
            rate = settings.emotional_learning_rate * settings.optimizer.learning_rate
            rates |= dict.fromkeys(network.emotional.parameters(), rate)
        if settings.kind in KINDS_OF_ONE_LEARNED_BALANCE:
            rates[network.raw_balance] = settings.balance_learning_rate
        return rates

    def adapt_frozen(self, task: Batches) -> None:
        """Recompute the BatchNorm statistics of a frozen encoder by one pass over the task's training images.

        Those that it has are of other images: the stimuli or, untrained, none at all.
        """
        settings, encoder = self.config.regulation, self.network.emotional
        if encoder is not None and settings.is_emotion_frozen:
            parts = (part for images, _ in task.evaluation() for part in images.split(settings.batch_size))
            with autocast(self.config, task.device):
                recompute_statistics(encoder, parts)

    def begin_batch(self) -> None:
        """Draw the balance, if it is drawn for each batch."""
        self.network.draw_balance()

    def loss(self, images: Float[Tensor, "B 3 S S"], targets: Targets) -> tuple[Float[Tensor, ""], Float[Tensor, "B C"]]:
        """Mean cross-entropy of the balanced response, or the balanced mean of two, and the scores."""
        response = self.respond(images)
        smoothing = self.config.regulation.label_smoothing
        return self.network.loss(response, targets, smoothing, self._class_weights), response.logits

    def total_loss(self, response: Response, targets: Targets) -> Float[Tensor, ""]:
        """Sum of the cross-entropies of the balanced response."""
        return F.cross_entropy(response.logits, targets, reduction="sum").double()


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """How a network does on a split.

    Attributes:
        loss: mean over the images, unsmoothed.
        scores: of each image.
        targets: of each image.
        balance: of each image; None where there is none.
        plain: scores by the plain encoder with its own head; None where there is none.
        emotional: those by the emotional encoder.
    """

    loss: float
    scores: Float[Tensor, "N C"]
    targets: Int[Tensor, " N"] | Float[Tensor, "N C"]
    balance: Float[Tensor, " N"] | None
    plain: Float[Tensor, "N C"] | None = None
    emotional: Float[Tensor, "N C"] | None = None

    @property
    def accuracy(self) -> float | None:
        """Share of images classified correctly, in [0, 1]; None for real-valued targets."""
        if self.targets.dim() > 1:
            return None
        return float((self.scores.argmax(dim=1) == self.targets).sum()) / len(self.targets)

    @property
    def confusion(self) -> Int[Tensor, "C C"]:
        """Counts of images by true class (rows) and predicted class (columns)."""
        num_classes = self.scores.shape[1]
        cells = self.targets * num_classes + self.scores.argmax(dim=1)
        return torch.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


@torch.no_grad()
def evaluate(learner: Learner, split: Batches, micro_batches: MicroBatches | None = None) -> Evaluation:
    """Run a network over a split, in evaluation mode and without augmentation; ``micro_batches`` knows what fits in memory."""

    def assess(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        response = learner.respond(images)
        balance = None if response.balance is None else response.balance.float().expand(len(targets))
        return learner.total_loss(response, targets), response.logits, balance, response.plain, response.emotional

    learner.network.eval()
    micro_batches = micro_batches or MicroBatches(learner.network)
    batches = [(micro_batches.evaluate(assess, *batch), batch[1]) for batch in split.evaluation()]
    losses, scores, balances, plains, emotionals = zip(*(part for parts, _ in batches for part in parts), strict=True)
    # On the CPU: counting is not deterministic on a GPU, and torch refuses it there in the deterministic mode.
    return Evaluation(
        loss=float(torch.stack(losses).sum()) / len(split),
        scores=torch.cat(scores).cpu(),
        targets=torch.cat([targets for _, targets in batches]).cpu(),
        balance=None if balances[0] is None else torch.cat(balances).cpu(),
        plain=None if plains[0] is None else torch.cat(plains).cpu(),
        emotional=None if emotionals[0] is None else torch.cat(emotionals).cpu(),
    )
