"""From the best of a search to a claim: a confirmation is planned, then run as a study of its own, ``NAME.confirm``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from emoreg.config import CONTROLS, ConfirmationConfig, StudyConfig
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
        asked: what was asked for.
        trials: each with the configuration that it belongs to.
        searched: the trials of the search, by identity.
    """

    config: StudyConfig
    asked: ConfirmationConfig
    trials: Plan
    searched: Mapping[str, TrialRecord]

    @property
    def expected_seconds(self) -> float:
        """Seconds of the device that the trials will take, by what those of the search took."""
        return expected_seconds(self.trials, self.searched)


def plan_confirmation(
    config: StudyConfig, asked: ConfirmationConfig | None = None, *, address: str | None = None
) -> ConfirmationPlan:
    """Choose the best of a study's search, on validation, and plan them beside every control on fresh seeds.

    Args:
        config: the study.
        asked: what is confirmed, and how; None for the defaults.
        address: of the Ray cluster that the confirmation will run on; None for this machine.

    Raises:
        ConfigError: without a finished trial of the search, for seeds that were used, or for a study that has changed.
    """
    asked = asked or ConfirmationConfig()
    check_study(config, address=address)
    with WorkingCopy(study_files(config)) as copy:
        copy.pull("records", "study.json")
        searched = dict(Records(copy.folder).trials)
        seeds = fresh_seeds(config, searched.values(), asked.num_seeds or 10, asked.first_seed)
        chosen = choose(config, searched.values(), asked.top)
        controls = [name for name in available_controls(config.trial, CONTROLS) if name != "compute_matched"]  # it has no set
        fingerprints = prepare_image_sets(dataclasses.replace(config, controls=tuple(controls)))
        check_unchanged(config, chosen, fingerprints)
        refuse_changes(config, copy.folder, fingerprints)
    trials = plan_trials(config, chosen, seeds, images=count_images(config), fingerprints=fingerprints)
    return ConfirmationPlan(config=confirming(config, trials), asked=asked, trials=trials, searched=searched)


def run_confirmation(
    plan: ConfirmationPlan,
    *,
    address: str | None = None,
    observers: Sequence[StudyObserver] = (),
    command: str | None = None,
) -> RunEnd:
    """Run what is missing of a confirmation; each of its trials opens the test set once, at its end.

    Args:
        plan: what is run.
        address: see ``run_study``.
        observers: see ``run_study``.
        command: what was typed, for the records.

    Raises:
        ConfigError: for another plan than the test set was opened for, unless ``asked.again``.
    """

    def fix(coordinator: Coordinator, records: Records) -> None:
        """Write down what is run, before any of it runs."""
        rows = (*records.trials.values(), *plan.searched.values())
        is_open = any(row.test_accuracy is not None for row in rows)
        is_open |= any(run.ended is None for run in records.runs.values())  # another driver's, or a killed one's
        files = coordinator.copy.files
        opening = opening_of(plan.trials, plan.asked.smallest_effect)
        openings = with_opening(read_openings(files), opening, is_open=is_open, again=plan.asked.again)
        write_openings(files, openings)

    return run_study(plan.config, address=address, observers=observers, command=command, prepare=fix)
