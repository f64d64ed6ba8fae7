"""Tiny studies, and trials of theirs that have ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emoreg.config import Choice, Float, StudyConfig, TrialConfig, Value
from emoreg.config.resolved import resolve_trial
from emoreg.results.outcome import EndReason, Outcome, PretrainingCost, Status
from emoreg.results.records import Role, TrialRecord
from tests.helpers.trials import TINY

STUDY_FILE = """\
from emoreg import Choice, Float, Study, When
from tests.helpers.studies import tiny_study

study = Study.from_config(
    tiny_study(
        search_space={
            "regulation.balance": Float(0.1, 0.9),
            "pretraining.epochs": Choice((1, 2)),
            "regulation.freeze_emotional": Choice((False, True)),
            "pretraining.optimizer.name": Choice(("adamw", "sgd")),
            "pretraining.optimizer.momentum": Float(0.0, 0.9, when=When("pretraining.optimizer.name", ("sgd",))),
        },
    )
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
    search_of: str | None = None,
    status: Status = "finished",
    message: str | None = None,
    accuracy: float = 0.5,
    loss: float = 1.0,
    seconds: float = 10.0,
) -> TrialRecord:
    """The record of a trial; a quarter of its seconds went into pre-training."""
    end = {"finished": EndReason.COMPLETED, "pruned": EndReason.STOPPED_BY_SCHEDULER, "failed": EndReason.INFRASTRUCTURE}[
        status
    ]
    finished = status == "finished"
    return TrialRecord.of(
        resolve_trial(config),
        Outcome(
            end=end,
            message=message,
            val_accuracy=accuracy if finished else None,
            val_loss=loss if finished else None,
            measured_balance=config.regulation.balance if finished else None,
            regulation_epochs=0,
            regulation_seconds=3 * seconds / 4 if finished else 0.0,
            num_parameters=1000 if finished else None,
            pretraining=PretrainingCost(paid_seconds=seconds / 4, experience_seconds=seconds / 4)
            if finished
            else PretrainingCost(),
        ),
        role=role,
        number=0 if role == "search" and number is None else number,
        params=params or {},
        search_of=search_of,
        device="CPU",
        started="2026-01-01T00:00:00.000+00:00",
    )
