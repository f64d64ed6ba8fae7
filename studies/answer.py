"""The answer on two CPU cores: FER2013, then CIFAR-10 at 32 px, on a small ResNet, with every arm tuned alike.

Sixteen trials of the search over balance, its kind, learning rates, weight decay and pre-training length; as many for each
control that a verdict depends on, over what of these exists for it; and every control as configured, on three seeds.

    emoreg show studies.answer --trial.stimuli.path PATH_TO_FER2013 --trial.task.path PATH_TO_CIFAR10
    emoreg run studies.answer --budget.hours 2 --trial.stimuli.path PATH_TO_FER2013 --trial.task.path PATH_TO_CIFAR10
    emoreg confirm studies.answer --budget.hours 2 --looks 2 \\
        --trial.stimuli.path PATH_TO_FER2013 --trial.task.path PATH_TO_CIFAR10

Each of the last two goes on where its two hours ended, when it is typed again.

Hardware: 2 CPU cores. What was found stands in studies/RESULTS.md.
"""

from __future__ import annotations

import emoreg

study = emoreg.Study(
    "answer",
    trial=emoreg.TrialConfig(
        backbone="test_resnet",
        image_size=32,
        stimuli=emoreg.ImageSetConfig(name="fer2013", num_images=5_000, validation_fraction=0.1),
        task=emoreg.ImageSetConfig(name="cifar10", num_images=5_000, validation_fraction=0.1),
        pretraining=emoreg.PretrainingConfig(
            epochs=8,
            cooldown_epochs=2,
            batch_size=64,
            optimizer=emoreg.OptimizerConfig(learning_rate=2e-3),
            augmentation=emoreg.AugmentationConfig(crop_padding=4, flip=True),
        ),
        regulation=emoreg.RegulationConfig(
            epochs=10,
            batch_size=64,
            optimizer=emoreg.OptimizerConfig(learning_rate=3e-3),
            augmentation=emoreg.AugmentationConfig(crop_padding=4, flip=True),
        ),
    ),
    search_space={
        "regulation.balance": emoreg.Float(0.05, 0.95),
        "regulation.kind": emoreg.Choice(("fixed", "learnable")),
        "regulation.optimizer.learning_rate": emoreg.Float(1e-3, 1e-2, log=True),
        "regulation.optimizer.weight_decay": emoreg.Float(1e-3, 0.3, log=True),
        "regulation.emotional_learning_rate": emoreg.Float(0.03, 1.0, log=True),
        "pretraining.epochs": emoreg.Int(4, 16, log=True),
    },
    num_trials=16,
    scheduler=emoreg.SchedulerConfig(name="asha", grace_epochs=3, reduction_factor=3),
    controls=("regulated", "plain", "untrained", "shuffled"),
    controls_search="required",
    control_seeds=(0, 1, 2),
)

if __name__ == "__main__":
    study.run()
