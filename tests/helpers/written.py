"""Studies as they lie on disk after a run, made up: their truth is known, and nothing is trained for them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from emoreg.config import Choice, Float, ImageSetConfig, Int, RegulationConfig, StudyConfig, TrialConfig, Value
from emoreg.config.search_space import resolve
from emoreg.results.confirmation import choose, confirming, look_of, plan_trials, write_looks
from emoreg.results.records import EpochRecord, Provenance, Records, Role, Status, TrialRecord, TrialResult, trial_record

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
PROVENANCE = Provenance(
    command="emoreg run studies.made_up --num-trials 40",
    versions={"emoreg": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0", "optuna": "5.0.0"},
    git_commit="0123456789abcdef0123456789abcdef01234567",
    host="here (Linux)",
)
OPTIMUM = 0.4
"""Balance at which the made-up accuracy is highest."""
_EFFECTS: Mapping[str, float] = {
    "regulated": 0.0, "plain": -0.03, "compute_matched": -0.02, "emotional": -0.05, "untrained": -0.025, "shuffled": -0.02, "neutral": -0.01,
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
    folder = storage / config.name
    records = _begin(folder, config)
    for number in range(config.num_trials):
        params: dict[str, Value] = {
            "backbone": str(random.choice(list(config.backbones()))),
            "regulation.balance": float(random.uniform(0.05, 0.95)),
            "pretraining.epochs": int(2 ** random.uniform(1, 5)),
        }
        params = {path: value for path, value in params.items() if path in config.search_space}
        trial = resolve(config.trial, params)
        status: Status = "failed" if number % 20 == 19 else "pruned" if number % 5 == 4 else "finished"
        _add(records, trial, "search", number, params, status, _truth(trial, helps) + random.normal(0, noise))
    for trial in config.control_trials():
        _add(records, trial, "control", None, {}, "finished", _truth(trial, helps) + random.normal(0, noise))
    _end(records, folder, PROVENANCE)
    if num_seeds:
        searched = records.trials
        chosen = choose(config, searched.values(), top)
        planned = plan_trials(
            config,
            chosen,
            range(1000, 1000 + num_seeds),
            images=lambda image_set: 600 if image_set == config.trial.stimuli else 1000,
        )
        confirmation = confirming(config, [trial for _, trial in planned])
        theirs = _begin(storage / confirmation.name, confirmation)
        write_looks(storage / confirmation.name, [look_of(planned)])
        by_seed = {seed: random.normal(0, noise) for seed in range(1000, 1000 + num_seeds)}
        for _, trial in planned:
            accuracy = _truth(trial, helps) + by_seed[trial.seed] + random.normal(0, noise / 4)
            _add(theirs, trial, "confirm", None, {}, "finished", accuracy)
        typed = f"emoreg confirm studies.made_up --seeds {num_seeds}"
        _end(theirs, storage / confirmation.name, dataclasses.replace(PROVENANCE, command=typed))
    return folder


def _truth(trial: TrialConfig, helps: float) -> float:
    base = 0.7 if trial.backbone == "test_resnet" else 0.6
    shape = 0.1 * (1 - (trial.regulation.balance - OPTIMUM) ** 2) + 0.01 * math.log2(max(1, trial.pretraining.epochs))
    return base + shape + helps * _EFFECTS[trial.control]


def _begin(folder: Path, config: StudyConfig) -> Records:
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "config": json.loads(json.dumps(dataclasses.asdict(config.without_password()))),
        "fingerprints": {"task": "ab" * 32, "stimuli": "cd" * 32, "neutral": "ef" * 32},
        "trainer": {"pretraining": 1, "regulation": 1},
        "versions": dict(PROVENANCE.versions),
        "git_commit": PROVENANCE.git_commit,
        "device": "CPU (x86_64)",
        "platform": "Linux",
    }
    (folder / "study.json").write_text(json.dumps(content))
    return Records(folder)


def _end(records: Records, folder: Path, provenance: Provenance) -> None:
    row = records.begin_run(provenance)
    end = (BEGAN + timedelta(seconds=60 * len(records.trials))).isoformat(timespec="milliseconds")
    seconds = math.fsum(trial.device_seconds for trial in records.trials.values())
    records.add_run(
        dataclasses.replace(
            row,
            started=BEGAN.isoformat(timespec="milliseconds"),
            ended=end,
            ending="whole",
            slots=2,
            num_trials=len(records.trials),
            slot_seconds=1.1 * seconds,
            waiting_slot_seconds=0.05 * seconds,
            paid_seconds=0.4 * seconds,
            reused_seconds=0.3 * seconds,
        )
    )
    records.write()


def _add(
    records: Records,
    trial: TrialConfig,
    role: Role,
    number: int | None,
    params: Mapping[str, Value],
    status: Status,
    accuracy: float,
) -> None:
    """Add a trial and its epochs to what is written at the end: a file a trial would be slow."""
    applied = trial.applied()
    lasted = applied.regulation.epochs if status == "finished" else 2
    row: TrialRecord | None = None
    epochs = [
        _epoch(applied, stage, epoch, accuracy)
        for stage, last in (("pretraining", min(3, applied.pretraining.epochs)), ("regulation", lasted))
        for epoch in range(1, last + 1)
    ]
    finished = status == "finished"
    began = BEGAN + timedelta(seconds=60 * len(records.trials))
    row = trial_record(
        trial,
        role=role,
        number=number,
        params=params,
        status=status,
        reason={"finished": None, "pruned": "stopped by the scheduler", "failed": "its worker died"}[status],
        result=TrialResult(
            identity=trial.identity,
            accuracy=accuracy,
            loss=1 - accuracy,
            measured_balance=epochs[-1].balance or 0.0,
            test_accuracy=accuracy - 0.01 if role == "confirm" else None,
            num_parameters=10_000,
            pretraining_seconds=1.5 * applied.pretraining.epochs,
            experience_seconds=2.0 * applied.pretraining.epochs,
            regulation_seconds=4.0 * lasted,
            waiting_seconds=0.5,
            micro_batch_size=None,
            recomputed=False,
        )
        if finished
        else None,
        epochs=epochs,
        device="CPU",
        started=began.isoformat(timespec="milliseconds"),
        attempts=2 if number == 3 else 1,
        log_tail="Traceback ..." if status == "failed" else None,
    )
    row = dataclasses.replace(row, ended=(began + timedelta(seconds=50)).isoformat(timespec="milliseconds"))
    records.trials[row.identity] = row
    for epoch in epochs:
        records.add_epoch(epoch)


def _epoch(trial: TrialConfig, stage: str, epoch: int, accuracy: float) -> EpochRecord:
    regulation = stage == "regulation"
    reached = accuracy * (1 - 0.5**epoch)
    return EpochRecord(
        identity=trial.identity,
        stage="regulation" if regulation else "pretraining",
        epoch=epoch,
        step=10 * epoch,
        loss=2.0 - reached,
        accuracy=reached,
        val_loss=2.1 - reached if regulation else None,
        val_accuracy=reached if regulation else None,
        learning_rate=0.001,
        images_per_second=1000.0,
        seconds=4.0 if regulation else 1.5,
        balance=trial.regulation.balance + (OPTIMUM - trial.regulation.balance) * (1 - 0.8**epoch) if regulation else None,
        balance_std=0.0 if regulation else None,
    )
