from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from emoreg.training.regulate import evaluate, regulate
from torch import Tensor

from emoreg.config import RegulationConfig, TrialConfig, replace_paths
from emoreg.data.batches import Batches
from emoreg.errors import Diverged, Interrupted
from emoreg.results.records import EpochRecord
from emoreg.storage.checkpoint import Keeper, State
from emoreg.training.backbones import create_encoder
from emoreg.training.events import BalanceSample, Event
from emoreg.training.model import Regulation
from tests.helpers.trials import (
    CPU,
    RANDOM,
    TINY,
    States,
    StopEveryStep,
    equal,
    linear_encoder,
    noise_batches,
    noise_split,
    same,
    timeless,
)

CONFIG = TrialConfig(image_size=8, regulation=RegulationConfig(epochs=2, batch_size=4), deterministic=True)


def network_of(config: TrialConfig) -> Regulation:
    torch.manual_seed(0)
    return Regulation(
        config.regulation,
        plain=linear_encoder(5, seed=1) if config.regulation.needs_plain else None,
        emotional=linear_encoder(5, seed=2) if config.regulation.needs_emotional else None,
        emotion_head=torch.nn.Linear(5, 4),
        num_classes=3,
        seed=0,
    )


def learn(config: TrialConfig, task: Batches, validation: Batches) -> tuple[Regulation, list[State], list[Event]]:
    network = network_of(config)
    keeper = States()
    events: list[Event] = []
    regulate(config, network, task, validation, num_classes=3, start=None, keeper=keeper, report=events.append)
    return network, keeper.states, events


class Poisoned(Batches):
    """Batches whose images turn to NaN at a step; counts the steps taken."""

    at, taken = 0, 0

    def epoch(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in super().epoch(*args, **kwargs):
            bad = self.taken >= self.at
            self.taken += 1
            yield (images * float("nan") if bad else images), targets


@pytest.mark.parametrize("at", [0, 7, 49, 50, 120])
def test_divergence_names_the_exact_step_at_most_fifty_later(at: int) -> None:
    task = Poisoned(noise_split(400), device=CPU)  # 100 steps an epoch
    task.at = at
    with pytest.raises(Diverged) as caught:
        learn(CONFIG, task, noise_batches(8))
    assert (caught.value.stage, caught.value.step) == ("regulation", at)
    assert task.taken <= at + 50


def test_a_last_update_that_breaks_the_weights_diverges_too() -> None:
    config = replace_paths(
        CONFIG,
        {
            "regulation.epochs": 1,
            "regulation.batch_size": 20,
            "regulation.optimizer.name": "sgd",
            "regulation.optimizer.learning_rate": 1e38,
            "regulation.optimizer.gradient_clip": 1e30,
        },
    )
    with pytest.raises(Diverged) as caught:
        learn(config, noise_batches(20), noise_batches(8))
    assert (caught.value.stage, caught.value.step) == ("regulation", 1)


def test_a_huge_learning_rate_diverges_where_the_loss_first_did() -> None:
    config = replace_paths(
        CONFIG,
        {"regulation.optimizer.name": "sgd", "regulation.optimizer.learning_rate": 1e12, "regulation.warmup_fraction": 0.0},
    )
    task = noise_batches(400)
    losses: list[bool] = []

    class Watched(Regulation):
        def loss(self, *args: Any) -> Tensor:
            value = super().loss(*args)
            losses.append(bool(value.isfinite()))
            return value

    network = network_of(config)
    network.__class__ = Watched
    with pytest.raises(Diverged) as caught:
        regulate(
            config,
            network,
            task,
            noise_batches(8),
            num_classes=3,
            start=None,
            keeper=States(),
            report=lambda event: None,
        )
    assert caught.value.step == losses.index(False) > 0
    assert len(losses) <= caught.value.step + 50


def test_records_say_what_happened() -> None:
    config = replace_paths(CONFIG, {"regulation.kind": "learnable", "regulation.balance": 0.3})
    network, states, events = learn(config, noise_batches(22), noise_batches(9, seed=1))
    rows = [event for event in events if isinstance(event, EpochRecord)]
    assert events == rows  # no balance by image
    assert [(row.stage, row.epoch, row.step) for row in rows] == [("regulation", 1, 6), ("regulation", 2, 12)]
    assert [(state["epochs"], state["steps"]) for state in states] == [(1, 0), (2, 0)]
    assert [state["record"] for state in states] == [dataclasses.asdict(row) for row in rows]
    assert rows[0].learning_rate > rows[1].learning_rate > 0
    assert rows[1].balance == pytest.approx(float(torch.sigmoid(network.raw_balance.detach())))
    assert rows[1].balance != pytest.approx(0.3, abs=1e-5)
    assert rows[1].balance_std == 0.0
    assert all(row.identity == config.identity and row.images_per_second > 0 for row in rows)


@pytest.mark.parametrize(("backbone", "kind"), [("test_resnet", "dynamic"), ("test_vit", "random")])
def test_a_stop_after_any_step_goes_on_to_the_bit(backbone: str, kind: str) -> None:
    config = replace_paths(TINY, {**RANDOM, "backbone": backbone, "regulation.kind": kind})
    task, validation = noise_batches(70, size=16), noise_batches(9, size=16, seed=1)

    def train(start: State | None, keeper: Keeper, rows: list[Event]) -> Regulation:
        plain, emotional = (
            create_encoder(backbone, image_size=16, drop_path=config.drop_path, weights=None, seed=seed) for seed in (1, 2)
        )
        network = Regulation(
            config.regulation, plain=plain, emotional=emotional, emotion_head=None, num_classes=3, seed=config.seed
        )
        torch.manual_seed(12345)  # what an earlier stage left does not matter
        regulate(config, network, task, validation, num_classes=3, start=start, keeper=keeper, report=rows.append)
        return network

    def numbers(events: list[Event]) -> list[dict[str, Any]]:
        return [timeless(dataclasses.asdict(event)) for event in events if isinstance(event, EpochRecord)]

    straight, rows = States(every_step=True), list[Event]()
    expected = train(None, straight, rows)
    assert [(state["epochs"], state["steps"]) for state in straight.states] == [
        (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)
    ]  # fmt: skip
    for number, state in enumerate(straight.states):
        again, later = States(every_step=True), list[Event]()
        assert equal(train(state, again, later).state_dict(), expected.state_dict())
        assert same(again.states, straight.states[number + 1 :])  # the optimizer, the streams and the totals too
        assert numbers(later) == numbers(rows)[state["epochs"] :]

    state, steps = None, 0
    while True:  # stopped after every step
        keeper = StopEveryStep()
        try:
            network = train(state, keeper, [])
        except Interrupted:
            state, steps = keeper.state, steps + 1
        else:
            break
    assert steps == len(straight.states)
    assert equal(network.state_dict(), expected.state_dict())
    assert same(state, straight.states[-1])


def test_a_dynamic_balance_is_reported_by_image() -> None:
    config = replace_paths(CONFIG, {"regulation.kind": "dynamic"})
    _, _, events = learn(config, noise_batches(22), noise_batches(9, seed=1))
    assert [type(event) for event in events] == [EpochRecord, BalanceSample] * 2
    row, sample = events[2:]
    assert isinstance(row, EpochRecord)
    assert isinstance(sample, BalanceSample)
    assert sample.epoch == 2
    assert row.balance_std is not None
    assert row.balance_std == pytest.approx(float(sample.balance.std(correction=0))) != 0


def test_the_network_learns() -> None:
    """Classes that the mean colour tells apart are told apart."""
    split = noise_split(90)
    bright = split.images // 4 + (split.targets * 64).astype("uint8")[:, None, None, None]
    task = Batches(dataclasses.replace(split, images=bright), device=CPU)
    config = replace_paths(CONFIG, {"regulation.epochs": 15, "regulation.optimizer.learning_rate": 0.02})
    _, _, events = learn(config, task, task)
    last = events[-1]
    assert isinstance(last, EpochRecord)
    assert last.val_accuracy is not None
    assert last.val_accuracy > 0.95


def test_evaluation_counts_every_image_without_smoothing_and_changes_nothing() -> None:
    config = replace_paths(CONFIG, {"regulation.label_smoothing": 0.3})
    network, split = network_of(config), noise_batches(1100)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    found = evaluate(config, network, split, num_classes=3)
    logits, targets = [], []
    with torch.no_grad():
        for images, labels in split.evaluation():
            logits.append(network.eval()(images).logits)
            targets.append(labels)
    z, y = torch.cat(logits), torch.cat(targets)
    assert found.loss == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-5)
    assert found.accuracy == float((z.argmax(1) == y).double().mean())
    for true in range(3):
        for predicted in range(3):
            assert found.confusion[true, predicted] == ((y == true) & (z.argmax(1) == predicted)).sum()
    assert found.balance.tolist() == [0.5] * 1100
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("clip", [0.01, None])
def test_the_gradient_is_clipped(clip: float | None) -> None:
    config = replace_paths(
        CONFIG,
        {
            "regulation.epochs": 1,
            "regulation.batch_size": 20,
            "regulation.warmup_fraction": 0.0,
            "regulation.optimizer.name": "sgd",
            "regulation.optimizer.momentum": 0.0,
            "regulation.optimizer.weight_decay": 0.0,
            "regulation.optimizer.learning_rate": 1.0,
        },
    )
    optimizer = dataclasses.replace(config.regulation.optimizer, gradient_clip=clip)
    config = dataclasses.replace(config, regulation=dataclasses.replace(config.regulation, optimizer=optimizer))
    before = list(network_of(config).parameters())
    network, _, _ = learn(config, noise_batches(20), noise_batches(8))
    moves = [(a - b).detach().flatten() for a, b in zip(network.parameters(), before, strict=True)]
    norm = float(torch.cat(moves).norm())
    if clip is None:
        assert norm > 0.02
    else:
        assert norm == pytest.approx(clip, rel=1e-3)
