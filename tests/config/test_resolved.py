"""A trial's identity: what decides its numbers, and nothing else."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from emoreg.config import ImageSetConfig, RegulationConfig, TrialConfig, Value, leaves, read_path, replace_paths, resolve_trial
from emoreg.config.paths import changes
from emoreg.config.resolved import UNKNOWN, Fingerprints, decisive, source_of
from emoreg.data.splits import cut_validation
from emoreg.errors import ConfigError
from tests.helpers.trials import equal, noise_split, run, tiny
from tests.helpers.values import OTHER_VALUES, whole

RELABELLED_CUTS = {f"relabelled.{name}" for name in ("num_images", "validation_fraction", "split_seed", "num_folds")}
NEVER = {"metrics", "probes", "probe_every", "neutral.num_images", *RELABELLED_CUTS}
# Settings that the trial of the table cannot use as it is, with what it must have for that.
USED_WHERE: Mapping[str, Mapping[str, Value]] = {
    "regulation.balance_learning_rate": {"regulation.kind": "learnable"},
    "regulation.decay_fraction": {"regulation.lr_schedule": "warmup_stable_decay"},
    "stimuli.split_seed": {"stimuli.num_images": 40},
    **{path: {"control": "neutral"} for path in OTHER_VALUES if path.startswith("neutral.")},
    **{path: {"control": "relabelled"} for path in OTHER_VALUES if path.startswith("relabelled.")},
}
PRETRAINING = (*(path for path in OTHER_VALUES if path.startswith("pretraining.")), "exclude_test_images")
STIMULI = tuple(path for path in OTHER_VALUES if path.startswith("stimuli."))
CUTS = ("stimuli.num_images", "stimuli.validation_fraction", "stimuli.split_seed", "stimuli.num_folds")
CONTENT = ("stimuli.name", "stimuli.path", "stimuli.target", "stimuli.image_column", "stimuli.fit", "stimuli.group")
ENDS = {"regulation.kind": "fixed", "regulation.form": "output", "regulation.mix_space": "logits"}
# What makes settings useless: the values that do, and the settings.
USELESS: list[tuple[Mapping[str, Value], tuple[str, ...]]] = [
    ({"deterministic": True, "precision": "auto", "compile": "auto"}, ("precision=float32", "compile=off")),
    ({"image_size": 48, "stem": "auto"}, ("stem=small",)),
    ({"image_size": 96, "stem": "auto"}, ("stem=own",)),
    ({"regulation.kind": "random"}, ("regulation.balance",)),
    ({"regulation.kind": "random_learnable", "regulation.form": "output"}, ("regulation.balance",)),
    ({"regulation.kind": "fixed"}, ("regulation.balance_learning_rate",)),
    ({"regulation.lr_schedule": "cosine"}, ("regulation.decay_fraction",)),
    ({"regulation.form": "conditioned"}, ("regulation.freeze_emotional",)),
    ({"regulation.form": "conditioned", "control": "regulated"}, ("regulation.emotional_learning_rate",)),
    ({"regulation.freeze_emotional": True, "control": "regulated"}, ("regulation.emotional_learning_rate",)),
    (
        {**ENDS, "regulation.balance": 0.0, "control": "regulated"},
        (
            "regulation.mix_space",
            "regulation.form",
            "regulation.form=conditioned",
            "regulation.freeze_emotional",
            "regulation.emotional_learning_rate",
            *PRETRAINING,
            *STIMULI,
        ),
    ),
    ({**ENDS, "regulation.balance": 1.0}, ("regulation.mix_space", "regulation.form")),
    ({**ENDS, "regulation.balance": 1.0, "regulation.form": "conditioned"}, ("regulation.mix_space",)),
    (
        {"pretraining.epochs": 0, "regulation.form": "output"},
        (*(path for path in PRETRAINING if path != "pretraining.epochs"), *STIMULI),
    ),
    (
        {"pretraining.epochs": 0, "regulation.form": "conditioned", "control": "regulated"},
        (*(path for path in PRETRAINING if path != "pretraining.epochs"), *CUTS),
    ),
    (
        {"stimuli.num_images": None, "stimuli.validation_fraction": 0.0, "stimuli.num_folds": None, "control": "regulated"},
        ("stimuli.split_seed",),
    ),
    ({"task.validation_fraction": 0.1, "task.num_folds": 3}, ("task.validation_fraction",)),
    ({}, tuple(NEVER)),
]


def identity(trial: TrialConfig, fingerprints: Fingerprints = UNKNOWN) -> str:
    return resolve_trial(trial, fingerprints).identity


def test_every_setting_has_another_value_in_the_table() -> None:
    assert OTHER_VALUES.keys() == dict(leaves(whole())).keys()


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_the_identity_depends_on_every_setting_that_is_used(path: str) -> None:
    base = replace_paths(whole(), USED_WHERE.get(path, {}))
    changed = replace_paths(base, {path: OTHER_VALUES[path]})
    assert read_path(changed, path) == OTHER_VALUES[path]
    assert {key: value for key, value in leaves(changed) if key != path} == {
        key: value for key, value in leaves(base) if key != path
    }
    assert (identity(changed) != identity(base)) == (path not in NEVER)


def test_identities_differ_from_one_another_and_stay() -> None:
    used = [path for path in OTHER_VALUES if path not in NEVER]
    assert len({identity(replace_paths(whole(), {**USED_WHERE.get(p, {}), p: OTHER_VALUES[p]})) for p in used}) == len(used)
    # A study finds its finished trials by these. They move when a default is changed: give the setting another name instead.
    assert identity(TrialConfig()) == "a6f075446b8e"
    assert identity(TrialConfig(control="plain", seed=3)) == "d32d5eade089"


@st.composite
def trials(draw: st.DrawFn) -> TrialConfig:
    """A trial with some settings at other values than their defaults."""
    paths = draw(st.sets(st.sampled_from(sorted(OTHER_VALUES)), max_size=20))
    excluded = {path.replace("num_folds", "validation_fraction") for path in paths if path.endswith("num_folds")}
    excluded |= {"weights"} if "width" in paths else set()
    excluded |= {"pretraining.cooldown_epochs"} if "pretraining.lr_schedule" in paths else set()
    values = {path: OTHER_VALUES[path] for path in paths - excluded}
    form = draw(st.sampled_from(("output", "loss", "conditioned")))
    learned = () if form == "loss" else ("learnable", "random_learnable", "dynamic")
    values |= {
        "regulation.form": form,
        "regulation.kind": draw(st.sampled_from(("fixed", "random", *learned))),
        "regulation.balance": draw(st.sampled_from((0.25, 0.5))),
        "regulation.mix_space": "logits",
        "precision": "auto",
        "compile": "auto",
        "control": draw(st.sampled_from(("regulated", "shuffled", "neutral", "untrained", "emotional", "plain"))),
    }
    return replace_paths(whole(), values)


@settings(max_examples=60, deadline=None)
@given(trials(), st.sampled_from(USELESS), st.data())
def test_what_a_trial_cannot_use_is_not_part_of_its_identity(
    trial: TrialConfig, useless: tuple[Mapping[str, Value], tuple[str, ...]], data: st.DataObject
) -> None:
    values, paths = useless
    base = replace_paths(trial, values)
    name = data.draw(st.sampled_from(paths))
    path, _, given_value = name.partition("=")
    value = 0.0 if path == "task.validation_fraction" else given_value or OTHER_VALUES[path]
    try:
        changed = replace_paths(base, {path: value})
    except ConfigError:  # the two exclude each other
        return
    if base.control == "neutral" and path in STIMULI:  # their number cuts the neutral set
        return
    assert identity(changed) == identity(base)


@settings(max_examples=60, deadline=None)
@given(trials())
def test_resolving_what_is_resolved_changes_nothing(trial: TrialConfig) -> None:
    resolved = resolve_trial(trial)
    assert resolve_trial(resolved.config) == resolved


# Pairs of trials with one identity: by which the trainer must give the same numbers.
SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (
        {"regulation__kind": "random", "deterministic": True},
        {"regulation__balance": 0.1, "regulation__decay_fraction": 0.5, "precision": "float32"},
    ),
    ({"regulation__kind": "random_learnable"}, {"regulation__balance": 0.1}),
    (
        {"regulation__balance": 0.0},
        {
            "regulation__form": "conditioned",
            "regulation__mix_space": "probabilities",
            "regulation__freeze_emotional": True,
            "pretraining__epochs": 3,
            "stimuli__num_images": 32,
        },
    ),
    ({"regulation__balance": 0.0}, {"regulation__form": "loss"}),
    ({"regulation__balance": 1.0}, {"regulation__form": "loss"}),
    ({"regulation__balance": 1.0}, {"regulation__mix_space": "probabilities"}),
    (
        {"regulation__balance": 1.0, "regulation__form": "conditioned"},
        {"regulation__mix_space": "probabilities", "regulation__freeze_emotional": True},
    ),
    ({"pretraining__epochs": 0}, {"stimuli__name": "openmoji", "pretraining__batch_size": 7}),
    ({"pretraining__epochs": 0}, {"pretraining__cooldown_epochs": 1}),
    (
        {"pretraining__epochs": 0, "regulation__form": "conditioned"},
        {"stimuli__num_images": 32, "pretraining__optimizer__learning_rate": 0.1},
    ),
]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("storage")


@functools.cache
def weights_of(config: TrialConfig, storage: Path) -> dict[str, Tensor]:
    """Those at the end of a trial of its own, trained once for all that ask."""
    return run(config, storage, folder=Path(tempfile.mkdtemp(dir=storage)))[2]


@pytest.mark.parametrize(("values", "others"), SAME, ids=[str(index) for index in range(len(SAME))])
def test_trials_of_one_identity_have_the_same_weights(values: dict[str, Any], others: dict[str, Any], storage: Path) -> None:
    trial = partial(tiny, **{"regulation__epochs": 1, **values})
    one, other = trial(), trial(**others)
    assert identity(one) == identity(other)
    assert equal(weights_of(one, storage), weights_of(other, storage))


def test_where_nothing_is_cut_the_split_has_no_seed() -> None:
    images = noise_split(20)
    for seed in (0, 1):
        train, validation = cut_validation(images, 0.0, seed=seed)
        assert train is images
        assert len(validation) == 0


def test_the_identity_is_of_numbers_and_not_of_how_they_were_written() -> None:
    base = TrialConfig()
    assert identity(replace_paths(base, {"drop_path": 0})) == identity(base)
    assert identity(replace_paths(base, {"seed": 1, "regulation.balance": 1})) == identity(
        replace_paths(base, {"seed": 1, "regulation.balance": 1.0})
    )
    assert identity(replace_paths(base, {"regulation.freeze_emotional": True})) != identity(base)


def test_a_setting_at_its_default_is_not_part_of_the_identity() -> None:
    # so that one that is added later changes no identity: only the image sets' own defaults differ from their class's
    assert decisive(TrialConfig(), UNKNOWN) == {"stimuli.validation_fraction": 0, "task.name": "digits"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    epochs: int = 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    stages: tuple[Stage, ...] = ()
    images: ImageSetConfig | None = None


@pytest.mark.parametrize(
    ("plan", "settings"),
    [
        (Plan(), {}),
        (Plan(stages=(Stage(),)), {"stages": 1}),
        (Plan(stages=(Stage(), Stage(epochs=2))), {"stages": 2, "stages.1.epochs": 2}),
        (Plan(images=ImageSetConfig()), {"images": "ImageSetConfig"}),
        (Plan(images=ImageSetConfig(num_images=3)), {"images": "ImageSetConfig", "images.num_images": 3}),
    ],
)
def test_the_length_of_a_tuple_and_what_is_there_at_all_count(plan: Plan, settings: dict[str, Any]) -> None:
    assert dict(changes(plan)) == settings


def test_image_sets_count_by_what_is_in_them() -> None:
    trial = whole()
    moved = replace_paths(trial, {"stimuli.path": "elsewhere"})
    assert identity(moved) != identity(trial)
    known = {source_of(trial.stimuli, 32): "aa", source_of(moved.stimuli, 32): "aa", source_of(trial.task, 32): "bb"}
    assert identity(moved, known) == identity(trial, known) != identity(trial)
    other = {**known, source_of(moved.stimuli, 32): "cc"}
    assert identity(moved, other) != identity(trial, other)
    assert identity(replace_paths(moved, {"stimuli.num_images": 5}), known) != identity(moved, known)  # which of them
    plain = {"control": "plain"}
    assert identity(replace_paths(moved, plain), other) == identity(replace_paths(trial, plain), other)
    assert source_of(trial.stimuli, 64) not in known  # of another size
    for other_images in ({"fit": "crop"}, {"image_column": "photo"}, {"group": "person"}):
        assert source_of(dataclasses.replace(trial.stimuli, **other_images), 32) not in known


def test_a_neutral_set_counts_where_it_is_trained_on() -> None:
    neutral = TrialConfig(control="neutral", neutral=ImageSetConfig(name="digits"))
    assert identity(neutral) != identity(replace_paths(neutral, {"neutral.split_seed": 1}))
    assert identity(neutral) != identity(replace_paths(neutral, {"stimuli.num_images": 7}))  # to which it is cut
    assert identity(neutral) == identity(replace_paths(neutral, {"neutral.num_images": 7}))
    shuffled = dataclasses.replace(neutral, control="shuffled")
    assert identity(shuffled) == identity(dataclasses.replace(shuffled, neutral=None))


def test_the_meaning_of_the_control_is_in_the_configuration() -> None:
    resolved = resolve_trial(TrialConfig(control="plain", regulation=RegulationConfig(balance=0.3)))
    assert (resolved.config.regulation.balance, resolved.config.control) == (0.0, "plain")
    assert len(resolved.identity) == 12
