from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from emoreg.config import PretrainingConfig, RegulationConfig, TrialConfig, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.data import Split
from emoreg.data.batches import Batches
from emoreg.errors import Diverged, Interrupted
from emoreg.results.records import EpochRecord
from emoreg.results.records import Stage as StageName
from emoreg.storage.checkpoint import State
from emoreg.training.backbones import create_encoder
from emoreg.training.events import BalanceSample
from emoreg.training.learners import EmotionLearner, Learner, RegulationLearner
from emoreg.training.metrics import metric
from emoreg.training.model import EmotionalNet, Regulation, create_emotional_net
from emoreg.training.stages import pretraining_stage
from tests.helpers.trials import (
    CPU,
    RANDOM,
    TINY,
    equal,
    identity_of,
    linear_encoder,
    noise_batches,
    noise_set,
    noise_split,
    poisoned_batches,
    same,
    stage_of,
    timeless,
    train,
)

STAGES: tuple[StageName, ...] = ("pretraining", "regulation")
CONFIG = TrialConfig(
    image_size=8,
    pretraining=PretrainingConfig(epochs=2, batch_size=4, warmup_steps=3),
    regulation=RegulationConfig(epochs=2, batch_size=4),
    deterministic=True,
)

both_stages = pytest.mark.parametrize("stage", STAGES)


def configured(stage: str, **paths: Any) -> TrialConfig:
    """CONFIG with settings of a stage replaced by path, ``__`` for a dot."""
    return replace_paths(CONFIG, {f"{stage}.{path.replace('__', '.')}": value for path, value in paths.items()})


def learner_of(stage: str, config: TrialConfig, *, outputs: int = 3, regression: bool = False) -> Learner:
    """A learner whose encoders are linear maps."""
    if stage == "pretraining":
        return EmotionLearner(config, EmotionalNet(linear_encoder(5, seed=1), outputs, seed=2), regression=regression)
    torch.manual_seed(0)
    network = Regulation(
        config.regulation,
        plain=linear_encoder(5, seed=1),
        emotional=linear_encoder(5, seed=2),
        emotion_head=torch.nn.Linear(5, 4),
        num_classes=outputs,
        seed=0,
    )
    return RegulationLearner(config, network)


def learn(
    stage: StageName, config: TrialConfig, images: Batches, validation: Batches | None = None, **kwargs: Any
) -> tuple[Learner, list[State], list[EpochRecord]]:
    learner = learner_of(stage, config)
    _, states, recorder = train(stage_of(stage, config, images, validation), learner, **kwargs)
    return learner, states, recorder.epochs(stage)


# What is recorded


@both_stages
def test_records_say_what_happened(stage: StageName) -> None:
    learner, states, rows = learn(stage, CONFIG, noise_batches(22), noise_batches(9, seed=1))
    assert [(row.stage, row.epoch, row.step) for row in rows] == [(stage, 1, 6), (stage, 2, 12)]
    assert [(state["epoch"], state["step_in_epoch"]) for state in states] == [(1, 0), (2, 0)]
    assert [state["history"][-1]["record"] for state in states] == [asdict(row) for row in rows]
    assert all(row.identity == identity_of(CONFIG) for row in rows)
    assert all(row.seconds > 0 and row.images_per_second > 0 for row in rows)
    assert all(row.train_accuracy is not None and 0 <= row.train_accuracy <= 1 for row in rows)
    assert all(row.val_loss is not None and row.val_accuracy is not None for row in rows)
    assert not learner.network.training  # evaluated last


def test_pretraining_has_no_balance_and_needs_no_validation() -> None:
    _, _, rows = learn("pretraining", CONFIG, noise_batches(22))
    for row in rows:
        assert (row.val_loss, row.val_accuracy, row.measured_balance, row.measured_balance_std) == (None,) * 4
        assert row.learning_rate == 1e-3  # after warm-up, constant


def test_the_balance_and_a_falling_learning_rate_are_recorded() -> None:
    config = configured("regulation", kind="learnable", balance=0.3)
    learner, _, rows = learn("regulation", config, noise_batches(22), noise_batches(9, seed=1))
    assert rows[0].learning_rate > rows[1].learning_rate > 0
    assert rows[1].measured_balance == pytest.approx(
        float(torch.sigmoid(learner.network.get_parameter("raw_balance").detach()))
    )
    assert rows[1].measured_balance != pytest.approx(0.3, abs=1e-5)
    assert rows[1].measured_balance_std == 0.0


def test_a_dynamic_balance_is_reported_by_image() -> None:
    config = configured("regulation", kind="dynamic")
    stage = stage_of("regulation", config, noise_batches(22), noise_batches(9, seed=1))
    _, _, recorder = train(stage, learner_of("regulation", config))
    assert [type(event) for event in recorder.events] == [EpochRecord, BalanceSample] * 2
    row, sample = recorder.events[2:]
    assert isinstance(row, EpochRecord)
    assert isinstance(sample, BalanceSample)
    assert sample.epoch == 2
    assert row.measured_balance_std is not None
    assert row.measured_balance_std == pytest.approx(float(sample.balance.std(correction=0))) != 0


@both_stages
def test_the_last_evaluation_is_handed_on(stage: StageName) -> None:
    images = stage_of(stage, CONFIG, noise_batches(22), noise_batches(9, seed=1))
    fitted, states, recorder = train(images, learner_of(stage, CONFIG))
    assert fitted.evaluation is not None
    assert fitted.evaluation.loss == recorder.epochs(stage)[-1].val_loss
    again, later, _ = train(images, learner_of(stage, CONFIG), latest=states[-1])
    assert (again.evaluation, later) == (None, [])  # nothing was left to train


def test_the_network_learns() -> None:
    """Classes that the mean colour tells apart are told apart."""
    split = noise_split(90)
    bright = split.images // 4 + (split.targets * 64).astype("uint8")[:, None, None, None]
    task = Batches(dataclasses.replace(split, images=bright), device=CPU)
    config = configured("regulation", epochs=15, optimizer__learning_rate=0.02)
    _, _, rows = learn("regulation", config, task, task)
    assert rows[-1].val_accuracy is not None
    assert rows[-1].val_accuracy > 0.95


def test_regression_learns_real_targets() -> None:
    images = noise_split(40).images
    means = images.mean((1, 2)).astype(np.float32) / 255 - 0.5  # a linear map of the pixels
    split = Batches(Split(images=images, targets=means[:, :2]), device=CPU)
    config = configured("pretraining", epochs=40, optimizer__learning_rate=0.02, augmentation__crop_padding=0)
    learner = learner_of("pretraining", config, outputs=2, regression=True)
    stage = stage_of("pretraining", config, split, split, num_outputs=2, regression=True)
    _, _, recorder = train(stage, learner)
    last = recorder.epochs("pretraining")[-1]
    assert (last.train_accuracy, last.val_accuracy) == (None, None)
    assert last.val_loss is not None
    assert last.val_loss < 0.25 * float(means[:, :2].var())


# Divergence


@both_stages
@pytest.mark.parametrize("at", [0, 7, 49, 50, 120])
def test_divergence_names_the_exact_step_at_most_fifty_later(stage: StageName, at: int) -> None:
    images = poisoned_batches(400, at)  # 100 steps an epoch
    states: list[State] = []
    with pytest.raises(Diverged) as caught:
        learn(stage, CONFIG, images, noise_batches(8), states=states)
    assert (caught.value.stage, caught.value.step) == (stage, at)
    assert images.taken <= at + 50
    assert len(states) == at // 100  # no state of the epoch that diverged


@both_stages
def test_a_last_update_that_breaks_the_weights_diverges_too(stage: StageName) -> None:
    config = configured(
        stage, epochs=1, batch_size=20, optimizer__name="sgd", optimizer__learning_rate=1e38, optimizer__gradient_clip=1e30
    )
    with pytest.raises(Diverged) as caught:
        learn(stage, config, noise_batches(20), noise_batches(8))
    assert (caught.value.stage, caught.value.step) == (stage, 1)


def test_a_huge_learning_rate_diverges_where_the_loss_first_did() -> None:
    config = configured("regulation", optimizer__name="sgd", optimizer__learning_rate=1e12, warmup_fraction=0.0)
    losses: list[bool] = []

    class Watched(Regulation):
        def loss(self, *args: Any) -> Tensor:
            value = super().loss(*args)
            losses.append(bool(value.isfinite()))
            return value

    learner = learner_of("regulation", config)
    learner.network.__class__ = Watched
    with pytest.raises(Diverged) as caught:
        train(stage_of("regulation", config, noise_batches(400), noise_batches(8)), learner)
    assert caught.value.step == losses.index(False) > 0
    assert len(losses) <= caught.value.step + 50


# Schedules and gradients


def test_a_cosine_spans_the_whole_length() -> None:
    cosine = configured("pretraining", lr_schedule="cosine", epochs=4)
    _, _, rows = learn("pretraining", cosine, noise_batches(22))  # 6 steps an epoch, of which 3 warm up
    assert [row.learning_rate for row in rows] == pytest.approx(
        [1e-3 * 0.5 * (1 + math.cos(math.pi * (step - 3) / 21)) for step in (5, 11, 17, 23)]
    )


def test_the_learning_rate_of_a_step_of_pretraining_does_not_know_the_length() -> None:
    _, short, _ = learn("pretraining", CONFIG, noise_batches(22))
    _, long, _ = learn("pretraining", configured("pretraining", epochs=4), noise_batches(22))
    for first, second in zip(short, long[:2], strict=True):
        assert equal(first["network"], second["network"])


@both_stages
@pytest.mark.parametrize("clip", [0.01, None])
def test_the_gradient_is_clipped(stage: StageName, clip: float | None) -> None:
    warmup = {"warmup_steps": 0} if stage == "pretraining" else {"warmup_fraction": 0.0}
    config = configured(
        stage,
        epochs=1,
        batch_size=20,
        optimizer__name="sgd",
        optimizer__momentum=0.0,
        optimizer__weight_decay=0.0,
        optimizer__learning_rate=1.0,
        **warmup,
    )
    settings = getattr(config, stage)
    optimizer = dataclasses.replace(settings.optimizer, gradient_clip=clip)
    config = dataclasses.replace(config, **{stage: dataclasses.replace(settings, optimizer=optimizer)})
    before = list(learner_of(stage, config).network.parameters())
    learner, _, _ = learn(stage, config, noise_batches(20), noise_batches(8))
    moves = [(a - b).detach().flatten() for a, b in zip(learner.network.parameters(), before, strict=True)]
    norm = float(torch.cat(moves).norm())  # of one step
    if clip is None:
        assert norm > 0.02
    else:
        assert norm == pytest.approx(clip, rel=1e-3)


# To the bit


@both_stages
def test_validation_does_not_touch_the_training(stage: StageName) -> None:
    seen, _, rows = learn(stage, CONFIG, noise_batches(22), noise_batches(9, seed=1))
    unseen, _, others = learn(stage, CONFIG, noise_batches(22))
    assert [row.train_loss for row in rows] == [row.train_loss for row in others]
    assert equal(seen.network.state_dict(), unseen.network.state_dict())


def test_shuffled_labels_change_the_training_and_a_resume_finds_them_again() -> None:
    images = noise_set(noise_split(22))

    def teach(config: TrialConfig, latest: State | None = None) -> tuple[Learner, list[State], list[EpochRecord]]:
        whole = replace_paths(config, {"stimuli.validation_fraction": 0.0})
        stage = pretraining_stage(resolve_trial(whole), lambda source, *, image_size: images, CPU)
        learner = learner_of("pretraining", config)
        _, states, recorder = train(stage, learner, latest=latest)
        return learner, states, recorder.epochs("pretraining")

    shuffled = configured("pretraining", shuffle_labels=True)
    expected, states, rows = teach(shuffled)
    assert rows[0].train_loss != teach(CONFIG)[2][0].train_loss
    again, _, later = teach(shuffled, states[0])
    assert later[-1].train_loss == rows[1].train_loss
    assert equal(expected.network.state_dict(), again.network.state_dict())


def random_learner(stage: str, config: TrialConfig) -> Learner:
    """A learner on a real backbone, from the seed."""
    if stage == "pretraining":
        return EmotionLearner(config, create_emotional_net(config, 3), regression=False)
    plain, emotional = (
        create_encoder(config.backbone, image_size=16, drop_path=config.drop_path, weights=None, seed=seed) for seed in (1, 2)
    )
    network = Regulation(
        config.regulation, plain=plain, emotional=emotional, emotion_head=None, num_classes=3, seed=config.seed
    )
    return RegulationLearner(config, network)


@pytest.mark.parametrize(
    ("stage", "backbone", "kind"),
    [
        ("pretraining", "test_resnet", "fixed"),
        ("pretraining", "test_vit", "fixed"),
        ("regulation", "test_resnet", "dynamic"),
        ("regulation", "test_vit", "random"),
    ],
)
def test_a_stop_after_any_step_goes_on_to_the_bit(stage: StageName, backbone: str, kind: str) -> None:
    config = replace_paths(TINY, {**RANDOM, "backbone": backbone, "regulation.kind": kind, "pretraining.epochs": 2})
    images = stage_of(stage, config, noise_batches(11, size=16), noise_batches(9, size=16, seed=1))

    def go(latest: State | None, **kwargs: Any) -> tuple[dict[str, Tensor], list[State], list[EpochRecord]]:
        learner = random_learner(stage, config)
        torch.manual_seed(12345)  # what an earlier stage left does not matter
        _, states, recorder = train(images, learner, latest=latest, **kwargs)
        return learner.network.state_dict(), states, recorder.epochs(stage)

    expected, straight, rows = go(None, every_step=True)
    assert [(state["epoch"], state["step_in_epoch"]) for state in straight] == [
        (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0)
    ]  # fmt: skip
    for number, state in enumerate(straight):
        found, later, later_rows = go(state, every_step=True)
        assert equal(found, expected)
        assert same(without_history(later), without_history(straight[number + 1 :]))  # the optimizer, streams and totals too
        assert [timeless(asdict(row)) for row in later_rows] == [timeless(asdict(row)) for row in rows[state["epoch"] :]]
        assert all(row.seconds > state["seconds"] for row in later_rows[:1])  # those before the stop count

    steps, states = 0, list[State]()
    while True:  # stopped after every step
        try:
            network, _, _ = go(states[-1] if states else None, states=states, should_stop=lambda: True)
        except Interrupted:
            steps += 1
            assert len(states) == steps
        else:
            break
    assert steps == len(straight)
    assert equal(network, expected)
    assert same(without_history(states[-1:]), without_history(straight[-1:]))


def without_history(states: list[State]) -> list[State]:
    return [{key: value for key, value in state.items() if key != "history"} for state in states]


# Metrics


def test_metrics_are_measured_on_the_task_after_every_epoch() -> None:
    @metric("top2")
    def top2(scores: Tensor, targets: Tensor) -> float:
        return float((scores.topk(2).indices == targets[:, None]).any(1).double().mean())

    config = replace_paths(CONFIG, {"regulation.label_smoothing": 0.1})
    config = dataclasses.replace(config, metrics=("top2",))
    validation = noise_batches(9, seed=1)
    fitted, _, recorder = train(stage_of("regulation", config, noise_batches(22), validation), learner_of("regulation", config))
    assert fitted.evaluation is not None
    first, second = (json.loads(row.metrics) for row in recorder.epochs("regulation"))
    assert first.keys() == {"val_top2"}
    assert second == {"val_top2": top2(fitted.evaluation.scores, fitted.evaluation.targets)}
    _, _, recorder = train(stage_of("pretraining", config, noise_batches(22), validation), learner_of("pretraining", config))
    assert [row.metrics for row in recorder.epochs("pretraining")] == ["{}", "{}"]
