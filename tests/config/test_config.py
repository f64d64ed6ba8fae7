from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from emoreg.config import (
    AugmentationConfig,
    Choice,
    ExperienceConfig,
    Float,
    ImageSetConfig,
    Int,
    Objective,
    OptimizerConfig,
    PretrainingConfig,
    RegulationConfig,
    ResourcesConfig,
    SamplerConfig,
    SchedulerConfig,
    StudyConfig,
    TrialConfig,
    TrialResources,
    When,
)
from emoreg.errors import ConfigError

NAN, INF = float("nan"), float("inf")


def study(**settings: Any) -> StudyConfig:
    return StudyConfig(**{"search_space": {"regulation.balance": Float(0.0, 1.0)}, **settings})


BAD: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (
        ImageSetConfig,
        {"name": ""},
        "Name a reader that `emoreg data list` lists: ImageSetConfig.name must not be empty",
    ),
    (ImageSetConfig, {"num_images": 0}, "num_images must be above 0, but it is 0"),
    (ImageSetConfig, {"validation_fraction": 1.0}, "validation_fraction must lie in [0, 1), but it is 1.0"),
    (AugmentationConfig, {"crop_padding": -1}, "crop_padding must be 0 or more, but it is -1"),
    (AugmentationConfig, {"color_jitter": 1.5}, "color_jitter must lie in [0, 1], but it is 1.5"),
    (AugmentationConfig, {"random_erasing": NAN}, "random_erasing must lie in [0, 1], but it is nan"),
    (AugmentationConfig, {"mixup": -0.1}, "mixup must be 0 or more"),
    (AugmentationConfig, {"cutmix": INF}, "cutmix must be 0 or more, but it is inf"),
    (
        OptimizerConfig,
        {"learning_rate": 0.0},
        "Give a number above 0: OptimizerConfig.learning_rate must be above 0, but",
    ),
    (OptimizerConfig, {"learning_rate": NAN}, "learning_rate must be above 0, but it is nan"),
    (OptimizerConfig, {"weight_decay": -1.0}, "weight_decay must be 0 or more"),
    (OptimizerConfig, {"momentum": 1.0}, "momentum must lie in [0, 1)"),
    (OptimizerConfig, {"gradient_clip": 0.0}, "gradient_clip must be above 0"),
    (PretrainingConfig, {"epochs": -1}, "pretraining.epochs must be 0 or more"),
    (PretrainingConfig, {"batch_size": 0}, "pretraining.batch_size must be above 0"),
    (PretrainingConfig, {"warmup_steps": -1}, "pretraining.warmup_steps must be 0 or more"),
    (PretrainingConfig, {"cooldown_epochs": -1}, "pretraining.cooldown_epochs must be 0 or more"),
    (
        PretrainingConfig,
        {"cooldown_epochs": 2, "lr_schedule": "cosine"},
        "Leave out cooldown_epochs, or use lr_schedule='constant': pretraining.cooldown_epochs must be 0 for "
        "lr_schedule='cosine', which goes to 0 by itself, but it is 2",
    ),
    (PretrainingConfig, {"label_smoothing": 1.0}, "pretraining.label_smoothing must lie in [0, 1)"),
    (RegulationConfig, {"balance": 1.01}, "regulation.balance must lie in [0, 1], but it is 1.01"),
    (RegulationConfig, {"balance": 0.0, "kind": "learnable"}, "strictly between 0 and 1 for kind='learnable'"),
    (RegulationConfig, {"balance": 1.0, "kind": "dynamic"}, "strictly between 0 and 1 for kind='dynamic'"),
    (RegulationConfig, {"form": "loss", "mix_space": "probabilities"}, "mix_space has no meaning for form='loss'"),
    (RegulationConfig, {"form": "loss", "kind": "learnable"}, "kind='fixed' or 'random': regulation.form must not be 'loss'"),
    (RegulationConfig, {"form": "loss", "kind": "dynamic"}, "form must not be 'loss' for kind='dynamic'"),
    (RegulationConfig, {"form": "loss", "kind": "random_learnable"}, "form must not be 'loss' for kind='random_learnable'"),
    (RegulationConfig, {"epochs": 0}, "regulation.epochs must be above 0"),
    (RegulationConfig, {"batch_size": 0}, "regulation.batch_size must be above 0"),
    (RegulationConfig, {"warmup_fraction": 1.0}, "regulation.warmup_fraction must lie in [0, 1)"),
    (RegulationConfig, {"decay_fraction": 1.1}, "regulation.decay_fraction must lie in [0, 1]"),
    (RegulationConfig, {"label_smoothing": -0.1}, "regulation.label_smoothing must lie in [0, 1)"),
    (TrialConfig, {"backbone": ""}, "Name a timm model: backbone must not be empty"),
    (TrialConfig, {"drop_path": 1.0}, "drop_path must lie in [0, 1)"),
    (TrialConfig, {"image_size": 4}, "image_size must lie in [8, 512], but it is 4"),
    (TrialConfig, {"seed": -1}, "seed must be 0 or more"),
    (TrialConfig, {"width": 3}, "Leave it at 1: the control wide has 2: width must be 1 or 2, but it is 3"),
    (
        TrialConfig,
        {"width": 2, "weights": "hub"},
        "Leave weights out, or the control wide: width must be 1 where the encoders start from weights",
    ),
    (TrialConfig, {"control": "neutral"}, "the neutral control needs the image set"),
    (
        TrialConfig,
        {"deterministic": True, "precision": "bf16"},
        "precision must not be mixed where deterministic=True",
    ),
    (TrialConfig, {"deterministic": True, "compile": "on"}, "compile must not be 'on' where deterministic=True"),
    (When, {"path": "a", "values": ()}, "Name at least one: When.values must not be empty"),
    (Float, {"low": 2.0, "high": 1.0}, "Swap them: Float.low must not be above high, 1.0, but it is 2.0"),
    (Float, {"low": 0.0, "high": 1.0, "log": True}, "Float.low must be above 0 for log=True"),
    (Float, {"low": 0.1, "high": 1.0, "log": True, "step": 1}, "Float.step goes without log=True, but it is 1.0"),
    (Float, {"low": 0.0, "high": 1.0, "step": -0.5}, "Float.step must be above 0, but it is -0.5"),
    (Float, {"low": NAN, "high": 1.0}, "Float.low must not be above high, 1.0, but it is nan"),
    (Int, {"low": 3, "high": 2}, "Int.low must not be above high, 2, but it is 3"),
    (Int, {"low": 0.5, "high": 2}, "Give int: Int.low must be int, but it is 0.5"),
    (Int, {"low": 1, "high": 8, "log": True, "step": 2}, "Int.step goes without log=True, but it is 2"),
    (Choice, {"values": ()}, "Choice.values must not be empty"),
    (Choice, {"values": (1, 1)}, "Drop doubles: Choice.values must differ, but it is (1, 1)"),
    (SamplerConfig, {"num_startup_trials": 0}, "sampler.num_startup_trials must be above 0"),
    (SchedulerConfig, {"grace_epochs": 0}, "scheduler.grace_epochs must be above 0"),
    (SchedulerConfig, {"reduction_factor": 1}, "scheduler.reduction_factor must be 2 or more"),
    (ResourcesConfig, {"cpus_per_trial": 0.0}, "resources.cpus_per_trial must be above 0"),
    (ResourcesConfig, {"gpus_per_trial": -0.5}, "resources.gpus_per_trial must be 0 or more"),
    (
        ResourcesConfig,
        {"gpus_per_trial": 2},
        "Take 1 (more GPUs run more trials at once), or a fraction, so that trials share one: resources.gpus_per_trial",
    ),
    (ResourcesConfig, {"memory_gib_per_trial": 0}, "resources.memory_gib_per_trial must be above 0"),
    (
        ResourcesConfig,
        {"accelerator_type": "an H100"},
        "accelerator_type must be one of Ray's names, but it is 'an H100'",
    ),
    (
        ResourcesConfig,
        {"accelerator_type": "H100", "gpus_per_trial": 0},
        "has no meaning for a trial without a GPU",
    ),
    (TrialResources, {"cpus": -1}, "cpus must be above 0"),
    (TrialResources, {"gpus": 2}, "gpus must be at most 1, for a trial computes on one GPU"),
    (ResourcesConfig, {"max_concurrent": 0}, "resources.max_concurrent must be above 0"),
    (ResourcesConfig, {"max_retries": -1}, "resources.max_retries must be 0 or more"),
    (study, {"name": "../etc"}, "Rename the study: name must be 1 to 64 letters"),
    (study, {"name": "a" * 65}, "Rename the study: name must be 1 to 64 letters"),
    (study, {"num_trials": -1}, "num_trials must be 0 or more"),
    (
        study,
        {"search_space": {"backbone": Choice(("resnet18",))}, "resources_by_backbone": {"resnet50": TrialResources(gpus=1)}},
        "Name one of resnet18, or drop it: resources_by_backbone must name backbones of the study, but it is 'resnet50'",
    ),
    (
        study,
        {"search_space": {"regulation.kind": Choice(("learnable", "random", "fixed")), "regulation.balance": Float(0.1, 0.9)}},
        "Give regulation.balance when=When('regulation.kind', ('fixed', 'learnable')): every regulation.kind that "
        "regulation.balance is searched for must have a balance setting, but it is 'random'",
    ),
    (
        study,
        {"trial": TrialConfig(regulation=RegulationConfig(kind="random_learnable"))},
        "Take it out of the search space: every regulation.kind that regulation.balance is searched for",
    ),
    (
        study,
        {"trial": TrialConfig(task=ImageSetConfig(validation_fraction=0.0))},
        "Hold out 0.1, say: trial.task.validation_fraction must be above 0, since a search selects on validation",
    ),
    (
        study,
        {"search_space": {"task.validation_fraction": Float(0.0, 0.5)}},
        "Hold out 0.1, say: task.validation_fraction must be above 0",
    ),
    (study, {"search_space": {}}, "search_space must not be empty"),
    (study, {"search_space": {"regulation.ballance": Float(0.0, 1.0)}}, "Name a setting such as regulation.balance"),
    (study, {"search_space": {"regulation.balance": Float(0.0, 2.0)}}, "regulation.balance must lie in [0, 1]"),
    (
        study,
        {"search_space": {"regulation.kind": Choice(("fixed", "fxied"))}},
        "Choose one of fixed, learnable",
    ),
    (study, {"search_space": {"seed": Int(0, 3)}}, "seed is not searched"),
    (study, {"search_space": {"control": Choice(("plain",))}}, "control is not searched"),
    (
        study,
        {"search_space": {"pretraining.epochs": Int(0, 3, when=When("regulation.balance", (0.5,)))}},
        "the condition of pretraining.epochs must look at a path that stands before it",
    ),
    (study, {"objectives": ()}, "Add Objective(): objectives must not be empty"),
    (study, {"objectives": (Objective(), Objective(mode="min"))}, "objectives must differ in their metrics"),
    (
        Objective,
        {"metric": "val_loss"},
        "Set mode='min': objective.mode must fit val_loss, which is better where it is small",
    ),
    (Objective, {"metric": "accuracy"}, "objective.metric must be val_accuracy, val_loss, device_seconds, or val_NAME"),
    (
        study,
        {"objectives": (Objective(metric="val_f1"),)},
        "so trial.metrics must name 'f1', but it is ()",
    ),
    (
        study,
        {"objectives": (Objective(), Objective(metric="val_loss", mode="min")), "scheduler": SchedulerConfig(name="asha")},
        "scheduler.name must be 'none' for several objectives, since a scheduler compares one metric",
    ),
    (
        study,
        {"objectives": (Objective(), Objective(metric="val_loss", mode="min")), "sampler": SamplerConfig(name="cmaes")},
        "since CMA-ES optimises one objective",
    ),
    (
        study,
        {"objectives": (Objective(metric="device_seconds", mode="min"),), "scheduler": SchedulerConfig(name="asha")},
        "a scheduler needs a metric that each epoch reports",
    ),
    (
        study,
        {"search_space": {"regulation.epochs": Int(1, 3)}, "scheduler": SchedulerConfig(name="median")},
        "a scheduler compares trials of one length",
    ),
    (study, {"controls": ("neutral",)}, "the neutral control needs the image set `neutral`, but it is None"),
    (
        study,
        {"controls": ("wide",), "trial": TrialConfig(weights="hub")},
        "Take it out, or leave weights out: controls must be",
    ),
    (
        study,
        {"controls": ("wide",), "search_space": {"weights": Choice(("hub", "x"))}},
        "must be without wide where the encoders",
    ),
    (study, {"controls": ("wide",), "trial": TrialConfig(width=2)}, "leave trial.width at 1: controls must be without wide"),
    (study, {"search_space": {"width": Int(1, 2)}}, "width is not searched: controls run beside the search"),
    (study, {"control_seeds": (1, 1)}, "control_seeds must differ"),
    (study, {"control_seeds": (1, -1)}, "control_seeds.1 must be 0 or more, but it is -1"),
    (study, {"controls": ("regulated", "compute_matched")}, "Take it out, `emoreg confirm` adds it: controls must be without"),
    (study, {"controls": ["plain"]}, "Give tuple: controls must be tuple, but it is ['plain']"),
    (study, {"search_space": {"drop_path": (0.0, 0.5)}}, "search_space.drop_path must be Choice or Float or Int"),
    (study, {"sampler": "tpe"}, "Give SamplerConfig: sampler must be SamplerConfig, but it is 'tpe'"),
    (TrialConfig, {"metrics": ("f1", "f1")}, "metrics must differ"),
    (TrialConfig, {"probes": ("",)}, "probes.0 must not be empty"),
    (TrialConfig, {"probe_every": 0}, "probe_every must be above 0"),
    (RegulationConfig, {"kind": "fxied"}, "regulation.kind must be one of these, but it is 'fxied'"),
    (RegulationConfig, {"balance": True}, "Give float or int: regulation.balance must be float or int, but it is True"),
    (OptimizerConfig, {"gradient_clip": "1"}, "gradient_clip must be float or int, but it is '1'"),
    (ExperienceConfig, {"budget_gib": 0.0}, "experience.budget_gib must be above 0"),
]


@pytest.mark.parametrize(
    ("kind", "settings", "message"), BAD, ids=[f"{n}-{kind.__name__}" for n, (kind, _, _) in enumerate(BAD)]
)
def test_a_bad_value_is_refused_with_what_to_do_the_constraint_and_the_value(
    kind: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**settings)
    assert message in str(caught.value)
    assert re.fullmatch(r"[A-Z].+: .+, but .+", str(caught.value)), "hint: constraint, but value"


def test_the_defaults_are_valid_and_frozen() -> None:
    config = TrialConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]
    assert study().backbones() == ("resnet18",)


def test_a_study_may_optimise_a_metric_of_its_trials() -> None:
    objective = Objective(metric="val_f1", mode="min")
    assert study(trial=TrialConfig(metrics=("f1",)), objectives=(objective,)).objectives[0].custom_metric == "f1"
    assert Objective().custom_metric is None


def test_resources_of_a_backbone_are_its_own_or_the_study_s() -> None:
    config = study(
        resources=ResourcesConfig(cpus_per_trial=2, gpus_per_trial=1, accelerator_type="H100"),
        resources_by_backbone={"resnet18": TrialResources(gpus=0)},
    )
    assert config.trial_resources("resnet18") == TrialResources(cpus=2, gpus=0)
    assert config.trial_resources("resnet50") == TrialResources(cpus=2, gpus=1, accelerator_type="H100")


def test_importing_the_configuration_imports_nothing_heavy() -> None:
    heavy = {"torch", "ray", "optuna", "pydantic", "tyro", "numpy", "pandas", "pyarrow"}
    code = f"import sys, emoreg.config; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
