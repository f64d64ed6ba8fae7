"""What trials and epochs did, as typed rows in Parquet: the product's only truth about results.

``records/trials.parquet`` has one row a trial, ``epochs.parquet`` one row an epoch of a stage, ``evaluations.parquet`` one row
a class of a split, ``probes.parquet`` one row a number that a probe measured, ``runs.parquet`` one row a time that the study
was run. The schemas are the dataclasses below: column names are the fields, in order; each column's meaning is its Arrow field
metadata ``doc``, and the schema's metadata holds ``emoreg.schema_version``. The files are replaced whole and atomically: a
reader never sees half.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa

from emoreg.config import Value, without_secrets
from emoreg.config.resolved import ResolvedTrial
from emoreg.config.trial import Precision
from emoreg.results.outcome import EndReason, OomState, Outcome, PretrainingCost, Status

SCHEMA_VERSION = 1
"""Version of the rows' schemas. Records of another version are refused."""

Stage = Literal["pretraining", "regulation"]
Role = Literal["search", "control", "trial", "confirm"]


_OF_OUTCOME = (
    *("message", "val_accuracy", "val_loss", "measured_balance", "test_accuracy"),
    *("regulation_epochs", "regulation_seconds", "num_parameters", "precision", "compiled"),
)
"""What is called alike in an ``Outcome`` and in the columns of its trial."""


def _column(doc: str, default: Any = dataclasses.MISSING) -> Any:
    return field(metadata={"doc": doc}, default=default)


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochRecord:
    """One pass over the data of one stage of one trial."""

    identity: str = _column("trial identity")
    stage: Stage = _column("pretraining or regulation")
    epoch: int = _column("epochs of the stage completed, from 1")
    step: int = _column("optimizer updates of the stage completed")
    train_loss: float = _column("mean training loss over the epoch, augmented images")
    train_accuracy: float | None = _column("training accuracy over the epoch, in [0, 1]; null for regression and mixed labels")
    val_loss: float | None = _column("loss on the validation split; null where there is none")
    val_accuracy: float | None = _column("accuracy on the validation split, in [0, 1]; null where there is none")
    learning_rate: float = _column("learning rate of the epoch's last step")
    images_per_second: float = _column("training images a second")
    seconds: float = _column("wall time of the epoch, validation included, in seconds")
    measured_balance: float | None = _column("mean balance b on the validation split; null in pretraining and without one")
    measured_balance_std: float | None = _column("standard deviation of b over validation images; 0 unless kind=dynamic")
    gpu_utilisation: float | None = _column(
        "share of the epoch's last second that the GPU was busy (NVML); null on a CPU", None
    )
    metrics: str = _column("JSON object of registered metrics on the validation split, by val_NAME", "{}")
    precision: Precision | None = _column(
        "float32, or bf16 for mixed precision; null where an earlier emoreg did not record it", None
    )
    compiled: bool | None = _column("training steps were compiled; null where an earlier emoreg did not record it", None)


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRecord:
    """One number that a probe measured after an epoch."""

    identity: str = _column("trial identity")
    stage: Stage = _column("pretraining or regulation")
    epoch: int = _column("epochs of the stage completed, from 1")
    probe: str = _column("registered name of the probe")
    name: str = _column("what the probe calls the number")
    value: float = _column("the number")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationRecord:
    """How a trial did, at its end, on the images of one class."""

    identity: str = _column("trial identity")
    split: str = _column("validation, or test where it was opened")
    class_name: str = _column("name of the class")
    num_images: int = _column("images of the class")
    num_predicted: int = _column("images that were taken for the class")
    num_correct: int = _column("images of the class that were taken for it")


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictionRecord:
    """What one image was taken for."""

    identity: str = _column("trial identity")
    split: str = _column("validation, or test where it was opened")
    image: int = _column("place in the split, from 0")
    class_name: str = _column("its class")
    predicted: str = _column("class of the prediction")
    confidence: float = _column("probability of that class, in [0, 1]")
    plain_predicted: str | None = _column("class by the plain encoder and its head; null where the trial has none")
    plain_confidence: float | None = _column("its probability, in [0, 1]")
    emotional_predicted: str | None = _column("class by the emotional encoder and its head; null where the trial has none")
    emotional_confidence: float | None = _column("its probability, in [0, 1]")
    picture: bytes | None = _column("PNG of the image; only the most confident errors, and what one encoder alone gets right")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialRecord:
    """One trial that ended, whichever way."""

    identity: str = _column("hash of all that decides the trial's numbers, seed included")
    role: Role = _column("search: the sampler's; control: beside it; trial: `emoreg trial`'s; confirm: on the test split too")
    number: int | None = _column("Optuna's trial number in its search; null outside of one")
    search_of: str | None = _column("control whose own search proposed it; null in regulation's search and beside it", None)
    repeats: str | None = _column("trial whose proposal it is, with another seed (seeds_per_trial); else null", None)
    control: str = _column("regulated for regulation itself, else the control's name")
    status: Status = _column("finished, pruned (stopped by the scheduler or by hand, or diverged) or failed")
    end_reason: str = _column("completed, stopped_by_scheduler, stopped_by_hand, diverged, infrastructure or code_error")
    message: str | None = _column("why it was pruned or failed, in words; null when finished")
    seed: int = _column("seed of the trial")
    backbone: str = _column("backbone of both encoders")
    stimuli: str = _column("stimulus set that was pre-trained on")
    task: str = _column("task set")
    form: str = _column("form of regulation")
    kind: str = _column("kind of balance")
    balance: float | None = _column("balance b as configured; null for random kinds, which have none")
    pretraining_epochs: int = _column("pre-training length in epochs, without those of a cool-down")
    params: str = _column("JSON object of the sampled values by path; {} outside the search")
    config: str = _column("JSON of the whole trial configuration as run, with its control applied")
    val_accuracy: float | None = _column("validation accuracy of the last regulation epoch run, in [0, 1]; null if confirmed")
    val_loss: float | None = _column("validation loss of the last regulation epoch run; null if confirmed")
    measured_balance: float | None = _column("mean balance b on validation images at the end; if confirmed, on the test split")
    test_accuracy: float | None = _column("test accuracy in [0, 1]; null unless a test evaluation was asked for")
    metrics: str = _column("JSON object of registered metrics at the end, by val_NAME and test_NAME", "{}")
    regulation_epochs: int = _column("regulation epochs run")
    num_parameters: int | None = _column("parameters of the regulated network")
    pretraining_seconds: float = _column("seconds spent on pre-training by this trial (0 when the experience was there)")
    experience_seconds: float | None = _column("seconds that its experience cost, whoever paid; null where it got none", None)
    regulation_seconds: float = _column("seconds spent on regulation, over all its attempts")
    waiting_seconds: float = _column("seconds that its last attempt waited for another trial's pre-training", 0.0)
    device_seconds: float = _column("what it costs alone: experience (or pre-training, where null) + regulation, in seconds")
    micro_batch_size: int | None = _column("images in a forward pass where whole batches did not fit; else null", None)
    recomputed: bool = _column("activations were computed again in the backward pass, for want of memory", False)
    precision: Precision | None = _column(
        "float32, or bf16 for mixed precision: as its last epoch was computed; null: see epochs", None
    )
    compiled: bool | None = _column("its training steps were compiled; null where an earlier emoreg did not record it", None)
    attempts: int = _column("times that it was begun or taken up again in its last run", 1)
    log_tail: str | None = _column("last lines of its log where it failed; null otherwise", None)
    device: str = _column("name of the device")
    started: str = _column("start of the last attempt, ISO 8601 UTC")
    ended: str = _column("end, ISO 8601 UTC")

    @classmethod
    def of(
        cls,
        trial: ResolvedTrial,
        outcome: Outcome,
        *,
        role: Role,
        number: int | None,
        params: Mapping[str, Value],
        device: str,
        started: str,
        search_of: str | None = None,
        repeats: str | None = None,
        attempts: int = 1,
        log_tail: str | None = None,
    ) -> TrialRecord:
        """The row of a trial that ended now."""
        config, pretraining = trial.config, outcome.pretraining
        return cls(
            identity=trial.identity,
            role=role,
            number=number,
            search_of=search_of,
            repeats=repeats,
            control=config.control,
            status=outcome.status,
            end_reason=outcome.end.value,
            seed=config.seed,
            backbone=config.backbone,
            stimuli=(trial.images_of_pretraining or config.stimuli).name,
            task=config.task.name,
            form=config.regulation.form,
            kind=config.regulation.kind,
            balance=config.regulation.balance_setting,
            pretraining_epochs=config.pretraining.epochs,
            params=json.dumps(dict(params)),
            config=without_secrets(json.dumps(dataclasses.asdict(config))),
            metrics=json.dumps(dict(outcome.metrics)),
            pretraining_seconds=pretraining.paid_seconds,
            experience_seconds=pretraining.experience_seconds,
            waiting_seconds=pretraining.waiting_seconds,
            device_seconds=outcome.device_seconds,
            micro_batch_size=outcome.oom.micro_batch_size,
            recomputed=outcome.oom.recomputed,
            attempts=attempts,
            log_tail=log_tail,
            device=device,
            started=started,
            ended=utc_now(),
            **{name: getattr(outcome, name) for name in _OF_OUTCOME},
        )

    @property
    def outcome(self) -> Outcome:
        """The outcome that the row was made of; where the trial diverged is in its message alone."""
        return Outcome(
            end=EndReason(self.end_reason),
            metrics=json.loads(self.metrics),
            pretraining=PretrainingCost(
                paid_seconds=self.pretraining_seconds,
                experience_seconds=self.experience_seconds,
                waiting_seconds=self.waiting_seconds,
            ),
            oom=OomState(micro_batch_size=self.micro_batch_size, recomputed=self.recomputed),
            **{name: getattr(self, name) for name in _OF_OUTCOME},
        )

    @property
    def is_searched(self) -> bool:
        """Whether it is of regulation's search: controls may have searches of their own."""
        return self.number is not None and self.search_of is None

    @property
    def sampled(self) -> dict[str, Value]:
        """The sampled values by path."""
        params: dict[str, Value] = json.loads(self.params)
        return params


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """One time that the study was run: a study that was killed or told to stop has several."""

    run: int = _column("runs of the study, from 1")
    study: str = _column("name of the study")
    storage: str = _column("folder or URI that holds the study, without passwords")
    started: str = _column("start, ISO 8601 UTC")
    ended: str | None = _column("end, ISO 8601 UTC; null while it runs, and for ever if it was killed", None)
    ending: str | None = _column("completed (all trials ended), interrupted or aborted (by faults); null without an end", None)
    stop_reason: str | None = _column("of an interrupted run that no signal stopped: before which end; else null", None)
    slots: int = _column("trials that could run at once", 0)
    num_trials: int = _column("trials that ended in this run", 0)
    slot_seconds: float = _column("seconds of all slots that ran a trial, or had one waiting for pre-training", 0.0)
    waiting_slot_seconds: float = _column("of these, spent waiting for pre-training, in trials or by empty slots", 0.0)
    paid_seconds: float = _column("pre-training that this run's trials paid for, in seconds of the device", 0.0)
    reused_seconds: float = _column("pre-training that they took from the store instead", 0.0)
    command: str | None = _column("what was typed, without passwords; null where it was not a command", None)
    versions: str = _column("JSON object: versions of emoreg, Python and the packages that make the numbers", "{}")
    git_commit: str | None = _column("commit of emoreg's checkout, with + where it was changed; null outside of one", None)
    host: str | None = _column("machine of the driver, and its platform", None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where a run's numbers come from, without passwords: what was typed, versions by package, emoreg's commit, the machine."""

    study: str
    storage: str
    command: str | None
    versions: Mapping[str, str]
    git_commit: str | None
    host: str


Row = TypeVar("Row", EpochRecord, EvaluationRecord, PredictionRecord, ProbeRecord, TrialRecord, RunRecord)
_ARROW_TYPES: dict[type, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.binary(),
}


def schema(row_type: type[Row]) -> pa.Schema:
    """The Arrow schema of a row type: names, types, nullability and the meaning of each column."""
    a_type: Any = row_type  # mypy asks for the hash of its instances
    return _schema_of(a_type)


@functools.cache
def _schema_of(row_type: Any) -> pa.Schema:
    hints = get_type_hints(row_type)
    columns = []
    for item in dataclasses.fields(row_type):
        hint = hints[item.name]
        nullable = get_origin(hint) in (types.UnionType, typing.Union)
        base = next(option for option in get_args(hint) if option is not type(None)) if nullable else hint
        arrow = _ARROW_TYPES[str if get_origin(base) is Literal else base]
        columns.append(pa.field(item.name, arrow, nullable=nullable, metadata={"doc": item.metadata["doc"]}))
    return pa.schema(columns, metadata={"emoreg.schema_version": str(SCHEMA_VERSION)})


def unfinished_outcome(
    epochs: Sequence[EpochRecord], end: EndReason, message: str, *, pretraining: PretrainingCost | None = None
) -> Outcome:
    """The outcome of a trial that ended before it could tell its own, from the epochs that it came to, in order.

    ``pretraining`` is what its experience took; None where it did not get it.
    """
    regulation = [row for row in epochs if row.stage == "regulation"]
    paid_seconds = sum(row.seconds for row in epochs if row.stage == "pretraining")
    last = regulation[-1] if regulation else None
    return Outcome(
        end=end,
        message=message,
        val_accuracy=last.val_accuracy if last else None,
        val_loss=last.val_loss if last else None,
        measured_balance=last.measured_balance if last else None,
        metrics=json.loads(last.metrics) if last else {},
        regulation_epochs=len(regulation),
        regulation_seconds=sum(row.seconds for row in regulation),
        precision=epochs[-1].precision if epochs else None,
        compiled=epochs[-1].compiled if epochs else None,
        pretraining=dataclasses.replace(pretraining or PretrainingCost(), paid_seconds=paid_seconds),
    )


def utc_now() -> str:
    """The time as the records write it."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
