"""What trials that train nothing report. Imports neither torch nor Ray: it travels to workers."""

from __future__ import annotations

from emoreg.config import TrialConfig
from emoreg.results.records import EpochRecord, TrialResult


def epoch_of(config: TrialConfig, epoch: int, seconds: float) -> EpochRecord:
    return EpochRecord(
        identity=config.identity,
        stage="regulation",
        epoch=epoch,
        step=epoch,
        loss=1.0,
        accuracy=0.5,
        val_loss=1.0,
        val_accuracy=0.5,
        learning_rate=0.1,
        images_per_second=1.0,
        seconds=seconds,
        balance=config.regulation.balance,
        balance_std=0.0,
    )


def result_of(config: TrialConfig, seconds: float) -> TrialResult:
    return TrialResult(
        identity=config.identity,
        accuracy=0.5,
        loss=1.0,
        measured_balance=config.regulation.balance,
        test_accuracy=None,
        num_parameters=1,
        pretraining_seconds=0.0,
        experience_seconds=0.0,
        regulation_seconds=seconds,
        waiting_seconds=0.0,
        micro_batch_size=None,
        recomputed=False,
    )
