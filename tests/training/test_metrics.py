"""The package's own metrics, held to scikit-learn's and SciPy's."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, roc_auc_score  # type: ignore[import-untyped]
from torch import Tensor

import emoreg
from emoreg.config import ImageSetConfig, TrialConfig, replace_paths
from emoreg.config.registry import METRICS
from emoreg.errors import ConfigError
from emoreg.training.learners import Evaluation
from emoreg.training.metrics import auroc, balanced_accuracy, ccc, ece, macro_f1, measure_values, nll, pearson
from tests.helpers.trials import TINY, run, tiny


def scored(num_images: int = 200, num_classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores with ties, which are right more often than chance, and imbalanced classes."""
    rng = torch.Generator().manual_seed(seed)
    weights = torch.arange(1, num_classes + 1, dtype=torch.float64)
    targets = torch.multinomial(weights, num_images, replacement=True, generator=rng)
    scores = torch.randint(-2, 3, (num_images, num_classes), generator=rng).float()
    scores[torch.arange(num_images), targets] += 1.0
    return scores, targets


def test_they_are_scikit_learn_s() -> None:
    scores, targets = scored()
    predicted, probabilities = scores.argmax(dim=1).numpy(), scores.double().softmax(dim=1).numpy()
    truth = targets.numpy()
    assert balanced_accuracy(scores, targets) == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert macro_f1(scores, targets) == pytest.approx(f1_score(truth, predicted, average="macro"), abs=1e-6)
    assert nll(scores, targets) == pytest.approx(log_loss(truth, probabilities))
    assert auroc(scores, targets) == pytest.approx(roc_auc_score(truth, probabilities, multi_class="ovr"))
    two, labels = scored(num_classes=2)
    assert auroc(two, labels) == pytest.approx(roc_auc_score(labels.numpy(), two.double().softmax(dim=1)[:, 1].numpy()))


def test_a_class_that_the_split_lacks_is_left_out() -> None:
    scores, targets = scored(num_classes=3)
    wider = torch.cat([scores, torch.full((len(scores), 1), -9.0)], dim=1)  # never predicted, never there
    for function in (balanced_accuracy, macro_f1):
        assert function(wider, targets) == function(scores, targets)
    assert auroc(wider, targets) == pytest.approx(auroc(scores, targets), abs=1e-3)
    assert math.isnan(auroc(scores, torch.zeros_like(targets)))


def test_calibration_by_hand() -> None:
    # Four images at confidence 0.9, three of them right; two at 0.6, both right: (4 |0.9 - 0.75| + 2 |0.6 - 1|) / 6.
    confidence = torch.tensor([0.9] * 4 + [0.6] * 2, dtype=torch.float64)
    scores = torch.stack([confidence, 1 - confidence], dim=1).log().float()
    targets = torch.tensor([0, 0, 0, 1, 0, 0])
    assert ece(scores, targets) == pytest.approx((4 * 0.15 + 2 * 0.4) / 6, abs=1e-6)


def test_values_are_compared_by_target() -> None:
    rng = torch.Generator().manual_seed(0)
    targets = torch.randn((50, 2), generator=rng)
    estimates = 0.5 * targets + 1.0 + 0.1 * torch.randn((50, 2), generator=rng)
    found = measure_values(("valence", "arousal"), Evaluation(loss=0.0, scores=estimates, targets=targets, balance=None))
    assert list(found) == ["val_valence_pearson", "val_valence_ccc", "val_arousal_pearson", "val_arousal_ccc"]
    for column, target in enumerate(("valence", "arousal")):
        truth, estimate = targets[:, column].double().numpy(), estimates[:, column].double().numpy()
        assert found[f"val_{target}_pearson"] == pytest.approx(stats.pearsonr(estimate, truth).statistic)
        by_hand = 2 * stats.pearsonr(estimate, truth).statistic * estimate.std() * truth.std()
        by_hand /= estimate.var() + truth.var() + (estimate.mean() - truth.mean()) ** 2
        assert found[f"val_{target}_ccc"] == pytest.approx(by_hand)
    same = torch.arange(5.0)
    assert (ccc(same, same), pearson(same, 2 * same)) == (pytest.approx(1.0), pytest.approx(1.0))
    assert math.isnan(pearson(torch.zeros(5), same))
    assert ccc(torch.zeros(5), same) == 0.0


def felt(request: emoreg.ImageSetRequest) -> emoreg.ImageSetContents:
    """Grey patches: valence is their brightness, arousal noise."""
    random = np.random.default_rng(0)
    values = random.uniform(-1, 1, (60, 2))
    images = np.broadcast_to(128 + 100 * values[:, :1, None], (60, 16, 16)).astype(np.uint8)
    return emoreg.ImageSetContents(
        class_names=("valence", "arousal"), train=zip(images, values.tolist(), strict=True), regression=True
    )


def valued(*metrics: str, **changes: Any) -> TrialConfig:
    stimuli = ImageSetConfig(name="felt", validation_fraction=0.2)
    config = replace(tiny(pretraining__epochs=2, regulation__epochs=1), stimuli=stimuli, metrics=metrics)
    return replace_paths(config, changes)


def test_real_valued_stimuli_are_measured_in_pre_training_whoever_trains(storage: Path) -> None:
    emoreg.image_set("felt", kind="stimuli", path="none")(felt)
    names = {f"val_{target}_{name}" for target in ("valence", "arousal") for name in ("pearson", "ccc")}
    _, recorder, _ = run(valued("macro_f1"), storage)
    assert all(json.loads(row.metrics).keys() == names for row in recorder.epochs("pretraining"))
    outcome, other, _ = run(valued("valence_ccc", "auroc", **{"regulation.balance": 0.3}), storage)
    assert not other.epochs("pretraining"), "its experience is another trial's"
    assert outcome.metrics.keys() == {"val_valence_ccc", "val_auroc"}
    assert outcome.metrics["val_valence_ccc"] == json.loads(recorder.epochs("pretraining")[-1].metrics)["val_valence_ccc"]
    again, _, _ = run(valued("valence_ccc", "auroc", **{"regulation.balance": 0.3}), storage)
    assert again.metrics == outcome.metrics, "from its checkpoint"


def test_a_metric_without_what_it_measures_is_refused(storage: Path) -> None:
    emoreg.image_set("felt", kind="stimuli", path="none")(felt)
    with pytest.raises(ConfigError, match=r"Raise stimuli.validation_fraction to 0.1, say: the metric 'arousal_ccc' needs"):
        run(valued("arousal_ccc", **{"stimuli.validation_fraction": 0.0}), storage)
    with pytest.raises(ConfigError, match=r"Take 'arousal_ccc' out of metrics.* the target 'arousal', but those of 'digits'"):
        run(replace(TINY, metrics=("arousal_ccc",)), storage)


def test_what_is_better_where_it_is_small_is_minimised() -> None:
    for name in ("val_nll", "val_ece"):
        with pytest.raises(ConfigError, match=f"must fit {name}, which is better where it is small"):
            emoreg.Objective(metric=name)
    assert emoreg.Objective(metric="val_macro_f1").mode == "max"


def test_they_are_entries_of_the_package() -> None:
    assert {"macro_f1", "balanced_accuracy", "auroc", "nll", "ece", "valence_ccc", "arousal_pearson"} <= METRICS.keys()
    assert not {"macro_f1", "valence_ccc"} & set(METRICS.user_names())
