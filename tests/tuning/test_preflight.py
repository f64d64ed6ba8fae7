from __future__ import annotations

import dataclasses
import pwd
from pathlib import Path
from typing import Any

import pytest
import torch

from emoreg.config import Choice, ResourcesConfig, StudyConfig, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.errors import ConfigError, StorageError
from emoreg.results.tables import Records
from emoreg.storage.files import Files
from emoreg.storage.working_copy import node_cache
from emoreg.tuning.images import image_storage
from emoreg.tuning.preflight import (
    absolute,
    adopt_controls,
    check_home,
    check_study,
    check_trial,
    lost_epochs,
    store_uri,
    study_files,
)
from tests.benchmarks.common import run_alone
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import TINY
from tests.helpers.written import epoch_record


@pytest.fixture
def study(storage: Path) -> StudyConfig:
    return tiny_study(storage=str(storage))


def folder_of(study: StudyConfig) -> Path:
    folder = study_files(study).folder
    assert folder is not None
    return folder


def test_a_storage_is_named_alike_from_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here, there = tiny_study(storage="runs"), tiny_study(storage="s3://bucket/runs?region=here")
    assert (absolute(here.storage), store_uri(here)) == (f"{tmp_path}/runs", f"{tmp_path}/runs/experience")
    assert absolute(there.storage) == "s3://bucket/runs?region=here"
    assert store_uri(there) == "s3://bucket/runs/experience?region=here"
    assert image_storage("file:///a/b") == Path("/a/b")
    assert image_storage("~/runs") == Path.home() / "runs"
    assert image_storage(there.storage) == node_cache()


def test_a_storage_that_cannot_be_written_is_refused_and_a_good_one_left_clean(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"Mend the permissions of the storage, .*must be writable, but .*file"):
        Files(str(tmp_path / "file" / "runs")).check()
    Files(str(tmp_path / "new" / "runs")).check()
    assert list((tmp_path / "new" / "runs").iterdir()) == []


@pytest.mark.parametrize(("home", "said"), [(None, r"is '~'"), ("/nowhere", r"is '/nowhere'")])
def test_a_process_without_a_home_is_refused_by_name(
    home: str | None, said: str, study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HOME", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    if home is None:
        monkeypatch.setattr(pwd, "getpwuid", lambda number: {}[number])  # a container's user of any number
    else:
        monkeypatch.setenv("HOME", home)
        check_home("127.0.0.1:6379")  # who joins needs no token of his own
    with pytest.raises(ConfigError, match=f"Set HOME to a folder that can be written: .* {said}"):
        check_study(study)


def test_a_folder_of_another_user_s_is_refused_before_anything_runs(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []
    monkeypatch.setattr("emoreg.tuning.preflight.check_writable", checked.append)
    check_study(study)
    storage = Path(study.storage)
    assert {storage / "imagesets", storage / "experience" / ".locks", storage / study.name / "records"} <= {*checked}


CHECK = """
import sys
from emoreg.config import ImageSetConfig, TrialConfig
from emoreg.tuning.preflight import check_trial

digits = ImageSetConfig(name="digits")
assert "emoreg.training.loop" not in sys.modules
for probe in ("agreement", "no such probe"):
    check_trial(TrialConfig(backbone="test_resnet", image_size=16, stimuli=digits, task=digits, probes=(probe,)))
    print(probe, "is known")
"""


@pytest.mark.slow
def test_a_process_that_has_not_trained_knows_our_own_probe() -> None:
    with pytest.raises(AssertionError, match=r"(?s)^agreement is known\n.*no such probe") as refused:
        run_alone(CHECK)  # which passes on what the process refuses
    assert "no such probe is known" not in str(refused.value)


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
        ({"search_space": {"stimuli.name": Choice(("openmoji", "emojo"))}}, ConfigError, "image set 'emojo'"),
        ({"storage": "ftp://host/runs"}, StorageError, "ftp://host/runs"),
        pytest.param(
            {"resources": ResourcesConfig(gpus_per_trial=1)},
            ConfigError,
            "Set resources.gpus_per_trial to 0 .* asks for 1 GPUs.* sees none here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_study_that_could_not_run_is_refused(
    study: StudyConfig, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_study(dataclasses.replace(study, **changes))


def test_a_backbone_that_a_control_cannot_widen_is_refused(study: StudyConfig) -> None:
    space = {"backbone": Choice(("test_resnet", "test_convnext")), **study.search_space}
    check_study(dataclasses.replace(study, search_space=space))
    asking = dataclasses.replace(study, controls=("regulated", "wide"))
    check_study(asking)
    with pytest.raises(ConfigError, match=r"^Leave the control wide out, .* but backbone is 'test_convnext'"):
        check_study(dataclasses.replace(asking, search_space=space))
    with pytest.raises(ConfigError, match=r"^Leave the control wide out, .* but backbone is 'test_convnext'"):
        check_trial(dataclasses.replace(study.trial, backbone="test_convnext", control="wide"))


def test_a_trial_that_was_run_alone_becomes_the_control_that_the_study_asks_for(study: StudyConfig) -> None:
    records = Records(folder_of(study))
    other = replace_paths(TINY, {"seed": 5})
    for config in (TINY, other):
        records.add_trial(ended(config, role="trial"))
    adopt_controls([resolve_trial(TINY).identity], records)
    again = Records(folder_of(study)).trials
    assert {identity: record.role for identity, record in again.items()} == {
        resolve_trial(TINY).identity: "control",
        resolve_trial(other).identity: "trial",
    }


def test_lost_epochs_are_told(study: StudyConfig) -> None:
    records = Records(folder_of(study))
    records.add_trial(dataclasses.replace(ended(), regulation_epochs=3))
    records.add_trial(ended(replace_paths(TINY, {"seed": 5}), status="failed"))  # it came to no epoch
    assert lost_epochs(records) == [
        "records/epochs.parquet lacks 1 trial that ended: their numbers stand, their curves are lost"
    ]
    records.add_epoch(epoch_record(resolve_trial(TINY), "regulation", 3, 0.5))
    assert lost_epochs(records) == []


def test_a_metric_or_probe_that_is_not_registered_is_refused(study: StudyConfig) -> None:
    for setting in ("metrics", "probes"):
        trial = dataclasses.replace(study.trial, **{setting: ("no such",)})
        with pytest.raises(ConfigError, match=rf"trial\.{setting} must be a registered {setting[:-1]}"):
            check_study(dataclasses.replace(study, trial=trial))
