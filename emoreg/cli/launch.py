"""What `emoreg run`, `confirm` and `show` do with a study that is parsed: check it, drive it, and tell its answer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from rich.console import Console

from emoreg.cli.progress import StudyProgress
from emoreg.cli.summary import print_confirmation, print_confirmation_plan, print_plan, print_summary
from emoreg.config import StudyConfig, leaves
from emoreg.config.search_space import pin
from emoreg.results.confirmation import (
    PLAN,
    choose,
    confirming,
    fresh_seeds,
    look_of,
    plan_trials,
    read_looks,
    with_look,
    write_looks,
)
from emoreg.results.records import Records
from emoreg.storage.working_copy import WorkingCopy
from emoreg.study_file import Launch
from emoreg.training.optim import length_dependence
from emoreg.tuning.coordinator import Coordinator
from emoreg.tuning.postgres import is_postgresql
from emoreg.tuning.preflight import (
    adopt_controls,
    check_study,
    count_images,
    driving,
    prepare_image_sets,
    refuse_changes,
    study_files,
    write_study_file,
)

if TYPE_CHECKING:
    from emoreg.tuning.driver import StudyEnd


def pinned(launch: Launch) -> StudyConfig:
    """The study with the search space that the command line leaves; says what it takes out."""
    config, space = launch.config, launch.space
    values = {path: value for path, value in leaves(config.trial) if path in launch.overridden and path in space}
    left = pin(space, values)
    for path, value in values.items():
        print(f"{path} is {value!r}, by the command line: it leaves the search space")
    for path in space.keys() - left.keys() - values.keys():
        print(f"{path} leaves the search space with it")
    return dataclasses.replace(config, search_space=left)


def run(launch: Launch) -> int:
    """Run what is missing of a study; the exit code."""
    config = pinned(launch)
    console = Console(highlight=False)
    check_study(config, address=launch.address)
    reason = length_dependence(config.trial.pretraining)
    if reason is not None:
        console.print(reason, style="yellow", markup=False, soft_wrap=True)
    with driving(config) as (coordinator, records):
        _begin(config, coordinator.copy, console)
        adopt_controls(config, records)
        end = _drive(config, coordinator, records, launch, console)
        print_summary(config, records, coordinator.copy, console)
    return _ended(end, config, records, launch.command, console)


def confirm(launch: Launch, *, top: int, num_seeds: int, first_seed: int, again: bool, dry_run: bool) -> int:
    """Fix the best of a study's search, and run them beside every control on the test split.

    Args:
        launch: the study.
        top: configurations of each backbone.
        num_seeds: how many seeds.
        first_seed: the first of them.
        again: whether a further look at the test split is wanted.
        dry_run: only say what would run.

    Returns:
        The exit code.
    """
    config = pinned(launch)
    console = Console(highlight=False)
    check_study(config, address=launch.address)
    with WorkingCopy(study_files(config)) as copy:
        copy.pull("records", "study.json")
        searched = Records(copy.folder).trials
        seeds = fresh_seeds(config, searched.values(), num_seeds, first_seed)
        chosen = choose(config, searched.values(), top)
        refuse_changes(config, copy.folder, prepare_image_sets(config))
    planned = plan_trials(config, chosen, seeds, images=count_images(config))
    confirmation = confirming(config, [trial for _, trial in planned])
    print_confirmation_plan(config, planned, searched, console)
    if dry_run:
        return 0
    with driving(confirmation) as (coordinator, records):
        copy = coordinator.copy
        with coordinator.turn():
            copy.pull(PLAN)
            is_open = any(row.test_accuracy is not None for row in (*records.trials.values(), *searched.values()))
            is_shared = is_postgresql(config.optuna_storage)
            is_open |= is_shared and any(run.ended is None for run in records.runs.values())  # another driver's
            looks = with_look(read_looks(copy.folder), look_of(planned), is_open=is_open, again=again)
            _begin(confirmation, copy, console)  # refused above, nothing of it has changed
            write_looks(copy.folder, looks)
            copy.push(PLAN)
        end = _drive(confirmation, coordinator, records, launch, console)
        print_confirmation(looks, records, copy, console)
    return _ended(end, confirmation, records, launch.command, console)


def show(launch: Launch) -> int:
    """Show what `run` would do, and what it would cost; the exit code."""
    config = pinned(launch)
    check_study(config)
    print_plan(launch.reference, config, Console(highlight=False))
    return 0


def _begin(config: StudyConfig, copy: WorkingCopy, console: Console) -> None:
    """Prepare the image sets of a study that is checked, and refuse to go on with another one than was begun."""
    console.print(f"study {config.name!r}: preparing image sets")
    write_study_file(config, copy.folder, prepare_image_sets(config))
    copy.push("study.json")


def _drive(config: StudyConfig, coordinator: Coordinator, records: Records, launch: Launch, console: Console) -> StudyEnd:
    """Run what is missing of a study, with progress."""
    from emoreg.tuning.study import run_study  # ray takes seconds to import: only when everything else holds

    progress = StudyProgress(config, records.trials, console)
    console.print(f"study {config.name!r}: starting Ray")
    with progress.shown():
        end = run_study(config, coordinator, records, progress, address=launch.address, command=launch.command)
    console.print(progress.closing_line(), markup=False, soft_wrap=True)
    return end


def _ended(end: StudyEnd, config: StudyConfig, records: Records, command: str, console: Console) -> int:
    """Say how to go on; the exit code."""
    if end == "interrupted":
        console.print(f"Interrupted: run the same command again to go on.\n  {command}", markup=False, soft_wrap=True)
        return 130
    if end == "broken":
        last = max((record for record in records.trials.values() if record.status == "failed"), key=lambda row: row.ended)
        console.print(f"The last fault, in trial {last.identity}:\n{last.log_tail}", markup=False, soft_wrap=True)
        console.print(
            f"Stopped: a fault in code broke {config.resources.max_failures} trials (resources.max_failures). Mend it and "
            f"run the same command again to go on.\n  {command}",
            markup=False,
            soft_wrap=True,
        )
        return 1
    return 1 if any(record.status == "failed" for record in records.trials.values()) else 0
