"""From a search to a verdict on two CPU cores: CIFAR-10 at 16 px, tiny backbones, one stimulus set a study.

    emoreg run studies.answer_cpu --trial.stimuli.path PATH_TO_FER2013 --trial.task.path PATH_TO_CIFAR10
    emoreg confirm studies.answer_cpu --trial.stimuli.path PATH_TO_FER2013 --trial.task.path PATH_TO_CIFAR10
    emoreg report answer-cpu

Another stimulus set, with ``--name``, is another study, and `emoreg report` puts them side by side:

    emoreg run studies.answer_cpu --name answer-oasis --trial.stimuli.name oasis --trial.stimuli.path PATH_TO_OASIS ...

Hardware: 2 CPU cores. Results: studies/RESULTS.md.
"""

from __future__ import annotations

from emoreg.config import (
    AugmentationConfig,
    Choice,
    Float,
    ImageSetConfig,
    Int,
    OptimizerConfig,
    PretrainingConfig,
    RegulationConfig,
    StudyConfig,
    TrialConfig,
)


def study() -> StudyConfig:
    """Sixteen trials over backbone, balance, its kind and pre-training length, none stopped early, and every control."""
    return StudyConfig(
        name="answer-cpu",
        trial=TrialConfig(
            backbone="test_resnet",
            image_size=16,
            stimuli=ImageSetConfig(name="fer2013", num_images=500, validation_fraction=0.0),
            neutral=ImageSetConfig(name="openmoji-objects", validation_fraction=0.0),
            task=ImageSetConfig(name="cifar10", num_images=800, validation_fraction=0.02),
            pretraining=PretrainingConfig(
                epochs=8,
                batch_size=32,
                optimizer=OptimizerConfig(learning_rate=2e-3),
                augmentation=AugmentationConfig(crop_padding=1, flip=True),
            ),
            regulation=RegulationConfig(
                balance=0.5,
                epochs=4,
                batch_size=32,
                optimizer=OptimizerConfig(learning_rate=2e-3),
                augmentation=AugmentationConfig(crop_padding=1, flip=True),
            ),
        ),
        search_space={
            "backbone": Choice(("test_resnet", "test_vit")),
            "regulation.balance": Float(0.05, 0.95),
            "regulation.kind": Choice(("fixed", "learnable")),
            "pretraining.epochs": Int(2, 16, log=True),
        },
        num_trials=16,
        controls=("regulated", "plain", "emotional", "untrained", "shuffled", "neutral"),
        control_seeds=(0,),
    )
