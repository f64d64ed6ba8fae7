from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from emoreg.config import RegulationConfig, replace_paths
from emoreg.config.registry import PROBES
from emoreg.data.batches import Batches
from emoreg.data.image_set import Split
from emoreg.errors import ConfigError
from emoreg.results.records import EpochRecord, ProbeRecord
from emoreg.storage.experience import ExperienceStore
from emoreg.training.learners import EmotionLearner, Learner, RegulationLearner
from emoreg.training.model import EmotionalNet, Regulation
from emoreg.training.probes import debiased_cka, probe
from tests.helpers.trials import CPU, RANDOM, Recorder, Stop, equal, linear_encoder, run, tiny


def probed(recorder: Recorder) -> list[tuple[str, int, str, str]]:
    return [(e.stage, e.epoch, e.probe, e.name) for e in recorder.events if isinstance(e, ProbeRecord)]


def test_probes_change_no_number_of_the_trial(storage: Path) -> None:
    seen: list[tuple[bool, bool, Tensor]] = []

    @probe("greedy")
    def greedy(learner: Learner, images: Tensor, targets: Tensor) -> dict[str, float]:
        """Draws, computes gradients, leaves the network in training mode: all that could disturb the training."""
        seen.append((learner.network.training, torch.is_grad_enabled(), images.clone()))
        torch.rand(5)
        with torch.enable_grad():
            learner.loss(images, targets)[0].backward()
        norm = sum(float(p.grad.norm()) for p in learner.network.parameters() if p.grad is not None)
        learner.network.train()
        return {"gradient": norm, "noise": float(torch.rand(()))}

    config = replace_paths(tiny(), {**RANDOM, "pretraining.epochs": 3, "backbone": "test_resnet"})
    without, plain, expected = run(config, storage, folder=storage / "without")
    config = dataclasses.replace(config, probes=("greedy", "agreement"), probe_every=2)
    with_probes, recorder, network = run(
        config, storage, folder=storage / "with", store=ExperienceStore(str(storage / "another"))
    )
    assert equal(network, expected)
    assert [_numbers(row) for row in recorder.numbers()] == [_numbers(row) for row in plain.numbers()]
    assert (with_probes.val_accuracy, with_probes.val_loss) == (without.val_accuracy, without.val_loss)
    assert probed(recorder) == [
        ("pretraining", 2, "greedy", "gradient"),
        ("pretraining", 2, "greedy", "noise"),
        ("pretraining", 3, "greedy", "gradient"),  # the last
        ("pretraining", 3, "greedy", "noise"),
        ("regulation", 2, "greedy", "gradient"),
        ("regulation", 2, "greedy", "noise"),
        ("regulation", 2, "agreement", "agreement"),
    ]
    assert [modes for *modes, _ in seen] == [[False, False]] * 3
    assert torch.equal(seen[0][2], seen[1][2])  # a fixed batch
    assert with_probes.end.value == "completed"


def test_our_probes_look_at_the_batch_once_and_a_users_as_often_as_they_ask(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    @probe("doubled")
    def doubled(learner: Learner, images: Tensor, targets: Tensor) -> dict[str, float]:
        """Changes the network for a while."""
        looks.clear()
        head = learner.network.emotional_head
        assert isinstance(head, nn.Linear)
        before = learner.sources(images)["emotional"]
        for part in head.parameters():
            part.data.mul_(2)
        after = learner.sources(images)["emotional"]
        for part in head.parameters():
            part.data.div_(2)
        return {"factor": float((after / before).mean()), "looks": len(looks)}

    respond = RegulationLearner.respond
    monkeypatch.setattr(RegulationLearner, "respond", lambda self, images: (looks.append("look"), respond(self, images))[1])
    ours = ("agreement", "emotion_share", "usable_information", "cka")
    config = dataclasses.replace(tiny(), probes=ours)
    many, recorder, _ = run(config, storage, folder=storage / "many")
    at_once = len(looks)
    looks.clear()
    one, _, _ = run(dataclasses.replace(config, probes=ours[:1]), storage, folder=storage / "one")
    assert at_once == len(looks), "four probes as often as one"
    assert many.val_loss == one.val_loss
    _, mixed, _ = run(dataclasses.replace(config, probes=(*ours, "doubled")), storage, folder=storage / "mixed")
    last = {event.name: event.value for event in mixed.events if isinstance(event, ProbeRecord) and event.probe == "doubled"}
    assert last == {"factor": pytest.approx(2.0), "looks": 2}
    numbers = [
        [(e.name, e.value) for e in r.events if isinstance(e, ProbeRecord) and e.probe in ours] for r in (recorder, mixed)
    ]
    assert numbers[0] == numbers[1]


def _numbers(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "identity"}


def test_a_resumed_trial_tells_what_its_probes_measured_before(storage: Path) -> None:
    config = dataclasses.replace(tiny(), probes=("agreement",))
    _, straight, _ = run(config, storage, folder=storage / "straight", store=ExperienceStore(str(storage / "another")))
    with pytest.raises(Stop):
        run(config, storage, Recorder(("regulation", 1)), checkpoint_seconds=0)
    _, again, _ = run(config, storage)
    assert probed(again) == probed(straight) == [("regulation", epoch, "agreement", "agreement") for epoch in (1, 2)]
    values = [[e.value for e in r.events if isinstance(e, ProbeRecord)] for r in (again, straight)]
    assert values[0] == values[1]
    kinds = [type(event) for event in again.events if isinstance(event, EpochRecord | ProbeRecord)]
    assert kinds == [EpochRecord, EpochRecord, ProbeRecord, EpochRecord, ProbeRecord]


def test_agreement_is_the_share_of_images_that_both_encoders_see_alike() -> None:
    answers = {"plain": torch.eye(4), "emotional": torch.eye(4)[[0, 1, 3, 3]]}

    class Known(EmotionLearner):
        def sources(self, images: Tensor) -> dict[str, Tensor]:
            return answers

    learner = Known(tiny(), EmotionalNet(linear_encoder(5, seed=1), 4, seed=2), regression=False)
    batch = torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long)
    assert PROBES["agreement"](learner, *batch) == {"agreement": 0.75}
    del answers["plain"]
    assert PROBES["agreement"](learner, *batch) == {}


def test_a_probe_that_is_not_registered_is_refused(storage: Path) -> None:
    with pytest.raises(ConfigError, match=r"Register the probe 'agrement' .*nearest are agreement"):
        run(dataclasses.replace(tiny(pretraining__epochs=0, regulation__epochs=1), probes=("agrement",)), storage)


IMAGES, TARGETS = torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4


def alike(balance: float, **settings: Any) -> RegulationLearner:
    """A regulated network whose encoders and heads are the same."""
    config = dataclasses.replace(tiny(), regulation=RegulationConfig(balance=balance, **settings))
    encoders = [linear_encoder(5, seed=1) for _ in range(2)]
    network = Regulation(config.regulation, plain=encoders[0], emotional=encoders[1], emotion_head=None, num_classes=4, seed=0)
    assert network.plain_head is not None
    assert network.emotional_head is not None
    network.emotional_head.load_state_dict(network.plain_head.state_dict())
    return RegulationLearner(config, network)


@pytest.mark.parametrize("balance", [0.1, 0.5, 0.75])
def test_the_share_of_emotion_goes_with_the_squares_of_the_weights_of_like_responses(balance: float) -> None:
    with torch.no_grad():
        found = PROBES["emotion_share"](alike(balance), IMAGES, TARGETS)
    assert found == {"share": pytest.approx(balance**2 / (balance**2 + (1 - balance) ** 2), rel=1e-5)}


def test_a_response_that_is_the_same_for_all_images_has_no_share() -> None:
    learner = alike(0.5)
    head = learner.network.emotional_head
    assert head is not None
    with torch.no_grad():
        head.weight.zero_()
        assert PROBES["emotion_share"](learner, IMAGES, TARGETS) == {"share": 0.0}
        assert PROBES["emotion_share"](learner, IMAGES[:1].expand(8, -1, -1, -1), TARGETS[:8]) == {}


def test_nothing_is_measured_where_there_is_but_one_encoder_or_responses_do_not_add_up() -> None:
    lone = EmotionLearner(tiny(), EmotionalNet(linear_encoder(5, seed=1), 4, seed=2), regression=True)
    with torch.no_grad():
        assert PROBES["emotion_share"](alike(0.5, mix_space="probabilities"), IMAGES, TARGETS) == {}
        assert PROBES["emotion_share"](lone, IMAGES, TARGETS) == PROBES["cka"](lone, IMAGES, TARGETS) == {}
        assert PROBES["usable_information"](lone, IMAGES, torch.zeros(64, 4)) == {}


def test_usable_information_is_what_a_prediction_tells_of_the_class_in_bits() -> None:
    answers = {"plain": 100 * torch.eye(4)[TARGETS], "emotional": torch.zeros(64, 4)}

    class Known(EmotionLearner):
        def sources(self, images: Tensor) -> dict[str, Tensor]:
            return answers

        def scores(self, images: Tensor) -> Tensor:
            return -answers["plain"]

    learner = Known(tiny(), EmotionalNet(linear_encoder(5, seed=1), 4, seed=2), regression=False)
    found = PROBES["usable_information"](learner, IMAGES, TARGETS)
    assert found["plain"] == pytest.approx(2.0), "four classes as often as each other"
    assert found["emotional"] == pytest.approx(0.0)
    assert found["response"] < -100, "surely wrong is worse than knowing nothing"


def test_cka_is_one_for_the_same_features_turned_and_zero_on_average_for_unlike_ones() -> None:
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(40, 6, generator=rng)
    turned = 3 * features @ torch.linalg.qr(torch.randn(6, 6, generator=rng)).Q + 1
    assert debiased_cka(features, turned) == pytest.approx(1.0, abs=1e-6)
    unlike = [debiased_cka(torch.randn(20, 50, generator=rng), torch.randn(20, 50, generator=rng)) for _ in range(300)]
    assert abs(sum(unlike) / 300) < 0.02, "with bias it is above 0.7 for so few images of so many features"
    assert math.isnan(debiased_cka(torch.zeros(8, 3), torch.randn(8, 3, generator=rng)))
    with torch.no_grad():
        assert PROBES["cka"](alike(0.5), IMAGES, TARGETS) == {"cka": pytest.approx(1.0, abs=1e-5)}


def taught(targets: np.ndarray, images: np.ndarray) -> EmotionLearner:
    """A learner with these stimuli, one half after the other."""
    learner = EmotionLearner(tiny(), EmotionalNet(linear_encoder(5, seed=1), 4, seed=2), regression=targets.ndim == 2)
    halves = (slice(0, len(images) // 2), slice(len(images) // 2, None))
    one, other = (Batches(Split(images=images[half], targets=targets[half]), device=CPU) for half in halves)
    learner.affect = (one, other)
    return learner


@torch.no_grad()
def test_affect_is_what_can_be_read_off_features_linearly() -> None:
    random = np.random.default_rng(0)
    classes = random.integers(0, 4, 400)
    noise = random.integers(0, 60, (400, 8, 8, 3), dtype=np.uint8)
    shown = noise.copy()
    for picture, label in zip(shown, classes, strict=True):  # each class lights another quarter of the picture
        row, column = 4 * (label // 2), 4 * (label % 2)
        picture[row : row + 4, column : column + 4] += 150
    assert PROBES["affect"](taught(classes, shown), IMAGES, TARGETS)["emotional"] > 0.95
    assert PROBES["affect"](taught(classes, noise), IMAGES, TARGETS)["emotional"] == pytest.approx(0.25, abs=0.1)
    rare = np.where(classes == 0, 0, 1)
    assert PROBES["affect"](taught(rare, noise), IMAGES, TARGETS)["emotional"] < 0.6, "balanced: 0.75 is the larger class alone"
    brightness = shown[:, :4, :4].mean(axis=(1, 2, 3))[:, None].astype(np.float32)
    values = np.concatenate([brightness, random.normal(size=(400, 1)).astype(np.float32)], axis=1)
    assert PROBES["affect"](taught(values[:, :1], shown), IMAGES, TARGETS)["emotional"] > 0.9
    assert PROBES["affect"](taught(values[:, 1:], shown), IMAGES, TARGETS)["emotional"] < 0.1
    assert PROBES["affect"](alike(0.5), IMAGES, TARGETS) == {}, "without stimuli"
    assert PROBES["affect"](taught(np.ones_like(values), shown), IMAGES, TARGETS) == {}, "numbers that do not vary"
    broken = taught(classes, shown)
    for parameter in broken.network.parameters():
        parameter.fill_(math.nan)
    assert PROBES["affect"](broken, IMAGES, TARGETS) == {}, "a network that diverged"


def test_affect_is_read_off_the_stimuli_whatever_a_control_learns_in_their_place(storage: Path) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    @probe("looks")
    def looks(learner: Learner, images: Tensor, targets: Tensor) -> dict[str, float]:
        assert learner.affect is not None
        one, other = learner.affect
        seen.append((next(one.evaluation())[1], next(other.evaluation())[1]))
        return {}

    for control in ("regulated", "shuffled", "untrained"):
        config = dataclasses.replace(tiny(control=control, stimuli__num_images=40, regulation__epochs=1), probes=("looks",))
        run(config, storage, folder=storage / control)
    assert len(seen) == 5, "two stages each, and one where nothing is pre-trained"
    for one, other in seen:
        assert torch.equal(one, seen[0][0])
        assert torch.equal(other, seen[0][1])
        assert abs(len(one) - len(other)) <= 1


def test_our_probes_run_in_a_trial_of_every_form(storage: Path) -> None:
    ours = ("agreement", "emotion_share", "usable_information", "affect", "cka")
    for form in ("output", "conditioned", "loss"):
        config = dataclasses.replace(tiny(regulation__form=form, regulation__epochs=1), probes=ours)
        _, recorder, _ = run(config, storage, folder=storage / form)
        values = {(e.probe, e.name): e.value for e in recorder.events if isinstance(e, ProbeRecord) and e.stage == "regulation"}
        assert {probe for probe, _ in values} == {*ours}
        assert 0 < values["emotion_share", "share"] < 1
