from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emoreg.config import (
    Choice,
    Distribution,
    Float,
    ImageSetConfig,
    Int,
    Objective,
    StudyConfig,
    TrialConfig,
    TrialResources,
    Value,
    When,
    from_json,
    replace_paths,
    to_json,
)
from emoreg.errors import ConfigError
from emoreg.provenance import shipped_studies
from emoreg.study_file import read_study_file
from tests.helpers.values import OTHER_VALUES, whole


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(to_json(value)))


@pytest.mark.parametrize("name", shipped_studies())
def test_a_study_survives_json(name: str) -> None:
    study = read_study_file(name).config
    study = dataclasses.replace(
        study, confirmed=(study.trial,), resources_by_backbone={study.backbones()[0]: TrialResources(gpus=1)}
    )
    written = through_json(study)
    assert from_json(StudyConfig, written) == study
    del written["resources"]["grace_seconds"]  # a setting that came later
    assert from_json(StudyConfig, written) == study
    written["trial"]["regulation"]["mood"] = 1
    with pytest.raises(ConfigError, match=r"emoreg that wrote it: StudyConfig must have .* but it has trial\.regulation\.mood"):
        from_json(StudyConfig, written)


def test_every_setting_of_a_trial_survives_json() -> None:
    for path, value in OTHER_VALUES.items():
        trial = replace_paths(whole(), {path: value})
        assert from_json(TrialConfig, through_json(trial)) == trial


NUMBERS = st.integers(1, 9)
VALUES = st.lists(st.sampled_from(["a", 3, 2.5, True, 0]), min_size=1, unique=True).map(tuple)
BRANCHES = st.none() | st.builds(When, st.just("backbone"), VALUES)


@st.composite
def distributions(draw: st.DrawFn) -> Distribution:
    low, when = draw(NUMBERS), draw(BRANCHES)
    high = low + draw(NUMBERS)
    match draw(st.sampled_from(("float", "int", "choice"))):
        case "float":
            return Float(low, high, step=draw(st.none() | NUMBERS), when=when)
        case "int":
            return Int(low, high, step=draw(NUMBERS), when=when)
        case _:
            return Choice(draw(VALUES), when=when)


@dataclass(frozen=True)
class Space:
    by_path: Mapping[str, Distribution]


@settings(deadline=None)
@given(distributions())
def test_a_distribution_comes_back_as_what_it_was(distribution: Distribution) -> None:
    (read,) = from_json(Space, through_json(Space({"x": distribution}))).by_path.values()
    assert (type(read), read) == (type(distribution), distribution)
    if isinstance(distribution, Choice):
        assert isinstance(read, Choice)
        assert [*map(type, read.values)] == [*map(type, distribution.values)]


@dataclass(frozen=True, kw_only=True)
class Chosen:
    params: Mapping[str, Value]
    seeds: tuple[int, ...]
    task: str | None = None
    val_accuracy: float | None


def test_other_dataclasses_are_read_alike() -> None:
    chosen = Chosen(params={"a": 1, "b": 1.0, "c": "x", "d": True}, seeds=(1, 2), val_accuracy=1)
    (read,) = from_json(tuple[Chosen, ...], [through_json(chosen)])
    assert read == chosen
    assert [*map(type, read.params.values())] == [int, float, str, bool]


def changed(path: str, value: Any) -> dict[str, Any]:
    written: dict[str, Any] = through_json(StudyConfig(search_space={"drop_path": Float(0.0, 0.5)}))
    *parents, name = path.split(".")
    owner = written
    for parent in parents:
        owner = owner[parent]
    owner[name] = value
    return written


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("num_trials", "many", "Restore what was written: num_trials is 'many': Input should be a valid integer"),
        ("trial.regulation.kind", "fxied", "Restore what was written: trial.regulation.kind is 'fxied': Input should be"),
        ("trial.regulation.epochs", 2.0, "Restore what was written: trial.regulation.epochs is 2.0"),
        ("trial.regulation.balance", 2.0, "trial.regulation.balance is 2.0: Input should be less than or equal to 1"),
        ("trial.image_size", 4, "image_size must lie in [8, 512], but it is 4"),
        ("name", "../etc", "name must be 1 to 64 letters"),
        ("search_space", {"regulation.ballance": {"low": 0.0, "high": 1.0}}, "Name a setting such as regulation.balance"),
        ("objectives", [{"metric": "val_loss", "mode": "max"}], "Set mode='min'"),
        ("neutral", None, "StudyConfig must have settings that this emoreg knows, but it has neutral"),
    ],
)
def test_what_does_not_fit_is_refused_in_our_own_words(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_json(StudyConfig, changed(path, value))
    assert message in str(caught.value)


def test_settings_without_a_default_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"Restore what was written: seeds is .*: Field required"):
        from_json(Chosen, {"params": {}, "val_accuracy": None})


def test_a_whole_number_for_a_real_setting_is_taken() -> None:
    assert from_json(TrialConfig, {"drop_path": 0, "regulation": {"balance": 1}}).regulation.balance == 1.0
    assert from_json(ImageSetConfig, {}) == ImageSetConfig()
    assert from_json(tuple[Objective, ...], [{}]) == (Objective(),)
