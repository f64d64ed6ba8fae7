"""From the best of a search to a claim: a confirmation is planned, then run as a study of its own, ``NAME.confirm``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from emoreg.config import CONFIRM, CONTROLS, ConfirmationConfig, StudyConfig
from emoreg.config.controls import available_controls
from emoreg.results.confirmation import answers_early
from emoreg.results.ledger import Entry, Ledger, earlier, refuse_lost
from emoreg.results.plan import Opening, Plan, Tuned, confirming, opening_of, read_openings, with_opening, write_openings
from emoreg.results.planning import (
    best_tuned,
    check_unchanged,
    choose,
    expected_seconds,
    fresh_seeds,
    plan_trials,
    plan_tuned,
)
from emoreg.results.power import Prospect, looks_of, prospects, refuse_underpowered, seeds_enough
from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tracking.observer import StudyObserver
from emoreg.tuning.arms import searching_arms
from emoreg.tuning.coordinator import Coordinator
from emoreg.tuning.images import count_images, prepare_image_sets, test_splits
from emoreg.tuning.manifest import refuse_changes
from emoreg.tuning.preflight import check_study, study_files
from emoreg.tuning.private_ray import PrivateRay
from emoreg.tuning.study import RunEnd, run_study


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmationPlan:
    """What a confirmation runs, fixed before the test set is opened.

    Attributes:
        config: the confirmation as a study.
        asked: what was asked for.
        trials: each with the configuration that it belongs to, at whose settings it is.
        searched: the trials of the search, by identity.
        prospects: what it can expect to see of each configuration, by identity, as far as the search tells.
        expected_seconds: of the device that the trials will take, by what those of the search took.
        num_task_images: images of the task that each of its trials trains on, by task.
        test_splits: which it opens, as ledgers know them.
        tuned_trials: controls at the best and second best of their own searches, beside the trials.
        tuned: what these bests are.
        looks: after how many seeds the answer is looked at, in a plan of two looks; else empty.
    """

    config: StudyConfig
    asked: ConfirmationConfig
    trials: Plan
    searched: Mapping[str, TrialRecord]
    prospects: Mapping[str, Prospect]
    expected_seconds: float
    num_task_images: Mapping[str, int]
    test_splits: tuple[str, ...]
    tuned_trials: Plan = ()
    tuned: Sequence[Tuned] = ()
    looks: tuple[int, ...] = ()

    @property
    def study(self) -> str:
        """The name of the study that is confirmed."""
        return self.config.name.removesuffix(CONFIRM)

    def entries(self) -> list[Entry]:
        """Every opening of its test splits so far.

        Raises:
            StorageError: where a ledger is damaged.
        """
        ledgers = [Ledger(self.config.storage, test_split) for test_split in self.test_splits]
        return [entry for ledger in ledgers for entry in ledger.entries()]

    @property
    def num_seeds(self) -> int:
        """How many seeds it runs."""
        return len({trial.config.seed for _, trial in self.trials})

    def opening(self) -> Opening:
        """What is fixed now."""
        return opening_of(
            self.trials,
            self.asked.smallest_effect,
            self.searched.values(),
            self.test_splits,
            tuned_trials=self.tuned_trials,
            tuned=self.tuned,
            looks=self.looks,
        )

    def until_first_look(self) -> StudyConfig:
        """The confirmation as a study of the trials that its first look needs."""
        seeds = {trial.seed for trial in self.opening().at_first_look().trials}
        return dataclasses.replace(
            self.config, confirmed=tuple(trial for trial in self.config.confirmed if trial.seed in seeds)
        )


def plan_confirmation(
    config: StudyConfig, asked: ConfirmationConfig | None = None, *, address: str | None = None
) -> ConfirmationPlan:
    """Choose the best of a study's search, on validation, and plan them beside every control on fresh seeds.

    Args:
        asked: what is confirmed, and how; None for the defaults.
        address: of the Ray cluster that the confirmation will run on; None for this machine.

    Raises:
        ConfigError: without a finished trial of the search, for seeds that were used, or for a study that has changed.
    """
    asked = asked or ConfirmationConfig()
    check_study(config, address=address)
    with WorkingCopy(study_files(config)) as copy:
        copy.pull("records", "study.json")
        records = Records(copy.folder)
        searched = dict(records.trials)
        is_complete = bool(records.runs) and records.runs[max(records.runs)].ending == RunEnd.COMPLETED
        chosen = choose(config, searched.values(), asked.top)
        there = available_controls(config, CONTROLS)
        controls = [name for name in there if not CONTROLS[name].match_passes]  # these have no set of their own
        fingerprints = prepare_image_sets(dataclasses.replace(config, controls=tuple(controls)))
        check_unchanged(config, chosen, fingerprints)
        refuse_changes(config, copy.folder, fingerprints)
    images = count_images(config)
    arms = searching_arms(config, images)
    tuned = best_tuned(config, arms, chosen, searched.values(), is_complete=is_complete, fingerprints=fingerprints)
    expected = prospects(chosen, [*searched.values()], there, asked.smallest_effect, asked.looks, tuned)
    num_seeds = asked.num_seeds or seeds_enough(expected.values())
    looks = looks_of(asked.looks, num_seeds)
    seeds = fresh_seeds(config, searched.values(), num_seeds, asked.first_seed)
    trials = plan_trials(config, chosen, seeds, images=images, fingerprints=fingerprints)
    tuned_trials = plan_tuned(config, chosen, tuned, seeds, images=images, fingerprints=fingerprints)
    return ConfirmationPlan(
        config=confirming(config, [*trials, *tuned_trials]),
        asked=asked,
        trials=trials,
        tuned_trials=tuned_trials,
        tuned=tuned,
        looks=looks,
        searched=searched,
        prospects=expected,
        expected_seconds=expected_seconds([*trials, *tuned_trials], searched, images),
        num_task_images={trial.config.task.name: images("task", trial.config.task) for _, trial in trials},
        test_splits=test_splits(config),
    )


def check_confirmation(plan: ConfirmationPlan) -> list[Entry]:
    """Refuse what ``run_confirmation`` would refuse, and write nothing.

    Returns:
        The openings of the test set which the choice may have known, so that the verdict will be exploratory.

    Raises:
        UserError: see ``run_confirmation``.
    """
    with WorkingCopy(study_files(plan.config)) as copy:
        copy.pull("records")
        opening = _settled(plan, read_openings(copy.files), Records(copy.folder))[-1]
    return earlier(plan.entries(), opening, plan.study)


def run_confirmation(
    plan: ConfirmationPlan,
    *,
    address: str | None = None,
    observers: Sequence[StudyObserver] = (),
    command: str | None = None,
    private: PrivateRay | None = None,
) -> RunEnd:
    """Run what is missing of a confirmation; each of its trials opens the test set once, at its end.

    Of a plan of two looks, the seeds after the first look are left out where that gives the answer. All but ``plan`` is for
    ``run_study``.

    Raises:
        ConfigError: for another plan than the test set was opened for, unless ``asked.again``; for one that cannot answer,
            unless ``asked.underpowered``; where the plan of an opened test set is missing.
    """

    def fix(coordinator: Coordinator, records: Records) -> None:
        """Write down what is run, before any of it runs: first for all studies, then for this one."""
        files = coordinator.copy.files
        openings = _settled(plan, read_openings(files), records)
        for test_split in plan.test_splits:
            Ledger(plan.config.storage, test_split, patience=coordinator.patience).add(
                study=plan.study,
                opened=openings[-1].opened,
                command=command,
                configurations=tuple(found.identity for found in openings[-1].chosen),
                plan=openings[-1].digest,
            )
        write_openings(files, openings)

    run = partial(run_study, address=address, observers=observers, command=command, prepare=fix, private=private)
    if plan.looks:
        end = run(plan.until_first_look())
        if end != RunEnd.COMPLETED or _stops_at_first_look(plan):
            return end
        for observer in observers:
            observer.on_message(f"the first look, after {plan.looks[0]} of {plan.looks[-1]} seeds, leaves the answer open")
    return run(plan.config)


def _stops_at_first_look(plan: ConfirmationPlan) -> bool:
    """Whether the first look gives the answer, which is then written beside the plan; not once other seeds have been run."""
    with WorkingCopy(study_files(plan.config)) as copy:
        copy.pull("records")
        openings, records = read_openings(copy.files), Records(copy.folder).trials
        first = {trial.identity for trial in openings[-1].at_first_look().every_trial}
        went_on = any(trial.identity in records for trial in openings[-1].every_trial if trial.identity not in first)
        if went_on or not answers_early(openings[-1], records):
            return False
        write_openings(copy.files, [*openings[:-1], dataclasses.replace(openings[-1], is_stopped=True)])
    return True


def _settled(plan: ConfirmationPlan, openings: Sequence[Opening], records: Records) -> list[Opening]:
    """All openings of the confirmation, that of ``plan`` last.

    Raises:
        ConfigError: see ``run_confirmation``.
    """
    asked = plan.opening()
    own = [row for row in records.trials.values() if row.test_accuracy is not None]
    refuse_lost(plan.study, openings, asked, plan.entries(), is_open=bool(own))
    is_open = bool(own) or any(row.test_accuracy is not None for row in plan.searched.values())
    is_open |= any(run.ended is None for run in records.runs.values())  # another driver's, or a killed one's
    settled = with_opening(openings, asked, is_open=is_open, again=plan.asked.again)
    if not plan.asked.underpowered and settled != [*openings]:
        refuse_underpowered(plan.prospects.values(), plan.num_seeds)
    return settled
