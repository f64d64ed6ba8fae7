from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emoreg.config import RegulationConfig
from emoreg.training.backbones import Encoder
from emoreg.training.model import Regulation, Response
from tests.helpers.trials import linear_encoder

C = 4
FORMS = ("output", "conditioned", "loss")
KINDS = ("fixed", "learnable", "random", "random_learnable", "dynamic")


def may_be(form: str, kind: str) -> bool:
    """Whether a kind goes with a form: the loss form learns no balance."""
    return form != "loss" or kind in ("fixed", "random")


def build(seed: int = 7, **settings: Any) -> Regulation:
    config = RegulationConfig(**settings)
    torch.manual_seed(99)
    return Regulation(
        config,
        plain=linear_encoder(5, seed=1) if config.needs_plain else None,
        emotional=linear_encoder(6, seed=2) if config.needs_emotional else None,
        emotion_head=nn.Linear(6, 3) if config.needs_emotional else None,
        num_classes=C,
        seed=seed,
    )


@pytest.fixture
def images() -> Tensor:
    return torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def targets() -> Tensor:
    return torch.arange(9) % C


def by_hand(network: Regulation, images: Tensor) -> tuple[Tensor, Tensor]:
    """(z_n, z_e) from method.md's definitions, written out with matrices."""
    assert network.plain is not None
    assert network.emotional is not None
    assert network.plain_head is not None
    assert network.emotional_head is not None
    f, g = network.plain(images), network.emotional(images)
    z_n = f @ network.plain_head.weight.T + network.plain_head.bias
    if network.config.form == "conditioned":
        assert network.emotion_head is not None
        scores = (g @ network.emotion_head.weight.T + network.emotion_head.bias).exp()
        g = torch.cat([f, scores / scores.sum(1, keepdim=True)], dim=1)
    return z_n, g @ network.emotional_head.weight.T + network.emotional_head.bias


@pytest.mark.parametrize("mix_space", ["logits", "probabilities"])
@pytest.mark.parametrize("form", ["output", "conditioned"])
def test_the_response_and_its_loss_are_those_of_the_formulas(
    form: str, mix_space: str, images: Tensor, targets: Tensor
) -> None:
    network = build(form=form, mix_space=mix_space, balance=0.3)
    response = network(images)
    z_n, z_e = by_hand(network, images)
    torch.testing.assert_close(response.plain, z_n)
    torch.testing.assert_close(response.emotional, z_e)
    if mix_space == "logits":
        probabilities = (0.7 * z_n + 0.3 * z_e).softmax(1)
        torch.testing.assert_close(response.logits, 0.7 * z_n + 0.3 * z_e)
    else:
        probabilities = 0.7 * z_n.softmax(1) + 0.3 * z_e.softmax(1)
        torch.testing.assert_close(response.logits.exp(), probabilities)
    by_formula = -probabilities[torch.arange(9), targets].log().mean()
    torch.testing.assert_close(network.loss(response, targets), by_formula)


def test_the_loss_form_mixes_two_cross_entropies_and_predicts_from_the_mixed_responses(images: Tensor, targets: Tensor) -> None:
    network = build(form="loss", balance=0.3)
    response = network(images)
    z_n, z_e = by_hand(network, images)
    torch.testing.assert_close(response.logits, 0.7 * z_n + 0.3 * z_e)
    expected = 0.7 * F.cross_entropy(z_n, targets) + 0.3 * F.cross_entropy(z_e, targets)
    torch.testing.assert_close(network.loss(response, targets), expected)
    soft = F.one_hot(targets, C).float() * 0.6 + 0.1
    expected = 0.7 * F.cross_entropy(z_n, soft, label_smoothing=0.2) + 0.3 * F.cross_entropy(z_e, soft, label_smoothing=0.2)
    torch.testing.assert_close(network.loss(response, soft, 0.2), expected)


def test_label_smoothing_acts_on_mixed_probabilities(images: Tensor, targets: Tensor) -> None:
    network = build(mix_space="probabilities", balance=0.3)
    response = network(images)
    logs = response.logits
    expected = -(0.8 * logs[torch.arange(9), targets] + 0.2 * logs.mean(1)).mean()
    torch.testing.assert_close(network.loss(response, targets, 0.2), expected)


@pytest.mark.parametrize("balance", [0.0, 1.0])
def test_what_the_balance_makes_superfluous_is_not_built(balance: float, images: Tensor) -> None:
    network = build(balance=balance)
    used, unused = (network.plain, network.emotional) if balance == 0 else (network.emotional, network.plain)
    assert unused is None
    assert isinstance(used, Encoder)
    width = used.width
    assert sum(p.numel() for p in network.parameters()) == (12 * width + width) + (width * C + C)
    response = network(images)
    assert (response.emotional if balance == 0 else response.plain) is None
    assert response.balance == balance


def test_the_conditioned_form_at_the_end_points(images: Tensor) -> None:
    whole = build(form="conditioned", balance=1.0)
    assert whole.plain is not None
    assert whole.plain_head is None
    assert whole(images).plain is None
    assert build(form="conditioned", balance=0.0).emotional is None


def test_the_balance_of_the_loss_form_decides_the_prediction_though_adamw_divides_it_out_of_the_training(
    images: Tensor, targets: Tensor
) -> None:
    mostly_plain, mostly_emotional = (build(form="loss", balance=balance) for balance in (0.1, 0.9))
    for network in (mostly_plain, mostly_emotional):
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.01)
        for _ in range(40):
            optimizer.zero_grad()
            network.loss(network(images), targets).backward()
            optimizer.step()
    plain, emotional = mostly_plain(images), mostly_emotional(images)
    apart = (plain.plain - plain.emotional).abs().max()
    assert (plain.plain - emotional.plain).abs().max() < 0.05 * apart  # the two are trained alike
    assert (plain.logits - emotional.logits).abs().max() > 0.5 * apart


@pytest.mark.parametrize(("form", "kind"), [(form, kind) for form in FORMS for kind in KINDS if may_be(form, kind)])
def test_gradient_reaches_all_that_learns_and_nothing_that_is_frozen(
    form: str, kind: str, images: Tensor, targets: Tensor
) -> None:
    network = build(form=form, kind=kind)
    network.loss(network(images), targets).backward()
    frozen = ("emotional.", "emotion_head.") if form == "conditioned" else ("emotion_head.",)
    for name, parameter in network.named_parameters():
        if name.startswith(frozen):
            assert not parameter.requires_grad, name
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
    learned = {name for name, _ in network.named_parameters() if "balance" in name}
    expected = {"learnable": {"raw_balance"}, "random_learnable": {"raw_balance"}}
    assert learned == expected.get(kind, {"balance_of.weight", "balance_of.bias"} if kind == "dynamic" else set())


def test_a_frozen_encoder_keeps_its_batchnorm_statistics(images: Tensor, targets: Tensor) -> None:
    for freeze in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        config = RegulationConfig(freeze_emotional=freeze)
        emotional = Encoder(model, 8)
        network = Regulation(
            config, plain=linear_encoder(5, seed=1), emotional=emotional, emotion_head=None, num_classes=C, seed=0
        )
        before = {key: value.clone() for key, value in emotional.state_dict().items()}
        network.train()
        network.loss(network(images), targets).backward()
        same = all(torch.equal(before[key], value) for key, value in emotional.state_dict().items())
        assert same == freeze
        assert all((p.grad is None) == freeze for p in emotional.parameters())
        assert network.emotional_head is not None
        assert network.emotional_head.weight.grad is not None


def test_learned_kinds_start_where_they_should(images: Tensor) -> None:
    torch.testing.assert_close(build(kind="learnable", balance=0.2)(images).balance, torch.tensor(0.2))
    dynamic = build(kind="dynamic", balance=0.2)
    torch.testing.assert_close(dynamic(images).balance, torch.full((9,), 0.2))
    starts = [float(build(kind="random_learnable", seed=seed)(images).balance.detach()) for seed in range(200)]
    assert 0.4 < sum(starts) / 200 < 0.6
    assert min(starts) < 0.1
    assert max(starts) > 0.9
    assert starts[3] == float(build(kind="random_learnable", seed=3)(images).balance.detach())


@pytest.mark.parametrize("raw", [-200.0, -90.0, 17.0, 200.0])
@pytest.mark.parametrize("kind", ["learnable", "random_learnable", "dynamic"])
def test_a_balance_at_its_end_points_gives_finite_gradients(kind: str, raw: float, images: Tensor, targets: Tensor) -> None:
    network = build(kind=kind, mix_space="probabilities")
    learned = network.balance_of.bias if kind == "dynamic" else network.raw_balance
    nn.init.constant_(learned, raw)
    response = network(images)
    assert ((response.balance == 0) | (response.balance == 1) | (raw == -90)).all()
    network.loss(response, targets).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert learned.grad is not None
    only = response.plain if raw < 0 else response.emotional
    torch.testing.assert_close(response.logits, only.log_softmax(dim=1))


def test_a_dynamic_balance_is_of_each_image_and_mixes_each_by_its_own(images: Tensor) -> None:
    network = build(kind="dynamic", balance=0.4)
    nn.init.normal_(network.balance_of.weight)
    response = network(images)
    assert network.plain is not None
    assert network.emotional is not None
    features = torch.cat([network.plain(images), network.emotional(images)], dim=1)
    expected = torch.sigmoid(features @ network.balance_of.weight[0] + math.log(0.4 / 0.6))
    torch.testing.assert_close(response.balance, expected)
    assert expected.std() > 0.01
    z_n, z_e = by_hand(network, images)
    torch.testing.assert_close(response.logits, (1 - expected[:, None]) * z_n + expected[:, None] * z_e)


def test_a_random_balance_differs_by_batch_and_is_its_mean_at_evaluation(images: Tensor) -> None:
    network = build(kind="random").train()

    def draw(network: Regulation) -> Tensor:
        network.draw_balance()
        balance = network(images).balance
        assert torch.equal(balance, network(images[:2]).balance)  # a batch in parts has one balance
        return balance

    drawn = torch.stack([draw(network) for _ in range(200)])
    assert len(drawn.unique()) > 190
    assert 0.4 < drawn.mean() < 0.6
    assert (drawn.min() < 0.1) & (drawn.max() > 0.9)
    network.eval()
    assert network(images).balance == 0.5
    response = network(images)
    assert response.plain is not None
    assert response.emotional is not None
    torch.testing.assert_close(response.logits, (response.plain + response.emotional) / 2)


def test_the_state_carries_the_stream_of_a_random_balance(images: Tensor) -> None:
    first, second = build(kind="random", seed=1).train(), build(kind="random", seed=2).train()
    for _ in range(3):
        first.draw_balance()
    second.load_state_dict(first.state_dict())
    for _ in range(5):
        first.draw_balance()
        second.draw_balance()
        assert first(images).balance == second(images).balance


def test_heads_depend_on_the_seed_and_not_on_what_else_is_built() -> None:
    both, alone, emotional = build(balance=0.5), build(balance=0.0), build(balance=1.0)
    assert alone.plain_head is not None
    assert both.plain_head is not None
    assert both.emotional_head is not None
    assert emotional.emotional_head is not None
    assert torch.equal(both.plain_head.weight, alone.plain_head.weight)
    assert torch.equal(both.emotional_head.weight, emotional.emotional_head.weight)
    other = build(seed=8).plain_head
    assert other is not None
    assert not torch.equal(both.plain_head.weight, other.weight)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    Regulation(
        dataclasses.replace(both.config, kind="random_learnable"),
        plain=both.plain,
        emotional=both.emotional,
        emotion_head=None,
        num_classes=C,
        seed=0,
    )
    assert torch.equal(before, torch.get_rng_state())


def test_shapes_are_checked_in_tests(images: Tensor) -> None:
    from jaxtyping import TypeCheckError

    response = build()(images)
    assert isinstance(response, Response)
    with pytest.raises(TypeCheckError):
        build()(images[:, :2])
    with pytest.raises(TypeCheckError):
        build().loss(response, torch.zeros(9, 2, C))
