"""A recorded trial, run again from its start and compared with its record: to the bit, where it was deterministic on a CPU.

Nothing of the study is touched, and nothing of it is used but its record and its prepared image sets: the experience too is
trained anew, in a scratch folder that is gone at the end.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

import emoreg
from emoreg.cli.local import EpochLines
from emoreg.config import CONFIRM, ImageSetConfig, StudyConfig, TrialConfig, from_json
from emoreg.data import LoadImages, load
from emoreg.errors import ConfigError, Diverged, Interrupted, StorageError
from emoreg.results.records import EpochRecord, Records, RunRecord, Stage, TrialRecord, TrialResult, trial_record, utc_now
from emoreg.results.written import read_written
from emoreg.storage.working_copy import WorkingCopy, scratch
from emoreg.training.devices import device_name
from emoreg.training.events import Event, Reporters
from emoreg.training.experience import ExperienceStore
from emoreg.training.trial import run_trial
from emoreg.tuning.preflight import check_trial, image_storage, provenance, study_files
from emoreg.tuning.signals import stop_on_signals

_LEAST_DIGITS = 4
_TRIAL = {
    "validation accuracy": "val_accuracy",
    "validation loss": "val_loss",
    "final balance": "measured_balance",
    "test accuracy": "test_accuracy",
    "parameters": "num_parameters",
}
_OF_A_CLOCK = ("seconds", "images_per_second", "gpu_utilisation")
_EPOCH = [
    item.name for item in dataclasses.fields(EpochRecord) if item.name not in ("identity", "stage", "epoch", *_OF_A_CLOCK)
]
_SHOWN: Mapping[Stage, Sequence[str]] = {
    "pretraining": ("train_loss",),
    "regulation": ("val_accuracy", "val_loss"),
}
"""Of an epoch, even where they are equal; the other numbers are compared too, and shown where they differ."""

Place = tuple[Stage, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recorded:
    """A trial as its study holds it.

    Attributes:
        study: name of the study, or of its confirmation.
        epochs: of the trial, by stage and number.
        run: of the study, in which the trial ran; None where it ran outside of one, under `emoreg trial`.
        written: ``study.json``; empty where there is none, since nothing but `emoreg trial` was run.
    """

    study: str
    record: TrialRecord
    epochs: Mapping[Place, EpochRecord]
    run: RunRecord | None
    written: Mapping[str, Any]

    @property
    def versions(self) -> Mapping[str, str]:
        """What it ran with, by package; empty where that is not recorded."""
        if self.run is None:
            return {}
        versions: Mapping[str, str] = (
            self.written["versions"] if self.run.versions is None else json.loads(self.run.versions)  # older records had none
        )
        return versions

    @property
    def has_diverged(self) -> bool:
        """Whether it ended by itself, with a loss that was not finite."""
        return self.record.status == "pruned" and "not finite" in (self.record.reason or "")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """One quantity, as recorded and as replayed; None: not there."""

    quantity: str
    recorded: float | None
    replayed: float | None
    is_shown: bool = True

    @property
    def difference(self) -> float:
        """Replayed less recorded: 0 where they are equal to the bit, infinite where one is not there."""
        if self.recorded is None or self.replayed is None:
            return 0.0 if self.recorded is self.replayed else math.inf
        return self.replayed - self.recorded


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
    """Run a recorded trial again, and print how far it is equal. Where the record has a test accuracy, it opens the test split.

    Args:
        config: the study, which says where its records are, and how many threads a trial has.
        identity: of a trial of the study or its confirmation; its first digits will do.
        device: where to compute.
        console: to print on.

    Returns:
        The exit code: 1 where a trial differs that must be equal, 130 where it was interrupted, else 0.

    Raises:
        ConfigError: where there is no such trial, or its image sets are others now.
        StorageError: where its record cannot be read, or is of another emoreg.
    """
    recorded = _find(config, identity)
    record, trial = recorded.record, _trial_of(recorded)
    check_trial(trial)
    load_images = partial(load, storage=image_storage(config.storage))
    _check_images(trial, recorded, load_images)
    torch.set_num_threads(max(1, int(config.trial_resources(trial.backbone).cpus or 1)))
    console.print(
        f"replay of trial {record.identity} of {recorded.study!r}, {record.status} on {record.ended[:10]}: {trial.backbone}, "
        f"control {trial.control}, seed {trial.seed}, on {device_name(device)}",
        highlight=False,
        soft_wrap=True,
    )
    if record.test_accuracy is not None:
        console.print("It has opened the test split, so its replay opens it again, for the same trial.", soft_wrap=True)
    lines, started = EpochLines(trial, console), utc_now()
    unfinished = record.status != "finished" and not recorded.has_diverged
    last = max(recorded.epochs, key=lambda place: (place[0] == "regulation", place[1])) if unfinished else None
    signals: list[int] = []
    result: TrialResult | None = None
    reason: str | None = None
    with scratch() as folder, stop_on_signals(signals.append):
        try:
            result = run_trial(
                trial,
                Reporters(lines, _Until(last)),
                load_images=load_images,
                store=ExperienceStore(str(folder / "experience")),
                folder=folder / "trial",
                device=device,
                evaluate_on="validation" if record.test_accuracy is None else "test",
                checkpoint_seconds=math.inf,
                interrupted=lambda: bool(signals),
            )
        except _FarEnough:
            pass
        except Diverged as diverged:
            reason = str(diverged)
        except Interrupted:
            console.print("interrupted: nothing is kept of a replay", highlight=False)
            return 130
    replayed = trial_record(
        trial,
        role=record.role,
        number=record.number,
        params={},
        status=record.status,
        reason=reason,
        result=result,
        epochs=lines.epochs,
        device=device_name(device),
        started=started,
    )
    rows = list(_rows(recorded, replayed, {(row.stage, row.epoch): row for row in lines.epochs}))
    _print_rows(rows, console)
    if recorded.has_diverged or reason is not None:
        console.print(
            f"recorded: {record.reason or 'it did not diverge'}; replayed: {reason or 'it did not diverge'}", soft_wrap=True
        )
    differs = [row for row in rows if row.difference] or (recorded.has_diverged and record.reason != reason)
    return _judge(bool(differs), rows, list(_circumstances(recorded, trial, replayed, device)), recorded, console)


def _find(config: StudyConfig, identity: str) -> _Recorded:
    """The trial with this identity, or with one that begins so."""
    if not re.fullmatch(rf"[0-9a-f]{{{_LEAST_DIGITS},12}}", identity):
        raise ConfigError(
            f"--replay takes a trial's identity, 12 hexadecimal digits of which the first {_LEAST_DIGITS} may do, but it is "
            f"{identity!r}: copy it from a table of the study, or its records"
        )
    studies = {name: _read(config, name) for name in (config.name, f"{config.name}{CONFIRM}")}
    owners = {known: name for name, (records, _) in studies.items() for known in records.trials}
    if not owners:
        raise ConfigError(
            f"a replay runs a recorded trial again, but {study_files(config).uri!r} has none: run the study, or give its "
            "--storage and --name"
        )
    matching = [known for known in owners if known.startswith(identity)]
    if len(matching) != 1:
        near = matching or difflib.get_close_matches(identity, owners, n=3, cutoff=0.0)
        raise ConfigError(
            f"--replay must name one trial of {config.name!r} or its confirmation, but {identity!r} names "
            f"{len(matching) or 'none'}: {'it may be' if matching else 'the nearest are'} {', '.join(near)}"
        )
    [known] = matching
    records, written = studies[owners[known]]
    record, epochs = records.trials[known], records.epochs_of(known)
    if record.status != "finished" and not epochs:
        raise ConfigError(
            f"a replay compares epochs, but trial {known} has none on record ({record.status}: {record.reason}): there is "
            "nothing to compare"
        )
    during = [run for run in records.runs.values() if run.started <= record.started and record.ended <= (run.ended or "~")]
    return _Recorded(
        study=owners[known],
        record=record,
        epochs={(row.stage, row.epoch): row for row in epochs},
        run=max(during, key=lambda run: run.started, default=None),
        written=written,
    )


def _read(config: StudyConfig, name: str) -> tuple[Records, Mapping[str, Any]]:
    """The records of a study of this name in the storage of ``config``, and its ``study.json``: empty where it has none."""
    files = study_files(dataclasses.replace(config, name=name))
    written = read_written(files)[1] if files.exists("study.json") else {}
    with WorkingCopy(files) as copy:
        copy.pull("records")
        return Records(copy.folder), written


def _trial_of(recorded: _Recorded) -> TrialConfig:
    """The trial as the record says that it was run.

    Raises:
        StorageError: where this emoreg has other settings than the one that wrote it.
    """
    record = recorded.record
    writer = recorded.versions.get("emoreg", "of an unknown version")
    by_whom = f"it was written by emoreg {writer}, and this is {emoreg.__version__}"
    try:
        trial = from_json(TrialConfig, json.loads(record.config))
    except ConfigError as error:
        raise StorageError(f"trial {record.identity} cannot be replayed here: {error}; {by_whom}") from error
    if trial.identity != record.identity:
        raise StorageError(
            f"a trial is replayed by an emoreg with the same settings, but here the configuration of trial {record.identity} "
            f"would have the identity {trial.identity}: {by_whom}; replay it with the former"
        )
    return trial


def _check_images(trial: TrialConfig, recorded: _Recorded, load_images: LoadImages) -> None:
    """Refuse image sets that are not what the study was run on, as far as ``study.json`` knows those of the trial."""
    used = ["task"] + ["stimuli"] * trial.regulation.needs_emotional + ["neutral"] * (trial.control == "neutral")
    of_trial, fingerprints = dataclasses.asdict(trial), recorded.written.get("fingerprints", {})
    for role in used:
        if role not in fingerprints or _source(of_trial, role) != _source(recorded.written["config"]["trial"], role):
            continue  # a search over image sets: the study has written down the fingerprint of its own alone
        image_set: ImageSetConfig = getattr(trial, role)
        found = load_images(image_set, image_size=trial.image_size).fingerprint
        if found != fingerprints[role]:
            raise ConfigError(
                f"a replay needs the images that the trial learned from, but trial.{role}, {image_set.name!r}, has the "
                f"fingerprint {found[:12]} now, and had {fingerprints[role][:12]}: restore them, or run the study anew under "
                "another name"
            )


def _source(trial: Mapping[str, Any], role: str) -> tuple[Any, ...]:
    """All that says which images a set has."""
    return trial["image_size"], *(trial[role][name] for name in ("name", "path", "target"))


def _rows(recorded: _Recorded, replayed: TrialRecord, epochs: Mapping[Place, EpochRecord]) -> Iterator[_Row]:
    """What the record has, beside what the replay has of it."""
    for quantity, name in _TRIAL.items():
        if getattr(recorded.record, name) is not None:
            yield _Row(quantity=quantity, recorded=getattr(recorded.record, name), replayed=getattr(replayed, name))
    for place, row in recorded.epochs.items():
        stage, epoch = place
        for name in _EPOCH:
            yield _Row(
                quantity=f"{stage} epoch {epoch}, {name.replace('_', ' ')}",
                recorded=getattr(row, name),
                replayed=None if place not in epochs else getattr(epochs[place], name),
                is_shown=name in _SHOWN[stage],
            )


def _print_rows(rows: Sequence[_Row], console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("quantity", overflow="fold")
    for column in ("recorded", "replayed", "difference"):
        table.add_column(column, justify="right")
    for row in rows:
        if not row.is_shown and not row.difference:
            continue
        numbers = [
            "" if number is None else str(number) if isinstance(number, int) else f"{number:.6f}"
            for number in (row.recorded, row.replayed)
        ]
        difference = f"{row.difference:+.1e}" if row.difference else "0"
        table.add_row(row.quantity, *numbers, difference, style="red" if row.difference else None)
    console.print()
    console.print(table)


def _circumstances(recorded: _Recorded, trial: TrialConfig, replayed: TrialRecord, device: torch.device) -> Iterator[str]:
    """Why the replay may differ from the record, where it may."""
    record, here = recorded.record, provenance(None)
    if not trial.deterministic:
        yield "the trial is not deterministic"
    if record.device != replayed.device:
        bf16 = " (precision 'auto' computes in bf16 where the device has it)" if trial.precision == "auto" else ""
        yield f"it ran on {record.device}, and now on {replayed.device}{'' if trial.deterministic else bf16}"
    elif device.type != "cpu":
        yield "only on a CPU is a deterministic trial equal to the bit"
    for name, version in recorded.versions.items():
        if here.versions.get(name) != version:
            yield f"it ran with {name} {version}, and now with {here.versions.get(name, 'none')}"
    if recorded.run is not None and recorded.run.host not in (None, here.host):
        yield f"its study was run from {recorded.run.host}, and this is {here.host}"
    if record.micro_batch_size != replayed.micro_batch_size and replayed.regulation_epochs == record.regulation_epochs:
        yield f"memory let it take {_parts(record)}, and now {_parts(replayed)}"


def _parts(record: TrialRecord) -> str:
    return "whole batches" if record.micro_batch_size is None else f"{record.micro_batch_size} images at a time"


def _judge(differs: bool, rows: Sequence[_Row], excuses: Sequence[str], recorded: _Recorded, console: Console) -> int:
    """Say what the comparison means; the exit code."""
    console.print()
    if not differs:
        also = f", although {'; '.join(excuses)}" if excuses else ""
        console.print(f"Equal to the bit in all {len(rows)} numbers{also}.", style="bold", markup=False, soft_wrap=True)
        return 0
    apart = [row for row in rows if row.difference]
    largest = max((abs(row.difference) for row in apart), default=math.inf)
    console.print(
        f"{len(apart)} of {len(rows)} numbers differ"
        + ("" if math.isinf(largest) else f", by {largest:.1e} at most")
        + (f". It need not be equal to the bit: {'; '.join(excuses)}." if excuses else "."),
        style="bold",
        markup=False,
        soft_wrap=True,
    )
    if excuses:
        return 0
    known = "" if recorded.versions else ", as far as is known (a study's runs note theirs, `emoreg trial` does not)"
    before, now = recorded.run.git_commit if recorded.run is not None else None, provenance(None).git_commit
    console.print(
        f"A deterministic trial on a CPU must be equal to the bit with the same versions{known}: this is a defect of emoreg or "
        f"the machine{'' if before in (None, now) else f', or of what changed in the code from commit {before} to {now}'}. "
        "Please report it with this table.",
        style="red",
        markup=False,
        soft_wrap=True,
    )
    return 1
