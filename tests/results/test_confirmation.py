from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from emoreg.config import (
    CONTROLS,
    Choice,
    Float,
    ImageSetConfig,
    StudyConfig,
    TrialConfig,
    control,
    replace_paths,
    to_json,
)
from emoreg.config.arms import arms
from emoreg.config.confirmation import with_own_cuts
from emoreg.config.resolved import ResolvedTrial, resolve_trial
from emoreg.config.sharing import shared_runs
from emoreg.errors import ConfigError, StorageError
from emoreg.results.confirmation import confirmed_rows, verdicts
from emoreg.results.ladder import Verdict
from emoreg.results.outcome import Status
from emoreg.results.plan import PLAN, Opening, Plan, confirming, opening_of, read_openings, with_opening, write_openings
from emoreg.results.planning import (
    best_tuned,
    check_unchanged,
    choose,
    expected_seconds,
    fresh_seeds,
    plan_trials,
    plan_tuned,
    with_passes_of,
)
from emoreg.results.records import TrialRecord
from emoreg.storage.files import Files
from emoreg.storage.sealed import digest
from tests.helpers.studies import ended, tiny_study

STUDY = tiny_study(
    search_space={"backbone": Choice(("test_resnet", "test_vit")), "regulation.balance": Float(0.1, 0.9)}, control_seeds=(0, 1)
)


def searched(*found: tuple[str, float, float], study: StudyConfig = STUDY) -> dict[str, TrialRecord]:
    """Finished trials of a search, of a backbone, a balance and a validation accuracy each."""
    records = {}
    for number, (backbone, balance, accuracy) in enumerate(found):
        params = {"backbone": backbone, "regulation.balance": balance}
        record = ended(replace_paths(study.trial, params), number=number, params=params, accuracy=accuracy)
        records[record.identity] = record
    return records


SEARCHED = searched(("test_resnet", 0.2, 0.5), ("test_resnet", 0.4, 0.7), ("test_resnet", 0.6, 0.6), ("test_vit", 0.5, 0.3))


def images(role: str, image_set: ImageSetConfig) -> int:
    return {"task": 100, "stimuli": 40}[role]


def planned(top: int = 1, seeds: tuple[int, ...] = (1000, 1001)) -> Plan:
    return plan_trials(STUDY, choose(STUDY, SEARCHED.values(), top), seeds, images=images)


def confirmed(trial: ResolvedTrial, accuracy: float) -> TrialRecord:
    return dataclasses.replace(ended(trial.config, role="confirm"), test_accuracy=accuracy)


def test_the_best_of_each_backbone_are_chosen_on_validation() -> None:
    chosen = choose(STUDY, SEARCHED.values(), 2)
    assert [(found.backbone, found.rank, found.params["regulation.balance"], found.val_accuracy) for found in chosen] == [
        ("test_resnet", 1, 0.4, 0.7),
        ("test_resnet", 2, 0.6, 0.6),
        ("test_vit", 1, 0.5, 0.3),
    ]


def test_what_was_pruned_or_a_control_is_not_chosen() -> None:
    pruned = {identity: dataclasses.replace(record, status="pruned") for identity, record in SEARCHED.items()}
    control = ended(dataclasses.replace(STUDY.trial, control="plain"), role="control")
    with pytest.raises(ConfigError, match="Run the study first: 'tiny' has no finished trial"):
        choose(STUDY, [*pruned.values(), control], 1)


def test_a_configuration_that_was_changed_after_the_search_is_refused() -> None:
    longer = dataclasses.replace(STUDY.trial.regulation, epochs=STUDY.trial.regulation.epochs + 1)
    changed = dataclasses.replace(STUDY, trial=dataclasses.replace(STUDY.trial, regulation=longer))
    with pytest.raises(ConfigError, match=r"a confirmation runs what the search ran, but trial \w{12} had other settings"):
        check_unchanged(changed, choose(changed, SEARCHED.values(), 1))


def test_what_was_searched_cannot_be_set_for_a_confirmation() -> None:
    space = {path: found for path, found in STUDY.search_space.items() if path != "backbone"}
    pinned = dataclasses.replace(STUDY, search_space=space, trial=dataclasses.replace(STUDY.trial, backbone="test_vit"))
    with pytest.raises(ConfigError, match="Leave out backbone, which was searched and is set now"):
        check_unchanged(pinned, choose(pinned, SEARCHED.values(), 1))


def test_each_task_that_was_searched_has_its_own_best() -> None:
    space = {"task.name": Choice(("digits", "cifar10")), "regulation.balance": Float(0.1, 0.9)}
    study = dataclasses.replace(STUDY, search_space=space)
    records = []
    for number, (task, balance, accuracy) in enumerate((("digits", 0.2, 0.9), ("cifar10", 0.3, 0.4), ("digits", 0.4, 0.8))):
        params = {"task.name": task, "regulation.balance": balance}
        records.append(ended(replace_paths(study.trial, params), number=number, params=params, accuracy=accuracy))
    chosen = choose(study, records, 2)
    assert [(found.name, found.val_accuracy) for found in chosen] == [
        ("test_resnet on cifar10", 0.4),
        ("test_resnet on digits", 0.9),
        ("test_resnet on digits, number 2", 0.8),
    ]


def test_seeds_of_the_search_are_refused() -> None:
    assert fresh_seeds(STUDY, SEARCHED.values(), 3, first=1000) == (1000, 1001, 1002)
    with pytest.raises(ConfigError, match=r"Give another --first-seed: .* but the search has used 1$"):
        fresh_seeds(STUDY, SEARCHED.values(), 3, first=1)
    former = ended(dataclasses.replace(STUDY.trial, control="plain", seed=1001), role="control")
    with pytest.raises(ConfigError, match=r"the search has used 1001$"):
        fresh_seeds(STUDY, [former], 3, first=1000)


def test_every_control_runs_on_the_same_seeds() -> None:
    trials = planned()
    by_backbone = {}
    for found, trial in trials:
        by_backbone.setdefault(found.backbone, []).append((trial.config.seed, trial.config.control))
    assert (
        by_backbone["test_resnet"]
        == by_backbone["test_vit"]
        == [
            (seed, control)
            for seed in (1000, 1001)
            for control in ("regulated", "plain", "compute_matched", "ensemble", "emotional", "untrained", "shuffled")
        ]
    )
    assert not {trial.identity for _, trial in trials} & SEARCHED.keys()
    assert len({trial.identity for _, trial in trials}) == len(trials)


def test_the_matched_control_gets_the_encoder_passes_of_both_stages() -> None:
    (trial,) = {
        trial.config.regulation.epochs: trial.config
        for _, trial in planned(seeds=(7,))
        if trial.config.control == "compute_matched"
    }.values()
    epochs = STUDY.trial.pretraining.epochs
    assert trial.regulation.epochs == 2 * STUDY.trial.regulation.epochs + -(-epochs * 40 // 100)
    assert trial.regulation.balance == 0.0
    assert trial.pretraining.epochs == 0
    cooled = replace_paths(STUDY.trial, {"pretraining.cooldown_epochs": 10})
    plain = dataclasses.replace(STUDY.trial, control="compute_matched")

    def matched(regulated: TrialConfig, trial: TrialConfig = plain) -> int:
        return with_passes_of(regulated, trial, images).regulation.epochs

    assert matched(cooled) == 2 * STUDY.trial.regulation.epochs + -(-(epochs + 10) * 40 // 100)
    unbegun = replace_paths(cooled, {"pretraining.epochs": 0})
    assert matched(unbegun) == 2 * STUDY.trial.regulation.epochs
    two = dataclasses.replace(STUDY.trial, control="untrained_matched")
    assert matched(unbegun, two) == STUDY.trial.regulation.epochs, "of two encoders, no pre-training to make up for"
    assert matched(cooled, two) == STUDY.trial.regulation.epochs + -(-(epochs + 10) * 40 // 200)


def test_the_matched_control_goes_by_the_images_that_were_searched() -> None:
    space = {"stimuli.num_images": Choice((20, 40)), "regulation.balance": Float(0.1, 0.9)}
    study = dataclasses.replace(STUDY, search_space=space)
    params = {"stimuli.num_images": 20, "regulation.balance": 0.5}
    record = ended(replace_paths(study.trial, params), number=0, params=params, accuracy=0.5)

    def counted(role: str, image_set: ImageSetConfig) -> int:
        return 100 if role == "task" else {20: 2000}[image_set.num_images or 0]

    trials = plan_trials(study, choose(study, [record], 1), (7,), images=counted)
    (matched,) = [trial.config for _, trial in trials if trial.config.control == "compute_matched"]
    assert matched.regulation.epochs == 2 * study.trial.regulation.epochs + 20 * study.trial.pretraining.epochs
    frozen = replace_paths(study, {"trial.regulation.freeze_emotional": True, "trial.regulation.epochs": 6})
    trials = plan_trials(frozen, choose(study, [record], 1), (7,), images=counted)
    (matched,) = [trial.config for _, trial in trials if trial.config.control == "compute_matched"]
    assert matched.regulation.epochs == 6 + 2 + 20 * study.trial.pretraining.epochs, "a frozen encoder goes forward alone"


def test_configurations_share_controls_that_do_not_depend_on_them() -> None:
    plain = {trial.identity for found, trial in planned(top=2, seeds=(7,)) if trial.config.control == "plain"}
    assert len(plain) == 2, "one of each backbone: the balance that was searched is not theirs"


def test_a_confirmation_is_a_study_without_a_search() -> None:
    config = confirming(STUDY, planned())
    assert (config.name, config.num_trials, config.controls, len(config.confirmed)) == ("tiny.confirm", 0, (), 28)
    both = [resolve_trial(trial).identity for trial in confirming(STUDY, planned(top=2)).confirmed]
    assert len(both) == len(set(both)), "a control that two configurations share is run once"


def test_the_cost_counts_each_pretraining_once() -> None:
    record = SEARCHED[choose(STUDY, SEARCHED.values(), 1)[0].identity]
    assert record.experience_seconds is not None
    assert record.experience_seconds > 0
    one, two = (expected_seconds(planned(seeds=seeds), SEARCHED, images) for seeds in ((1000,), (1000, 1001)))
    assert two == pytest.approx(2 * one)
    only = [(found, trial) for found, trial in planned(seeds=(1000,)) if found.backbone == "test_resnet"]
    regulated = [(found, trial) for found, trial in only if trial.config.control == "regulated"]
    with_emotional = [(found, trial) for found, trial in only if trial.config.control in ("regulated", "emotional")]
    alone, together = (expected_seconds(plan, SEARCHED, images) for plan in (regulated, with_emotional))
    assert together - alone == pytest.approx((alone - record.experience_seconds) / 2), "one encoder, and the same experience"

    def grown(role: str, image_set: ImageSetConfig) -> int:
        return images(role, image_set) * (2 if image_set.validation_fraction == 0 else 1)

    (found, trial), *_ = regulated
    lengths = [
        (found, resolve_trial(replace_paths(trial.config, {"pretraining.epochs": n, "pretraining.cooldown_epochs": 2})))
        for n in (2, 6)
    ]
    short, long, both = (expected_seconds(plan, SEARCHED, images) for plan in (lengths[:1], lengths[1:], lengths))
    of_all = record.experience_seconds
    assert both == pytest.approx(short + long - of_all * 2 / 4), "what is before the shorter one's cool-down is paid once"
    more = expected_seconds(regulated, SEARCHED, grown)
    assert more - alone == pytest.approx(alone - record.experience_seconds), "an epoch is of what the search held out too"


def test_a_wide_network_costs_what_one_took_beside_the_search_else_by_its_weights() -> None:
    study = dataclasses.replace(STUDY, controls=("plain", "wide"))
    chosen = choose(study, SEARCHED.values(), 1)[:1]
    trials = plan_trials(study, chosen, (1000,), images=images)

    def seconds(control: str, records: Mapping[str, TrialRecord] = SEARCHED) -> float:
        return expected_seconds([pair for pair in trials if pair[1].config.control == control], records, images)

    assert seconds("wide") == pytest.approx(4 * seconds("plain"))
    wide = ended(dataclasses.replace(study.trial, control="wide"), role="control", seconds=8.0)
    ran = {**SEARCHED, wide.identity: wide}
    assert seconds("wide", ran) == pytest.approx(wide.regulation_seconds * study.trial.regulation.epochs)
    assert seconds("plain", ran) == seconds("plain")
    broken = {**SEARCHED, wide.identity: dataclasses.replace(wide, status="failed")}
    assert seconds("wide", broken) == seconds("wide")


def test_a_confirmation_trains_on_all_images_with_cuts_of_each_seed_s_own() -> None:
    study = replace_paths(STUDY, {"trial.task.num_folds": 3, "trial.task.validation_fraction": 0.0})
    study = replace_paths(study, {"trial.stimuli.num_folds": 2, "trial.stimuli.validation_fraction": 0.0})
    for chosen_study in (STUDY, study):
        records = searched(("test_resnet", 0.2, 0.5), study=chosen_study)
        trials = plan_trials(chosen_study, choose(chosen_study, records.values(), 1), (7, 8), images=images)
        for _, trial in trials:
            config, before = trial.config, chosen_study.trial
            own = {"validation_fraction": 0.0, "num_folds": None, "split_seed": config.seed}
            assert config.task == dataclasses.replace(before.task, **own)
            assert config.stimuli == dataclasses.replace(before.stimuli, split_seed=config.seed)
        sharing = [trial for _, trial in trials if trial.config.control in ("regulated", "emotional")]
        assert len(sharing) == 4
        runs = {name for trial in sharing for name in shared_runs(trial)}
        assert len(runs) == 2, "controls of one seed share its pre-training"
        assert opening_of(trials, 0.5).has_own_cuts


def test_seeds_of_a_task_that_is_not_cut_have_no_cuts() -> None:
    whole = replace_paths(STUDY, {"trial.task.num_images": None, "trial.task.split_seed": 3})
    one, other = (with_own_cuts(whole.trial, 7) for _ in range(2))
    other = replace_paths(other, {"task.split_seed": 8})
    assert resolve_trial(one).identity == resolve_trial(other).identity
    cut = replace_paths(one, {"task.num_images": 70})
    assert resolve_trial(cut).identity != resolve_trial(replace_paths(cut, {"task.split_seed": 8})).identity


def test_a_control_that_cuts_images_for_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CONTROLS, "_entries", dict(CONTROLS._entries))
    monkeypatch.setattr(CONTROLS, "_origins", dict(CONTROLS._origins))

    @control("held_out")
    def held_out(trial: TrialConfig) -> TrialConfig:
        """Hold out a half."""
        return replace_paths(trial, {"task.validation_fraction": 0.5})

    with pytest.raises(ConfigError, match=r"^Leave validation_fraction, .* held_out must not set what is held out of task"):
        planned()


def test_what_held_validation_out_is_another_plan() -> None:
    opening = opening_of(planned(), 0.5)
    before = dataclasses.replace(opening, has_own_cuts=False)
    assert before.digest != opening.digest
    assert str(before) == f"{opening}, with the search's validation images held out"


def test_what_is_fixed_is_gone_on_with(tmp_path: Path) -> None:
    first = with_opening([], opening_of(planned(), 0.5), is_open=False, again=False)
    files = Files(str(tmp_path))
    assert read_openings(files) == []
    write_openings(files, first)
    assert (
        with_opening(read_openings(files), opening_of(planned(), 0.5), is_open=True, again=False)
        == first
        == read_openings(files)
    )


def test_before_the_test_split_was_opened_all_may_change() -> None:
    first = with_opening([], opening_of(planned(), 0.5), is_open=False, again=False)
    (opening,) = with_opening(first, opening_of(planned(top=2), 0.5), is_open=False, again=False)
    assert len(opening.chosen) == 3


def test_a_further_opening_is_refused_or_added() -> None:
    (first,) = with_opening([], opening_of(planned(), 0.5), is_open=False, again=False)
    other = opening_of(planned(seeds=(1000, 1001, 1002)), 0.5)
    with pytest.raises(
        ConfigError,
        match=r"opened for test_resnet \w{12}, test_vit \w{12} on seeds 1000 to 1001, for effects from 0\.5 points, and",
    ):
        with_opening([first], other, is_open=True, again=False)
    assert with_opening([first], other, is_open=True, again=True) == [first, other]


def test_the_smallest_effect_is_fixed_with_the_plan() -> None:
    (first,) = with_opening([], opening_of(planned(), 0.5), is_open=False, again=False)
    with pytest.raises(
        ConfigError, match=r"Give the former --top, --seeds, --looks, --smallest-effect .* for effects from 0\.1 points"
    ):
        with_opening([first], opening_of(planned(), 0.1), is_open=True, again=False)


def test_a_plan_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / PLAN).write_text(json.dumps({"openings": [{"opened": "now"}]}))
    with pytest.raises(StorageError, match=f"Restore {PLAN} of .*, without which nothing says what was fixed"):
        read_openings(Files(str(tmp_path)))


TEN = tuple(range(1000, 1010))
LIFT = {"regulated": 0.05, "emotional": 0.02}


def finished(trials: Plan, lift: Mapping[str, float] = LIFT) -> dict[str, TrialRecord]:
    """The records of a confirmation that is complete: accuracies of 0.7 and what a control lifts, with some luck."""
    random = np.random.default_rng(0)
    return {
        trial.identity: confirmed(trial, 0.7 + lift.get(trial.config.control, 0.0) + random.normal(0.0, 0.002))
        for _, trial in trials
    }


def said(trials: Plan, records: Mapping[str, TrialRecord], smallest_effect: float = 0.5) -> tuple[Verdict, ...]:
    """The verdicts on test_resnet and test_vit."""
    opening = opening_of(trials, smallest_effect)
    return tuple(verdicts(opening, confirmed_rows(opening, records), records).values())


def ended_as(
    status: Status, trials: Plan, records: Mapping[str, TrialRecord], control: str, seeds: int
) -> dict[str, TrialRecord]:
    """The records where a control of test_resnet did not finish its first seeds."""
    lost = [
        trial.identity
        for found, trial in trials
        if (found.backbone, trial.config.control) == ("test_resnet", control) and trial.config.seed < 1000 + seeds
    ]
    return {**records, **{key: dataclasses.replace(records[key], status=status, test_accuracy=None) for key in lost}}


def test_nobody_looks_before_all_trials_have_ended() -> None:
    trials = planned(seeds=TEN)
    records = finished(trials)
    del records[trials[0][1].identity]
    assert confirmed_rows(opening_of(trials, 0.5), records) == [], "neither a mean nor a test"
    for verdict in said(trials, records):
        assert verdict.sentence.endswith(f": cannot be told yet: {len(trials) - 1} of {len(trials)} planned trials have ended")


def test_rows_compare_over_common_seeds() -> None:
    trials = planned(seeds=TEN)
    records = ended_as("failed", trials, finished(trials), "plain", 1)
    rows = confirmed_rows(opening_of(trials, 0.5), records)
    own = [row for row in rows if row.chosen.backbone == "test_resnet"]
    assert [row.control for row in own] == [
        *("regulated", "plain", "compute_matched", "ensemble"),
        *("emotional", "untrained", "shuffled"),
    ]
    assert own[0].comparison is None
    compared = {row.control: row.comparison for row in own if row.comparison is not None}
    assert {control: found.n for control, found in compared.items()} == {
        "plain": 9, "compute_matched": 10, "ensemble": 10, "emotional": 10, "untrained": 10, "shuffled": 10
    }  # fmt: skip
    assert {found.num_rows for found in compared.values()} == {12}, "of both backbones: a reader looks at one table"
    assert compared["emotional"].mean == pytest.approx(0.03, abs=3e-3)
    assert [row.is_exploratory for row in own] == [True, False, False, False, True, False, False]


def test_a_verdict_begins_with_how_the_arms_were_tuned() -> None:
    trials = planned(seeds=TEN)
    for verdict in said(trials, finished(trials)):
        assert verdict.sentence.startswith(
            f"{verdict.name} (controls at the settings of the tuned method: mechanism, not a claim that tuning was fair): "
            "better than experience without meaning (rung 4 of 5): +"
        )
        assert verdict.explanation.endswith("better than meaning without affect: not tried: relabelled, neutral")


@pytest.mark.parametrize(("status", "word"), [("pruned", "diverged"), ("failed", "failed")])
def test_a_seed_that_regulation_did_not_finish_is_an_outcome(status: Status, word: str) -> None:
    trials = planned(seeds=TEN)
    resnet, vit = said(trials, ended_as(status, trials, finished(trials), "regulated", 2))
    assert resnet.sentence == (f"test_resnet: cannot be told: regulation {word} on 2 of 10 seeds, which cannot be left out")
    assert word not in vit.sentence


@pytest.mark.parametrize(("status", "word"), [("pruned", "diverged"), ("failed", "failed")])
def test_a_seed_that_a_control_did_not_finish_is_told(status: Status, word: str) -> None:
    trials = planned(seeds=TEN)
    resnet, vit = said(trials, ended_as(status, trials, finished(trials), "plain", 2))
    assert f"; plain {word} on 2 of 10 seeds, which are missing here" in resnet.sentence
    assert "missing" not in vit.sentence


def test_a_control_without_a_seed_stops_the_ladder() -> None:
    trials = planned(seeds=TEN)
    resnet, _ = said(trials, ended_as("failed", trials, finished(trials), "untrained", 10))
    words = "better than two encoders without experience: not tried: untrained, untrained_matched; untrained failed on 10 of 10"
    assert words in resnet.sentence


def test_a_verdict_that_hangs_on_one_seed_says_so() -> None:
    trials = planned(seeds=TEN)
    records = finished(trials, {"regulated": 0.05})
    sound, _ = said(trials, records)
    assert "hangs on" not in sound.sentence
    for found, trial in trials:
        if (found.backbone, trial.config.control, trial.config.seed) == ("test_resnet", "regulated", 1004):
            records[trial.identity] = confirmed(trial, 0.3)
    resnet, vit = said(trials, records)
    assert resnet.claim == "not shown"
    assert "; hangs on single seeds: leaving out 1004 turns it" in resnet.sentence
    assert "hangs on" not in vit.sentence


def test_where_the_sign_flip_test_disagrees_it_is_told() -> None:
    trials = planned(seeds=TEN[:8])
    records = finished(trials)
    gains = dict(zip(TEN, [0.03] * 5 + [-0.004] * 3, strict=False))
    for found, trial in trials:
        if (found.backbone, trial.config.control) == ("test_resnet", "regulated"):
            records[trial.identity] = confirmed(trial, 0.7 + gains[trial.config.seed])
        elif (found.backbone, trial.config.control) == ("test_resnet", "plain"):
            records[trial.identity] = confirmed(trial, 0.7)
    resnet, vit = said(trials, records)
    assert "plain" in resnet.beaten
    assert "; the sign-flip test does not show it over plain (p = 0.031)" in resnet.sentence
    assert "sign-flip" not in vit.sentence


def test_two_seeds_cannot_tell() -> None:
    trials = planned()
    for verdict in said(trials, finished(trials)):
        assert verdict.sentence == f"{verdict.name}: cannot be told (n = 2): a verdict takes 3 seeds or more"


def test_it_needs_neither_torch_nor_ray() -> None:
    code = "import emoreg.results.confirmation, sys; print(sorted({'torch', 'ray', 'timm'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


TUNED_STUDY = dataclasses.replace(
    STUDY,
    controls_search="required",
    search_space={"regulation.balance": Float(0.1, 0.9), "regulation.optimizer.learning_rate": Float(1e-4, 1e-2, log=True)},
)
RATE = "regulation.optimizer.learning_rate"
ARMS = arms(TUNED_STUDY)


def arms_of(study: StudyConfig) -> tuple[StudyConfig, ...]:
    return ARMS if study is TUNED_STUDY else arms(study)


def tuned_search(study: StudyConfig = TUNED_STUDY, num_trials: int = 2, without: str = "") -> list[TrialRecord]:
    """Trials of regulation's search and of those of the controls, of which the last is the best."""
    found = []
    for search_of, searched_study in ((None, study), *((arm.trial.control, arm) for arm in arms_of(study))):
        for number in range(num_trials - (search_of == without)):
            params = {RATE: 1e-3 * (number + 1), "regulation.balance": 0.2}
            params = {path: value for path, value in params.items() if path in searched_study.search_space}
            trial = replace_paths(searched_study.trial, params)
            record = ended(trial, number=number, params=params, search_of=search_of, accuracy=0.5 + 0.1 * number)
            found.append(record)
    return found


def tuned_plan(records: list[TrialRecord], study: StudyConfig = TUNED_STUDY, *, is_complete: bool = False) -> Opening:
    chosen = choose(study, records, 1)
    tuned = best_tuned(study, arms_of(study), chosen, records, is_complete=is_complete)
    return opening_of(
        plan_trials(study, chosen, TEN, images=images),
        0.5,
        records,
        tuned_trials=plan_tuned(study, chosen, tuned, TEN, images=images),
        tuned=tuned,
    )


def test_each_control_is_planned_at_its_own_best_beside_the_same_settings() -> None:
    records = tuned_search()
    chosen = choose(TUNED_STUDY, records, 1)
    tuned = best_tuned(TUNED_STUDY, ARMS, chosen, records, is_complete=False)
    controls = ["plain", "compute_matched", "ensemble", "untrained", "shuffled"]
    assert [(found.control, found.rank) for found in tuned] == [(control, rank) for control in controls for rank in (1, 2)]
    assert {(found.rank, found.params[RATE], found.val_accuracy) for found in tuned} == {(1, 2e-3, 0.6), (2, 1e-3, 0.5)}
    second = plan_tuned(TUNED_STUDY, chosen, [found for found in tuned if found.rank == 2], (7,), images=images)
    assert {trial.config.regulation.optimizer.learning_rate for _, trial in second} == {1e-3}
    tuned = [found for found in tuned if found.rank == 1]
    planned = plan_tuned(TUNED_STUDY, chosen, tuned, (7,), images=images)
    same = {trial.config.control: trial for _, trial in plan_trials(TUNED_STUDY, chosen, (7,), images=images)}
    for _, trial in planned:
        assert (trial.config.regulation.optimizer.learning_rate, trial.config.seed) == (2e-3, 7)
        assert trial.identity == same[trial.config.control].identity, "the best of both is the same here"
    (matched,) = [trial for _, trial in planned if trial.config.control == "compute_matched"]
    assert matched.config.regulation.epochs == same["compute_matched"].config.regulation.epochs, "of what is confirmed"


def test_the_search_of_controls_is_not_that_of_regulation() -> None:
    records = [dataclasses.replace(row, val_accuracy=0.99) if row.search_of else row for row in tuned_search()]
    (found,) = choose(TUNED_STUDY, records, 1)
    assert found.val_accuracy == 0.6, "no control is chosen as if it were regulation"


def test_a_control_that_was_searched_less_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Run the study to its end first, .* but that of untrained has 1 of 2 trials"):
        tuned_plan(tuned_search(without="untrained"))
    assert tuned_plan(tuned_search(without="untrained"), is_complete=True).tuned, "it has no more configurations"
    with pytest.raises(ConfigError, match="has 0 of 2 trials"):
        tuned_plan([row for row in tuned_search() if row.search_of != "untrained"], is_complete=True)


def test_a_control_with_nothing_to_search_is_at_its_best() -> None:
    study = dataclasses.replace(TUNED_STUDY, search_space={"regulation.balance": Float(0.1, 0.9)})
    opening = tuned_plan(tuned_search(study), study)
    (plain,) = [found for found in opening.tuned if found.control == "plain"]
    assert (plain.params, plain.val_accuracy) == ({}, None)
    same = {trial.identity for trial in opening.trials if trial.control == "plain"}
    assert {trial.identity for trial in opening.tuned_trials if trial.control == "plain"} == same


def test_a_claim_rests_on_each_control_s_own_best() -> None:
    records = tuned_search()
    for row in records:  # what is best for regulation is not best for controls
        if row.search_of is not None:
            records[records.index(row)] = dataclasses.replace(row, val_accuracy=1 - (row.val_accuracy or 0.0))
    opening = tuned_plan(records)
    assert {(trial.control, trial.rank) for trial in opening.tuned_trials if trial.seed == TEN[0]} == {
        (found.control, found.rank) for found in opening.tuned
    }
    random = np.random.default_rng(0)
    found = {}
    for trials, lift in (
        (opening.trials, {"regulated": 0.05}),
        (opening.tuned_trials, {"untrained": 0.06}),
    ):
        for trial in (trial for trial in trials if trial.rank == 1):  # the second best have the settings of regulation
            accuracy = 0.7 + lift.get(trial.control, 0.0) + random.normal(0.0, 0.002)
            row = ended(dataclasses.replace(TUNED_STUDY.trial, seed=trial.seed), role="confirm")
            found[trial.identity] = dataclasses.replace(row, test_accuracy=accuracy)
    rows = confirmed_rows(opening, found)
    assert {row.control for row in rows if row.is_tuned} == {"plain", "compute_matched", "ensemble", "untrained", "shuffled"}
    (verdict,) = verdicts(opening, rows, found).values()
    assert verdict.sentence.startswith("test_resnet: better than its price (rung 2 of 5): +5")
    same = confirmed_rows(opening, found, same_settings=True)
    gains = {row.control: row.comparison.mean for row in same if row.comparison is not None}
    assert gains["untrained"] == pytest.approx(0.05, abs=3e-3), "at regulation's settings it would have seemed to be beaten"
    (mechanism,) = verdicts(dataclasses.replace(opening, tuned_trials=()), same, found).values()
    assert "controls at the settings of the tuned method" in mechanism.subject
    assert "rung 4 of 5" in mechanism.sentence


def test_a_verdict_names_the_controls_that_were_not_tuned() -> None:
    records = [dataclasses.replace(row, status="pruned") if row.search_of == "shuffled" else row for row in tuned_search()]
    opening = tuned_plan(records)
    found = {
        trial.identity: dataclasses.replace(ended(TUNED_STUDY.trial, role="confirm"), test_accuracy=0.5 + 1e-3 * trial.seed % 7)
        for trial in opening.every_trial
    }
    (verdict,) = verdicts(opening, confirmed_rows(opening, found), found).values()
    assert verdict.subject == "test_resnet (not tuned alike: shuffled at the settings of the tuned method): "


def test_what_is_fixed_of_tuned_controls_is_gone_on_with(tmp_path: Path) -> None:
    opening = tuned_plan(tuned_search())
    write_openings(Files(str(tmp_path)), [opening])
    (read,) = read_openings(Files(str(tmp_path)))
    assert read == opening
    untuned = dataclasses.replace(opening, tuned_trials=(), tuned=(), has_own_cuts=False)
    assert opening.digest != untuned.digest
    content = to_json(untuned)
    former = {name: content[name] for name in ("chosen", "trials", "smallest_effect")}
    for trial in former["trials"]:
        del trial["rank"]
    assert untuned.digest == digest(former), "as an emoreg without searches of controls has written it into ledgers"
