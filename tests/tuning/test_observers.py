"""What observers keep in order: which networks stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from emoreg.config import Choice, ResourcesConfig, StudyConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.results.records import TrialRecord
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy, join
from emoreg.tuning.observers import NetworkPruner
from tests.helpers.studies import ended, tiny_study
from tests.helpers.trials import TINY, tiny


class Driven:
    """A study whose trials end as they are told to, in the order of a driver: the record, then the observer."""

    def __init__(self, place: str, config: StudyConfig, *recorded: TrialRecord) -> None:
        self.files = Files(join(place, config.name))
        self.trials = {record.identity: record for record in recorded}
        self.pruner = NetworkPruner(config, WorkingCopy(self.files), self.trials)

    def save(self, *records: TrialRecord) -> None:
        for record in records:
            self.files.write(f"trials/{record.identity}/log.txt", b"said")
            self.files.write(f"trials/{record.identity}/trial.ckpt", b"network")
            self.files.write(f"trials/{record.identity}/predictions.parquet", b"predictions")

    def end(self, *records: TrialRecord) -> None:
        self.save(*records)
        for record in records:
            self.trials[record.identity] = record
            self.pruner.on_end(ResolvedTrial(config=TINY, identity=record.identity), record)

    @property
    def stored(self) -> set[str]:
        """The trials that have a network, and predictions."""
        names = [found.name.split("/") for found in self.files.find("trials")]
        networks, predictions = (
            {identity for _, identity, name in names if name == kept} for kept in ("trial.ckpt", "predictions.parquet")
        )
        assert networks == predictions
        return networks


def searched(number: int, accuracy: float, **values: Any) -> TrialRecord:
    return ended(tiny(seed=number), number=number, accuracy=accuracy, **values)


def identities(*records: TrialRecord) -> set[str]:
    return {record.identity for record in records}


def study(keep: Any = "best", **changes: Any) -> StudyConfig:
    return tiny_study(resources=ResourcesConfig(keep_networks=keep), **changes)


@pytest.mark.parametrize("is_remote", [False, True], ids=["folder", "object store"])
def test_the_best_so_far_stays_and_what_failed_goes_on(is_remote: bool, tmp_path: Path, bucket: str) -> None:
    driven = Driven(bucket if is_remote else str(tmp_path), study())
    first, worse, better = searched(0, 0.5), searched(1, 0.4), searched(2, 0.6)
    for record, kept in ((first, first), (worse, first), (better, better)):
        driven.end(record)
        assert driven.stored == identities(kept)
    broken, pruned = searched(3, 0.0, status="failed"), searched(4, 0.0, status="pruned")
    control = ended(tiny(seed=9), role="control", accuracy=0.9)
    driven.end(broken, pruned, control)
    assert driven.stored == identities(better, broken)
    assert len([found for found in driven.files.find("trials") if found.name.endswith("log.txt")]) == 6, "logs stay"


def test_every_backbone_has_its_best_and_a_confirmation_what_it_confirms(tmp_path: Path) -> None:
    best = [ended(tiny(backbone=name), number=number) for number, name in enumerate(("test_resnet", "test_vit"))]
    confirmed = [ended(tiny(seed=seed), role="confirm") for seed in (1000, 1001)]
    control = ended(dataclasses.replace(tiny(seed=1000), control="plain"), role="confirm")
    by_hand = ended(tiny(seed=7), role="trial")
    driven = Driven(str(tmp_path), study(search_space={"backbone": Choice(("test_resnet", "test_vit"))}))
    driven.end(*best, *confirmed, control, by_hand)
    assert driven.stored == identities(*best, *confirmed, by_hand)


@pytest.mark.parametrize(("keep", "kept"), [("all", (0, 1, 2)), ("none", ())])
def test_all_or_none_stay_where_that_is_asked_for(keep: str, kept: tuple[int, ...], tmp_path: Path) -> None:
    records = [searched(0, 0.5), searched(1, 0.4), ended(tiny(seed=9), role="control")]
    driven = Driven(str(tmp_path), study(keep))
    driven.end(*records)
    assert driven.stored == identities(*(records[place] for place in kept))


def test_a_run_sweeps_what_a_killed_driver_or_a_late_worker_has_left(tmp_path: Path) -> None:
    best, worse, running = searched(0, 0.5), searched(1, 0.4), searched(2, 0.9)
    driven = Driven(str(tmp_path), study(), best, worse)
    driven.save(best, worse, running)
    driven.pruner.sweep()
    assert driven.stored == identities(best, running), "a trial without a record goes on from its checkpoint"
    driven.save(worse)  # one that a scheduler has stopped may end its last write after its record
    driven.pruner.on_run_end(None)  # type: ignore[arg-type]
    assert driven.stored == identities(best, running)
