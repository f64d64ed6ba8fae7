"""For every setting of a trial another valid value than it has: a new setting must be entered here."""

from __future__ import annotations

from typing import Any

from emoreg.config import ImageSetConfig, TrialConfig

_IMAGE_SET = {
    "name": "oasis",
    "path": "elsewhere",
    "target": "arousal",
    "image_column": "photo",
    "fit": "crop",
    "group": "person",
    "num_images": 50,
    "validation_fraction": 0.2,
    "num_folds": 3,
    "split_seed": 7,
}
_OPTIMIZER = {"name": "sgd", "learning_rate": 0.01, "weight_decay": 0.1, "momentum": 0.8, "gradient_clip": 2.0}
_AUGMENTATION = {
    "crop_padding": 2,
    "flip": True,
    "color_jitter": 0.2,
    "random_erasing": 0.1,
    "mixup": 0.3,
    "cutmix": 0.5,
}
_PRETRAINING = {
    "epochs": 11,
    "batch_size": 64,
    "lr_schedule": "cosine",
    "warmup_steps": 5,
    "cooldown_epochs": 3,
    "label_smoothing": 0.1,
    "sampling": "balanced",
    "class_weights": "sqrt",
    "shuffle_labels": True,
}
_REGULATION = {
    "form": "loss",
    "kind": "learnable",
    "balance": 0.25,
    "balance_learning_rate": 0.01,
    "mix_space": "probabilities",
    "freeze_emotional": True,
    "epochs": 11,
    "batch_size": 64,
    "emotional_learning_rate": 0.1,
    "lr_schedule": "warmup_stable_decay",
    "warmup_fraction": 0.1,
    "decay_fraction": 0.3,
    "label_smoothing": 0.1,
    "sampling": "sqrt",
    "class_weights": "balanced",
}


def _below(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": value for name, value in values.items()}


OTHER_VALUES: dict[str, Any] = {
    "backbone": "resnet34",
    "width": 2,
    "drop_path": 0.1,
    "exclude_test_images": True,
    "stem": "own",
    "weights": "hub",
    "image_size": 48,
    **_below("stimuli", _IMAGE_SET),
    **_below("neutral", _IMAGE_SET),
    **_below("relabelled", _IMAGE_SET),
    **_below("task", _IMAGE_SET),
    **_below("pretraining", _PRETRAINING),
    **_below("pretraining.optimizer", _OPTIMIZER),
    **_below("pretraining.augmentation", _AUGMENTATION),
    **_below("regulation", _REGULATION),
    **_below("regulation.optimizer", _OPTIMIZER),
    **_below("regulation.augmentation", _AUGMENTATION),
    "control": "shuffled",
    "metrics": ("macro_f1",),
    "probes": ("agreement",),
    "probe_every": 2,
    "seed": 3,
    "deterministic": True,
    "precision": "bf16",
    "compile": "on",
}


def whole() -> TrialConfig:
    """A trial with every part there."""
    return TrialConfig(
        neutral=ImageSetConfig(name="openmoji-objects"), relabelled=ImageSetConfig(name="openmoji", target="subgroup")
    )
