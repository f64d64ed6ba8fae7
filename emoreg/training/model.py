"""The networks: the emotional net of stage 1, and the regulated one of stage 2 (method, section 1: a reconstruction).

    f  plain encoder,     z_n = W_n f(x)    the non-emotional response
    g  emotional encoder, z_e = W_e g(x)    the emotionally-influenced response
    b  balance in [0, 1]: the weight of the emotional side

    output       z = (1 - b) z_n + b z_e
    conditioned  z_e = W_e [f(x); softmax(H g(x))] with g and its emotion head H frozen, mixed as above
    loss         L = (1 - b) CE(z_n, y) + b CE(z_e, y); the prediction comes from z as in output

Legend: B images, S their side, D and E features of f and g, O outputs of H (affect classes, or valence and arousal), C classes
of the task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from emoreg.config import RegulationConfig, TrialConfig
from emoreg.config.trial import KINDS_OF_ONE_LEARNED_BALANCE
from emoreg.data.batches import Targets
from emoreg.seeding import derive_seed, generator, global_stream
from emoreg.training.backbones import Encoder, create_encoder
from emoreg.training.compilation import compile_steps


@dataclass(frozen=True, slots=True)
class Response:
    """What a network answers to a batch.

    Attributes:
        logits: the prediction; under mix_space=probabilities, its log-probabilities (softmax leaves them as they are).
        plain: z_n; None if b = 1 makes it superfluous, and in stage 1.
        emotional: z_e; None if b = 0 makes it superfluous. In stage 1, the prediction itself.
        balance: b, one for the batch or one for each image; None in stage 1.
        features: of each encoder, plain and emotional, as far as they are there.
    """

    logits: Float[Tensor, "B C"]
    plain: Float[Tensor, "B C"] | None
    emotional: Float[Tensor, "B C"] | None
    balance: Float[Tensor, ""] | Float[Tensor, " B"] | None
    features: Mapping[str, Float[Tensor, "B _"]]


class EmotionalNet(nn.Module):
    """An encoder g with its emotion head H."""

    def __init__(self, encoder: Encoder, num_outputs: int, seed: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = _linear(encoder.width, num_outputs, seed)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Response:
        """Emotion logits, or estimated valence and arousal."""
        g = self.encoder(images)
        scores: Tensor = self.head(g).float()
        return Response(scores, plain=None, emotional=scores, balance=None, features={"emotional": g})


def create_emotional_net(config: TrialConfig, num_outputs: int) -> EmotionalNet:
    """The emotional encoder and head before any experience. Its streams depend on the trial's seed alone."""
    return EmotionalNet(_create(config, "emotional encoder"), num_outputs, derive_seed(config.seed, "emotion head"))


class Regulation(nn.Module):
    """Both encoders, their task heads and the balance. An encoder that b makes superfluous is not there at all."""

    def __init__(
        self,
        config: RegulationConfig,
        *,
        plain: Encoder | None,
        emotional: Encoder | None,
        emotion_head: nn.Linear | None,
        num_classes: int,
        seed: int,
    ) -> None:
        """Build the network around f and g, which come initialised, each exactly where ``config`` needs it.

        H is for the conditioned form, and ignored by the others; ``seed`` is of the heads and of what is drawn.
        """
        super().__init__()
        assert (plain is not None) == config.needs_plain
        assert (emotional is not None) == config.needs_emotional
        self.config = config
        self.plain = plain
        self.emotional = emotional
        self.emotion_head: nn.Linear | None = None
        self.plain_head: nn.Linear | None = None
        self.emotional_head: nn.Linear | None = None
        if plain is not None and not (config.kind == "fixed" and config.balance == 1.0):
            self.plain_head = _linear(plain.width, num_classes, derive_seed(seed, "plain head"))
        if emotional is not None:
            width = emotional.width
            if config.form == "conditioned":
                assert plain is not None
                assert emotion_head is not None
                self.emotion_head = emotion_head.requires_grad_(False)
                width = plain.width + emotion_head.out_features
            self.emotional_head = _linear(width, num_classes, derive_seed(seed, "emotional head"))
        if config.is_emotion_frozen and emotional is not None:
            emotional.requires_grad_(False)

        self._generator = generator(seed, "balance")
        self._drawn_balance = torch.tensor(0.5)
        if config.kind in KINDS_OF_ONE_LEARNED_BALANCE:
            start = config.balance if config.kind == "learnable" else _open_uniform(self._generator)
            self.raw_balance = nn.Parameter(torch.tensor(_logit(start)))
        if config.kind == "dynamic":
            assert plain is not None
            assert emotional is not None
            self.balance_of = nn.Linear(plain.width + emotional.width, 1)
            nn.init.zeros_(self.balance_of.weight)
            nn.init.constant_(self.balance_of.bias, _logit(config.balance))

    def train(self, mode: bool = True) -> Regulation:
        """Set the mode; a frozen g stays in evaluation mode, so that its BatchNorm statistics stay too."""
        super().train(mode)
        if self.emotional is not None and self.config.is_emotion_frozen:
            self.emotional.eval()
        return self

    def draw_balance(self) -> None:
        """Draw the balance that a batch is trained with, for kind=random: to be called once for each, whole or in parts."""
        if self.config.kind == "random":
            self._drawn_balance = torch.rand((), generator=self._generator)

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Response:
        """The balanced response to a batch. Responses are mixed in float32 under autocast too."""
        f = self.plain(images) if self.plain is not None else None
        g = self.emotional(images) if self.emotional is not None else None
        raw = self._raw_balance(f, g)
        balance = self._given_balance(images.device) if raw is None else torch.sigmoid(raw)
        z_n = self.plain_head(f).float() if self.plain_head is not None else None
        z_e = None
        if self.emotional_head is not None:
            assert g is not None
            source = g
            if self.emotion_head is not None:
                assert f is not None
                source = torch.cat([f, self.emotion_head(g).softmax(dim=1).to(f.dtype)], dim=1)
            z_e = self.emotional_head(source).float()
        features = {name: found for name, found in (("plain", f), ("emotional", g)) if found is not None}
        return Response(self._mix(z_n, z_e, balance, raw), z_n, z_e, balance, features)

    def loss(
        self,
        response: Response,
        targets: Targets,
        label_smoothing: float = 0.0,
        class_weights: Float[Tensor, " C"] | None = None,
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy of the response, or the balanced mean of two cross-entropies for form=loss."""
        if self.config.form != "loss" or response.plain is None or response.emotional is None:
            return class_loss(response.logits, targets, label_smoothing, class_weights)
        losses = [
            F.cross_entropy(z, targets, class_weights, label_smoothing=label_smoothing, reduction="none")
            for z in (response.plain, response.emotional)
        ]
        assert response.balance is not None
        return ((1 - response.balance) * losses[0] + response.balance * losses[1]).mean()

    def _raw_balance(self, f: Tensor | None, g: Tensor | None) -> Tensor | None:
        """The logit r of a learned balance; None for one that is given."""
        match self.config.kind:
            case "learnable" | "random_learnable":
                return self.raw_balance
            case "dynamic":
                assert f is not None
                assert g is not None
                raw: Tensor = self.balance_of(torch.cat([f, g], dim=1)).float().squeeze(1)
                return raw
            case "random" | "fixed":
                return None

    def _given_balance(self, device: torch.device) -> Tensor:
        if self.config.kind == "fixed":
            return torch.full((), self.config.balance, device=device)
        return (self._drawn_balance if self.training else torch.tensor(0.5)).to(device)

    def _mix(self, z_n: Tensor | None, z_e: Tensor | None, balance: Tensor, raw: Tensor | None) -> Tensor:
        if z_n is None or z_e is None:
            only = z_n if z_n is not None else z_e
            assert only is not None
            return only
        b = balance.reshape(-1, 1)
        if self.config.mix_space == "logits":
            return (1 - b) * z_n + b * z_e
        # log((1 - b) softmax(z_n) + b softmax(z_e)), without leaving log space: b = sigmoid(r) is exactly 1 from r = 17 on
        if raw is None:
            log_n, log_e = torch.log1p(-b), torch.log(b)
        else:
            log_n, log_e = F.logsigmoid(-raw).reshape(-1, 1), F.logsigmoid(raw).reshape(-1, 1)
        return torch.logaddexp(log_n + z_n.log_softmax(dim=1), log_e + z_e.log_softmax(dim=1))

    def get_extra_state(self) -> Tensor:
        """The state of the balance's random stream, so that a checkpoint continues it."""
        return self._generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Take up the balance's random stream again."""
        self._generator.set_state(state.cpu())


def class_loss(
    scores: Float[Tensor, "B C"], targets: Targets, label_smoothing: float, class_weights: Float[Tensor, " C"] | None
) -> Float[Tensor, ""]:
    """Mean over the images of their cross-entropies, each times the weight of its class.

    The sum is divided by the number of images, not by that of their weights, so that the parts of a batch add up to the whole.
    """
    if class_weights is None:
        return F.cross_entropy(scores, targets, label_smoothing=label_smoothing)
    return F.cross_entropy(scores, targets, class_weights, label_smoothing=label_smoothing, reduction="none").mean()


def create_regulation(config: TrialConfig, emotional: EmotionalNet | None, num_classes: int) -> Regulation:
    """The regulated network of a resolved trial before stage 2; ``emotional`` is None if the trial needs none."""
    return Regulation(
        config.regulation,
        plain=_create(config, "plain encoder") if config.regulation.needs_plain else None,
        emotional=emotional.encoder if emotional is not None else None,
        emotion_head=emotional.head if emotional is not None else None,
        num_classes=num_classes,
        seed=config.seed,
    )


def _create(config: TrialConfig, stream: str) -> Encoder:
    encoder = create_encoder(
        config.backbone,
        image_size=config.image_size,
        drop_path=config.drop_path,
        small_stem=config.has_small_stem,
        width=config.width,
        weights=config.weights,
        seed=derive_seed(config.seed, stream),
    )
    compile_steps(encoder, config)
    return encoder


def _linear(inputs: int, outputs: int, seed: int) -> nn.Linear:
    with global_stream(seed):
        return nn.Linear(inputs, outputs)


def _open_uniform(rng: torch.Generator) -> float:
    """U(0, 1) kept off the end points, whose logit is infinite."""
    return float(torch.rand((), generator=rng).clamp(1e-3, 1 - 1e-3))


def _logit(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)
