"""The paper's design (arXiv:2606.13081; a reconstruction) at a budget for two CPU cores: a subset of CIFAR-10, tiny backbones.

Eight sampled trials over backbone, learning rates, weight decay, balance and pre-training length; eight for each control that
a verdict depends on, over what of these exists for it; and the controls as configured, on three seeds.

    emoreg run studies.emotional_regulation_cpu --name er-fer2013 --trial.stimuli.name fer2013 \
        --trial.stimuli.path PATH_TO_FER2013 --trial.task.path PATH_TO_CIFAR10
    emoreg run studies.emotional_regulation_cpu --name er-oasis --trial.stimuli.name oasis ...
    emoreg run studies.emotional_regulation_cpu --name er-emoji --trial.stimuli.name emoji ...

Hardware: 2 CPU cores; `emoreg show` tells the time.
Results: studies/RESULTS.md.
"""

from __future__ import annotations

import emoreg

study = emoreg.Study(
    "emotional-regulation-cpu",
    trial=emoreg.TrialConfig(
        backbone="test_resnet",
        stimuli=emoreg.ImageSetConfig(name="fer2013", num_images=500, validation_fraction=0.0),
        neutral=emoreg.ImageSetConfig(name="openmoji-objects", validation_fraction=0.0),
        task=emoreg.ImageSetConfig(name="cifar10", num_images=1000, validation_fraction=0.04),
        pretraining=emoreg.PretrainingConfig(
            epochs=6,
            batch_size=32,
            optimizer=emoreg.OptimizerConfig(learning_rate=2e-3),
            augmentation=emoreg.AugmentationConfig(crop_padding=2, flip=True),
        ),
        regulation=emoreg.RegulationConfig(
            balance=0.5,
            epochs=8,
            batch_size=32,
            optimizer=emoreg.OptimizerConfig(learning_rate=2e-3),
            augmentation=emoreg.AugmentationConfig(crop_padding=2, flip=True),
        ),
    ),
    search_space={
        "backbone": emoreg.Choice(("test_resnet", "test_vit")),
        "regulation.balance": emoreg.Float(0.0, 1.0),
        "regulation.optimizer.learning_rate": emoreg.Float(3e-4, 1e-2, log=True),
        "regulation.optimizer.weight_decay": emoreg.Float(1e-3, 0.3, log=True),
        "regulation.emotional_learning_rate": emoreg.Float(0.01, 1.0, log=True),
        "pretraining.epochs": emoreg.Choice((3, 6, 12)),
    },
    num_trials=8,
    scheduler=emoreg.SchedulerConfig(name="asha", grace_epochs=2, reduction_factor=3),
    controls=("regulated", "plain", "emotional", "untrained", "shuffled", "neutral"),
    controls_search="required",
    control_seeds=(0, 1, 2),
)

if __name__ == "__main__":
    study.run()
