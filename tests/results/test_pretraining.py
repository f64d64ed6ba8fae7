from __future__ import annotations

import dataclasses

from emoreg.config import TrialConfig, resolve_trial
from emoreg.results.pretraining import PretrainingEpochs, pretraining_epochs
from emoreg.results.records import EpochRecord
from tests.helpers.studies import ended
from tests.helpers.trials import tiny
from tests.helpers.written import epoch_record


def told(config: TrialConfig, epoch: int, *, stage: str = "pretraining") -> EpochRecord:
    return epoch_record(resolve_trial(config), stage, epoch, 0.5)


def test_what_was_asked_for_what_was_computed_and_what_had_to_be() -> None:
    short, long = tiny(pretraining__epochs=2), tiny(pretraining__epochs=3, regulation__balance=0.25)
    plain, lost = tiny(control="plain"), tiny(pretraining__epochs=9)
    rows = [ended(config) for config in (short, long, plain, lost)]
    rows[2:] = [dataclasses.replace(row, experience_seconds=None) for row in rows[2:]]
    epochs = [told(short, 1), told(short, 2), told(long, 3), told(long, 1, stage="regulation")]
    assert pretraining_epochs(rows, epochs) == PretrainingEpochs(asked=5, computed=3, least=3)
    paid_twice = [*epochs, told(long, 1), told(long, 2)]
    assert pretraining_epochs(rows, paid_twice) == PretrainingEpochs(asked=5, computed=5, least=3)
    assert pretraining_epochs((), ()) == PretrainingEpochs(asked=0, computed=0, least=0)
