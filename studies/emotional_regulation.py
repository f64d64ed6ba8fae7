"""The paper's design (arXiv:2606.13081; a reconstruction): ResNet and ViT, affective stimuli, then CIFAR.

Forty sampled trials over backbone, learning rates, weight decay, balance, its kind and pre-training length; forty for each
control that a verdict depends on, over what of these exists for it; and the controls as configured, on three seeds.

    emoreg run studies.emotional_regulation --trial.stimuli.path PATH_TO_FER2013 --trial.task.path PATH_TO_CIFAR10
    emoreg run studies.emotional_regulation --name er-oasis --trial.stimuli.name oasis --trial.stimuli.path PATH_TO_OASIS
    emoreg run studies.emotional_regulation --name er-cifar100 --trial.task.name cifar100 --trial.stimuli.path PATH

Hardware: one GPU (``--resources.gpus-per-trial 0.5`` puts two trials on it) or a Ray cluster (``--address auto``). CIFAR is
downloaded where its path is left out and there is a network. `emoreg show` estimates the time on your device first.

Not run at this budget by us yet; ``studies.emotional_regulation_cpu`` is the same design at a CPU's budget, with its results
in studies/RESULTS.md.
"""

from __future__ import annotations

import emoreg

study = emoreg.Study(
    "emotional-regulation",
    trial=emoreg.TrialConfig(
        backbone="resnet18",
        stimuli=emoreg.ImageSetConfig(name="fer2013", validation_fraction=0.1),
        task=emoreg.ImageSetConfig(name="cifar10", validation_fraction=0.1),
        pretraining=emoreg.PretrainingConfig(
            epochs=20,
            augmentation=emoreg.AugmentationConfig(flip=True, color_jitter=0.2),
        ),
        regulation=emoreg.RegulationConfig(
            balance=0.5,
            epochs=60,
            optimizer=emoreg.OptimizerConfig(learning_rate=1e-3, weight_decay=0.05),
            label_smoothing=0.1,
            augmentation=emoreg.AugmentationConfig(flip=True, random_erasing=0.25),
        ),
    ),
    search_space={
        "backbone": emoreg.Choice(("resnet18", "vit_tiny")),
        "regulation.kind": emoreg.Choice(("fixed", "learnable", "random_learnable")),
        "regulation.balance": emoreg.Float(0.05, 0.95, when=emoreg.When("regulation.kind", ("fixed", "learnable"))),
        "regulation.optimizer.learning_rate": emoreg.Float(3e-4, 1e-2, log=True),
        "regulation.optimizer.weight_decay": emoreg.Float(1e-3, 0.3, log=True),
        "regulation.emotional_learning_rate": emoreg.Float(0.01, 1.0, log=True),
        "pretraining.epochs": emoreg.Int(5, 80, log=True),
        "drop_path": emoreg.Float(0.0, 0.2, when=emoreg.When("backbone", ("vit_tiny",))),
    },
    num_trials=40,
    scheduler=emoreg.SchedulerConfig(name="asha", grace_epochs=6, reduction_factor=3),
    controls=("regulated", "plain", "emotional", "untrained", "shuffled"),
    controls_search="required",
    control_seeds=(0, 1, 2),
)

if __name__ == "__main__":
    study.run()
