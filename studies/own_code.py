"""One of each thing that a study's file may bring: images, a backbone, a control, a metric and a probe of its own.

Four searched trials and three controls, a minute or two on two cores:

    emoreg run studies.own_code

The images are made up: stripes to be told apart by their direction, after pre-training on light and dark patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from torch import Tensor, nn

import emoreg


@emoreg.image_set("stripes", kind="task", path="none")
def stripes(request: emoreg.ImageSetRequest) -> emoreg.ImageSetContents:
    """Stripes in noise, across or down."""
    random = np.random.default_rng(0)
    targets = np.arange(240) % 2
    waves = 60 * np.sin(np.arange(16) + random.uniform(0, 6, (240, 1)))
    images = np.where(targets[:, None, None] == 0, waves[:, None, :], waves[:, :, None]) + random.normal(128, 40, (240, 16, 16))
    pictures = images.clip(0, 255).astype(np.uint8)
    return emoreg.ImageSetContents(class_names=("across", "down"), train=zip(pictures, targets.tolist(), strict=True))


@emoreg.image_set("patches", kind="stimuli", path="none")
def patches(request: emoreg.ImageSetRequest) -> emoreg.ImageSetContents:
    """Patches of noise, dark or light."""
    random = np.random.default_rng(1)
    targets = np.arange(160) % 2
    pictures = (random.integers(0, 100, (160, 16, 16)) + 100 * targets[:, None, None]).astype(np.uint8)
    return emoreg.ImageSetContents(class_names=("dark", "light"), train=zip(pictures, targets.tolist(), strict=True))


@emoreg.backbone("two_layers")
class TwoLayers(nn.Sequential):
    """Two convolutions and a mean over the image: 16 features."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 16, 3, padding=1),
            nn.GELU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


@emoreg.control("short_pretraining", description="Pre-training for one epoch: does a longer one help?")
def short_pretraining(trial: emoreg.TrialConfig) -> emoreg.TrialConfig:
    """Pre-train for one epoch, whatever the trial says."""
    return dataclasses.replace(trial, pretraining=dataclasses.replace(trial.pretraining, epochs=1))


@emoreg.metric("worst_recall")
def worst_recall(scores: Tensor, targets: Tensor) -> float:
    """Measure the recall of the class that is recognised least."""
    hits = scores.argmax(dim=1) == targets
    return min(float(hits[targets == label].double().mean()) for label in targets.unique())


@emoreg.probe("confidence")
def confidence(learner: object, images: Tensor, targets: Tensor) -> Mapping[str, float]:
    """Measure how sure the network is of its predictions, on average."""
    scores: Tensor = learner.scores(images)  # type: ignore[attr-defined]
    return {"mean": float(scores.softmax(dim=1).amax(dim=1).mean())}


study = emoreg.Study(
    "own-code",
    trial=emoreg.TrialConfig(
        backbone="two_layers",
        image_size=16,
        stimuli=emoreg.ImageSetConfig(name="patches", validation_fraction=0.0),
        task=emoreg.ImageSetConfig(name="stripes", validation_fraction=0.25),
        pretraining=emoreg.PretrainingConfig(epochs=2, batch_size=32, warmup_steps=2),
        regulation=emoreg.RegulationConfig(epochs=3, batch_size=32),
        metrics=("worst_recall",),
        probes=("confidence",),
    ),
    search_space={"regulation.balance": emoreg.Float(0.05, 0.95)},
    num_trials=4,
    objectives=(emoreg.Objective(metric="val_worst_recall"),),
    controls=("regulated", "plain", "short_pretraining"),
)

if __name__ == "__main__":
    study.run()
