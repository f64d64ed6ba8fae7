from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from emoreg.config import CONFIRM, Choice, StudyConfig
from emoreg.config.trial import Precision
from emoreg.storage.files import Files
from emoreg.tuning import auto_settings
from emoreg.tuning.auto_settings import study_precisions
from emoreg.tuning.manifest import write_manifest
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import tiny
from tests.tuning.test_manifest import PRINTS

AUTO = tiny(deterministic=False)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backbones that are measured: bf16 is faster for each."""
    asked: list[str] = []
    monkeypatch.setattr(auto_settings, "auto_precision", lambda config, device: asked.append(config.backbone) or "bf16")
    return asked


def study(storage: Path, **changes: Any) -> StudyConfig:
    return tiny_study(**{"storage": str(storage), "trial": AUTO, **changes})


def files(config: StudyConfig) -> Files:
    return Files(f"{config.storage}/{config.name}")


def begun(config: StudyConfig, precisions: dict[str, Precision] | None) -> None:
    folder = files(config).folder
    assert folder is not None
    folder.mkdir()
    write_manifest(config, folder, PRINTS, precisions)


def test_a_study_measures_each_backbone_once_and_goes_on_as_it_began(tmp_path: Path, measured: list[str]) -> None:
    config = study(tmp_path)
    assert study_precisions(config, files(config), []) == {"test_resnet": "bf16"}
    begun(config, {"test_resnet": "float32"})
    more = dataclasses.replace(config, search_space={"backbone": Choice(("test_resnet", "test_vit"))})
    assert study_precisions(more, files(config), []) == {"test_resnet": "float32", "test_vit": "bf16"}
    assert measured == ["test_resnet", "test_vit"]


def test_a_confirmation_computes_as_its_search_did(tmp_path: Path, measured: list[str]) -> None:
    begun(study(tmp_path), {"test_resnet": "float32"})
    config = study(tmp_path, name=f"tiny{CONFIRM}")
    assert study_precisions(config, files(config), []) == {"test_resnet": "float32"}
    assert not measured


def test_what_an_earlier_emoreg_computed_in_float32_goes_on_so(tmp_path: Path, measured: list[str]) -> None:
    config = study(tmp_path)
    begun(config, None)
    assert study_precisions(config, files(config), [ended(AUTO)]) == {"test_resnet": "float32"}
    recorded = dataclasses.replace(ended(AUTO), precision="bf16")
    assert study_precisions(config, files(config), [recorded]) == {"test_resnet": "bf16"}
    assert not measured
    for silent in (ended(tiny()), ended(tiny(deterministic=False, precision="bf16")), ended(AUTO, status="failed")):
        assert study_precisions(config, files(config), [silent]) == {"test_resnet": "bf16"}
    assert len(measured) == 3


def test_a_study_that_does_not_ask_is_not_measured(tmp_path: Path, measured: list[str]) -> None:
    for trial in (tiny(), tiny(deterministic=False, precision="float32")):
        config = study(tmp_path, trial=trial)
        assert study_precisions(config, files(config), [ended(AUTO)]) == {}
    assert not measured
