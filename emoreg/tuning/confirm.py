"""From the best of a search to a claim: a confirmation is planned, then run as a study of its own, ``NAME.confirm``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emoreg.config import CONTROLS, FIRST_SEED, StudyConfig
from emoreg.results.plan import (
    Plan,
    check_unchanged,
    choose,
    confirming,
    expected_seconds,
    fresh_seeds,
    opening_of,
    plan_trials,
    read_openings,
    with_opening,
    write_openings,
)
from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tracking.observer import StudyObserver
from emoreg.tuning.coordinator import Coordinator
from emoreg.tuning.images import available_controls, count_images, prepare_image_sets
from emoreg.tuning.manifest import refuse_changes
from emoreg.tuning.preflight import check_study, study_files
from emoreg.tuning.study import RunEnd, run_study


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmationPlan:
    """What a confirmation runs, fixed before the test set is opened.

    Attributes:
        config: the confirmation as a study.
        trials: each with the configuration that it belongs to.
        searched: the trials of the search, by identity.
    """

    config: StudyConfig
    trials: Plan
    searched: Mapping[str, TrialRecord]

    @property
    def expected_seconds(self) -> float:
        """Seconds of the device that the trials will take, by what those of the search took."""
        return expected_seconds(self.trials, self.searched)


def plan_confirmation(
    config: StudyConfig,
    *,
    top: int = 1,
    num_seeds: int = 10,
    first_seed: int = FIRST_SEED,
    address: str | None = None,
) -> ConfirmationPlan:
    """Choose the best of a study's search, on validation, and plan them beside every control on fresh seeds.

    Args:
        config: the study.
        top: configurations of each backbone.
        num_seeds: how many seeds.
        first_seed: the first of them.
        address: of the Ray cluster that the confirmation will run on; None for this machine.

    Raises:
        ConfigError: without a finished trial of the search, for seeds that were used, or for a study that has changed.
    """
    check_study(config, address=address)
    with WorkingCopy(study_files(config)) as copy:
        copy.pull("records", "study.json")
        searched = dict(Records(copy.folder).trials)
        seeds = fresh_seeds(config, searched.values(), num_seeds, first_seed)
        chosen = choose(config, searched.values(), top)
        controls = [name for name in available_controls(config.trial, CONTROLS) if name != "compute_matched"]  # it has no set
        fingerprints = prepare_image_sets(dataclasses.replace(config, controls=tuple(controls)))
        check_unchanged(config, chosen, fingerprints)
        refuse_changes(config, copy.folder, fingerprints)
    trials = plan_trials(config, chosen, seeds, images=count_images(config), fingerprints=fingerprints)
    return ConfirmationPlan(config=confirming(config, trials), trials=trials, searched=searched)


def run_confirmation(
    plan: ConfirmationPlan,
    *,
    again: bool = False,
    address: str | None = None,
    observers: Sequence[StudyObserver] = (),
    command: str | None = None,
) -> RunEnd:
    """Run what is missing of a confirmation; each of its trials opens the test set once, at its end.

    Args:
        plan: what is run.
        again: whether the test set may be opened for another plan than before; it is recorded.
        address: see ``run_study``.
        observers: see ``run_study``.
        command: what was typed, for the records.

    Raises:
        ConfigError: for another plan than the test set was opened for, unless ``again``.
    """

    def fix(coordinator: Coordinator, records: Records) -> None:
        """Write down what is run, before any of it runs."""
        rows = (*records.trials.values(), *plan.searched.values())
        is_open = any(row.test_accuracy is not None for row in rows)
        is_open |= any(run.ended is None for run in records.runs.values())  # another driver's, or a killed one's
        files = coordinator.copy.files
        openings = with_opening(read_openings(files), opening_of(plan.trials), is_open=is_open, again=again)
        write_openings(files, openings)

    return run_study(plan.config, address=address, observers=observers, command=command, prepare=fix)
