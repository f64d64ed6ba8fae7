"""From a search to a verdict on two CPU cores: CIFAR-10 at 16 px, tiny backbones, one stimulus set a study.

Sixteen trials over backbone, learning rates, weight decay, balance, its kind and pre-training length, none stopped early; as
many for each control that a verdict depends on, over what of these exists for it; and every control as configured.

    emoreg run studies.answer_cpu --trial.stimuli.path PATH_TO_FER2013 --trial.task.path PATH_TO_CIFAR10
    emoreg confirm studies.answer_cpu --trial.stimuli.path PATH_TO_FER2013 --trial.task.path PATH_TO_CIFAR10
    emoreg report answer-cpu

Another stimulus set, with ``--name``, is another study, and `emoreg report` puts them side by side:

    emoreg run studies.answer_cpu --name answer-oasis --trial.stimuli.name oasis --trial.stimuli.path PATH_TO_OASIS ...

Hardware: 2 CPU cores. Results: studies/RESULTS.md.
"""

from __future__ import annotations

import emoreg

study = emoreg.Study(
    "answer-cpu",
    trial=emoreg.TrialConfig(
        backbone="test_resnet",
        image_size=16,
        stimuli=emoreg.ImageSetConfig(name="fer2013", num_images=500, validation_fraction=0.0),
        neutral=emoreg.ImageSetConfig(name="openmoji-objects", validation_fraction=0.0),
        task=emoreg.ImageSetConfig(name="cifar10", num_images=800, validation_fraction=0.02),
        pretraining=emoreg.PretrainingConfig(
            epochs=8,
            batch_size=32,
            optimizer=emoreg.OptimizerConfig(learning_rate=2e-3),
            augmentation=emoreg.AugmentationConfig(crop_padding=1, flip=True),
        ),
        regulation=emoreg.RegulationConfig(
            balance=0.5,
            epochs=4,
            batch_size=32,
            optimizer=emoreg.OptimizerConfig(learning_rate=2e-3),
            augmentation=emoreg.AugmentationConfig(crop_padding=1, flip=True),
        ),
    ),
    search_space={
        "backbone": emoreg.Choice(("test_resnet", "test_vit")),
        "regulation.balance": emoreg.Float(0.05, 0.95),
        "regulation.kind": emoreg.Choice(("fixed", "learnable")),
        "regulation.optimizer.learning_rate": emoreg.Float(3e-4, 1e-2, log=True),
        "regulation.optimizer.weight_decay": emoreg.Float(1e-3, 0.3, log=True),
        "regulation.emotional_learning_rate": emoreg.Float(0.01, 1.0, log=True),
        "pretraining.epochs": emoreg.Int(2, 16, log=True),
    },
    num_trials=16,
    controls=("regulated", "plain", "emotional", "untrained", "shuffled", "neutral"),
    controls_search="required",
    control_seeds=(0,),
)

if __name__ == "__main__":
    study.run()
