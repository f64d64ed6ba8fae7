from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from emoreg.config import Choice, ResourcesConfig, StudyConfig, replace_paths
from emoreg.config.resolved import Fingerprints, source_of
from emoreg.errors import ConfigError, StorageError
from emoreg.results.written import read_written
from emoreg.storage.files import Files
from emoreg.storage.sealed import seal, unseal
from emoreg.tuning.manifest import provenance, write_manifest
from tests.helpers.studies import tiny_study
from tests.helpers.written import changed_json

PRINTS: Fingerprints = {("digits", None, None, 16): "abc"}


@pytest.fixture
def study() -> StudyConfig:
    return tiny_study()


def changed(study: StudyConfig, **paths: Any) -> StudyConfig:
    return dataclasses.replace(study, trial=replace_paths(study.trial, {k.replace("__", "."): v for k, v in paths.items()}))


def content_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = unseal((folder / "study.json").read_bytes())
    return content


def test_the_study_file_says_what_was_run(study: StudyConfig, tmp_path: Path) -> None:
    write_manifest(study, tmp_path, PRINTS)
    content = unseal((tmp_path / "study.json").read_bytes())
    assert content["config"]["trial"]["backbone"] == "test_resnet"
    assert content["fingerprints"] == [["digits", None, None, 16, "abc"]]
    assert {"emoreg", "python", "torch", "ray", "optuna"} <= content["versions"].keys()
    assert content["device"]
    assert content["platform"]
    assert not list(tmp_path.glob("*.tmp"))
    write_manifest(dataclasses.replace(study, optuna_storage="postgresql://me:pass%40word@host:5432/db"), tmp_path, PRINTS)
    content = unseal((tmp_path / "study.json").read_bytes())
    assert content["config"]["optuna_storage"] == "postgresql://me:***@host:5432/db"


def test_a_changed_file_of_weights_is_refused(study: StudyConfig, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"one")
    started = changed(study, weights=str(weights))
    write_manifest(started, tmp_path, PRINTS)
    write_manifest(started, tmp_path, PRINTS)
    weights.write_bytes(b"another")
    with pytest.raises(ConfigError, match=r"fingerprints\.weights .*weights\.pth 16: "):
        write_manifest(started, tmp_path, PRINTS)


def test_sets_that_are_read_otherwise_have_fingerprints_of_their_own(study: StudyConfig, tmp_path: Path) -> None:
    cropped = changed(study, task__fit="crop")
    prints = {source_of(study.trial.task, 16): "a", source_of(cropped.trial.task, 16): "b"}
    write_manifest(cropped, tmp_path, prints)
    written = read_written(Files(str(tmp_path)))
    assert {tuple(source): fingerprint for *source, fingerprint in written.fingerprints} == prints


def test_a_changed_study_is_refused_with_the_differences(study: StudyConfig, tmp_path: Path) -> None:
    write_manifest(study, tmp_path, PRINTS)
    before = (tmp_path / "study.json").read_text()
    for other, prints, difference in (
        (changed(study, regulation__epochs=7), PRINTS, r"trial\.regulation\.epochs: 2 -> 7"),
        (study, {("digits", None, None, 16): "xyz"}, r'fingerprints\.digits 16: "abc" -> "xyz"'),
        (
            dataclasses.replace(study, search_space={"regulation.balance": Choice((0.1, 0.5))}),
            PRINTS,
            r"search_space\.regulation\.balance\.low: 0\.1 -> absent",
        ),
    ):
        with pytest.raises(ConfigError, match=difference) as caught:
            write_manifest(other, tmp_path, prints)
        assert "(--name NEW --warm-start-from tiny)" in str(caught.value)
    assert (tmp_path / "study.json").read_text() == before


@pytest.mark.parametrize("stage", ["pretraining", "regulation"])
def test_a_changed_trainer_is_refused(stage: str, study: StudyConfig, tmp_path: Path) -> None:
    write_manifest(study, tmp_path, PRINTS)
    with changed_json(tmp_path / "study.json") as content:
        assert content["trainer"].keys() == {"pretraining", "regulation"}
        content["trainer"][stage] = 0
    with pytest.raises(ConfigError, match=rf"trainer\.{stage}: 0 -> 2"):
        write_manifest(study, tmp_path, PRINTS)


def test_a_setting_that_came_later_is_at_its_default(study: StudyConfig, tmp_path: Path) -> None:
    write_manifest(study, tmp_path, PRINTS)
    content = content_of(tmp_path)
    del content["config"]["trial"]["probe_every"]
    (tmp_path / "study.json").write_bytes(seal(content))
    write_manifest(study, tmp_path, PRINTS)
    assert content_of(tmp_path)["config"]["trial"]["probe_every"] == 1


def test_a_study_may_grow(study: StudyConfig, tmp_path: Path) -> None:
    write_manifest(study, tmp_path, PRINTS)
    larger = dataclasses.replace(
        study, num_trials=50, control_seeds=(0, 1), controls=("regulated",), resources=ResourcesConfig(max_concurrent=1)
    )
    write_manifest(larger, tmp_path, {**PRINTS, ("openmoji", None, None, 16): "ghi"})
    assert unseal((tmp_path / "study.json").read_bytes())["config"]["num_trials"] == 50


def test_provenance_hides_passwords(study: StudyConfig) -> None:
    found = provenance(
        study, "emoreg run x --optuna-storage postgresql://user:secret@host/db --storage s3://key:secret@bucket/x"
    )
    assert found.command is not None
    assert "secret" not in found.command
    assert "host/db" in found.command
    assert found.versions.keys() >= {"emoreg", "python", "torch", "ray", "optuna"}
    quoted = provenance(study, "emoreg run x --optuna-storage 'postgresql://u@h/db?password=secret' --num-trials 3").command
    assert quoted == "emoreg run x --optuna-storage 'postgresql://u@h/db?password=***' --num-trials 3"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"config": {}}'])
def test_a_damaged_one_is_refused_by_name_and_left_as_it_is(content: bytes, study: StudyConfig, tmp_path: Path) -> None:
    path = tmp_path / "study.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match=r"move its study\.json away and run the study again"):
        write_manifest(study, tmp_path, PRINTS)
    assert path.read_bytes() == content
