from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emoreg.config import (
    CONTROLS,
    AugmentationConfig,
    Choice,
    Control,
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
    from_json,
    leaves,
    read_path,
    replace_paths,
)
from emoreg.errors import ConfigError
from emoreg.study_file import read_study_file, shipped_studies
from tests.helpers.values import OTHER_VALUES, whole

NAN, INF = float("nan"), float("inf")


def study(**settings: Any) -> StudyConfig:
    return StudyConfig(**{"search_space": {"regulation.balance": Float(0.0, 1.0)}, **settings})


BAD: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (ImageSetConfig, {"name": ""}, "needs a name"),
    (ImageSetConfig, {"num_images": 0}, "num_images must be above 0, but it is 0"),
    (ImageSetConfig, {"validation_fraction": 1.0}, "validation_fraction must lie in [0, 1), but it is 1.0"),
    (AugmentationConfig, {"crop_padding": -1}, "crop_padding must be 0 or more, but it is -1"),
    (AugmentationConfig, {"color_jitter": 1.5}, "color_jitter must lie in [0, 1], but it is 1.5"),
    (AugmentationConfig, {"random_erasing": NAN}, "random_erasing must lie in [0, 1], but it is nan"),
    (AugmentationConfig, {"mixup": -0.1}, "mixup must be 0 or more"),
    (AugmentationConfig, {"cutmix": INF}, "cutmix must be 0 or more, but it is inf"),
    (OptimizerConfig, {"learning_rate": 0.0}, "learning_rate must be above 0, but it is 0.0"),
    (OptimizerConfig, {"learning_rate": NAN}, "learning_rate must be above 0, but it is nan"),
    (OptimizerConfig, {"weight_decay": -1.0}, "weight_decay must be 0 or more"),
    (OptimizerConfig, {"momentum": 1.0}, "momentum must lie in [0, 1)"),
    (OptimizerConfig, {"gradient_clip": 0.0}, "gradient_clip must be above 0"),
    (PretrainingConfig, {"epochs": -1}, "pretraining.epochs must be 0 or more"),
    (PretrainingConfig, {"batch_size": 0}, "pretraining.batch_size must be above 0"),
    (PretrainingConfig, {"warmup_steps": -1}, "pretraining.warmup_steps must be 0 or more"),
    (PretrainingConfig, {"label_smoothing": 1.0}, "pretraining.label_smoothing must lie in [0, 1)"),
    (RegulationConfig, {"balance": 1.01}, "regulation.balance must lie in [0, 1], but it is 1.01"),
    (RegulationConfig, {"balance": 0.0, "kind": "learnable"}, "strictly between 0 and 1 for kind='learnable'"),
    (RegulationConfig, {"balance": 1.0, "kind": "dynamic"}, "strictly between 0 and 1 for kind='dynamic'"),
    (RegulationConfig, {"form": "loss", "mix_space": "probabilities"}, "mix_space has no meaning for form='loss'"),
    (RegulationConfig, {"epochs": 0}, "regulation.epochs must be above 0"),
    (RegulationConfig, {"batch_size": 0}, "regulation.batch_size must be above 0"),
    (RegulationConfig, {"warmup_fraction": 1.0}, "regulation.warmup_fraction must lie in [0, 1)"),
    (RegulationConfig, {"decay_fraction": 1.1}, "regulation.decay_fraction must lie in [0, 1]"),
    (RegulationConfig, {"label_smoothing": -0.1}, "regulation.label_smoothing must lie in [0, 1)"),
    (TrialConfig, {"backbone": ""}, "a trial needs a backbone"),
    (TrialConfig, {"drop_path": 1.0}, "drop_path must lie in [0, 1)"),
    (TrialConfig, {"image_size": 4}, "image_size must lie in [8, 512], but it is 4"),
    (TrialConfig, {"task": ImageSetConfig(validation_fraction=0.0)}, "task.validation_fraction must be above 0"),
    (TrialConfig, {"seed": -1}, "seed must be 0 or more"),
    (TrialConfig, {"control": "neutral"}, "the neutral control needs the image set"),
    (TrialConfig, {"deterministic": True, "precision": "bf16"}, "deterministic turns mixed precision off"),
    (When, {"path": "a", "values": ()}, "needs values"),
    (Float, {"low": 2.0, "high": 1.0}, "low <= high, but it is (2.0, 1.0)"),
    (Float, {"low": 0.0, "high": 1.0, "log": True}, "a log range must begin above 0"),
    (Float, {"low": 0.1, "high": 1.0, "log": True, "step": 0.1}, "log and step exclude each other"),
    (Float, {"low": 0.0, "high": 1.0, "step": -0.5}, "step must be above 0"),
    (Float, {"low": NAN, "high": 1.0}, "low <= high"),
    (Int, {"low": 3, "high": 2}, "low <= high"),
    (Int, {"low": 1, "high": 8, "log": True, "step": 2}, "log and step exclude each other"),
    (Choice, {"values": ()}, "a Choice needs values"),
    (Choice, {"values": (1, 1)}, "a Choice's values must differ"),
    (SamplerConfig, {"num_startup_trials": 0}, "sampler.num_startup_trials must be above 0"),
    (SchedulerConfig, {"grace_epochs": 0}, "scheduler.grace_epochs must be above 0"),
    (SchedulerConfig, {"reduction_factor": 1}, "scheduler.reduction_factor must be 2 or more"),
    (ResourcesConfig, {"cpus_per_trial": 0.0}, "resources.cpus_per_trial must be above 0"),
    (ResourcesConfig, {"gpus_per_trial": -0.5}, "resources.gpus_per_trial must be 0 or more"),
    (ResourcesConfig, {"gpus_per_trial": 1.5}, "resources.gpus_per_trial above 1 must be whole"),
    (ResourcesConfig, {"memory_gib_per_trial": 0}, "resources.memory_gib_per_trial must be above 0"),
    (ResourcesConfig, {"accelerator_type": "an H100"}, "an accelerator_type must be one of Ray's names, but it is 'an H100'"),
    (ResourcesConfig, {"accelerator_type": "H100", "gpus_per_trial": 0}, "a trial without a GPU needs no accelerator_type"),
    (TrialResources, {"cpus": -1}, "cpus must be above 0"),
    (TrialResources, {"gpus": 2.5}, "gpus above 1 must be whole"),
    (ResourcesConfig, {"max_concurrent": 0}, "resources.max_concurrent must be above 0"),
    (ResourcesConfig, {"max_retries": -1}, "resources.max_retries must be 0 or more"),
    (study, {"name": "../etc"}, "a study's name must be 1 to 64 letters"),
    (study, {"name": "a" * 65}, "a study's name must be 1 to 64 letters"),
    (study, {"num_trials": -1}, "num_trials must be 0 or more"),
    (
        study,
        {"search_space": {"backbone": Choice(("resnet18",))}, "resources_by_backbone": {"resnet50": TrialResources(gpus=2)}},
        "resources_by_backbone must name backbones of the study, but it is 'resnet50': name one of resnet18",
    ),
    (study, {"search_space": {}}, "the search space must not be empty"),
    (study, {"search_space": {"regulation.ballance": Float(0.0, 1.0)}}, "did you mean ['regulation.balance'"),
    (study, {"search_space": {"regulation.balance": Float(0.0, 2.0)}}, "regulation.balance must lie in [0, 1]"),
    (study, {"search_space": {"regulation.kind": Choice(("fixed", "fxied"))}}, "regulation.kind must be one of ['fixed'"),
    (study, {"search_space": {"seed": Int(0, 3)}}, "seed is not searched"),
    (study, {"search_space": {"control": Choice(("plain",))}}, "control is not searched"),
    (
        study,
        {"search_space": {"pretraining.epochs": Int(0, 3, when=When("regulation.balance", (0.5,)))}},
        "the condition of pretraining.epochs must look at a path that stands before it",
    ),
    (study, {"objectives": ()}, "a study needs an objective"),
    (study, {"objectives": (Objective(), Objective(mode="min"))}, "objectives must differ"),
    (Objective, {"metric": "loss"}, "objective loss is better where it is small, but it is 'max': set mode='min'"),
    (
        study,
        {"objectives": (Objective(), Objective(metric="loss", mode="min")), "scheduler": SchedulerConfig(name="asha")},
        "a scheduler compares one metric",
    ),
    (
        study,
        {"objectives": (Objective(), Objective(metric="loss", mode="min")), "sampler": SamplerConfig(name="cmaes")},
        "CMA-ES optimises one objective",
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
    (study, {"controls": ("neutral",)}, "the neutral control needs the image set trial.neutral"),
    (study, {"control_seeds": (1, 1)}, "control_seeds must differ"),
]


@pytest.mark.parametrize(
    ("kind", "settings", "message"), BAD, ids=[f"{n}-{kind.__name__}" for n, (kind, _, _) in enumerate(BAD)]
)
def test_a_bad_value_is_refused_with_the_rule_the_value_and_the_way_out(
    kind: Callable[..., Any], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**settings)
    assert message in str(caught.value)
    assert re.fullmatch(r".+, but (it is )?.+: .+", str(caught.value)), "rule, but value: cure"


def test_the_defaults_are_valid_and_frozen() -> None:
    config = TrialConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]
    assert study().backbones() == ("resnet18",)


def test_every_setting_has_another_value_in_the_table() -> None:
    assert OTHER_VALUES.keys() == dict(leaves(whole())).keys()


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_the_identity_depends_on_every_setting(path: str) -> None:
    changed = replace_paths(whole(), {path: OTHER_VALUES[path]})
    assert read_path(changed, path) == OTHER_VALUES[path]
    assert {key: value for key, value in leaves(changed) if key != path} == {
        key: value for key, value in leaves(whole()) if key != path
    }
    assert changed.identity != whole().identity


def test_identities_differ_from_one_another_and_stay() -> None:
    changed = {replace_paths(whole(), {path: value}).identity for path, value in OTHER_VALUES.items()}
    assert len(changed) == len(OTHER_VALUES)
    # A study finds its finished trials by these. They move when a setting is added: then, and only then, enter the new one.
    assert TrialConfig().identity == "738be6c43166"


def test_the_identity_is_of_numbers_and_not_of_how_they_were_written() -> None:
    base = TrialConfig()
    assert replace_paths(base, {"drop_path": 0}).identity == base.identity
    assert replace_paths(base, {"regulation.balance": 1}).identity == replace_paths(base, {"regulation.balance": 1.0}).identity
    assert replace_paths(base, {"regulation.freeze_emotional": True}).identity != base.identity


def test_what_the_controls_mean() -> None:
    trial = TrialConfig(
        neutral=ImageSetConfig(name="openmoji-objects"),
        regulation=RegulationConfig(form="conditioned", kind="learnable", balance=0.3, epochs=7),
    )

    def differs(control: Control) -> dict[str, Any]:
        before = dict(leaves(trial))
        applied = dataclasses.replace(trial, control=control).applied()
        assert applied.applied() == applied
        assert applied.control == control
        return {path: value for path, value in leaves(applied) if value != before[path] and path != "control"}

    output = {"regulation.form": "output", "regulation.kind": "fixed"}
    assert differs("regulated") == {}
    assert differs("plain") == output | {"regulation.balance": 0.0, "pretraining.epochs": 0}
    assert differs("compute_matched") == differs("plain")
    assert differs("emotional") == output | {"regulation.balance": 1.0}
    assert differs("untrained") == {"pretraining.epochs": 0}
    assert differs("shuffled") == {"pretraining.shuffle_labels": True}
    assert differs("neutral") == {}  # its images are chosen where they are loaded
    identities = {dataclasses.replace(trial, control=control).identity for control in ("regulated", *CONTROLS)}
    assert len(identities) == 7


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("regulation.epochs", 2.0, "regulation.epochs must be int, but it is 2.0"),
        ("regulation.epochs", True, "regulation.epochs must be int, but it is True"),
        ("regulation.balance", "0.5", "regulation.balance must be float or int, but it is '0.5'"),
        ("regulation.balance", True, "regulation.balance must be float or int, but it is True"),
        ("pretraining.shuffle_labels", 1, "pretraining.shuffle_labels must be bool, but it is 1"),
        ("regulation.kind", "fxied", "regulation.kind must be one of ['fixed'"),
        ("backbone", 3, "backbone must be str, but it is 3"),
        ("stimuli.num_images", "few", "stimuli.num_images must be int, but it is 'few'"),
        ("regulation.ballance", 0.5, "did you mean ['regulation.balance'"),
        ("regulation", 0.5, "a path must lead to a setting"),
        ("regulation.balance.low", 0.5, "a path must lead to a setting"),
        ("seed.", 1, "a path must lead to a setting"),
        ("neutral", "digits", "neutral must be"),
        ("neutral.name", "digits", "a path must lead to a setting"),
        ("task.validation_fraction", 0.0, "task.validation_fraction must be above 0"),
    ],
)
def test_a_path_or_a_value_that_does_not_fit_is_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace_paths(TrialConfig(), {path: value})
    assert message in str(caught.value)


def test_paths_are_replaced_all_at_once() -> None:
    # each of the two alone would break a rule
    start = TrialConfig(regulation=RegulationConfig(kind="learnable", balance=0.5))
    changed = replace_paths(start, {"regulation.balance": 1.0, "regulation.kind": "fixed"})
    assert (changed.regulation.balance, changed.regulation.kind) == (1.0, "fixed")
    assert replace_paths(start, {"stimuli.num_images": 5, "weights": "hub"}).stimuli.num_images == 5
    assert replace_paths(start, {}) == start


@given(st.floats(0, 1), st.integers(1, 10**6), st.integers(0, 2**31))
def test_what_is_replaced_is_read_back(balance: float, epochs: int, seed: int) -> None:
    values = {"regulation.balance": balance, "pretraining.epochs": epochs, "seed": seed}
    changed = replace_paths(TrialConfig(), values)
    assert {path: read_path(changed, path) for path in values} == values


def test_controls_come_seed_by_seed_for_every_backbone() -> None:
    config = study(
        search_space={"backbone": Choice(("resnet18", "vit_tiny"))}, controls=("regulated", "plain"), control_seeds=(3, 4)
    )
    assert [(trial.seed, trial.backbone, trial.control) for trial in config.control_trials()] == [
        (seed, backbone, control) for seed in (3, 4) for backbone in ("resnet18", "vit_tiny") for control in ("regulated", "plain")
    ]


@pytest.mark.parametrize("name", shipped_studies())
def test_a_study_survives_json(name: str) -> None:
    study = read_study_file(name)
    study = dataclasses.replace(
        study, confirmed=(study.trial,), resources_by_backbone={study.backbones()[0]: TrialResources(gpus=2)}
    )
    written = json.loads(json.dumps(dataclasses.asdict(study)))
    assert from_json(StudyConfig, written) == study
    del written["resources"]["grace_seconds"]  # a setting that came later
    assert from_json(StudyConfig, written) == study
    written["trial"]["regulation"]["mood"] = 1
    with pytest.raises(ConfigError, match="RegulationConfig must have settings that this emoreg knows, but it is 'mood'"):
        from_json(StudyConfig, written)
