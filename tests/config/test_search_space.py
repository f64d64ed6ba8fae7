from __future__ import annotations

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoreg.config import Choice, Distribution, Float, Int, TrialConfig, When, replace_paths
from emoreg.config.search_space import describe, grid, size, suggest
from emoreg.errors import ConfigError

BASE = TrialConfig()
BRANCHES: dict[str, Distribution] = {
    "regulation.kind": Choice(("fixed", "learnable", "random")),
    "regulation.balance": Float(0.25, 0.75, step=0.25, when=When("regulation.kind", ("fixed", "learnable"))),
    "pretraining.epochs": Int(1, 3, when=When("regulation.kind", ("fixed",))),
}


def test_asks_for_a_conditional_parameter_only_in_its_branch() -> None:
    values = {"regulation.kind": "random", "regulation.balance": 0.5, "pretraining.epochs": 2}
    assert suggest(BRANCHES, BASE, optuna.trial.FixedTrial(values)) == {"regulation.kind": "random"}
    values["regulation.kind"] = "learnable"
    assert suggest(BRANCHES, BASE, optuna.trial.FixedTrial(values)) == {
        "regulation.kind": "learnable",
        "regulation.balance": 0.5,
    }
    values["regulation.kind"] = "fixed"
    assert suggest(BRANCHES, BASE, optuna.trial.FixedTrial(values)) == values


@pytest.mark.parametrize(("epochs", "is_asked"), [(10, True), (4, False)])
def test_condition_on_an_inactive_parameter_looks_at_the_base(epochs: int, is_asked: bool) -> None:
    space: dict[str, Distribution] = {
        "regulation.kind": Choice(("fixed",)),
        "pretraining.epochs": Int(1, 3, when=When("regulation.kind", ("random",))),
        "drop_path": Choice((0.1,), when=When("pretraining.epochs", (10,))),
    }
    base = replace_paths(BASE, {"pretraining.epochs": epochs})
    params = suggest(space, base, optuna.trial.FixedTrial({"regulation.kind": "fixed", "drop_path": 0.1}))
    assert ("drop_path" in params) is is_asked
    assert grid(space, base) == [params]


def test_asks_optuna_for_the_distribution_as_configured() -> None:
    space: dict[str, Distribution] = {
        "pretraining.optimizer.learning_rate": Float(1e-4, 1e-1, log=True),
        "regulation.balance": Float(0.0, 1.0, step=0.3),
        "pretraining.epochs": Int(1, 8, step=2),
        "regulation.batch_size": Int(8, 64, log=True),
        "deterministic": Choice((True, False)),
    }
    trial = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()
    params = suggest(space, BASE, trial)
    distributions = optuna.distributions
    assert trial.distributions == {
        "pretraining.optimizer.learning_rate": distributions.FloatDistribution(1e-4, 1e-1, log=True),
        "regulation.balance": distributions.FloatDistribution(0.0, 0.9, step=0.3),
        "pretraining.epochs": distributions.IntDistribution(1, 7, step=2),
        "regulation.batch_size": distributions.IntDistribution(8, 64, log=True),
        "deterministic": distributions.CategoricalDistribution((True, False)),
    }
    assert replace_paths(BASE, params).pretraining.optimizer.learning_rate == params["pretraining.optimizer.learning_rate"]


def test_resolve_puts_values_at_their_paths_and_refuses_bad_ones() -> None:
    config = replace_paths(BASE, {"regulation.optimizer.learning_rate": 0.5, "backbone": "vit_tiny"})
    assert (config.regulation.optimizer.learning_rate, config.backbone) == (0.5, "vit_tiny")
    assert config.pretraining == BASE.pretraining
    with pytest.raises(ConfigError, match=r"balance must lie in \[0, 1\]"):
        replace_paths(BASE, {"regulation.balance": 2.0})


def test_grid_holds_each_combination_of_each_branch_once() -> None:
    combinations = grid(BRANCHES, BASE)
    assert len(combinations) == size(BRANCHES, BASE) == 3 * 3 + 3 + 1
    assert len({tuple(sorted(params.items())) for params in combinations}) == len(combinations)
    assert combinations[0] == {"regulation.kind": "fixed", "regulation.balance": 0.25, "pretraining.epochs": 1}
    assert combinations[1] == {"regulation.kind": "fixed", "regulation.balance": 0.25, "pretraining.epochs": 2}
    assert combinations[-1] == {"regulation.kind": "random"}


def test_grid_steps_are_decimal() -> None:
    balances = [params["regulation.balance"] for params in grid({"regulation.balance": Float(0.0, 1.0, step=0.1)}, BASE)]
    assert balances == [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def test_grid_over_a_real_range_names_the_cure() -> None:
    space: dict[str, Distribution] = {"regulation.balance": Float(0.0, 1.0)}
    assert size(space, BASE) is None
    with pytest.raises(
        ConfigError, match=r"Give regulation.balance a step, .* finitely many values, but it is 'real in \[0, 1\]'"
    ):
        grid(space, BASE)


def test_size_does_not_list_the_combinations() -> None:
    space: dict[str, Distribution] = {
        "regulation.kind": Choice(("fixed", "random")),
        "pretraining.epochs": Int(1, 10**9),
        "regulation.warmup_steps": Int(0, 10**9 - 1),
        "regulation.balance": Float(0.0, 1.0, when=When("regulation.kind", ("learnable",))),
    }
    assert size(space, BASE) == 2 * 10**18
    space["regulation.balance"] = Float(0.0, 1.0, when=When("regulation.kind", ("random",)))
    assert size(space, BASE) is None


VALUES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=3, unique=True).map(tuple)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_grid_and_size_agree_on_any_space(data: st.DataObject) -> None:
    paths = ["regulation.balance", "drop_path", "pretraining.label_smoothing", "pretraining.augmentation.mixup"]
    space: dict[str, Distribution] = {}
    for index, path in enumerate(paths):
        is_conditional = index > 0 and data.draw(st.booleans())
        when = When(data.draw(st.sampled_from(paths[:index])), data.draw(VALUES)) if is_conditional else None
        space[path] = Choice(data.draw(VALUES), when=when)
    combinations = grid(space, BASE)
    assert len(combinations) == size(space, BASE)
    assert len({tuple(params.items()) for params in combinations}) == len(combinations)
    for params in combinations:
        fixed = {path: params.get(path, space[path].bounds()[0]) for path in space}
        assert suggest(space, BASE, optuna.trial.FixedTrial(fixed)) == params


def test_describe_gives_a_row_for_each_parameter() -> None:
    space: dict[str, Distribution] = {
        **BRANCHES,
        "pretraining.optimizer.learning_rate": Float(1e-4, 1e-1, log=True),
    }
    assert describe(space) == [
        ("regulation.kind", "{fixed, learnable, random}", ""),
        ("regulation.balance", "real in [0.25, 0.75], step 0.25", "regulation.kind in {fixed, learnable}"),
        ("pretraining.epochs", "whole in [1, 3]", "regulation.kind in {fixed}"),
        ("pretraining.optimizer.learning_rate", "real in [0.0001, 0.1], logarithmic", ""),
    ]
