from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from emoreg.training.pretrain import EmotionalNet, create_emotional_net, emotion_loss, pretrain
from torch import Tensor

from emoreg.config import ImageSetConfig, PretrainingConfig, TrialConfig, Value, replace_paths
from emoreg.data import Split
from emoreg.data.batches import Batches
from emoreg.errors import Diverged, Interrupted
from emoreg.results.records import EpochRecord
from emoreg.storage.checkpoint import Keeper, State
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
    tiny,
)

CONFIG = TrialConfig(
    image_size=8, pretraining=PretrainingConfig(epochs=2, batch_size=4, warmup_steps=3), deterministic=True, precision="auto"
)


def teach(
    config: TrialConfig, stimuli: Batches, validation: Batches | None = None, *, outputs: int = 3, regression: bool = False
) -> tuple[EmotionalNet, list[State], list[EpochRecord]]:
    net = EmotionalNet(linear_encoder(5, seed=1), outputs, seed=2)
    keeper = States()
    rows: list[EpochRecord] = []
    pretrain(config, net, stimuli, validation, regression=regression, start=None, keeper=keeper, report=rows.append)
    return net, keeper.states, rows


class Poisoned(Batches):
    """Batches whose images turn to NaN at a step; counts the steps taken."""

    at, taken = 0, 0

    def epoch(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in super().epoch(*args, **kwargs):
            bad = self.taken >= self.at
            self.taken += 1
            yield (images * float("nan") if bad else images), targets


def poisoned(num_images: int, at: int) -> Poisoned:
    batches = Poisoned(noise_split(num_images), device=CPU)
    batches.at = at
    return batches


@pytest.mark.parametrize("at", [0, 7, 49, 50, 120])
def test_divergence_names_the_exact_step_at_most_fifty_later(at: int) -> None:
    stimuli = poisoned(400, at)  # 100 steps an epoch
    keeper = States()
    with pytest.raises(Diverged) as caught:
        pretrain(
            CONFIG,
            EmotionalNet(linear_encoder(5, seed=1), 3, seed=2),
            stimuli,
            None,
            regression=False,
            start=None,
            keeper=keeper,
            report=lambda row: None,
        )
    assert (caught.value.stage, caught.value.step) == ("pretraining", at)
    assert stimuli.taken <= at + 50
    assert len(keeper.states) == at // 100  # no state of the epoch that diverged


def test_a_last_update_that_breaks_the_weights_diverges_too() -> None:
    broken: dict[str, Value] = {
        "pretraining.optimizer.name": "sgd",
        "pretraining.optimizer.learning_rate": 1e38,
        "pretraining.epochs": 1,
    }
    config = replace_paths(CONFIG, {**broken, "pretraining.batch_size": 20, "pretraining.optimizer.gradient_clip": 1e30})
    with pytest.raises(Diverged) as caught:
        teach(config, noise_batches(20), noise_batches(8))
    assert (caught.value.stage, caught.value.step) == ("pretraining", 1)


def test_records_say_what_happened() -> None:
    _, states, rows = teach(CONFIG, noise_batches(22), noise_batches(9, seed=1))
    assert [(row.stage, row.epoch, row.step) for row in rows] == [("pretraining", 1, 6), ("pretraining", 2, 12)]
    assert [state["epochs"] for state in states] == [1, 2]
    assert states[-1]["record"] == asdict(rows[-1])
    assert rows[0].learning_rate == rows[1].learning_rate == 1e-3  # after warm-up, constant
    assert all(row.identity == CONFIG.identity and row.balance is None and row.balance_std is None for row in rows)
    assert all(row.seconds > 0 and row.images_per_second > 0 for row in rows)
    assert rows[0].val_loss is not None
    assert rows[0].accuracy is not None
    assert 0 <= rows[0].accuracy <= 1
    assert teach(CONFIG, noise_batches(22))[2][0].val_loss is None


def test_a_cosine_spans_the_whole_length() -> None:
    cosine = replace_paths(CONFIG, {"pretraining.lr_schedule": "cosine", "pretraining.epochs": 4})
    _, _, rows = teach(cosine, noise_batches(22))  # 6 steps an epoch, of which 3 warm up
    assert [row.learning_rate for row in rows] == pytest.approx(
        [1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 21)) for step in (5, 11, 17, 23)]
    )


def test_the_learning_rate_of_a_step_does_not_know_the_length() -> None:
    longer = replace_paths(CONFIG, {"pretraining.epochs": 4})
    _, short, _ = teach(CONFIG, noise_batches(22))
    _, long, _ = teach(longer, noise_batches(22))
    for first, second in zip(short, long[:2], strict=True):
        assert all(torch.equal(value, second["net"][key]) for key, value in first["net"].items())


def test_validation_does_not_touch_the_training() -> None:
    seen, _, rows = teach(CONFIG, noise_batches(22), noise_batches(9, seed=1))
    unseen, _, others = teach(CONFIG, noise_batches(22))
    assert [row.loss for row in rows] == [row.loss for row in others]
    assert all(torch.equal(a, b) for a, b in zip(seen.parameters(), unseen.parameters(), strict=True))


def test_shuffled_labels_change_the_training_and_a_resume_finds_them_again() -> None:
    shuffled = replace_paths(CONFIG, {"pretraining.shuffle_labels": True})
    stimuli = noise_batches(22)
    net, _, rows = teach(shuffled, stimuli)
    assert rows[0].loss != teach(CONFIG, stimuli)[2][0].loss
    again = EmotionalNet(linear_encoder(5, seed=1), 3, seed=2)
    first = teach(replace_paths(shuffled, {"pretraining.epochs": 1}), stimuli)[1][0]
    later: list[EpochRecord] = []
    pretrain(shuffled, again, stimuli, None, regression=False, start=first, keeper=States(), report=later.append)
    assert [row.loss for row in later] == [rows[1].loss]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
def test_a_stop_after_any_step_goes_on_to_the_bit(backbone: str) -> None:
    config = replace_paths(TINY, {**RANDOM, "backbone": backbone, "pretraining.epochs": 2})
    stimuli, validation = noise_batches(70, size=16), noise_batches(9, size=16, seed=1)

    def train(start: State | None, keeper: Keeper, rows: list[EpochRecord]) -> EmotionalNet:
        net = create_emotional_net(config, 3)
        torch.manual_seed(12345)  # what an earlier stage left does not matter
        pretrain(config, net, stimuli, validation, regression=False, start=start, keeper=keeper, report=rows.append)
        return net

    straight, rows = States(every_step=True), list[EpochRecord]()
    expected = train(None, straight, rows)
    assert [(state["epochs"], state["steps"]) for state in straight.states] == [
        (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (1, 2), (1, 3), (2, 0)
    ]  # fmt: skip
    for number, state in enumerate(straight.states):
        again, later = States(every_step=True), list[EpochRecord]()
        assert equal(train(state, again, later).state_dict(), expected.state_dict())
        assert same(again.states, straight.states[number + 1 :])  # the optimizer, the streams and the totals too
        assert [timeless(asdict(row)) for row in later] == [timeless(asdict(row)) for row in rows[state["epochs"] :]]
        assert all(row.seconds > state["seconds"] for row in later[:1])  # those before the stop count

    state, steps = None, 0
    while True:  # stopped after every step
        keeper = StopEveryStep()
        try:
            net = train(state, keeper, [])
        except Interrupted:
            state, steps = keeper.state, steps + 1
        else:
            break
    assert steps == len(straight.states)
    assert equal(net.state_dict(), expected.state_dict())
    assert same(state, straight.states[-1])


def test_regression_learns_real_targets() -> None:
    images = noise_split(40).images
    means = images.mean((1, 2)).astype(np.float32) / 255 - 0.5  # a linear map of the pixels
    split = Batches(Split(images=images, targets=means[:, :2]), device=CPU)
    config = replace_paths(
        CONFIG,
        {
            "pretraining.epochs": 40,
            "pretraining.optimizer.learning_rate": 0.02,
            "pretraining.augmentation.crop_padding": 0,
        },
    )
    _, _, rows = teach(config, split, split, outputs=2, regression=True)
    assert rows[-1].accuracy is None
    assert rows[-1].val_accuracy is None
    assert rows[-1].val_loss is not None
    assert rows[-1].val_loss < 0.25 * float(means[:, :2].var())
    scores, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 0.0]])
    assert float(emotion_loss(scores, targets, regression=True, label_smoothing=0.0)) == 2.5


def test_the_gradient_is_clipped() -> None:
    clipped = replace_paths(
        CONFIG,
        {
            "pretraining.epochs": 1,
            "pretraining.batch_size": 20,
            "pretraining.warmup_steps": 0,
            "pretraining.optimizer.name": "sgd",
            "pretraining.optimizer.momentum": 0.0,
            "pretraining.optimizer.weight_decay": 0.0,
            "pretraining.optimizer.learning_rate": 1.0,
            "pretraining.optimizer.gradient_clip": 0.01,
        },
    )
    before = list(EmotionalNet(linear_encoder(5, seed=1), 3, seed=2).parameters())

    def moved(config: TrialConfig) -> float:
        after = teach(config, noise_batches(20))[0].parameters()
        moves = [(a - b).detach().flatten() for a, b in zip(after, before, strict=True)]
        return float(torch.cat(moves).norm())

    assert moved(clipped) == pytest.approx(0.01, rel=1e-3)  # one step of the clipped norm
    free = dataclasses.replace(clipped.pretraining.optimizer, gradient_clip=None)
    assert moved(dataclasses.replace(clipped, pretraining=dataclasses.replace(clipped.pretraining, optimizer=free))) > 0.02


def test_a_bare_net_depends_on_the_seed_alone() -> None:
    config = tiny()
    first = create_emotional_net(config, 5)
    other_stimuli = dataclasses.replace(config, stimuli=ImageSetConfig(name="oasis"), control="shuffled")
    second = create_emotional_net(other_stimuli, 5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    third = create_emotional_net(dataclasses.replace(config, seed=1), 5)
    assert not torch.equal(first.head.weight, third.head.weight)
