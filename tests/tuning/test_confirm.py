"""A confirmation is planned from what a search has left on disk; nothing is trained here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from emoreg.config import ConfirmationConfig, ImageSetConfig, StudyConfig
from emoreg.config.resolved import resolve_trial
from emoreg.config.search_space import resolve
from emoreg.errors import ConfigError, StorageError
from emoreg.results.records import TrialRecord
from emoreg.tuning.confirm import plan_confirmation
from emoreg.tuning.images import prepare_image_sets
from emoreg.tuning.manifest import write_manifest
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import TINY
from tests.helpers.written import changed_json, write_rows

PARAMS = {"regulation.balance": 0.25, "pretraining.epochs": 2}
NEUTRAL = ImageSetConfig(name="openmoji-objects", num_images=32, validation_fraction=0.0)


@pytest.fixture
def study(storage: Path) -> StudyConfig:
    return tiny_study(storage=str(storage), trial=dataclasses.replace(TINY, neutral=NEUTRAL))


@pytest.fixture
def searched(study: StudyConfig) -> Path:
    """The study's folder, after one trial of its search."""
    folder = Path(study.storage) / study.name
    (folder / "records").mkdir(parents=True)
    fingerprints = prepare_image_sets(study)
    write_manifest(study, folder, fingerprints)
    trial = resolve(study.trial, PARAMS)
    identity = resolve_trial(trial, fingerprints).identity
    write_rows(folder, "trials", TrialRecord, [dataclasses.replace(ended(trial, params=PARAMS), identity=identity)])
    return folder


@pytest.mark.usefixtures("searched")
def test_the_best_is_planned_beside_every_control_on_fresh_seeds(study: StudyConfig) -> None:
    plan = plan_confirmation(study, ConfirmationConfig(num_seeds=2))
    controls = ["regulated", "plain", "compute_matched", "emotional", "untrained", "shuffled", "neutral"]
    assert [(trial.config.seed, trial.config.control) for _, trial in plan.trials] == [
        (seed, control) for seed in (1000, 1001) for control in controls
    ]
    assert plan.config.name == "tiny.confirm"
    assert {trial.identity for _, trial in plan.trials} == {
        resolve_trial(trial, prepare_image_sets(plan.config)).identity for trial in plan.config.confirmed
    }


def test_other_images_than_those_of_the_search_are_refused(study: StudyConfig, searched: Path) -> None:
    with changed_json(searched / "study.json") as content:
        for row in content["fingerprints"]:
            row[-1] = "ab" * 32 if row[0] == "digits" else row[-1]
    with pytest.raises(ConfigError, match=f'fingerprints.digits 16: "{"ab" * 32}" -> '):
        plan_confirmation(study)


@pytest.mark.parametrize("name", ["study.json", "records/trials.parquet"])
def test_a_damaged_file_of_the_search_is_refused_by_name(name: str, study: StudyConfig, searched: Path) -> None:
    (searched / name).write_bytes((searched / name).read_bytes()[:-20])
    with pytest.raises(StorageError, match=name.rpartition("/")[2]):
        plan_confirmation(study)


@pytest.mark.usefixtures("searched")
def test_seeds_of_the_search_are_refused(study: StudyConfig) -> None:
    with pytest.raises(ConfigError, match="needs fresh seeds, but the search has used 0"):
        plan_confirmation(study, ConfirmationConfig(first_seed=0))


def test_a_study_that_has_not_run_is_refused_before_images_are_prepared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Run the study first: 'tiny' has no finished trial of the search"):
        plan_confirmation(tiny_study(storage=str(tmp_path)))
    assert not list(tmp_path.iterdir())
