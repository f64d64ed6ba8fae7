"""From a fresh clone to an answer on a laptop: OpenMoji faces, then the digits, on timm's tiny ResNet and ViT.

Twelve sampled trials over balance, pre-training length and backbone, with ASHA, and the controls of both backbones.

    emoreg run studies.quickstart

Hardware: 2 CPU cores. Everything it needs is installed with ``pip install -e ".[quickstart]"``; nothing is downloaded.
A hundred digits are few enough that no network has them all, and the budget is small: this study shows how emoreg works, not
whether emotion helps.

    emoreg report quickstart        its picture: gains over the controls, the response to the balance, every curve
"""

from __future__ import annotations

import emoreg

augmentation = emoreg.AugmentationConfig(crop_padding=1)
study = emoreg.Study(
    "quickstart",
    trial=emoreg.TrialConfig(
        backbone="test_resnet",
        image_size=16,
        stimuli=emoreg.ImageSetConfig(name="openmoji", num_images=600, validation_fraction=0.0),
        neutral=emoreg.ImageSetConfig(name="openmoji-objects", validation_fraction=0.0),
        task=emoreg.ImageSetConfig(name="digits", num_images=100, validation_fraction=0.25),
        pretraining=emoreg.PretrainingConfig(
            epochs=4, batch_size=32, augmentation=augmentation, optimizer=emoreg.OptimizerConfig(learning_rate=2e-3)
        ),
        regulation=emoreg.RegulationConfig(
            balance=0.5,
            epochs=9,
            batch_size=32,
            augmentation=augmentation,
            optimizer=emoreg.OptimizerConfig(learning_rate=2e-3),
        ),
    ),
    search_space={
        "backbone": emoreg.Choice(("test_resnet", "test_vit")),
        "regulation.balance": emoreg.Float(0.0, 1.0),
        "pretraining.epochs": emoreg.Choice((2, 4, 8)),
        "drop_path": emoreg.Float(0.0, 0.2, when=emoreg.When("backbone", ("test_vit",))),
    },
    num_trials=12,
    scheduler=emoreg.SchedulerConfig(name="asha", grace_epochs=3, reduction_factor=3),
    controls=("regulated", "plain", "emotional", "untrained", "shuffled", "neutral"),
    resources=emoreg.ResourcesConfig(cpus_per_trial=1),
)

if __name__ == "__main__":
    study.run()
