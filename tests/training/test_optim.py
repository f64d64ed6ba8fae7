from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from emoreg.config import OptimizerConfig, RegulationConfig, TrialConfig
from emoreg.config.schedules import balance_travel, regulation_schedule
from emoreg.training.backbones import create_encoder
from emoreg.training.learners import RegulationLearner
from emoreg.training.model import EmotionalNet, Regulation
from emoreg.training.optim import autocast, build_optimizer, reproducible, uses_bf16
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


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_fused_update_is_the_plain_one_within_rounding(name: Any) -> None:
    config = OptimizerConfig(name=name, learning_rate=0.1)
    networks = [EmotionalNet(linear_encoder(5, seed=0), 3, seed=1) for _ in range(2)]
    optimizers = [build_optimizer(net, config, fused=fused) for net, fused in zip(networks, (False, True), strict=True)]
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        for net, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            net(images).logits.square().mean().backward()
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
