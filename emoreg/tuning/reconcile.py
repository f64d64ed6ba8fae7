"""Optuna's history changed before a run: brought into line with the records, and begun with what other studies found."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from emoreg.config import StudyConfig, TrialConfig, Value, replace_paths, to_json
from emoreg.config.resolved import ResolvedTrial
from emoreg.config.search_space import suggest
from emoreg.errors import ConfigError
from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records
from emoreg.results.written import read_written
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tuning.optuna_study import (
    GRID,
    REPLACES,
    RESTORED,
    WARM_START,
    Told,
    is_own,
    replaced,
    told,
    told_together,
)

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_LEARNING = ("tpe", "gp")
"""Samplers that learn from trials which they did not propose; the others ignore them."""
_MOST_DIFFERENCES = 10


@dataclass(frozen=True)
class Rerun:
    """A trial that Optuna has been told and that has no record: to be run again, not to be told again."""

    number: int
    params: dict[str, Value]
    identity: str


@dataclass(frozen=True)
class Reconciled:
    """What ``reconcile`` found."""

    messages: list[str]
    """What was done, for the user."""
    reruns: list[Rerun]
    renumbered: dict[str, int]
    """By identity, the numbers that records must take, because Optuna's history gives theirs to no such trial."""


Resolve = Callable[[TrialConfig], ResolvedTrial]
"""Gives a trial its identity."""


def reconcile(study: optuna.Study, config: StudyConfig, records: Mapping[str, TrialRecord], resolved: Resolve) -> Reconciled:
    """Bring Optuna's history into line with the records, which decide every conflict. Doing it twice does no more than once.

    Trials that Optuna has as RUNNING are left to the searcher. Optuna's trials that ended cannot be changed: where the records
    know better, a new trial replaces the old one, which counts no more but which the sampler still sees as it was told. A
    sampler thus knows a corrected point by both its values, which is noise to it; the records have the right one alone.

    Args:
        study: from ``open_study``, after ``warm_start``. The caller holds the study's lock.
        records: the study's trials by identity.
        resolved: gives a trial its identity.
    """
    did: Counter[str] = Counter()
    _add_missing(study, config, records, resolved, did)
    trials = study.get_trials(deepcopy=False)
    gone = replaced(trials)
    reruns: dict[str, Rerun] = {}
    for trial in trials:
        if not is_own(trial) or trial.state not in _ENDED or trial.number in gone:
            continue
        identity = _identity_in_history(config, trial, records, resolved)
        record = records.get(str(identity))
        if record is not None and all(row.status != "failed" for row in _seeds(record, records)):
            is_same = trial.params == record.sampled or _identity(config, trial.params, resolved) == identity
            outcome = _told(config, record, records)
            _correct(study, config, trial, record, did, trial.params if is_same else record.sampled, outcome)
        elif _identity(config, trial.params, resolved) != identity:
            did["ended in Optuna's history without a record, with another configuration than today's: left as it is"] += 1
        elif trial.state != TrialState.FAIL:
            reruns.setdefault(str(identity), Rerun(trial.number, dict(trial.params), str(identity)))
        elif _fit(config, trial.params, Told(TrialState.FAIL), {}) is None:
            did["failed in an earlier run, but outside of today's search space: not tried again"] += 1
        else:
            point = {GRID: trial.user_attrs[GRID]} if GRID in trial.user_attrs else {}
            study.enqueue_trial(dict(trial.params), user_attrs={REPLACES: trial.number, **point})
            did["failed in an earlier run: tried again"] += 1
    did["ended in Optuna's history without a record: run again"] = len(reruns)
    renumbered = _renumber(study, config, records, resolved)
    did["recorded with a number that is not its own in Optuna's history: renumbered"] = len(renumbered)
    messages = [f"{count} {'trial' if count == 1 else 'trials'} {what}" for what, count in did.items() if count]
    return Reconciled(messages, list(reruns.values()), renumbered)


def _add_missing(
    study: optuna.Study, config: StudyConfig, records: Mapping[str, TrialRecord], resolved: Resolve, did: Counter[str]
) -> None:
    """Add what the records have and Optuna has not, in the order of their numbers, so that these agree where they can."""
    known = {_identity_in_history(config, trial, records, resolved) for trial in study.get_trials(deepcopy=False)}
    missing = [record for record in records.values() if record.number is not None and record.identity not in known]
    for record in sorted(missing, key=lambda record: record.number or 0):
        attributes = {"identity": record.identity, "seed": record.seed, RESTORED: True}
        trial = _fit(config, record.sampled, _told(config, record, records), attributes)
        if trial is None or _identity(config, trial.params, resolved) != record.identity:
            did["recorded, but outside of today's search space: left out of Optuna's history"] += 1
            continue
        if config.sampler.name == "grid":
            trial.set_user_attr(GRID, json.dumps(trial.params))
        study.add_trial(trial)
        did["recorded, but not in Optuna's history (lost, or another storage): added to it"] += 1


def _correct(
    study: optuna.Study,
    config: StudyConfig,
    trial: FrozenTrial,
    record: TrialRecord,
    did: Counter[str],
    params: Mapping[str, Value],
    outcome: Told,
) -> None:
    """Add the right ``params`` and how the records say that a trial ended, where Optuna knows otherwise."""
    is_told = trial.state == outcome.state and all(map(math.isclose, trial.values or (), outcome.values or ()))
    if is_told and trial.params == params:
        return
    attributes = {"identity": record.identity, "seed": record.seed, REPLACES: trial.number}
    corrected = _fit(config, params, outcome, attributes)
    if corrected is None:
        did["told otherwise to Optuna than recorded, and outside of today's search space: left as it is"] += 1
        return
    study.add_trial(corrected)
    did["told otherwise to Optuna than recorded: told again, as recorded"] += 1


def _renumber(
    study: optuna.Study, config: StudyConfig, records: Mapping[str, TrialRecord], resolved: Resolve
) -> dict[str, int]:
    numbers: dict[str, list[int]] = {}
    for trial in study.get_trials(deepcopy=False):
        numbers.setdefault(_identity_in_history(config, trial, records, resolved) or "", []).append(trial.number)
    return {
        identity: numbers[identity][0]
        for identity, record in records.items()
        if record.number is not None and identity in numbers and record.number not in numbers[identity]
    }


def _told(config: StudyConfig, record: TrialRecord, records: Mapping[str, TrialRecord]) -> Told:
    """How Optuna is told of a recorded trial, with all of its seeds."""
    return told_together([row.outcome for row in _seeds(record, records)], config.objectives)


def _seeds(record: TrialRecord, records: Mapping[str, TrialRecord]) -> list[TrialRecord]:
    """A trial, and those that repeat it with other seeds, in the order of these."""
    repeats = [row for row in records.values() if row.repeats == record.identity]
    return [record, *sorted(repeats, key=lambda row: row.seed)]


def _identity_in_history(
    config: StudyConfig, trial: FrozenTrial, records: Mapping[str, TrialRecord], resolved: Resolve
) -> str | None:
    """The identity of a trial of Optuna's: as Optuna was told or, where no record has that, as its params make it."""
    identity: str | None = trial.user_attrs.get("identity")
    if identity not in records and is_own(trial) and trial.state in _ENDED:
        by_params = _identity(config, trial.params, resolved)
        return by_params if by_params in records else identity
    return identity


def _identity(config: StudyConfig, params: Mapping[str, Value], resolved: Resolve) -> str | None:
    """The identity of the trial that ``params`` make; None where they break a rule."""
    try:
        return resolved(replace_paths(config.trial, params)).identity
    except ConfigError:
        return None


def _fit(config: StudyConfig, values: Mapping[str, Any], outcome: Told, attributes: Mapping[str, Any]) -> FrozenTrial | None:
    """A trial for Optuna with those of ``values`` that the search space asks for; None where one is missing or outside."""
    known = optuna.trial.FixedTrial(dict(values))
    try:
        with warnings.catch_warnings(action="ignore"):  # it warns of a value outside, which is refused below
            suggest(config.search_space, config.trial, known)
        return optuna.trial.create_trial(
            state=outcome.state,
            # A pruned trial's value is its last intermediate one, as if it had been told.
            values=outcome.values or [value for value in outcome.intermediate.values() if math.isfinite(value)] or None,
            params=known.params,
            distributions=known.distributions,
            user_attrs={**attributes, **outcome.attributes},
            intermediate_values=dict(outcome.intermediate),
        )
    except (ValueError, OverflowError):
        return None


def check_warm_start(config: StudyConfig, folder_of: Callable[[str], Files]) -> None:
    """Refuse what ``warm_start`` could not read.

    Raises:
        ConfigError: for a study that is not there, that has no records, or that is this one.
        StorageError: for records that cannot be read.
    """
    _sources(config, folder_of)


def warm_start(study: optuna.Study, config: StudyConfig, folder_of: Callable[[str], Files], resolved: Resolve) -> list[str]:
    """Give the sampler what the studies of ``warm_start_from`` found, each of their trials once, and say so in sentences.

    Their trials of the control that is searched, ``regulated`` as a rule, enter Optuna's history as if run here: COMPLETE with
    the objectives that their records have, or PRUNED. A trial counts by its configuration, whatever was searched there: it is
    taken where this search space holds it. They are no trials of this study: they do not count, and have no records here.

    Args:
        study: from ``open_study``.
        folder_of: the folder of a study, by its name in the same storage or by its path.
        resolved: gives a trial its identity.

    Raises:
        UserError: see ``check_warm_start``.
    """
    before = {trial.user_attrs.get(WARM_START, "") for trial in study.get_trials(deepcopy=False)}
    messages = []
    for files, records in _sources(config, folder_of):
        name = files.name
        taken: Counter[str] = Counter()
        left_out: Counter[str] = Counter()
        differences = _study_differences(files, folder_of(config.name))
        for record in sorted(records, key=lambda record: math.inf if record.number is None else record.number):
            key = f"{name}/{record.identity}"
            if record.role == "trial" or record.control != config.trial.control or record.status == "failed" or key in before:
                continue
            outcome = told(record.outcome, config.objectives)
            there = _flat(json.loads(record.config))
            trial = _fit(config, there, outcome, {WARM_START: key, "seed": record.seed})
            if outcome.state == TrialState.FAIL:
                left_out["without a finite objective"] += 1
            elif trial is None or _identity(config, trial.params, resolved) is None:
                left_out["outside of this search space"] += 1
            else:
                study.add_trial(trial)
                taken[record.status] += 1
                here = _flat(to_json(resolved(replace_paths(config.trial, trial.params)).config))
                for path in (there.keys() | here.keys()) - config.search_space.keys() - {"seed"}:
                    _compare(path, there, here, differences)
        if taken or not any(known.startswith(f"{name}/") for known in before):
            parts = [f"{count} {what}" for what, count in taken.items()] or ["none"]
            parts += [f"left out {count} {what}" for what, count in left_out.items()]
            messages.append(f"trials taken from {name!r} for the sampler to learn from: {', '.join(parts)}")
        if taken and differences:
            messages.append(f"they are only a hint: in {name!r} {_as_text(differences)}")
        if taken and config.sampler.name not in _LEARNING:
            messages.append(f"the sampler {config.sampler.name!r} does not learn from trials of other studies: tpe and gp do")
    return messages


def _sources(config: StudyConfig, folder_of: Callable[[str], Files]) -> list[tuple[Files, list[TrialRecord]]]:
    """Folder and trials of each study to learn from."""
    sources = []
    for entry in config.warm_start_from:
        files = folder_of(entry)
        if files.location == folder_of(config.name).location:
            raise ConfigError(
                f"Leave {entry!r} out (a study that is run again knows its own trials), or give this one another --name: "
                f"warm_start_from must name other studies, but {entry!r} is this one"
            )
        with WorkingCopy(files) as copy:
            copy.pull("records")
            records = list(Records(copy.folder).trials.values())
        if not records:
            raise ConfigError(
                f"Name one of {_others(files)}, or a folder as ./old: warm_start_from must name studies that have records, but "
                f"{entry!r} has none in {files.uri!r}"
            )
        sources.append((files, records))
    return sources


def _others(files: Files) -> list[str]:
    """The studies beside one that have records."""
    beside = [] if files.folder is None else files.folder.parent.glob("*/records/trials.parquet")
    return sorted(path.parents[1].name for path in beside)


_Differences = dict[str, tuple[set[str], str]]
"""By path, the values that the trials of another study had there, and the one that this study has, as JSON."""


def _study_differences(there: Files, here: Files) -> _Differences:
    """Where two studies differ beside their configurations: in their images and in the versions of their trainers."""
    differences: _Differences = {}
    if there.exists("study.json") and here.exists("study.json"):
        old, new = (
            {f"fingerprint of {name}": fingerprint[:12] for name, *_, fingerprint in content["fingerprints"]}
            | {f"trainer of {stage}": version for stage, version in content["trainer"].items()}
            for content in (to_json(read_written(files)) for files in (there, here))
        )
        for path in old.keys() & new.keys():
            _compare(path, old, new, differences)
    return differences


def _compare(path: str, there: Mapping[str, Any], here: Mapping[str, Any], differences: _Differences) -> None:
    is_read = "neutral" not in path and "relabelled" not in path  # which the control ``regulated`` does not look at
    if there.get(path) != here.get(path) and is_read:
        old, new = (json.dumps(values[path]) if path in values else "absent" for values in (there, here))
        differences.setdefault(path, (set(), new))[0].add(old)


def _as_text(differences: _Differences) -> str:
    texts = [f"{path} was {' or '.join(sorted(there))} (here {here})" for path, (there, here) in sorted(differences.items())]
    more = len(texts) - _MOST_DIFFERENCES
    return ", ".join(texts[:_MOST_DIFFERENCES]) + (f" and {more} more" if more > 0 else "")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by path."""
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}{name}.") if isinstance(inner, dict) else {f"{prefix}{name}": inner}
    return flat
