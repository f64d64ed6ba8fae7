from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from emoreg.config import Choice, Float, StudyConfig, TrialConfig
from emoreg.confirmation import (
    PLAN,
    Chosen,
    choose,
    confirming,
    expected_seconds,
    fresh_seeds,
    look_of,
    open_look,
    plan_trials,
    read_looks,
    rows_of,
    verdicts,
)
from emoreg.errors import ConfigError, StorageError
from emoreg.records import TrialRecord
from emoreg.search_space import resolve
from tests.studies import ended, tiny_study

IMAGES = {("task", "digits"): 100, ("stimuli", "digits"): 40}
STUDY = tiny_study(
    search_space={"backbone": Choice(("test_resnet", "test_vit")), "regulation.balance": Float(0.1, 0.9)}, control_seeds=(0, 1)
)


def searched(*found: tuple[str, float, float], study: StudyConfig = STUDY) -> dict[str, TrialRecord]:
    """Finished trials of a search, of a backbone, a balance and a validation accuracy each."""
    records = {}
    for number, (backbone, balance, accuracy) in enumerate(found):
        params = {"backbone": backbone, "regulation.balance": balance}
        record = ended(resolve(study.trial, params), number=number, params=params, accuracy=accuracy)
        records[record.identity] = record
    return records


SEARCHED = searched(("test_resnet", 0.2, 0.5), ("test_resnet", 0.4, 0.7), ("test_resnet", 0.6, 0.6), ("test_vit", 0.5, 0.3))


def planned(top: int = 1, seeds: tuple[int, ...] = (1000, 1001)) -> list[tuple[Chosen, TrialConfig]]:
    return plan_trials(STUDY, choose(STUDY, SEARCHED.values(), top), seeds, images=IMAGES)


def confirmed(trial: TrialConfig, accuracy: float) -> TrialRecord:
    return dataclasses.replace(ended(trial, role="confirm"), test_accuracy=accuracy)


def test_the_best_of_each_backbone_are_chosen_on_validation() -> None:
    chosen = choose(STUDY, SEARCHED.values(), 2)
    assert [(found.backbone, found.rank, found.params["regulation.balance"], found.accuracy) for found in chosen] == [
        ("test_resnet", 1, 0.4, 0.7),
        ("test_resnet", 2, 0.6, 0.6),
        ("test_vit", 1, 0.5, 0.3),
    ]


def test_what_was_pruned_or_a_control_is_not_chosen() -> None:
    pruned = {identity: dataclasses.replace(record, status="pruned") for identity, record in SEARCHED.items()}
    control = ended(dataclasses.replace(STUDY.trial, control="plain"), role="control")
    with pytest.raises(ConfigError, match="no trial of the search of 'tiny' has finished: run the study first"):
        choose(STUDY, [*pruned.values(), control], 1)


def test_a_configuration_that_was_changed_after_the_search_is_refused() -> None:
    longer = dataclasses.replace(STUDY.trial.regulation, epochs=STUDY.trial.regulation.epochs + 1)
    changed = dataclasses.replace(STUDY, trial=dataclasses.replace(STUDY.trial, regulation=longer))
    with pytest.raises(ConfigError, match=r"runs what the search ran, but trial \w{12} had other settings"):
        choose(changed, SEARCHED.values(), 1)


def test_seeds_of_the_search_are_refused() -> None:
    assert fresh_seeds(STUDY, 3, first=1000) == (1000, 1001, 1002)
    with pytest.raises(ConfigError, match=r"needs fresh seeds, but the search has used 1: give another --first-seed"):
        fresh_seeds(STUDY, 3, first=1)


def test_every_control_runs_on_the_same_seeds() -> None:
    trials = planned()
    by_backbone = {}
    for found, trial in trials:
        by_backbone.setdefault(found.backbone, []).append((trial.seed, trial.control))
    assert (
        by_backbone["test_resnet"]
        == by_backbone["test_vit"]
        == [
            (seed, control)
            for seed in (1000, 1001)
            for control in ("none", "plain", "matched", "emotional", "untrained", "shuffled")
        ]
    )
    assert not {trial.identity for _, trial in trials} & SEARCHED.keys()
    assert len({trial.identity for _, trial in trials}) == len(trials)


def test_the_matched_control_gets_the_images_of_pretraining() -> None:
    (trial,) = {trial.regulation.epochs: trial for _, trial in planned(seeds=(7,)) if trial.control == "matched"}.values()
    epochs = STUDY.trial.pretraining.epochs
    assert trial.regulation.epochs == STUDY.trial.regulation.epochs + -(-epochs * 40 // 100)
    assert trial.applied().regulation.balance == 0.0
    assert trial.applied().pretraining.epochs == 0


def test_configurations_share_controls_that_do_not_depend_on_them() -> None:
    plain = {trial.identity for found, trial in planned(top=2, seeds=(7,)) if trial.control == "plain"}
    assert len(plain) == 2, "one of each backbone: the balance that was searched is not theirs"


def test_a_confirmation_is_a_study_without_a_search() -> None:
    config = confirming(STUDY, [trial for _, trial in planned()])
    assert (config.name, config.num_trials, config.controls, len(config.confirmed)) == ("tiny.confirm", 0, (), 24)


def test_the_cost_counts_each_pretraining_once() -> None:
    record = SEARCHED[choose(STUDY, SEARCHED.values(), 1)[0].identity]
    assert record.experience_seconds is not None
    assert record.experience_seconds > 0
    one, two = (expected_seconds(planned(seeds=seeds), SEARCHED) for seeds in ((1000,), (1000, 1001)))
    assert two == pytest.approx(2 * one)
    only = [(found, trial) for found, trial in planned(seeds=(1000,)) if found.backbone == "test_resnet"]
    regulated = [(found, trial) for found, trial in only if trial.control == "none"]
    with_emotional = [(found, trial) for found, trial in only if trial.control in ("none", "emotional")]
    alone, together = expected_seconds(regulated, SEARCHED), expected_seconds(with_emotional, SEARCHED)
    assert together - alone == pytest.approx((alone - record.experience_seconds) / 2), "one encoder, and the same experience"


def test_what_is_fixed_is_gone_on_with(tmp_path: Path) -> None:
    first = open_look(tmp_path, look_of(planned()), has_looked=False, again=False)
    second = open_look(tmp_path, look_of(planned()), has_looked=True, again=False)
    assert second == first == read_looks(tmp_path)


def test_before_the_test_split_was_opened_all_may_change(tmp_path: Path) -> None:
    open_look(tmp_path, look_of(planned()), has_looked=False, again=False)
    (look,) = open_look(tmp_path, look_of(planned(top=2)), has_looked=False, again=False)
    assert len(look.chosen) == 3


def test_a_further_look_is_refused_or_recorded(tmp_path: Path) -> None:
    (first,) = open_look(tmp_path, look_of(planned()), has_looked=False, again=False)
    other = look_of(planned(seeds=(1000, 1001, 1002)))
    with pytest.raises(ConfigError, match=r"opened for test_resnet \w{12}, test_vit \w{12} on seeds 1000 to 1001, and now"):
        open_look(tmp_path, other, has_looked=True, again=False)
    assert read_looks(tmp_path) == [first]
    assert open_look(tmp_path, other, has_looked=True, again=True) == [first, other] == read_looks(tmp_path)


def test_a_plan_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text(json.dumps({"looks": [{"opened": "now"}]}))
    with pytest.raises(StorageError, match="a confirmation's plan must be as emoreg wrote it"):
        read_looks(tmp_path)


def test_rows_compare_over_common_seeds() -> None:
    trials = planned(seeds=tuple(range(1000, 1010)))
    lift = {"none": 0.05, "emotional": 0.02}
    records = {}
    for found, trial in trials:
        if found.backbone == "test_resnet" and (trial.control, trial.seed) != ("plain", 1003):
            luck = 0.001 * (trial.seed % 3 - 1) if trial.control == "none" else 0.0
            records[trial.identity] = confirmed(trial, 0.7 + lift.get(trial.control, 0.0) + luck)
    rows = rows_of(look_of(trials), records)
    assert [row.control for row in rows] == ["none", "plain", "matched", "emotional", "untrained", "shuffled"]
    assert rows[0].comparison is None
    by_control = {row.control: row.comparison for row in rows if row.comparison is not None}
    assert by_control["plain"].n == 9
    assert by_control["matched"].n == 10
    assert by_control["emotional"].difference == pytest.approx(0.03, abs=1e-3)
    resnet, vit = verdicts(look_of(trials), rows, records).values()
    assert (resnet.says, vit.says) == ("nothing can be said", "nothing can be said"), "who looks in between claims nothing"
    assert resnet.sentence == f"test_resnet: nothing can be said yet: {len(records)} of {len(trials)} planned trials have ended"
    lost = {
        trial.identity: dataclasses.replace(confirmed(trial, 0.5), status="failed", test_accuracy=None)
        for _, trial in trials
        if trial.identity not in records
    }
    look, ended = look_of(trials), records | lost
    resnet, vit = verdicts(look, rows_of(look, ended), ended).values()
    assert resnet.says == "helps"
    assert resnet.sentence.startswith("test_resnet: helps: +5.0 points [")
    assert "nothing can be said without plain, untrained and shuffled" in vit.sentence


def test_an_unfinished_confirmation_has_few_rows() -> None:
    trials = planned()
    found, trial = trials[0]
    assert rows_of(look_of(trials), {}) == []
    (row,) = rows_of(look_of(trials), {trial.identity: confirmed(trial, 0.5)})
    assert (row.chosen, row.control, row.accuracy.n) == (found, "none", 1)


def test_it_needs_neither_torch_nor_ray() -> None:
    code = "import emoreg.confirmation, sys; print(sorted({'torch', 'ray', 'timm'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
