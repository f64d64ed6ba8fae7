"""Tiny studies, and trials of theirs that have ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emoreg.config import Choice, Float, StudyConfig, TrialConfig, Value
from emoreg.results.records import Role, Status, TrialRecord, TrialResult, trial_record
from tests.helpers.trials import TINY

STUDY_FILE = """\
from emoreg.config import Choice, Float, When
from tests.helpers.studies import tiny_study


def study():
    return tiny_study(
        search_space={
            "regulation.balance": Float(0.1, 0.9),
            "pretraining.epochs": Choice((1, 2)),
            "regulation.freeze_emotional": Choice((False, True)),
            "pretraining.optimizer.name": Choice(("adamw", "sgd")),
            "pretraining.optimizer.momentum": Float(0.0, 0.9, when=When("pretraining.optimizer.name", ("sgd",))),
        },
    )
"""


def tiny_study(**changes: Any) -> StudyConfig:
    settings: dict[str, Any] = {
        "name": "tiny",
        "trial": TINY,
        "search_space": {"regulation.balance": Float(0.1, 0.9), "pretraining.epochs": Choice((1, 2))},
        "num_trials": 3,
        "controls": ("regulated", "plain"),
    }
    return StudyConfig(**settings | changes)


def study_file(folder: Path) -> str:
    path = folder / "tiny_cli_study.py"
    path.write_text(STUDY_FILE)
    return str(path)


def ended(
    config: TrialConfig = TINY,
    *,
    role: Role = "search",
    number: int | None = None,
    params: Mapping[str, Value] | None = None,
    status: Status = "finished",
    reason: str | None = None,
    accuracy: float = 0.5,
    loss: float = 1.0,
    seconds: float = 10.0,
) -> TrialRecord:
    """The record of a trial; a quarter of its seconds went into pre-training."""
    result = TrialResult(
        identity=config.identity,
        accuracy=accuracy,
        loss=loss,
        measured_balance=config.regulation.balance,
        test_accuracy=None,
        num_parameters=1000,
        pretraining_seconds=seconds / 4,
        experience_seconds=seconds / 4,
        regulation_seconds=3 * seconds / 4,
        waiting_seconds=0.0,
        micro_batch_size=None,
        recomputed=False,
    )
    return trial_record(
        config,
        role=role,
        number=0 if role == "search" and number is None else number,
        params=params or {},
        status=status,
        reason=reason,
        result=result if status == "finished" else None,
        epochs=[],
        device="CPU",
        started="2026-01-01T00:00:00.000+00:00",
    )
