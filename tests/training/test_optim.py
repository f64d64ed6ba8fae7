from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import nn

from emoreg.config import OptimizerConfig, PretrainingConfig, RegulationConfig, TrialConfig
from emoreg.training import optim as optimization
from emoreg.training.backbones import create_encoder
from emoreg.training.learners import RegulationLearner
from emoreg.training.model import EmotionalNet, Regulation
from emoreg.training.optim import (
    autocast,
    balance_travel,
    build_optimizer,
    length_dependence,
    pretraining_schedule,
    regulation_schedule,
    reproducible,
    uses_bf16,
)
from tests.helpers.trials import CPU, linear_encoder


def vit_regulation() -> Regulation:
    options: dict[str, Any] = {"image_size": 16, "drop_path": 0.0, "weights": None}
    plain, emotional = (create_encoder("test_vit", seed=seed, **options) for seed in (0, 1))
    config = RegulationConfig(kind="learnable", freeze_emotional=True)
    return Regulation(config, plain=plain, emotional=emotional, emotion_head=None, num_classes=3, seed=0)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_norms_biases_the_balance_and_tokens_do_not_decay_and_what_is_frozen_is_left_out(name: Any) -> None:
    network = vit_regulation()
    optimizer = build_optimizer(network, OptimizerConfig(name=name, weight_decay=0.05))
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == {key for key in names.values() if not key.startswith("emotional.")}
    tokens = {"plain.model.cls_token", "plain.model.pos_embed"}
    for key, parameter in network.named_parameters():
        if key in decay:
            assert decay[key] == (0.05 if parameter.dim() > 1 and key not in tokens else 0.0), key
    assert decay["raw_balance"] == 0.0
    assert decay["plain.model.patch_embed.proj.weight"] == 0.05
    assert tokens <= decay.keys()


def test_tokens_of_the_emotional_net_do_not_decay() -> None:
    encoder = create_encoder("test_vit", image_size=16, drop_path=0.0, weights=None, seed=0)
    net = EmotionalNet(encoder, 3, seed=0)
    optimizer = build_optimizer(net, OptimizerConfig(weight_decay=0.05))
    kept = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert id(net.get_parameter("encoder.model.pos_embed")) in kept
    assert id(net.get_parameter("head.weight")) not in kept


def test_a_learned_balance_has_a_learning_rate_of_its_own_and_goes_no_further_than_is_said() -> None:
    settings = RegulationConfig(kind="learnable", balance_learning_rate=0.1, optimizer=OptimizerConfig(learning_rate=1e-3))
    network = vit_regulation()
    learner = RegulationLearner(TrialConfig(regulation=settings), network)
    optimizer = build_optimizer(network, settings.optimizer, learner.learning_rates())
    (own,) = [group for group in optimizer.param_groups if group["peak"] == 0.1]
    assert own["params"] == [network.raw_balance]
    assert own["weight_decay"] == 0.0
    assert all(group["peak"] == 1e-3 for group in optimizer.param_groups if group is not own)
    for step in range(100):  # the balance is pushed as hard as can be, all the time
        own["lr"] = own["peak"] * regulation_schedule(step, 100, settings)
        network.raw_balance.grad = torch.tensor(-1.0)
        optimizer.step()
    travel = balance_travel(settings, 100)
    assert 0.99 * travel < float(network.raw_balance.detach()) <= 1.001 * travel
    assert float(network.raw_balance.detach().sigmoid()) > 0.99  # at the steps of the shipped studies on CPUs


def test_the_emotional_encoder_has_a_multiple_of_the_learning_rate() -> None:
    settings = RegulationConfig(emotional_learning_rate=0.1, optimizer=OptimizerConfig(name="sgd", momentum=0.0))
    encoders = [create_encoder("test_vit", image_size=16, drop_path=0.0, weights=None, seed=seed) for seed in (0, 1)]
    network = Regulation(settings, plain=encoders[0], emotional=encoders[1], emotion_head=None, num_classes=3, seed=0)
    learner = RegulationLearner(TrialConfig(regulation=settings), network)
    peaks = {
        parameter: group["peak"]
        for group in build_optimizer(network, settings.optimizer, learner.learning_rates()).param_groups
        for parameter in group["params"]
    }
    assert len(peaks) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        assert peaks[parameter] == (1e-4 if name.startswith("emotional.") else 1e-3), name
    alike = dataclasses.replace(settings, emotional_learning_rate=1.0)
    learner = RegulationLearner(TrialConfig(regulation=alike), network)
    assert len(build_optimizer(network, alike.optimizer, learner.learning_rates()).param_groups) == 2


def test_optimizers_are_what_they_are_called() -> None:
    linear = nn.Linear(2, 2)
    adamw = build_optimizer(linear, OptimizerConfig(momentum=0.8))
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.defaults["betas"] == (0.8, 0.999)
    sgd = build_optimizer(linear, OptimizerConfig(name="sgd", momentum=0.8, learning_rate=0.1, weight_decay=0.0))
    assert isinstance(sgd, torch.optim.SGD)
    # Two steps of Nesterov momentum on a constant gradient of 1: lr (1 + m), then lr (1 + m + m^2).
    before = linear.weight.detach().clone()
    for factor in (1.8, 1.8 + 1 + 0.8 + 0.64):
        linear.weight.grad = torch.ones(2, 2)
        sgd.step()
        torch.testing.assert_close(linear.weight.detach(), before - 0.1 * factor)
    plain = build_optimizer(linear, OptimizerConfig(name="sgd", momentum=0.0))
    assert not plain.defaults["nesterov"]


def test_pretraining_warms_up_and_stays_without_knowing_the_end() -> None:
    config = PretrainingConfig(warmup_steps=4)
    for num_steps in (3, 7, 100):
        factors = [pretraining_schedule(step, num_steps, config) for step in range(7)]
        assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 1, 1])
    assert pretraining_schedule(0, 7, dataclasses.replace(config, warmup_steps=0)) == 1
    assert length_dependence(config) is None
    assert length_dependence(dataclasses.replace(config, warmup_steps=100_000)) is None


def test_pretraining_s_cosine_ends_near_nothing_and_is_found_to_know_the_length() -> None:
    config = PretrainingConfig(lr_schedule="cosine", warmup_steps=10)
    factors = [pretraining_schedule(step, 110, config) for step in range(110)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert (factors[10], factors[60]) == (1, pytest.approx(0.5))
    assert 0 < factors[-1] < 1e-3
    reason = length_dependence(config)
    assert reason is not None
    assert re.fullmatch(
        r"pretraining\.lr_schedule='cosine' depends on the total length \(its factor at step 15 is 0\.99\d+ of 110 steps and "
        r"0\.99\d+ of 111 steps\), so lengths share no pre-training",
        reason,
    )
    assert length_dependence(dataclasses.replace(config, warmup_steps=100_000)) is not None


def test_a_cooldown_goes_linearly_to_nothing_from_where_the_rate_was() -> None:
    config = PretrainingConfig(epochs=3, cooldown_epochs=2, warmup_steps=4)
    factors = [pretraining_schedule(step, 25, config) for step in range(25)]  # 5 steps an epoch
    constant = dataclasses.replace(config, cooldown_epochs=0)
    assert factors[:15] == [pretraining_schedule(step, 15, constant) for step in range(15)]
    assert factors[15:] == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    still_warming = PretrainingConfig(epochs=1, cooldown_epochs=1, warmup_steps=9)
    factors = [pretraining_schedule(step, 10, still_warming) for step in range(10)]
    assert factors == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.48, 0.36, 0.24, 0.12])
    assert length_dependence(constant) is None
    reason = "pretraining.cooldown_epochs=2 are the last of the length, so lengths share no cool-down"
    assert length_dependence(config) == reason


@pytest.mark.parametrize("warmup", [0, 7, 5000])
def test_a_schedule_that_minds_its_length_at_the_end_alone_is_found_too(warmup: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def last_step_is_slow(step: int, num_steps: int, config: PretrainingConfig) -> float:
        return 0.5 if step == num_steps - 1 else 1.0

    monkeypatch.setattr(optimization, "pretraining_schedule", last_step_is_slow)
    assert length_dependence(PretrainingConfig(warmup_steps=warmup)) is not None


def test_the_cosine_warms_up_and_ends_near_nothing() -> None:
    config = RegulationConfig(warmup_fraction=0.1)
    factors = [regulation_schedule(step, 100, config) for step in range(100)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert 0 < factors[-1] < 1e-3
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_warmup_stable_decay_is_flat_then_linear() -> None:
    config = RegulationConfig(lr_schedule="warmup_stable_decay", warmup_fraction=0.1, decay_fraction=0.2)
    factors = [regulation_schedule(step, 100, config) for step in range(100)]
    assert factors[9] < 1
    assert factors[10:81] == [1] * 71
    assert factors[80:] == pytest.approx([(100 - step) / 20 for step in range(80, 100)])
    never = dataclasses.replace(config, warmup_fraction=0.0, decay_fraction=0.0)
    assert [regulation_schedule(step, 10, never) for step in range(10)] == [1] * 10


@pytest.mark.parametrize("lr_schedule", ["cosine", "warmup_stable_decay"])
def test_schedules_of_few_steps_stay_in_range(lr_schedule: Any) -> None:
    for num_steps in range(1, 12):
        for warmup in (0.0, 0.3, 0.99):
            config = RegulationConfig(lr_schedule=lr_schedule, warmup_fraction=warmup, decay_fraction=1.0)
            assert all(0 < regulation_schedule(step, num_steps, config) <= 1 for step in range(num_steps))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_fused_update_is_the_plain_one_within_rounding(name: Any) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.1)
    networks = [EmotionalNet(linear_encoder(5, seed=0), 3, seed=1) for _ in range(2)]
    optimizers = [build_optimizer(net, config, fused=fused) for net, fused in zip(networks, (False, True), strict=True)]
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for net, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            net(images).square().mean().backward()
            optimizer.step()
    for plain, fused in zip(*(net.parameters() for net in networks), strict=True):
        torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)
    optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert not optimizers[1].param_groups[0]["fused"], "a trial that an earlier emoreg began goes on as it began"


def test_precision() -> None:
    assert not uses_bf16(TrialConfig(), CPU)
    assert uses_bf16(TrialConfig(precision="bf16"), CPU)
    assert not uses_bf16(TrialConfig(precision="float32"), torch.device("cuda"))
    assert not uses_bf16(TrialConfig(deterministic=True), torch.device("cuda"))
    linear = nn.Linear(2, 2)
    with autocast(TrialConfig(precision="bf16"), CPU):
        assert linear(torch.ones(1, 2)).dtype == torch.bfloat16
    with autocast(TrialConfig(), CPU):
        assert linear(torch.ones(1, 2)).dtype == torch.float32


def test_reproducible_sets_and_gives_back() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with contextlib.suppress(KeyError), reproducible(True):
            assert torch.are_deterministic_algorithms_enabled()
            assert torch.get_num_threads() == 1
            raise KeyError
        assert not torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 2
        with reproducible(False):
            assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)
