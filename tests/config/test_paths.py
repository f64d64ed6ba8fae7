from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from annotated_types import Interval
from hypothesis import given
from hypothesis import strategies as st

from emoreg.config import Float, Objective, RegulationConfig, StudyConfig, TrialConfig, leaves, read_path, replace_paths
from emoreg.config.validation import validate
from emoreg.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    epochs: Annotated[int, Interval(ge=0)] = 1
    images: str = "stimuli"

    def __post_init__(self) -> None:
        validate(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    stages: tuple[Stage, ...] = ()
    names: tuple[str, ...] = ("a", "b")

    def __post_init__(self) -> None:
        validate(self, "plan")


@dataclass(frozen=True, kw_only=True, slots=True)
class Whole:
    plan: Plan = field(default_factory=lambda: Plan(stages=(Stage(), Stage(epochs=3))))
    seed: int = 0


def test_paths_walk_tuples_of_configurations_and_no_others() -> None:
    assert dict(leaves(Whole())) == {
        "plan.stages.0.epochs": 1,
        "plan.stages.0.images": "stimuli",
        "plan.stages.1.epochs": 3,
        "plan.stages.1.images": "stimuli",
        "plan.names": ("a", "b"),
        "seed": 0,
    }
    assert dict(leaves(Plan()))["stages"] == ()
    assert dict(leaves(StudyConfig(search_space={"drop_path": Float(0, 0.5)})))["objectives.0.metric"] == "val_accuracy"
    assert dict(leaves((Objective(), Objective(metric="val_loss", mode="min"))))["1.mode"] == "min"


def test_a_value_in_a_tuple_is_read_and_replaced() -> None:
    changed = replace_paths(Whole(), {"plan.stages.1.epochs": 7, "plan.stages.0.images": "neutral", "seed": 2})
    assert changed == Whole(plan=Plan(stages=(Stage(images="neutral"), Stage(epochs=7))), seed=2)
    assert read_path(changed, "plan.stages.1.epochs") == 7


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("plan.stages.2.epochs", 1, "a path must lead to a setting of the trial, but 'plan.stages.2.epochs' does not"),
        ("plan.stages.0", 1, "a path must lead to a setting"),
        ("plan.names.0", "c", "a path must lead to a setting"),
        ("plan.stages.0.epochs", -1, "Give 0 or more: plan.stages.0.epochs must be 0 or more, but it is -1"),
        ("plan.stages.0.epochs", "1", "Give int: plan.stages.0.epochs must be int, but it is '1'"),
    ],
)
def test_a_path_into_a_tuple_that_does_not_fit_is_refused(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        replace_paths(Whole(), {path: value})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("regulation.epochs", 2.0, "regulation.epochs must be int, but it is 2.0"),
        ("regulation.epochs", True, "regulation.epochs must be int, but it is True"),
        ("regulation.balance", "0.5", "regulation.balance must be float or int, but it is '0.5'"),
        ("regulation.balance", True, "regulation.balance must be float or int, but it is True"),
        ("pretraining.shuffle_labels", 1, "pretraining.shuffle_labels must be bool, but it is 1"),
        ("regulation.kind", "fxied", "Choose one of fixed, learnable, random"),
        ("backbone", 3, "backbone must be str, but it is 3"),
        ("stimuli.num_images", "few", "stimuli.num_images must be int, but it is 'few'"),
        ("pretraining.optimizer.learning_rate", 0.0, "pretraining.optimizer.learning_rate must be above 0, but it is 0.0"),
        ("regulation.ballance", 0.5, "Name a setting such as regulation.balance"),
        ("regulation", 0.5, "a path must lead to a setting"),
        ("regulation.balance.low", 0.5, "a path must lead to a setting"),
        ("seed.", 1, "a path must lead to a setting"),
        ("xyzzy", 1, "Name a setting that `emoreg show` lists"),
        ("neutral", "digits", "neutral must be ImageSetConfig, but it is 'digits'"),
        ("neutral.name", "digits", "a path must lead to a setting"),
        ("task.validation_fraction", 1.0, "task.validation_fraction must lie in [0, 1)"),
        ("control", "plane", "name another: control must be a registered control, but it is 'plane'; the nearest are plain"),
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
