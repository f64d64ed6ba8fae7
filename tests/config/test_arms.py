"""Controls that are tuned for themselves: which they are, and what of a search space exists for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

import emoreg
from emoreg.config import CONTROLS, Choice, Float, ImageSetConfig, Int, StudyConfig, TrialConfig, When
from emoreg.config.arms import arms, tuned_controls
from emoreg.config.registry import Registry

SPACE = {
    "backbone": Choice(("resnet18", "vit_tiny")),
    "regulation.optimizer.learning_rate": Float(1e-4, 1e-2, log=True),
    "regulation.kind": Choice(("fixed", "learnable", "random")),
    "regulation.balance": Float(0.05, 0.95, when=When("regulation.kind", ("fixed", "learnable"))),
    "regulation.freeze_emotional": Choice((False, True)),
    "regulation.emotional_learning_rate": Float(0.01, 1.0, log=True),
    "pretraining.epochs": Int(5, 80, log=True),
    "drop_path": Float(0.0, 0.2, when=When("backbone", ("vit_tiny",))),
}
NEUTRAL = ImageSetConfig(name="openmoji-objects", validation_fraction=0.0)
FIXED = {"regulation.kind": "learnable", "backbone": "vit_tiny"}
OF_BOTH = ["backbone", "regulation.optimizer.learning_rate", "drop_path"]
OF_TWO_ENCODERS = [path for path in SPACE if path != "pretraining.epochs"]


def study(**changes: object) -> StudyConfig:
    config = StudyConfig(trial=TrialConfig(neutral=NEUTRAL), search_space=SPACE, controls_search="required")
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


@pytest.fixture
def own_control() -> Iterator[None]:
    @emoreg.control("fixed_kind")
    def fixed_kind(trial: TrialConfig) -> TrialConfig:
        return dataclasses.replace(trial, regulation=dataclasses.replace(trial.regulation, kind="fixed"))

    yield
    registry: Registry[object] = CONTROLS  # type: ignore[assignment]
    del registry._entries["fixed_kind"], registry._origins["fixed_kind"]


@pytest.fixture(scope="module")
def all_arms() -> dict[str, StudyConfig]:
    return {arm.trial.control: arm for arm in arms(study(controls_search="all", fixed=FIXED))}


def test_each_control_searches_what_exists_for_it(all_arms: dict[str, StudyConfig]) -> None:
    found = {control: list(arm.search_space) for control, arm in all_arms.items()}
    for control in ("plain", "compute_matched", "ensemble"):
        assert sorted(found[control]) == sorted(OF_BOTH), control
    assert found["untrained"] == OF_TWO_ENCODERS
    assert found["shuffled"] == found["neutral"] == list(SPACE)
    assert "regulation.balance" not in found["emotional"]
    assert "pretraining.epochs" in found["emotional"]


def test_all_but_the_trial_and_its_space_is_alike(all_arms: dict[str, StudyConfig]) -> None:
    for control, arm in all_arms.items():
        assert alike(arm) == alike(study())
        assert (arm.trial.control, arm.controls, arm.controls_search) == (control, (), "none")


def alike(config: StudyConfig) -> tuple[object, ...]:
    return config.num_trials, config.sampler, config.scheduler, config.objectives, config.trial.task, config.trial.seed


def test_what_a_study_fixes_holds_for_the_arms_that_have_it(all_arms: dict[str, StudyConfig]) -> None:
    assert all_arms["plain"].fixed == {"backbone": "vit_tiny"}
    assert all_arms["untrained"].fixed == FIXED


def test_controls_are_tuned_as_it_is_asked() -> None:
    assert arms(study(controls_search="none")) == ()
    required = ("plain", "compute_matched", "ensemble", "untrained", "shuffled", "neutral")
    assert {*tuned_controls(study())} == {*required}
    assert {*tuned_controls(study(controls_search="all"))} == {*required, "emotional"}
    assert "neutral" not in tuned_controls(study(trial=TrialConfig())), "which has no images for it"


def test_a_control_that_is_opt_in_is_tuned_where_the_study_names_it() -> None:
    config = study(controls=("regulated", "wide"))
    assert {*tuned_controls(config)} == {*tuned_controls(study()), "wide"}
    (wide,) = (arm for arm in arms(config) if arm.trial.control == "wide")
    (plain,) = (arm for arm in arms(config) if arm.trial.control == "plain")
    assert wide.search_space == plain.search_space
    assert (wide.trial.width, plain.trial.width) == (2, 1)


def test_a_control_with_nothing_to_search_has_no_search() -> None:
    config = study(search_space={"regulation.balance": Float(0.0, 1.0)})
    assert [arm.trial.control for arm in arms(config)] == ["untrained", "shuffled", "neutral"]
    assert "plain" in tuned_controls(config), "its one configuration is its best"


@pytest.mark.usefixtures("own_control")
def test_a_condition_on_what_a_control_fixes_is_settled() -> None:
    space = {path: SPACE[path] for path in ("regulation.kind", "regulation.balance")}
    (arm,) = [arm for arm in arms(study(controls_search="all", search_space=space)) if arm.trial.control == "fixed_kind"]
    assert "regulation.kind" not in arm.search_space
    assert arm.search_space["regulation.balance"] == Float(0.05, 0.95)
