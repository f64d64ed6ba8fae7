"""The package's own metrics, held to scikit-learn's and SciPy's."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score, log_loss, roc_auc_score  # type: ignore[import-untyped]
from torch import Tensor

from emoreg.config.registry import METRICS
from emoreg.training.learners import Evaluation
from emoreg.training.metrics import auroc, balanced_accuracy, ccc, ece, macro_f1, measure_values, nll, pearson


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


def test_they_are_entries_of_the_package() -> None:
    assert {"macro_f1", "balanced_accuracy", "auroc", "nll", "ece", "valence_ccc", "arousal_pearson"} <= METRICS.keys()
    assert not {"macro_f1", "valence_ccc"} & set(METRICS.user_names())
