from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from emoreg.config import CONFIRM, Choice, Float, ImageSetConfig, StudyConfig, TrialConfig
from emoreg.config.resolved import resolve_trial
from emoreg.results.written import Compilation
from emoreg.storage.files import Files
from emoreg.training import compile_choice
from emoreg.tuning.auto_settings import encoder_images, study_compilations, written_compilations
from emoreg.tuning.manifest import write_manifest
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import tiny
from tests.tuning.test_manifest import PRINTS

AUTO = tiny(deterministic=False)
YES, NO = Compilation(compiled=True, reason="it pays"), Compilation(compiled=False, reason="it does not pay")
Asked = list[tuple[str, str, float, int]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What is measured: backbone, precision, images, trials at once. Compiling pays for each."""
    found: Asked = []

    def auto_compile(config: TrialConfig, num_images: float, slots: int, notify: Any) -> Compilation:
        found.append((config.backbone, config.precision, num_images, slots))
        return YES

    monkeypatch.setattr(compile_choice, "auto_compile", auto_compile)
    return found


def study(storage: Path, **changes: Any) -> StudyConfig:
    return tiny_study(**{"storage": str(storage), "trial": AUTO, "controls": (), **changes})


def decide(config: StudyConfig, records: Any = (), **precisions: Any) -> dict[str, Compilation]:
    return study_compilations(config, files(config), records, precisions, count, lambda message: None)


def count(role: str, image_set: ImageSetConfig) -> int:
    return image_set.num_images or 0


def files(config: StudyConfig) -> Files:
    return Files(f"{config.storage}/{config.name}")


def begun(config: StudyConfig, compilations: dict[str, Compilation] | None) -> None:
    folder = files(config).folder
    assert folder is not None
    folder.mkdir()
    write_manifest(config, folder, PRINTS, compilations=compilations)


def test_a_study_measures_each_backbone_once_and_goes_on_as_it_began(tmp_path: Path, asked: Asked) -> None:
    config = study(tmp_path)
    assert decide(config, test_resnet="bf16") == {"test_resnet": YES}
    begun(config, {"test_resnet": NO})
    assert written_compilations(config, files(config)) == {"test_resnet": NO}
    more = dataclasses.replace(config, search_space={"backbone": Choice(("test_resnet", "test_vit"))})
    assert decide(more) == {"test_resnet": NO, "test_vit": YES}
    assert [row[:2] for row in asked] == [("test_resnet", "bf16"), ("test_vit", "float32")]


def test_what_is_counted_are_the_images_that_pass_an_encoder_in_training(tmp_path: Path, asked: Asked) -> None:
    space = {"regulation.balance": Float(0.1, 0.9)}
    decide(study(tmp_path, num_trials=5, search_space=space))
    whole = 1 * 16 + 2 * 2 * 20  # an epoch of pre-training, two of regulation with two encoders
    assert encoder_images(resolve_trial(AUTO).config, count) == whole
    assert encoder_images(resolve_trial(tiny(pretraining__cooldown_epochs=3)).config, count) == whole + 3 * 16
    assert encoder_images(resolve_trial(tiny(control="plain")).config, count) == 2 * 20
    assert encoder_images(resolve_trial(tiny(regulation__freeze_emotional=True)).config, count) == 16 + 2 * 20
    decide(study(tmp_path, num_trials=5, search_space=space, controls=("regulated",), control_seeds=(0, 1), seeds_per_trial=2))
    assert [row[2] for row in asked] == [5 * whole, (2 * 5 + 2) * whole]


def test_a_confirmation_computes_as_its_search_did(tmp_path: Path, asked: Asked) -> None:
    begun(study(tmp_path), {"test_resnet": NO})
    assert decide(study(tmp_path, name=f"tiny{CONFIRM}")) == {"test_resnet": NO}
    assert not asked


def test_a_study_whose_trials_have_finished_without_goes_on_without(tmp_path: Path, asked: Asked) -> None:
    config = study(tmp_path)
    begun(config, None)
    found = decide(config, [ended(AUTO)])
    assert not found["test_resnet"].compiled
    assert not asked
    assert decide(config, [ended(AUTO, status="failed"), ended(tiny())]) == {"test_resnet": YES}


def test_a_study_that_does_not_ask_is_not_measured(tmp_path: Path, asked: Asked) -> None:
    for trial in (tiny(), tiny(deterministic=False, compile="off")):
        assert decide(study(tmp_path, trial=trial)) == {}
    assert not asked
