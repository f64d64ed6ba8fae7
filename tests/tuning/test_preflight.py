from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from emoreg.config import Choice, ImageSetConfig, ResourcesConfig, StudyConfig, replace_paths
from emoreg.errors import ConfigError, ImageSetError, StorageError
from emoreg.results.records import Records
from emoreg.storage.working_copy import node_cache, only_driver
from emoreg.tuning.preflight import (
    adopt_controls,
    check_storage,
    check_study,
    image_storage,
    prepare_image_sets,
    provenance,
    storage_uri,
    store_uri,
    study_files,
    write_study_file,
)
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import TINY

PRINTS = {"task": "abc", "stimuli": "def"}


@pytest.fixture
def study(storage: Path) -> StudyConfig:
    return tiny_study(storage=str(storage))


def changed(study: StudyConfig, **paths: Any) -> StudyConfig:
    return dataclasses.replace(study, trial=replace_paths(study.trial, {k.replace("__", "."): v for k, v in paths.items()}))


def folder_of(study: StudyConfig) -> Path:
    folder = study_files(study).folder
    assert folder is not None
    return folder


def test_a_storage_is_named_alike_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here, there = tiny_study(storage="runs"), tiny_study(storage="s3://bucket/runs?region=here")
    assert (storage_uri(here), store_uri(here)) == (f"{tmp_path}/runs", f"{tmp_path}/runs/experience")
    assert storage_uri(there) == "s3://bucket/runs?region=here"
    assert store_uri(there) == "s3://bucket/runs/experience?region=here"
    assert image_storage("file:///a/b") == Path("/a/b")
    assert image_storage("~/runs") == Path.home() / "runs"
    assert image_storage(there.storage) == node_cache()


def test_a_storage_that_cannot_be_written_is_refused_and_a_good_one_left_clean(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"must be writable, but .*file.* mend its permissions, or name another"):
        check_storage(str(tmp_path / "file" / "runs"))
    check_storage(str(tmp_path / "new" / "runs"))
    assert list((tmp_path / "new" / "runs").iterdir()) == []


def test_a_good_study_passes_and_leaves_nothing_behind(study: StudyConfig) -> None:
    before = sorted(Path(study.storage).iterdir())
    check_study(study)
    assert sorted(Path(study.storage).iterdir()) == before


def test_the_gpus_of_a_cluster_are_not_looked_for_here(study: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_gpus = dataclasses.replace(study, resources=ResourcesConfig(gpus_per_trial=0.5))
    check_study(on_gpus, address="auto")
    with pytest.raises(ConfigError, match=r"asks for 0\.5 GPUs"):
        check_study(on_gpus)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"search_space": {"backbone": Choice(("test_resnet", "test_vti"))}}, ConfigError, "no 'test_vti': did you mean"),
        ({"search_space": {"stimuli.name": Choice(("openmoji", "emojo"))}}, ImageSetError, "none called 'emojo'"),
        ({"storage": "ftp://host/runs"}, StorageError, "ftp://host/runs"),
        pytest.param(
            {"resources": ResourcesConfig(gpus_per_trial=1)},
            ConfigError,
            "asks for 1 GPUs.* sees none here: set it to 0",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_study_that_could_not_run_is_refused(
    study: StudyConfig, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_study(dataclasses.replace(study, **changes))


@pytest.fixture
def one_class(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        (tmp_path / "images" / split / "joy").mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(tmp_path / "images" / split / "joy" / "1.png")
    return tmp_path / "images"


def test_faults_of_image_sets_are_found(study: StudyConfig, one_class: Path) -> None:
    with pytest.raises(ImageSetError, match=r"two classes or more.*\['joy'\]"):
        prepare_image_sets(changed(study, stimuli__name="folder", stimuli__path=str(one_class)))
    with pytest.raises(ImageSetError, match=r"num_images must lie between 10 .*but it is 99999"):
        prepare_image_sets(changed(study, task__num_images=99999))
    with pytest.raises(ImageSetError, match=r"num_images must lie between 10 .*but it is 99999"):
        prepare_image_sets(changed(study, stimuli__num_images=99999))
    with pytest.raises(ImageSetError, match="a task needs validation images"):
        prepare_image_sets(changed(study, task__validation_fraction=1e-5))


def test_a_neutral_set_must_be_as_large_as_the_stimuli(study: StudyConfig) -> None:
    neutral = ImageSetConfig(name="digits", validation_fraction=0.99)
    with_neutral = dataclasses.replace(
        study, trial=dataclasses.replace(TINY, neutral=neutral), controls=("regulated", "plain", "neutral")
    )
    with pytest.raises(ImageSetError, match=r"as many training images as the stimuli, 64, but 'digits' has"):
        prepare_image_sets(with_neutral)


def test_prepared_sets_are_known_by_their_fingerprints(study: StudyConfig) -> None:
    prints = prepare_image_sets(study)
    assert prints.keys() == {"task", "stimuli"}
    assert all(len(text) == 64 for text in prints.values())
    assert prepare_image_sets(study) == prints


def test_one_driver_at_a_time(study: StudyConfig) -> None:
    with only_driver(study_files(study)) as copy:
        assert copy.folder == folder_of(study)
        with pytest.raises(StorageError, match=r"another process is running .*--name"):
            only_driver(study_files(study)).__enter__()
    with only_driver(study_files(study)):
        pass


def test_the_study_file_says_what_was_run(study: StudyConfig) -> None:
    folder_of(study).mkdir()
    write_study_file(study, folder_of(study), PRINTS)
    content = json.loads((folder_of(study) / "study.json").read_text())
    assert content["config"]["trial"]["backbone"] == "test_resnet"
    assert content["fingerprints"] == PRINTS
    assert {"emoreg", "python", "torch", "ray", "optuna"} <= content["versions"].keys()
    assert content["device"]
    assert content["platform"]
    assert not list(folder_of(study).glob("*.tmp"))
    write_study_file(
        dataclasses.replace(study, optuna_storage="postgresql://me:pass@word@host:5432/db"), folder_of(study), PRINTS
    )
    content = json.loads((folder_of(study) / "study.json").read_text())
    assert content["config"]["optuna_storage"] == "postgresql://me:***@host:5432/db"


def test_a_changed_study_is_refused_with_the_differences(study: StudyConfig) -> None:
    folder_of(study).mkdir()
    write_study_file(study, folder_of(study), PRINTS)
    before = (folder_of(study) / "study.json").read_text()
    for other, prints, difference in (
        (changed(study, regulation__epochs=7), PRINTS, r"trial\.regulation\.epochs: 2 -> 7"),
        (study, PRINTS | {"task": "xyz"}, r'fingerprints\.task: "abc" -> "xyz"'),
        (
            dataclasses.replace(study, search_space={"regulation.balance": Choice((0.1, 0.5))}),
            PRINTS,
            r"search_space\.regulation\.balance\.low: 0\.1 -> absent",
        ),
    ):
        with pytest.raises(ConfigError, match=difference) as caught:
            write_study_file(other, folder_of(study), prints)
        assert "(--name NEW --warm-start-from tiny)" in str(caught.value)
    assert (folder_of(study) / "study.json").read_text() == before


@pytest.mark.parametrize("stage", ["pretraining", "regulation"])
def test_a_changed_trainer_is_refused(stage: str, study: StudyConfig) -> None:
    folder_of(study).mkdir()
    write_study_file(study, folder_of(study), PRINTS)
    path = folder_of(study) / "study.json"
    content = json.loads(path.read_text())
    assert content["trainer"].keys() == {"pretraining", "regulation"}
    content["trainer"][stage] = 0
    path.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=rf"trainer\.{stage}: 0 -> 1"):
        write_study_file(study, folder_of(study), PRINTS)


def test_a_study_file_from_before_trainers_had_versions_is_of_the_first(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(study).mkdir()
    write_study_file(study, folder_of(study), PRINTS)
    path = folder_of(study) / "study.json"
    content = json.loads(path.read_text())
    del content["trainer"]
    path.write_text(json.dumps(content))
    monkeypatch.setattr("emoreg.tuning.preflight.TRAINER_VERSION", 7)
    with pytest.raises(ConfigError, match=r"trainer\.pretraining: 1 -> 7"):
        write_study_file(study, folder_of(study), PRINTS)
    monkeypatch.undo()
    write_study_file(study, folder_of(study), PRINTS)
    assert json.loads(path.read_text())["trainer"] == {"pretraining": 1, "regulation": 1}


def test_a_study_may_grow(study: StudyConfig) -> None:
    folder_of(study).mkdir()
    write_study_file(study, folder_of(study), PRINTS)
    larger = dataclasses.replace(
        study, num_trials=50, control_seeds=(0, 1), controls=("regulated",), resources=ResourcesConfig(max_concurrent=1)
    )
    write_study_file(larger, folder_of(study), PRINTS | {"neutral": "ghi"})
    assert json.loads((folder_of(study) / "study.json").read_text())["config"]["num_trials"] == 50


def test_a_trial_that_was_run_alone_becomes_the_control_that_the_study_asks_for(study: StudyConfig) -> None:
    records = Records(folder_of(study))
    other = replace_paths(TINY, {"seed": 5})
    for config in (TINY, other):
        records.add_trial(ended(config, role="trial"))
    adopt_controls(study, records)
    again = Records(folder_of(study)).trials
    assert {identity: record.role for identity, record in again.items()} == {TINY.identity: "control", other.identity: "trial"}


def test_provenance_hides_passwords() -> None:
    found = provenance("emoreg run x --optuna-storage postgresql://user:secret@host/db --storage s3://key:secret@bucket/x")
    assert found.command is not None
    assert "secret" not in found.command
    assert "host/db" in found.command
    assert found.versions.keys() >= {"emoreg", "python", "torch", "ray", "optuna"}
    quoted = provenance("emoreg run x --optuna-storage 'postgresql://u@h/db?password=secret' --num-trials 3").command
    assert quoted == "emoreg run x --optuna-storage 'postgresql://u@h/db?password=***' --num-trials 3"
