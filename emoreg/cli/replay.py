"""``emoreg trial --replay``: a recorded trial run again from its start, compared with its record.

It is equal to the bit, where it was deterministic on a CPU. Nothing of the study is touched, and nothing of it is used but its
record and its prepared image sets: the experience too is trained anew, in a scratch folder that is gone at the end.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console

import emoreg
from emoreg.cli.terminal import new_table
from emoreg.cli.trial import EpochLines
from emoreg.config import CONFIRM, StudyConfig, TrialConfig, from_json
from emoreg.config.resolved import ResolvedTrial
from emoreg.errors import ConfigError, Interrupted, StorageError
from emoreg.results.outcome import EndReason, Outcome
from emoreg.results.plan import read_openings
from emoreg.results.records import EpochRecord, RunRecord, Stage, TrialRecord
from emoreg.results.written import stored_rows
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join, scratch
from emoreg.training.context import TrialContext
from emoreg.training.devices import device_name
from emoreg.training.events import Event
from emoreg.training.trial import run_trial
from emoreg.tuning.adapters import resolved_trial
from emoreg.tuning.images import image_loader
from emoreg.tuning.manifest import provenance
from emoreg.tuning.signals import stop_on_signals

_LEAST_DIGITS = 4
_OF_TRIAL = ("val_accuracy", "val_loss", "measured_balance", "test_accuracy", "num_parameters")
_NOT_COMPARED = (
    *("identity", "stage", "epoch", "metrics", "precision", "compiled"),
    *("seconds", "images_per_second", "gpu_utilisation"),
)
_OF_EPOCH = [item.name for item in dataclasses.fields(EpochRecord) if item.name not in _NOT_COMPARED]
_ALWAYS_SHOWN = re.compile(r"[^,]+|pretraining epoch \d+, train_loss|regulation epoch \d+, val_(accuracy|loss)")
"""Even where they are equal; the other numbers are compared too, and shown where they differ."""

Place = tuple[Stage, int]
Numbers = dict[str, float | None]
"""Numbers by what a reader calls them; None: an epoch has no such number."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recorded:
    """A trial as its study, or a confirmation, holds it; ``run`` is None where it ran outside of one, under `emoreg trial`."""

    study: str
    record: TrialRecord
    epochs: Mapping[Place, EpochRecord]
    run: RunRecord | None

    @property
    def is_tested(self) -> bool:
        """Whether it opens the test split: where it did, and where it is a confirmation's, which measures nothing else."""
        return self.record.test_accuracy is not None or self.record.role == "confirm"

    @property
    def versions(self) -> Mapping[str, str]:
        """What it ran with, by package; empty where that is not recorded."""
        return {} if self.run is None else json.loads(self.run.versions)


class _FarEnough(Exception):
    """The replay has come as far as the record."""


@dataclass(frozen=True, slots=True)
class _Until:
    """Ends a trial after an epoch. A ``Reporter``."""

    last: Place | None

    def report(self, event: Event) -> None:
        if isinstance(event, EpochRecord) and (event.stage, event.epoch) == self.last:
            raise _FarEnough


def replay(config: StudyConfig, identity: str, device: torch.device, console: Console) -> int:
    """Run a recorded trial again, and print how far it is equal. It opens the test set where the trial does.

    ``identity``, of which the first digits will do, is that of a trial of the study or its confirmation.

    Returns:
        The exit code: 1 where a trial differs that must be equal, 130 where it was interrupted, else 0.

    Raises:
        ConfigError: where there is no such trial, or it is one of a confirmation that has not ended.
        StorageError: where its record cannot be read, or its image sets or emoreg are others now.
    """
    recorded = _find(config, identity)
    record = recorded.record
    trial = _trial_of(recorded, config.storage)
    torch.set_num_threads(max(1, int(config.trial_resources(record.backbone).cpus or 1)))
    console.print(
        f"replay of trial {record.identity} of {recorded.study!r}, {record.status} on {record.ended[:10]}: {record.backbone}, "
        f"control {record.control}, seed {record.seed}, on {device_name(device)}"
    )
    if recorded.is_tested:
        console.print("It is a trial that opens the test set, so its replay opens it again, for the same trial.")
    lines = EpochLines(trial.config, console)
    try:
        outcome = _run(recorded, trial, config.storage, device, lines)
    except Interrupted:
        console.print("interrupted: nothing is kept of a replay")
        return 130
    before = _numbers(record.outcome, recorded.epochs)
    now = _numbers(outcome, {(row.stage, row.epoch): row for row in lines.epochs})
    differences = {quantity: _difference(value, now.get(quantity)) for quantity, value in before.items()}
    _print_numbers(before, now, differences, console)
    differs = any(differences.values())
    if EndReason.DIVERGED in (record.end_reason, outcome.end):
        said = [text or "it did not diverge" for text in (record.message, outcome.message)]
        console.print(f"recorded: {said[0]}; replayed: {said[1]}")
        differs |= said[0] != said[1]
    console.print()
    excuses = "; ".join(_excuses(recorded, trial, outcome, device, config))
    if not differs:
        also = f", although {excuses}" if excuses else ""
        console.print(f"Equal to the bit in all {len(differences)} numbers{also}.", style="bold")
        return 0
    console.print(_apart([*differences.values()], excuses), style="bold")
    if excuses:
        return 0
    console.print(_defect(recorded, config), style="red")
    return 1


def _run(recorded: _Recorded, trial: ResolvedTrial, storage: str, device: torch.device, lines: EpochLines) -> Outcome:
    """Run the trial as far as its record goes."""
    record = recorded.record
    ended_by_itself = record.end_reason in (EndReason.COMPLETED, EndReason.DIVERGED)
    last = None if ended_by_itself else max(recorded.epochs, key=lambda place: (place[0] == "regulation", place[1]))
    signals: list[int] = []
    with scratch() as folder, stop_on_signals(signals.append):
        context = TrialContext(
            load_images=image_loader(storage),
            store=ExperienceStore(str(folder / "experience")),
            folder=folder / "trial",
            device=device,
            precisions={} if record.precision is None else {record.backbone: record.precision},
            compiled={record.backbone: bool(record.compiled)},
            evaluate_on="test" if recorded.is_tested else "validation",
            checkpoint_seconds=math.inf,
            should_stop=lambda: bool(signals),
        )
        try:
            return run_trial(trial, context, lines, _Until(last))
        except _FarEnough:
            row = lines.epochs[-1]
            return dataclasses.replace(
                record.outcome, val_accuracy=row.val_accuracy, val_loss=row.val_loss, measured_balance=row.measured_balance
            )


def _find(config: StudyConfig, identity: str) -> _Recorded:
    """The trial with this identity, or with one that begins so."""
    if not re.fullmatch(rf"[0-9a-f]{{{_LEAST_DIGITS},12}}", identity):
        raise ConfigError(
            f"Copy the identity from a table of the study, or its records: --replay takes a trial's, 12 hexadecimal digits of "
            f"which the first {_LEAST_DIGITS} may do, but it is {identity!r}"
        )
    studies = {name: Files(join(config.storage, name)) for name in (config.name, f"{config.name}{CONFIRM}")}
    trials = {
        row.identity: (name, row) for name, files in studies.items() for row in stored_rows(files, "trials", TrialRecord) or ()
    }
    if not trials:
        raise ConfigError(
            "Run the study, or give its --storage and --name: a replay runs a recorded trial again, but "
            f"{studies[config.name].uri!r} has none"
        )
    matching = [known for known in trials if known.startswith(identity)]
    if len(matching) != 1:
        near = matching or difflib.get_close_matches(identity, trials, n=3, cutoff=0.0)
        raise ConfigError(
            f"Name one trial of {config.name!r} or its confirmation: {identity!r} names {len(matching) or 'none'}, "
            f"{'it may be' if matching else 'the nearest are'} {', '.join(near)}"
        )
    name, record = trials[matching[0]]
    for opening in read_openings(studies[name])[-1:]:
        if not opening.is_complete({known: row for known, (_, row) in trials.items()}):
            raise ConfigError(
                "Run the confirmation to its end first: what its trials found on the test set is shown once all have ended, "
                f"and trial {record.identity} is one of them"
            )
    epochs = [row for row in stored_rows(studies[name], "epochs", EpochRecord) or () if row.identity == record.identity]
    if record.status != "finished" and not epochs:
        raise ConfigError(
            f"Name another trial: a replay compares epochs, but trial {record.identity} has none on record ({record.status}: "
            f"{record.message})"
        )
    runs = stored_rows(studies[name], "runs", RunRecord) or ()
    during = [run for run in runs if run.started <= record.started and record.ended <= (run.ended or "~")]
    return _Recorded(
        study=name,
        record=record,
        epochs={(row.stage, row.epoch): row for row in epochs},
        run=max(during, key=lambda run: run.started, default=None),
    )


def _trial_of(recorded: _Recorded, storage: str) -> ResolvedTrial:
    """The trial as the record says that it was run.

    Raises:
        StorageError: where this emoreg has other settings than the one that wrote it, or the image sets have changed.
    """
    record = recorded.record
    by_whom = (
        f"it was written by emoreg {recorded.versions.get('emoreg', 'of an unknown version')}, and this is {emoreg.__version__}"
    )
    try:
        config = from_json(TrialConfig, json.loads(record.config))
    except ConfigError as error:
        raise StorageError(f"Replay trial {record.identity} with the emoreg that wrote it: {error}; {by_whom}") from error
    trial = resolved_trial(config, image_loader(storage), is_tested=recorded.is_tested)
    if trial.identity != record.identity:
        raise StorageError(
            f"Restore the images that trial {record.identity} learned from, or replay it with the emoreg that wrote it: its "
            f"configuration has the identity {trial.identity} now; {by_whom}"
        )
    return trial


def _numbers(outcome: Outcome, epochs: Mapping[Place, EpochRecord]) -> Numbers:
    """What there is of a trial, then of each of its epochs."""
    of_trial: Numbers = {name: getattr(outcome, name) for name in _OF_TRIAL} | dict(outcome.metrics)
    numbers: Numbers = {name: value for name, value in of_trial.items() if value is not None}
    for (stage, epoch), row in epochs.items():
        of_epoch = {name: getattr(row, name) for name in _OF_EPOCH} | json.loads(row.metrics)
        numbers |= {f"{stage} epoch {epoch}, {name}": value for name, value in of_epoch.items()}
    return numbers


def _difference(recorded: float | None, replayed: float | None) -> float:
    """Replayed less recorded: 0 where they are equal to the bit, infinite where one is not there."""
    if recorded is None or replayed is None:
        return 0.0 if recorded is replayed else math.inf
    return replayed - recorded


def _print_numbers(before: Numbers, now: Numbers, differences: Mapping[str, float], console: Console) -> None:
    titles = ("recorded", "replayed", "difference")
    table = new_table(None, "quantity", *titles, right=titles)
    for quantity, difference in differences.items():
        if difference or _ALWAYS_SHOWN.fullmatch(quantity):
            shown = [
                "" if number is None else str(number) if isinstance(number, int) else f"{number:.6f}"
                for number in (before[quantity], now.get(quantity))
            ]
            table.add_row(quantity, *shown, f"{difference:+.1e}" if difference else "0", style="red" if difference else None)
    console.print()
    console.print(table)


def _excuses(
    recorded: _Recorded, trial: ResolvedTrial, outcome: Outcome, device: torch.device, config: StudyConfig
) -> Iterator[str]:
    """Why the replay may differ from the record, where it may."""
    record, here = recorded.record, provenance(config, None)
    if not trial.config.deterministic:
        yield "the trial is not deterministic"
    if record.device != device_name(device):
        is_auto = trial.config.precision == "auto" and not trial.config.deterministic
        bf16 = " (precision 'auto' computes in bf16 where the device has it)" if is_auto else ""
        yield f"it ran on {record.device}, and now on {device_name(device)}{bf16}"
    elif device.type != "cpu":
        yield "only on a CPU is a deterministic trial equal to the bit"
    for name, version in recorded.versions.items():
        if here.versions.get(name) != version:
            yield f"it ran with {name} {version}, and now with {here.versions.get(name, 'none')}"
    if recorded.run is not None and recorded.run.host not in (None, here.host):
        yield f"its study was run from {recorded.run.host}, and this is {here.host}"
    sizes = (record.micro_batch_size, outcome.oom.micro_batch_size)
    if sizes[0] != sizes[1]:
        then, now = ("whole batches" if size is None else f"{size} images at a time" for size in sizes)
        yield f"memory let it take {then}, and now {now}"


def _apart(differences: Sequence[float], excuses: str) -> str:
    """How many numbers differ, by how much, and whether they may."""
    apart = [abs(difference) for difference in differences if difference]
    by = f", by {max(apart):.1e} at most" if apart and max(apart) < math.inf else ""
    excused = f" It need not be equal to the bit: {excuses}." if excuses else ""
    return f"{len(apart)} of {len(differences)} numbers differ{by}.{excused}"


def _defect(recorded: _Recorded, config: StudyConfig) -> str:
    """What is said of a trial that differs without an excuse."""
    known = "" if recorded.versions else ", as far as is known (a study's runs note theirs, `emoreg trial` does not)"
    before, now = recorded.run.git_commit if recorded.run is not None else None, provenance(config, None).git_commit
    code = "" if before in (None, now) else f", or of what changed in the code from commit {before} to {now}"
    return (
        f"A deterministic trial on a CPU must be equal to the bit with the same versions{known}: this is a defect of emoreg or "
        f"the machine{code}. Please report it with this table."
    )
