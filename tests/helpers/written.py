"""Studies as they lie on disk after a run, made up: their truth is known, and nothing is trained for them."""

from __future__ import annotations

import dataclasses
import math
import random as stdlib_random
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from emoreg.config import (
    Choice,
    Float,
    ImageSetConfig,
    Int,
    RegulationConfig,
    ResolvedTrial,
    StudyConfig,
    TrialConfig,
    Value,
    replace_paths,
    resolve_trial,
    to_json,
)
from emoreg.config.arms import arms
from emoreg.config.resolved import source_of
from emoreg.config.search_space import Uniform, suggest
from emoreg.results.ledger import Ledger
from emoreg.results.outcome import EndReason, Outcome, PretrainingCost
from emoreg.results.plan import Opening, confirming, opening_of, write_openings
from emoreg.results.planning import best_tuned, choose, plan_trials, plan_tuned
from emoreg.results.records import (
    EpochRecord,
    EvaluationRecord,
    ProbeRecord,
    Provenance,
    Role,
    Row,
    RunRecord,
    TrialRecord,
    schema,
)
from emoreg.results.tables import Records, write_table
from emoreg.results.written import ImageAccount, WrittenStudy, read_written
from emoreg.storage.files import Files
from emoreg.storage.sealed import seal, unseal

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
VERSIONS = {"emoreg": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0", "optuna": "5.0.0"}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEST_SPLIT = "7e57" * 8
OPTIMUM = 0.4
"""Balance at which the made-up accuracy is highest."""
_EFFECTS: Mapping[str, float] = {
    "regulated": 0.0, "plain": -0.03, "compute_matched": -0.02, "ensemble": -0.02, "emotional": -0.05, "untrained": -0.025,
    "shuffled": -0.02, "neutral": -0.01,
}  # fmt: skip


def made_up_config(**values: object) -> StudyConfig:
    """A study of two backbones over balance and pre-training length, whose balance is learned."""
    config = StudyConfig(
        name="made-up",
        trial=TrialConfig(
            backbone="test_resnet",
            stimuli=ImageSetConfig(name="openmoji", validation_fraction=0.0),
            neutral=ImageSetConfig(name="openmoji-objects", validation_fraction=0.0),
            task=ImageSetConfig(name="digits"),
            regulation=RegulationConfig(kind="learnable", epochs=5),
        ),
        search_space={
            "backbone": Choice(("test_resnet", "test_vit")),
            "regulation.balance": Float(0.05, 0.95),
            "pretraining.epochs": Int(2, 32, log=True),
        },
        num_trials=40,
        controls=("regulated", "plain", "emotional", "untrained", "shuffled", "neutral"),
        control_seeds=(0, 1, 2),
    )
    return dataclasses.replace(config, **values)  # type: ignore[arg-type]


def write_study(
    storage: Path,
    config: StudyConfig | None = None,
    *,
    top: int = 1,
    num_seeds: int = 10,
    helps: float = 1.0,
    noise: float = 0.01,
) -> Path:
    """Write a study, and its confirmation on ``num_seeds`` seeds where there are any, into ``storage``.

    Args:
        storage: folder of studies.
        config: of the study; ``made_up_config()`` where left out.
        top: configurations of each backbone that are confirmed.
        num_seeds: of the confirmation; 0 for none.
        helps: how far regulation is above its controls, times 2 to 5 points; 0: not at all.
        noise: standard deviation of accuracies over seeds.

    Returns:
        The study's folder.
    """
    config = config if config is not None else made_up_config()
    random = np.random.default_rng(0)
    rows = _Rows()
    for number in range(config.num_trials):
        params: dict[str, Value] = {
            "backbone": str(random.choice(list(config.backbones()))),
            "regulation.balance": float(random.uniform(0.05, 0.95)),
            "pretraining.epochs": int(2 ** random.uniform(1, 5)),
        }
        params = {path: value for path, value in params.items() if path in config.search_space}
        trial = replace_paths(config.trial, params)
        end = EndReason.STOPPED_BY_SCHEDULER if number % 5 == 4 else EndReason.COMPLETED
        end = EndReason.INFRASTRUCTURE if number % 20 == 19 else end
        rows.add(trial, _truth(trial, helps) + random.normal(0, noise), "search", end, number=number, params=params)
    searching = arms(config)
    for arm in searching:
        uniform = Uniform(stdlib_random.Random(0), {})
        for number in range(config.num_trials):
            params = suggest(arm.search_space, arm.trial, uniform)
            trial = replace_paths(arm.trial, params)
            accuracy = _truth(trial, helps) + random.normal(0, noise)
            rows.add(trial, accuracy, "search", number=number, params=params, search_of=arm.trial.control)
    for trial in config.control_trials():
        rows.add(trial, _truth(trial, helps) + random.normal(0, noise), "control")
    folder = write_study_json(storage / config.name, config)
    rows.write(folder, provenance(config, "emoreg run studies.made_up --num-trials 40"))
    if num_seeds:
        chosen = choose(config, rows.trials.values(), top)
        seeds = range(1000, 1000 + num_seeds)

        def images(role: str, _: ImageSetConfig) -> int:
            return 600 if role == "stimuli" else 1000

        plan = plan_trials(config, chosen, seeds, images=images)
        tuned = best_tuned(config, searching, chosen, rows.trials.values(), is_complete=True)
        tuned_trials = plan_tuned(config, chosen, tuned, seeds, images=images)
        confirmation = confirming(config, [*plan, *tuned_trials])
        confirmed = write_study_json(storage / confirmation.name, confirmation)
        opening = opening_of(plan, 0.5, rows.trials.values(), (TEST_SPLIT,), tuned_trials=tuned_trials, tuned=tuned)
        write_openings(Files(str(confirmed)), [fixed(storage, config.name, opening)])
        by_seed = {seed: random.normal(0, noise) for seed in seeds}
        rows = _Rows()
        for found, resolved in (*plan, *tuned_trials):
            asked = dataclasses.replace(replace_paths(config.trial, found.params), control=resolved.config.control)
            accuracy = _truth(asked, helps) + by_seed[resolved.config.seed] + random.normal(0, noise / 4)
            rows.add(resolved.config, accuracy, "confirm")
        rows.write(confirmed, provenance(confirmation, f"emoreg confirm studies.made_up --seeds {num_seeds}"))
    return folder


def fixed(storage: Path, study: str, opening: Opening) -> Opening:
    """An opening, as the ledger in ``storage`` has it."""
    Ledger(str(storage), TEST_SPLIT).add(
        study=study,
        opened=opening.opened,
        command=None,
        configurations=tuple(found.identity for found in opening.chosen),
        plan=opening.digest,
    )
    return opening


def _truth(trial: TrialConfig, helps: float) -> float:
    base = 0.7 if trial.backbone == "test_resnet" else 0.6
    shape = 0.1 * (1 - (trial.regulation.balance - OPTIMUM) ** 2) + 0.01 * math.log2(max(1, trial.pretraining.epochs))
    return base + shape + helps * _EFFECTS[trial.control]


@contextmanager
def changed_json(path: Path) -> Iterator[dict[str, Any]]:
    """What a file of emoreg's holds, written anew as it is after the block."""
    content = unseal(path.read_bytes())
    yield content
    path.write_bytes(seal(content))


def write_study_json(folder: Path, config: StudyConfig) -> Path:
    """Write the ``study.json`` of a study that has not been run, into a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    written = WrittenStudy(
        config=config.without_password(),
        fingerprints=tuple(
            (*source_of(found, config.trial.image_size), digest * 32)
            for found, digest in zip(
                (config.trial.task, config.trial.stimuli, config.trial.neutral), ("ab", "cd", "ef"), strict=True
            )
            if found is not None
        ),
        code={},
        trainer={"pretraining": 1, "regulation": 1},
        versions=VERSIONS,
        git_commit=COMMIT,
        device="CPU (x86_64)",
        platform="Linux",
        images=tuple(
            ImageAccount(
                role=role,
                name=found.name,
                num_train=600,
                num_validation=60,
                num_test=300,
                num_groups=None,
                test_copies=(0, 0),
                validation_copies=(0, 0),
                num_outputs=10,
            )
            for role, found in (("task", config.trial.task), ("stimuli", config.trial.stimuli))
        ),
    )
    (folder / "study.json").write_bytes(seal(to_json(written)))
    return folder


def provenance(config: StudyConfig, command: str | None) -> Provenance:
    """Where the numbers of a run of a made-up study come from."""
    return Provenance(
        study=config.name, storage="runs", command=command, versions=VERSIONS, git_commit=COMMIT, host="here (Linux)"
    )


def begin_run(folder: Path) -> RunRecord:
    """Begin another run of a study, as a driver does."""
    return Records(folder).begin_run(provenance(read_written(Files(str(folder))).config, None))


@contextmanager
def driven(folder: Path) -> Iterator[None]:
    """Let another process hold the study, as a driver does, for the time of a block."""
    hold = (
        "import sys\nfrom emoreg.storage.files import Files\nfrom emoreg.storage.locks import study_lock\n"
        "with study_lock(Files(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.kill()


@dataclass
class _Rows:
    """Trials and their epochs, written at the end: files for each trial would be slow."""

    trials: dict[str, TrialRecord] = field(default_factory=dict)
    epochs: dict[tuple[str, str, int], EpochRecord] = field(default_factory=dict)

    def add(
        self,
        config: TrialConfig,
        accuracy: float,
        role: Role,
        end: EndReason = EndReason.COMPLETED,
        *,
        number: int | None = None,
        params: Mapping[str, Value] | None = None,
        search_of: str | None = None,
    ) -> None:
        """Add a trial that came, or would have come, to ``accuracy``."""
        trial = resolve_trial(config)
        settings, completed = trial.config, end == EndReason.COMPLETED
        lasted = settings.regulation.epochs if completed else 2
        told = min(3, settings.pretraining.epochs)
        epochs = [epoch_record(trial, "pretraining", epoch, accuracy) for epoch in range(1, told + 1)]
        epochs += [epoch_record(trial, "regulation", epoch, accuracy) for epoch in range(1, lasted + 1)]
        self.epochs |= {(row.identity, row.stage, row.epoch): row for row in epochs}
        cost = PretrainingCost(
            paid_seconds=1.5 * settings.pretraining.epochs,
            experience_seconds=2.0 * settings.pretraining.epochs,
            waiting_seconds=0.5,
        )
        outcome = Outcome(
            end=end,
            message=None if completed else "its worker died" if end == EndReason.INFRASTRUCTURE else "stopped by the scheduler",
            val_accuracy=accuracy if completed else epochs[-1].val_accuracy,
            val_loss=1 - accuracy if completed else epochs[-1].val_loss,
            measured_balance=epochs[-1].measured_balance,
            test_accuracy=accuracy - 0.01 if role == "confirm" else None,
            regulation_epochs=lasted,
            regulation_seconds=4.0 * lasted,
            num_parameters=10_000 if completed else None,
            pretraining=cost if completed else PretrainingCost(paid_seconds=1.5 * told),
        )
        began = BEGAN + timedelta(seconds=60 * len(self.trials))
        row = TrialRecord.of(
            trial,
            outcome,
            role=role,
            number=number,
            params=params or {},
            search_of=search_of,
            device="CPU",
            started=moment(began),
            attempts=2 if number == 3 else 1,
            log_tail="Traceback ..." if end == EndReason.INFRASTRUCTURE else None,
        )
        self.trials[row.identity] = dataclasses.replace(row, ended=moment(began + timedelta(seconds=50)))

    def write(self, folder: Path, provenance: Provenance) -> None:
        """Write the records of a study that has done all this in one run."""
        seconds = math.fsum(trial.device_seconds for trial in self.trials.values())
        run = dataclasses.replace(
            Records(folder).begin_run(provenance),
            started=moment(BEGAN),
            ended=moment(BEGAN + timedelta(seconds=60 * len(self.trials))),
            ending="completed",
            slots=2,
            num_trials=len(self.trials),
            slot_seconds=1.1 * seconds,
            waiting_slot_seconds=0.05 * seconds,
            paid_seconds=0.4 * seconds,
            reused_seconds=0.3 * seconds,
        )
        write_rows(folder, "trials", TrialRecord, self.trials.values())
        write_rows(folder, "epochs", EpochRecord, self.epochs.values())
        write_rows(folder, "runs", RunRecord, [run])


def write_measured(folder: Path, split: str = "validation") -> None:
    """Write, for the finished trials of a study that was written, how two classes were recognised and a share of emotion."""
    trials = [row for row in Records(folder).trials.values() if row.status == "finished"]
    evaluations = [
        EvaluationRecord(
            identity=row.identity,
            split=split,
            class_name=name,
            num_images=100,
            num_predicted=100,
            num_correct=round(100 * (row.val_accuracy or 0)),
        )
        for row in trials
        for name in ("a", "b")
    ]
    probes = [
        ProbeRecord(
            identity=row.identity,
            stage="regulation",
            epoch=row.regulation_epochs,
            probe="emotion_share",
            name="share",
            value=row.balance,
        )
        for row in trials
    ]
    write_rows(folder, "evaluations", EvaluationRecord, evaluations)
    write_rows(folder, "probes", ProbeRecord, probes)


def write_rows(folder: Path, table: str, row_type: type[Row], rows: Iterable[Row]) -> None:
    """Write a table of the records of the study in ``folder``."""
    content = pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], schema=schema(row_type))
    write_table(folder / "records" / f"{table}.parquet", content)


def moment(time: datetime) -> str:
    """A time as the records write it."""
    return time.isoformat(timespec="milliseconds")


def epoch_record(trial: ResolvedTrial, stage: str, epoch: int, accuracy: float) -> EpochRecord:
    """The record of an epoch of a trial that comes to ``accuracy``."""
    start = trial.config.regulation.balance
    regulation = stage == "regulation"
    reached = accuracy * (1 - 0.5**epoch)
    return EpochRecord(
        identity=trial.identity,
        stage="regulation" if regulation else "pretraining",
        epoch=epoch,
        step=10 * epoch,
        train_loss=2.0 - reached,
        train_accuracy=reached,
        val_loss=2.1 - reached if regulation else None,
        val_accuracy=reached if regulation else None,
        learning_rate=0.001,
        images_per_second=1000.0,
        seconds=4.0 if regulation else 1.5,
        measured_balance=start + (OPTIMUM - start) * (1 - 0.8**epoch) if regulation else None,
        measured_balance_std=0.0 if regulation else None,
    )
