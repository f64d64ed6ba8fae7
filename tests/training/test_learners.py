from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from emoreg.config import ImageSetConfig, RegulationConfig, TrialConfig, replace_paths
from emoreg.training.learners import EmotionLearner, RegulationLearner, evaluate
from emoreg.training.model import EmotionalNet, Regulation, create_emotional_net
from tests.helpers.trials import linear_encoder, noise_batches, tiny

CONFIG = TrialConfig(image_size=8, regulation=RegulationConfig(epochs=2, batch_size=4), deterministic=True)


def regulation_of(config: TrialConfig) -> RegulationLearner:
    torch.manual_seed(0)
    network = Regulation(
        config.regulation,
        plain=linear_encoder(5, seed=1) if config.regulation.needs_plain else None,
        emotional=linear_encoder(5, seed=2) if config.regulation.needs_emotional else None,
        emotion_head=torch.nn.Linear(5, 4),
        num_classes=3,
        seed=0,
    )
    return RegulationLearner(config, network)


def test_evaluation_counts_every_image_without_smoothing_and_changes_nothing() -> None:
    config = replace_paths(CONFIG, {"regulation.label_smoothing": 0.3, "pretraining.label_smoothing": 0.3})
    split = noise_batches(1100)
    net = EmotionalNet(linear_encoder(5, seed=1), 3, seed=2)
    for learner in (regulation_of(config), EmotionLearner(config, net, regression=False)):
        before = {key: value.clone() for key, value in learner.network.state_dict().items()}
        found = evaluate(learner, split)
        scores, targets = [], []
        with torch.no_grad():
            for images, labels in split.evaluation():
                scores.append(learner.scores(images))
                targets.append(labels)
        z, y = torch.cat(scores), torch.cat(targets)
        assert torch.equal(found.scores, z)
        assert torch.equal(found.targets, y)
        assert found.loss == pytest.approx(float(F.cross_entropy(z, y)), rel=1e-5)
        assert found.accuracy == float((z.argmax(1) == y).double().mean())
        for true in range(3):
            for predicted in range(3):
                assert found.confusion[true, predicted] == ((y == true) & (z.argmax(1) == predicted)).sum()
        assert all(torch.equal(value, before[key]) for key, value in learner.network.state_dict().items())
        if isinstance(learner, RegulationLearner):
            assert found.balance is not None
            assert found.balance.tolist() == [0.5] * 1100
        else:
            assert found.balance is None


def test_regression_is_squared_error_without_accuracy() -> None:
    learner = EmotionLearner(CONFIG, EmotionalNet(linear_encoder(5, seed=1), 2, seed=2), regression=True)
    images, targets = torch.rand(4, 3, 8, 8), torch.zeros(4, 2)
    with torch.no_grad():
        loss, scores = learner.loss(images, targets)
        assert float(loss) == pytest.approx(float((scores**2).mean()))
        assert float(learner.total_loss(learner.respond(images), targets)) == pytest.approx(4 * float(loss))


@pytest.mark.parametrize("form", ["output", "loss"])
def test_a_weighted_loss_is_the_mean_over_the_images_of_weighted_losses(form: str) -> None:
    config = replace_paths(CONFIG, {"regulation.form": form, "regulation.balance": 0.25})
    weights = torch.tensor([0.5, 2.0, 1.5])
    images, targets = torch.rand(6, 3, 8, 8), torch.tensor([0, 0, 1, 2, 0, 1])
    network = regulation_of(config).network
    learner = RegulationLearner(config, network, class_weights=weights)
    with torch.no_grad():
        loss, scores = learner.loss(images, targets)
        parts = [float(learner.loss(images[part], targets[part])[0]) for part in (slice(0, 2), slice(2, 6))]
        sources = learner.sources(images)
        expected = [(1.0, scores)] if form == "output" else [(0.75, sources["plain"]), (0.25, sources["emotional"])]
        by_image = sum(b * F.cross_entropy(z, targets, reduction="none") for b, z in expected)
        assert float(loss) == pytest.approx(float((weights[targets] * by_image).mean()), rel=1e-5)
        assert float(loss) == pytest.approx((2 * parts[0] + 4 * parts[1]) / 6, rel=1e-5)
        assert float(learner.total_loss(learner.respond(images), targets)) == pytest.approx(
            float(F.cross_entropy(scores, targets, reduction="sum")), rel=1e-5
        )


def test_sources_are_the_encoders_that_are_there() -> None:
    images = torch.rand(4, 3, 8, 8)
    learner = regulation_of(replace_paths(CONFIG, {"regulation.balance": 0.25}))
    sources = learner.sources(images)
    assert [*sources] == ["plain", "emotional"]
    torch.testing.assert_close(0.75 * sources["plain"] + 0.25 * sources["emotional"], learner.scores(images))
    assert [*regulation_of(replace_paths(CONFIG, {"regulation.balance": 0.0})).sources(images)] == ["plain"]
    assert [*regulation_of(replace_paths(CONFIG, {"regulation.balance": 1.0})).sources(images)] == ["emotional"]
    net = EmotionalNet(linear_encoder(5, seed=1), 3, seed=2)
    assert [*EmotionLearner(CONFIG, net, regression=False).sources(images)] == ["emotional"]


def test_a_bare_net_depends_on_the_seed_alone() -> None:
    config = tiny()
    first = create_emotional_net(config, 5)
    other_stimuli = dataclasses.replace(config, stimuli=ImageSetConfig(name="oasis"), control="shuffled")
    second = create_emotional_net(other_stimuli, 5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    third = create_emotional_net(dataclasses.replace(config, seed=1), 5)
    assert not torch.equal(first.head.weight, third.head.weight)
