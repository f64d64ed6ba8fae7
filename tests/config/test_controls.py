from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest

from emoreg.config import (
    CONTROLS,
    Choice,
    Float,
    ImageSetConfig,
    RegulationConfig,
    StudyConfig,
    TrialConfig,
    control,
    control_named,
    from_json,
    in_order,
    leaves,
    registries,
    resolve_trial,
    to_json,
)
from emoreg.config.controls import available_controls
from emoreg.config.registry import Registry
from emoreg.errors import ConfigError
from emoreg.formatting import control_name

SPACE = {"regulation.balance": Float(0.0, 1.0)}


@pytest.fixture
def mine() -> Iterator[None]:
    @control("mine", label="my control", dash="1px,1px")
    def halved(trial: TrialConfig) -> TrialConfig:
        """A balance of a half.

        More of it.
        """
        return dataclasses.replace(trial, regulation=dataclasses.replace(trial.regulation, balance=0.5))

    yield
    _forget("mine")


def _forget(name: str) -> None:
    CONTROLS._entries.pop(name)


def test_the_controls_of_the_package_in_the_order_of_tables() -> None:
    assert (*CONTROLS,) == (
        "regulated",
        "plain",
        "compute_matched",
        "ensemble",
        "wide",
        "emotional",
        "untrained",
        "untrained_matched",
        "shuffled",
        "relabelled",
        "neutral",
    )
    assert CONTROLS["plain"].dash == "dash"
    assert {name: entry.images for name, entry in CONTROLS.items() if entry.images != "stimuli"} == {
        "relabelled": "relabelled",
        "neutral": "neutral",
    }
    assert all(entry.description and entry.name == name for name, entry in CONTROLS.items())
    assert len({entry.dash for entry in CONTROLS.values()}) == len(CONTROLS)
    assert [control_name(name) for name in ("regulated", "plain", "of another study")] == [
        "regulation",
        "plain",
        "of another study",
    ]
    assert registries()[0] is CONTROLS


def test_what_the_controls_mean() -> None:
    trial = TrialConfig(
        neutral=ImageSetConfig(name="openmoji-objects"),
        relabelled=ImageSetConfig(name="openmoji", target="subgroup"),
        regulation=RegulationConfig(form="conditioned", kind="learnable", balance=0.3, epochs=7),
    )

    def differs(name: str) -> dict[str, Any]:
        before = dict(leaves(trial))
        resolved = resolve_trial(dataclasses.replace(trial, control=name))
        assert resolve_trial(resolved.config) == resolved
        assert resolved.config.control == name
        return {path: value for path, value in leaves(resolved.config) if value != before[path] and path != "control"}

    output = {"regulation.form": "output", "regulation.kind": "fixed"}
    assert differs("regulated") == {}
    assert differs("plain") == output | {"regulation.balance": 0.0, "pretraining.epochs": 0}
    assert differs("compute_matched") == differs("plain")
    assert differs("ensemble") == {
        "regulation.form": "loss", "regulation.kind": "fixed", "regulation.balance": 0.5, "pretraining.epochs": 0
    }  # fmt: skip
    assert differs("wide") == differs("plain") | {"width": 2}
    assert differs("emotional") == output | {"regulation.balance": 1.0}
    assert differs("untrained") == differs("untrained_matched") == {"pretraining.epochs": 0}
    assert differs("shuffled") == {"pretraining.shuffle_labels": True}
    assert differs("neutral") == differs("relabelled") == {}  # their images are chosen where they are loaded
    identities = {resolve_trial(dataclasses.replace(trial, control=name)).identity for name in CONTROLS}
    assert len(identities) == 11


def test_what_is_opt_in_is_run_where_a_study_names_it_alone() -> None:
    assert [name for name, entry in CONTROLS.items() if entry.opt_in] == ["wide", "untrained_matched"]
    study = StudyConfig(search_space=SPACE)
    asking = dataclasses.replace(study, controls=("regulated", "plain", "wide"))
    everywhere = set(CONTROLS) - {"neutral", "relabelled"}  # whose images the trial does not name
    assert {*available_controls(study, CONTROLS)} == everywhere - {"wide", "untrained_matched"}
    assert {*available_controls(asking, CONTROLS)} == everywhere - {"untrained_matched"}
    assert [(trial.control, resolve_trial(trial).config.encoder) for trial in asking.control_trials()] == [
        ("regulated", ("resnet18", 1)), ("plain", ("resnet18", 1)), ("wide", ("resnet18", 2))
    ]  # fmt: skip
    assert all(resolve_trial(trial).config.width == 1 for trial in study.control_trials())
    matching = dataclasses.replace(study, controls=("plain", "untrained_matched"))
    assert {*available_controls(matching, CONTROLS)} == everywhere - {"wide"}
    assert [trial.control for trial in matching.control_trials()] == ["plain"], "a confirmation knows the passes to match"


def test_images_of_pretraining_go_by_the_control() -> None:
    trial = TrialConfig(
        neutral=ImageSetConfig(name="openmoji-objects"), relabelled=ImageSetConfig(name="openmoji", target="subgroup")
    )

    def images(name: str) -> tuple[ImageSetConfig | None, bool]:
        resolved = resolve_trial(dataclasses.replace(trial, control=name))
        return resolved.images_of_pretraining, resolved.needs_pretraining

    assert images("regulated") == images("shuffled") == images("emotional") == (trial.stimuli, True)
    assert images("neutral") == (trial.neutral, True)
    assert images("relabelled") == (trial.relabelled, True)
    assert images("untrained") == (trial.stimuli, False)
    assert images("plain") == (None, False)


@pytest.mark.usefixtures("mine")
def test_a_control_of_the_user_s_own_is_like_the_package_s() -> None:
    assert (*CONTROLS,)[-1] == "mine"
    entry = CONTROLS["mine"]
    assert (entry.label, entry.dash, entry.description) == ("my control", "1px,1px", "A balance of a half.")
    trial = TrialConfig(control="mine", regulation=RegulationConfig(balance=0.1))
    assert resolve_trial(trial).config.regulation.balance == 0.5
    study = StudyConfig(search_space=SPACE, controls=("regulated", "mine"), control_seeds=(3, 4))
    assert [(trial.control, trial.seed) for trial in study.control_trials()] == [
        (name, seed) for seed in (3, 4) for name in ("regulated", "mine")
    ]


def test_controls_come_seed_by_seed_for_every_backbone() -> None:
    config = StudyConfig(
        search_space={"backbone": Choice(("resnet18", "vit_tiny"))}, controls=("regulated", "plain"), control_seeds=(3, 4)
    )
    assert [(trial.seed, trial.backbone, trial.control) for trial in config.control_trials()] == [
        (seed, backbone, name) for seed in (3, 4) for backbone in ("resnet18", "vit_tiny") for name in ("regulated", "plain")
    ]


def test_a_study_names_controls_that_are_registered() -> None:
    with pytest.raises(ConfigError, match=r"Register the control 'mine' in the study file \(@emoreg\.control\('mine'\)\)"):
        StudyConfig(search_space=SPACE, controls=("mine",))
    with pytest.raises(ConfigError, match=r"control must be a registered control, but it is 'mine'; the nearest are"):
        TrialConfig(control="mine")


def test_what_another_process_has_registered_can_be_read_and_drawn_but_not_run() -> None:
    written = to_json(StudyConfig(search_space=SPACE)) | {"controls": ["shuffled", "mine", "plain"]}
    study = from_json(StudyConfig, written)
    assert in_order(study.controls) == ("plain", "shuffled", "mine")
    assert dataclasses.replace(study, num_trials=3).control_trials()[1].control == "mine"
    assert from_json(StudyConfig, to_json(study)) == study
    assert control_named("mine").label == "mine"
    trial = from_json(TrialConfig, to_json(TrialConfig()) | {"control": "mine"})
    with pytest.raises(ConfigError, match="control must be a registered control, but it is 'mine'"):
        resolve_trial(trial)
    with pytest.raises(ConfigError, match="control must be a registered control, but it is 'mine'"):
        control_named("mine").change(TrialConfig())


def test_a_control_that_changes_what_it_has_changed_is_refused() -> None:
    @control("growing")
    def grow(trial: TrialConfig) -> TrialConfig:
        return dataclasses.replace(trial, regulation=dataclasses.replace(trial.regulation, epochs=2 * trial.regulation.epochs))

    with pytest.raises(ConfigError, match=r"Let it set values .* applied twice must change nothing .* but it is 'growing'"):
        resolve_trial(TrialConfig(control="growing"))
    _forget("growing")


def test_a_control_may_not_lose_its_name() -> None:
    @control("forgetful", images="neutral")
    def forget(trial: TrialConfig) -> TrialConfig:
        return TrialConfig(neutral=trial.neutral)

    with pytest.raises(ConfigError, match="the forgetful control needs the image set `neutral`, but it is None"):
        TrialConfig(control="forgetful")
    trial = TrialConfig(control="forgetful", neutral=ImageSetConfig())
    assert resolve_trial(trial).config.control == "forgetful"
    assert resolve_trial(trial).identity != resolve_trial(TrialConfig()).identity
    _forget("forgetful")


def test_the_images_of_a_control_are_a_set_of_the_trial() -> None:
    with pytest.raises(ConfigError, match=r"Name one of stimuli, neutral, relabelled, task: .* must be .* 'faces'"):
        control("mine", images="faces")


def test_an_empty_registry_says_so() -> None:
    probes: Registry[object] = Registry("probe")
    with pytest.raises(ConfigError, match=r"@emoreg\.probe\('linear'\).* probes must be a registered probe.* nearest are none"):
        probes.require("linear", of="probes")
    assert probes.add("linear", 1) == probes["linear"] == 1
    assert [*probes.items()] == [("linear", 1)]
