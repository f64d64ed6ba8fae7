"""What a confirmation is to run: chosen from a search on validation, before the test set is opened. See ``results.plan``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial

from emoreg.config import (
    CONTROLS,
    ImageSetConfig,
    RegulationConfig,
    ResolvedTrial,
    StudyConfig,
    TrialConfig,
    from_json,
    replace_paths,
    resolve_trial,
)
from emoreg.config.arms import as_control, tuned_controls
from emoreg.config.confirmation import check_own_cuts, with_own_cuts
from emoreg.config.controls import available_controls
from emoreg.config.resolved import UNKNOWN, Fingerprints
from emoreg.config.search_space import num_searched
from emoreg.errors import ConfigError
from emoreg.results.analysis import ranked
from emoreg.results.plan import Chosen, Plan, Tuned
from emoreg.results.records import TrialRecord

ImageCount = Callable[[str, ImageSetConfig], int]
"""Counts the images in an epoch of what a trial has in a role: task or stimuli."""

NUM_BEST = 2
"""Of each control's own search, so many are confirmed, and regulation must be better than each.

What is best on validation is seldom the best there is, and of a control that is as good as regulation the search may well end
farther from it. Against the best alone, 8 to 12 % of confirmations of two equally good arms claimed a rung, where 5 % may;
against the two best, 1 to 3 % (16 trials a search: ``test_what_equal_searches_leave_of_false_claims``).
"""
_FORWARD = 1 / 3  # of a training step's cost, a forward pass


def choose(config: StudyConfig, records: Iterable[TrialRecord], top: int) -> tuple[Chosen, ...]:
    """The ``top`` configurations of the search, by backbone and task, by its first objective on validation.

    Raises:
        ConfigError: where no trial of the search has finished.
    """
    found: dict[tuple[str, str], list[TrialRecord]] = {}
    for row in ranked(records, config.objectives[0]):
        found.setdefault((row.backbone, row.task), []).append(row)
    if not found:
        raise ConfigError(f"Run the study first: {config.name!r} has no finished trial of the search that could be confirmed")
    has_tasks = len({task for _, task in found}) > 1
    return tuple(
        Chosen(
            identity=record.identity,
            backbone=backbone,
            rank=rank,
            val_accuracy=record.val_accuracy,
            params=record.sampled,
            task=task if has_tasks else None,
        )
        for backbone, task in sorted(found)
        for rank, record in enumerate(found[backbone, task][:top], 1)
    )


def check_unchanged(config: StudyConfig, chosen: Iterable[Chosen], fingerprints: Fingerprints = UNKNOWN) -> None:
    """Refuse to confirm what the study, as it is now, would not have run.

    Raises:
        ConfigError: naming what has changed.
    """
    for found in chosen:
        for path in found.params.keys() - config.search_space.keys():
            raise ConfigError(f"Leave out {path}, which was searched and is set now: a confirmation runs what the search ran")
        _check_same(resolve_trial(replace_paths(config.trial, found.params), fingerprints), found.identity)


def _check_same(trial: ResolvedTrial, identity: str) -> None:
    """Refuse a trial of a search that the study, as it is now, gives other settings."""
    if trial.identity != identity:
        raise ConfigError(
            "Undo the change of the study, or search anew under another name: a confirmation runs what the search ran, but "
            f"trial {identity} had other settings than the study gives it now"
        )


def fresh_seeds(config: StudyConfig, records: Iterable[TrialRecord], num_seeds: int, first: int) -> tuple[int, ...]:
    """Seeds that nothing was chosen with.

    Raises:
        ConfigError: where one of them was used in the search.
    """
    seeds = tuple(range(first, first + num_seeds))
    used = sorted({config.trial.seed, *config.control_seeds, *(row.seed for row in records)} & {*seeds})
    if used:
        raise ConfigError(
            f"Give another --first-seed: a confirmation needs fresh seeds, but the search has used {', '.join(map(str, used))}"
        )
    return seeds


def best_tuned(
    config: StudyConfig,
    arms: Iterable[StudyConfig],
    chosen: Iterable[Chosen],
    records: Collection[TrialRecord],
    *,
    is_complete: bool,
    fingerprints: Fingerprints = UNKNOWN,
) -> list[Tuned]:
    """The best ``NUM_BEST`` of each control's own search, beside each chosen configuration: on its backbone and task.

    A control with nothing to search has one configuration; one without a finished trial there has none.

    Where the study's last run ``is_complete``, no search is short, however few configurations it has.

    Raises:
        ConfigError: where a control has been searched less than regulation, or the study has changed.
    """
    searching = {arm.trial.control: arm for arm in arms}
    for arm in searching.values():
        _refuse_short(arm, records, is_complete=is_complete)
    objective = config.objectives[0]
    rankings = {control: ranked(records, objective, search_of=control) for control in searching}
    bests = []
    for found in chosen:
        where = found.backbone, found.params.get("task.name", config.trial.task.name)
        for control in tuned_controls(config):
            best = partial(Tuned, chosen=found.identity, control=control)
            if control not in searching:  # nothing to search: its one configuration is its best
                identity = resolve_trial(as_control(config.trial, control), fingerprints).identity
                bests.append(best(identity=identity, val_accuracy=None, params={}))
                continue
            own = [row for row in rankings[control] if (row.backbone, row.task) == where]
            for rank, row in enumerate(own[:NUM_BEST], 1):
                at_its_best = replace_paths(searching[control].trial, row.sampled)
                _check_same(resolve_trial(at_its_best, fingerprints), row.identity)
                bests.append(best(identity=row.identity, val_accuracy=row.val_accuracy, params=row.sampled, rank=rank))
    return bests


def _refuse_short(arm: StudyConfig, records: Collection[TrialRecord], *, is_complete: bool) -> None:
    """Refuse a control's own search that is shorter than regulation's."""
    wanted, ended = min(_num_ended(records, None), num_searched(arm)), _num_ended(records, arm.trial.control)
    if ended == 0 or (ended < wanted and not is_complete):
        raise ConfigError(
            "Run the study to its end first, or give --controls-search none, which the verdict will say: a control's own "
            f"search must be as long as regulation's, but that of {arm.trial.control} has {ended} of {wanted} trials"
        )


def _num_ended(records: Iterable[TrialRecord], search_of: str | None) -> int:
    """Trials of a search that have ended."""
    return sum(row.number is not None and row.search_of == search_of and row.status != "failed" for row in records)


def plan_trials(
    config: StudyConfig,
    chosen: Sequence[Chosen],
    seeds: Sequence[int],
    *,
    images: ImageCount,
    fingerprints: Fingerprints = UNKNOWN,
) -> Plan:
    """Every trial of an opening at the settings of what was chosen; seeds outermost, so that one is whole before the next.

    Each trains on the whole training split of its task, with cuts of its seed's own: see ``with_own_cuts``. ``images`` is for
    controls that match passes.

    Raises:
        ConfigError: for a control that sets the cuts itself.
    """
    controls = available_controls(config, CONTROLS)
    planned = []
    for seed in seeds:
        for found in chosen:
            base = with_own_cuts(replace_paths(config.trial, found.params), seed)
            for control in controls:
                trial = with_passes_of(base, dataclasses.replace(base, control=control), images)
                planned.append((found, check_own_cuts(resolve_trial(trial, fingerprints))))
    return planned


def plan_tuned(
    config: StudyConfig,
    chosen: Iterable[Chosen],
    tuned: Iterable[Tuned],
    seeds: Sequence[int],
    *,
    images: ImageCount,
    fingerprints: Fingerprints = UNKNOWN,
) -> Plan:
    """The controls at the best settings of their own searches, on the seeds of the configurations that they stand beside.

    A control that matches passes takes as many as the configuration does.

    Raises:
        ConfigError: for a control that sets the cuts of images itself.
    """
    beside, bests = {found.identity: found for found in chosen}, [*tuned]
    planned = []
    for seed in seeds:
        for best in bests:
            found = beside[best.chosen]
            base = with_own_cuts(replace_paths(config.trial, found.params), seed)
            trial = with_own_cuts(replace_paths(as_control(config.trial, best.control), best.params), seed)
            trial = with_passes_of(base, trial, images)
            planned.append((found, check_own_cuts(resolve_trial(trial, fingerprints))))
    return planned


def with_passes_of(regulated: TrialConfig, trial: TrialConfig, images: ImageCount) -> TrialConfig:
    """A control's trial; if it matches passes, with as many epochs as take those of regulation and its pre-training.

    Passes are those of an encoder; epochs are rounded up.
    """
    if not CONTROLS[trial.control].match_passes:
        return trial
    passes = regulated.regulation.epochs * _num_encoders(regulated.regulation) * images("task", regulated.task)
    if regulated.regulation.needs_emotional:
        passes += regulated.pretraining.total_epochs * images("stimuli", regulated.stimuli)
    an_epoch = _num_encoders(as_control(trial, trial.control).regulation) * images("task", trial.task)
    epochs = math.ceil(passes / an_epoch)
    return dataclasses.replace(trial, regulation=dataclasses.replace(trial.regulation, epochs=epochs))


def expected_seconds(plan: Plan, searched: Mapping[str, TrialRecord], images: ImageCount) -> float:
    """Seconds of the device that the trials will take, by what those of the search took: each pre-training is paid once."""
    regulation: dict[str, float] = {}
    pretraining: dict[object, float] = {}
    for found, trial in plan:
        record, config = searched[found.identity], trial.config
        timed, ran = _timed(config, record, searched.values())
        an_epoch = timed.regulation_seconds / max(1, timed.regulation_epochs)  # of as many encoders as that trial had
        encoders = _num_encoders(config.regulation) / _num_encoders(ran.regulation)
        growth = images("task", config.task) / images("task", ran.task)  # by what the search held out
        weights = (config.width / ran.width) ** 2  # 1, where a trial of the width has ended
        regulation[trial.identity] = an_epoch * config.regulation.epochs * encoders * growth * weights
        branch = 0
        for run in trial.pretraining_runs:
            settings = run.config.pretraining
            length = dataclasses.replace(settings, epochs=settings.epochs if settings.cooldown_epochs else 0)
            shared = (config.encoder, trial.images_of_pretraining, config.seed, length)
            share = (settings.total_epochs - branch) / config.pretraining.total_epochs
            pretraining[shared] = max(share * (record.experience_seconds or 0.0), pretraining.get(shared, 0.0))
            branch = settings.total_epochs
    return math.fsum(regulation.values()) + math.fsum(pretraining.values())


def _timed(config: TrialConfig, record: TrialRecord, searched: Iterable[TrialRecord]) -> tuple[TrialRecord, TrialConfig]:
    """The trial whose time tells what another takes: ``record``'s, or a finished one of its control if that has its width."""
    kind = (config.control, config.backbone, "finished")
    for row in (record, *(row for row in searched if (row.control, row.backbone, row.status) == kind)):
        ran = from_json(TrialConfig, json.loads(row.config))
        if ran.width == config.width:
            return row, ran
    return record, from_json(TrialConfig, json.loads(record.config))


def _num_encoders(regulation: RegulationConfig) -> float:
    """Encoders that an image goes through, forward and backward: forward alone, as through a frozen one, is a third."""
    emotional = _FORWARD if regulation.is_emotion_frozen else 1.0
    return regulation.needs_plain + emotional * regulation.needs_emotional
