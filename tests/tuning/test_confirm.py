"""A confirmation is planned from what a search has left on disk; nothing is trained here."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from emoreg.config import ConfirmationConfig, ImageSetConfig, StudyConfig, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.errors import ConfigError, StorageError
from emoreg.results.ledger import FOLDER, Ledger
from emoreg.results.plan import Opening, opening_of, read_openings, write_openings
from emoreg.results.records import TrialRecord
from emoreg.results.study import load_results
from emoreg.results.tables import Records
from emoreg.tuning.confirm import ConfirmationPlan, check_confirmation, plan_confirmation, run_confirmation
from emoreg.tuning.coordinator import coordinate
from emoreg.tuning.images import prepare_image_sets
from emoreg.tuning.manifest import write_manifest
from emoreg.tuning.preflight import study_files
from emoreg.tuning.study import Prepare, RunEnd
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
    trial = replace_paths(study.trial, PARAMS)
    identity = resolve_trial(trial, fingerprints).identity
    write_rows(folder, "trials", TrialRecord, [dataclasses.replace(ended(trial, params=PARAMS), identity=identity)])
    return folder


@pytest.mark.usefixtures("searched")
def test_the_best_is_planned_beside_every_control_on_fresh_seeds(study: StudyConfig) -> None:
    plan = plan_confirmation(study, ConfirmationConfig(num_seeds=2))
    controls = ["regulated", "plain", "compute_matched", "ensemble", "emotional", "untrained", "shuffled", "neutral"]
    assert [(trial.config.seed, trial.config.control) for _, trial in plan.trials] == [
        (seed, control) for seed in (1000, 1001) for control in controls
    ]
    assert plan.config.name == "tiny.confirm"
    assert {trial.identity for _, trial in plan.trials} == {
        resolve_trial(trial, prepare_image_sets(plan.config)).identity for trial in plan.config.confirmed
    }


@pytest.mark.usefixtures("searched")
def test_what_is_opt_in_is_planned_where_the_study_names_it(study: StudyConfig) -> None:
    usual = plan_confirmation(study, ConfirmationConfig(num_seeds=2))
    asking = dataclasses.replace(study, controls=("regulated", "plain", "wide"))
    plan = plan_confirmation(asking, ConfirmationConfig(num_seeds=2))
    assert {trial.identity for _, trial in usual.trials} < {trial.identity for _, trial in plan.trials}
    wide = {trial.config.seed: trial for _, trial in plan.trials if trial.config.control == "wide"}
    plain = {trial.config.seed: trial for _, trial in plan.trials if trial.config.control == "plain"}
    assert len(plan.trials) == len(usual.trials) + 2
    assert wide.keys() == plain.keys() == {1000, 1001}
    for seed, trial in wide.items():
        assert trial.config == dataclasses.replace(plain[seed].config, control="wide", width=2)
    assert plan.expected_seconds > usual.expected_seconds
    matching = dataclasses.replace(study, controls=("regulated", "untrained_matched"))
    plan = plan_confirmation(matching, ConfirmationConfig(num_seeds=2))
    longer, untrained = (
        {trial.config.regulation.epochs for _, trial in plan.trials if trial.config.control == control}
        for control in ("untrained_matched", "untrained")
    )
    assert min(longer) > max(untrained), "the passes of pre-training go into regulation"


def test_other_images_than_those_of_the_search_are_refused(study: StudyConfig, searched: Path) -> None:
    with changed_json(searched / "study.json") as content:
        for row in content["fingerprints"]:
            row[-1] = "ab" * 32 if row[0] == "digits" else row[-1]
    with pytest.raises(ConfigError, match=f'fingerprints.digits 16: "{"ab" * 32}" -> '):
        plan_confirmation(study)


CONFIRMED = ConfirmationConfig(num_seeds=3)


def settled(plan: ConfirmationPlan) -> Opening:
    """What was fixed: written down for all studies and for this one, as a run of the confirmation does."""
    opening = opening_of(plan.trials, plan.asked.smallest_effect, plan.searched.values(), plan.test_splits)
    note(plan, plan=opening.digest, opened=opening.opened)
    write_openings(study_files(plan.config), [opening])
    return opening


def note(of_plan: ConfirmationPlan, **of: Any) -> None:
    (test_split,) = of_plan.test_splits
    values: dict[str, Any] = {
        "study": "tiny", "opened": "2026-01-02T10", "command": "emoreg confirm tiny", "configurations": ("x",), "plan": "former"
    }  # fmt: skip
    Ledger(of_plan.config.storage, test_split).add(**values | of)


def opened(plan: ConfirmationPlan) -> None:
    """Let one trial of a confirmation have ended."""
    row = dataclasses.replace(ended(plan.trials[0][1].config, role="confirm"), test_accuracy=0.5)
    write_rows(Path(plan.config.storage) / plan.config.name, "trials", TrialRecord, [row])


@pytest.mark.usefixtures("searched")
def test_a_confirmation_that_goes_on_is_not_refused(study: StudyConfig) -> None:
    plan = plan_confirmation(study, CONFIRMED)
    assert list(check_confirmation(plan)) == []
    settled(plan)
    opened(plan)
    assert list(check_confirmation(plan)) == [], "its own opening does not make it exploratory"


@pytest.mark.usefixtures("searched")
def test_what_is_fixed_is_written_down_for_all_studies_and_for_this_one(
    study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_prepare(config: StudyConfig, *, prepare: Prepare, **_: object) -> RunEnd:
        with coordinate(config) as coordinator:
            prepare(coordinator, Records(coordinator.copy.folder))
        return RunEnd.INTERRUPTED

    monkeypatch.setattr("emoreg.tuning.confirm.run_study", only_prepare)
    plan = plan_confirmation(study, CONFIRMED)
    for _ in range(2):  # as a run that goes on does
        run_confirmation(plan, command="emoreg confirm mine")
    (opening,) = read_openings(study_files(plan.config))
    (entry,) = plan.entries()
    assert (opening.smallest_effect, opening.test_splits, opening.seeds) == (0.5, plan.test_splits, (1000, 1001, 1002))
    assert (entry.study, entry.plan, entry.command) == ("tiny", opening.digest, "emoreg confirm mine")
    assert entry.configurations == tuple(found.identity for found in opening.chosen)


def training(accuracies: Mapping[str, float]) -> Callable[..., RunEnd]:
    """Runs a study in the place of Ray: its trials have these accuracies, by control; regulation's vary a little by seed."""

    def run(config: StudyConfig, *, prepare: Prepare, **_: object) -> RunEnd:
        fingerprints = prepare_image_sets(config)
        with coordinate(config) as coordinator:
            records = Records(coordinator.copy.folder)
            prepare(coordinator, records)
            write_manifest(config, coordinator.copy.folder, fingerprints)
            rows = {**records.trials}
            for trial in config.confirmed:
                found, by_seed = accuracies.get(trial.control, 0.5), 0.001 * (trial.seed % 3) * (trial.control == "regulated")
                row = dataclasses.replace(ended(trial, role="confirm"), test_accuracy=found + by_seed)
                rows[identity] = dataclasses.replace(row, identity=(identity := resolve_trial(trial, fingerprints).identity))
        write_rows(coordinator.copy.folder, "trials", TrialRecord, [*rows.values()])
        return RunEnd.COMPLETED

    return run


@pytest.mark.usefixtures("searched")
@pytest.mark.parametrize(
    ("regulated", "controls", "seeds", "runs", "said"),
    [
        (0.6, {}, 3, 2, "helps: .*; it was clear at the first of two looks, after 3 of 5 seeds"),
        (0.4, {}, 3, 1, r"harms: -9\.9 points .* over plain \(n = 3\); it was clear at the first of two looks"),
        (0.506, {"shuffled": 0.507}, 5, 2, r"rung 3 of 5\).*\. Not shown above it: .* over shuffled \(n = 5"),
        (
            0.6,
            {"compute_matched": 0.7},
            3,
            1,
            r"rung 1 of 5\).*-9\.9 points .* over compute_matched.*clear at the first of two looks",
        ),
        (0.6, {"ensemble": 0.601}, 5, 1, r"rung 1 of 5\).* over ensemble \(n = 5"),
    ],
)
def test_the_first_of_two_looks_ends_what_is_clear(
    regulated: float,
    controls: dict[str, float],
    seeds: int,
    runs: int,
    said: str,
    study: StudyConfig,
    searched: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    accuracies = {"regulated": regulated, "emotional": 0.9, **controls}
    monkeypatch.setattr("emoreg.tuning.confirm.run_study", training(accuracies))
    plan = plan_confirmation(study, ConfirmationConfig(num_seeds=5, looks=2))
    for _ in range(runs):  # whoever runs it again changes nothing
        run_confirmation(plan)
        results = load_results(searched)
        (verdict,) = results.verdicts.values()
        assert re.search(said, verdict.sentence), verdict.sentence
        assert {row.seed for row in results.confirming.trials} == {*range(1000, 1000 + seeds)}
        assert results.exploratory == ""
    # A first look that is clear later on, by a trial that was run again, leaves out no seed that was run.
    if seeds == 5 and runs > 1:
        monkeypatch.setattr("emoreg.tuning.confirm.answers_early", lambda *_: True)
        run_confirmation(plan)
        assert not read_openings(study_files(plan.config))[-1].is_stopped
    with pytest.raises(ConfigError, match=r"opened for .* in looks after 3 and 5 of them, .* and now it is to be"):
        check_confirmation(plan_confirmation(study, ConfirmationConfig(num_seeds=5)))


@pytest.mark.usefixtures("searched")
def test_what_cannot_answer_is_refused_before_anything_is_written(study: StudyConfig) -> None:
    plan = plan_confirmation(study, ConfirmationConfig(num_seeds=2))
    with pytest.raises(ConfigError, match="Give --seeds 3 or more, or --underpowered to open the test set all the same"):
        check_confirmation(plan)
    assert not (Path(study.storage) / "tiny.confirm").exists()
    check_confirmation(plan_confirmation(study, ConfirmationConfig(num_seeds=2, underpowered=True)))


@pytest.mark.usefixtures("searched")
def test_seeds_are_counted_where_controls_tell_how_gains_vary(study: StudyConfig, searched: Path) -> None:
    with pytest.raises(ConfigError, match="Give --seeds a number, or run controls on several seeds first"):
        plan_confirmation(study, ConfirmationConfig(num_seeds=None))
    rows = [*load_results(searched).trials]
    for control, gain in (("regulated", 0.01), ("plain", 0.0)):
        for seed in (0, 1, 2):
            trial = dataclasses.replace(study.trial, control=control, seed=seed)
            rows.append(ended(trial, role="control", accuracy=0.5 + gain * seed))
    write_rows(searched, "trials", TrialRecord, rows)
    plan = plan_confirmation(study, ConfirmationConfig(num_seeds=None, smallest_effect=5.0))
    (prospect,) = plan.prospects.values()
    assert prospect.spread.deviation == pytest.approx(1.0)
    assert 3 < plan.num_seeds == prospect.seeds(prospect.spread.upper)
    with pytest.raises(ConfigError, match=r"Give more --seeds .* a gain of 0\.1 points over the backbone must"):
        check_confirmation(plan_confirmation(study, ConfirmationConfig(smallest_effect=0.1)))


@pytest.mark.usefixtures("searched")
def test_a_missing_plan_beside_an_opened_test_split_is_refused(study: StudyConfig) -> None:
    plan = plan_confirmation(study, CONFIRMED)
    opened(plan)
    with pytest.raises(
        ConfigError, match=r"Restore plan\.json of the confirmation of 'tiny' from a copy, or search and confirm"
    ):
        check_confirmation(plan)


@pytest.mark.usefixtures("searched")
def test_a_folder_that_was_removed_after_an_opening_is_missed(study: StudyConfig) -> None:
    plan = plan_confirmation(study, CONFIRMED)
    note(plan)
    with pytest.raises(
        ConfigError, match=r"the test set was opened by tiny on 2026-01-02 \(emoreg confirm tiny\), but what was"
    ):
        check_confirmation(plan)
    settled(plan)
    check_confirmation(plan)


@pytest.mark.usefixtures("searched")
def test_another_study_s_opening_does_not_stop_this_one(study: StudyConfig) -> None:
    plan = plan_confirmation(study, CONFIRMED)
    assert check_confirmation(plan) == []
    note(plan, study="another", opened="2999-01-01T10")
    assert check_confirmation(plan) == [], "that was later"
    note(plan, study="former-name")
    (known,) = check_confirmation(plan)
    assert known.study == "former-name", "it was opened before this study had chosen"


@pytest.mark.usefixtures("searched")
def test_a_ledger_that_was_removed_after_an_opening_is_missed(study: StudyConfig) -> None:
    plan = plan_confirmation(study, CONFIRMED)
    settled(plan)
    opened(plan)
    shutil.rmtree(Path(study.storage) / FOLDER)
    with pytest.raises(ConfigError, match=r"Restore test-openings of the storage from a copy: .* of 'tiny' on 20"):
        check_confirmation(plan)


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
