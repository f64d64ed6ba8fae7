"""How much disk a study takes, and whether there is so much."""

from __future__ import annotations

import dataclasses
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from emoreg.config import Choice, ExperienceConfig, Float, Int, ResourcesConfig
from emoreg.errors import StorageError
from emoreg.storage.files import Files
from emoreg.storage.housekeeping import Use, record_use
from emoreg.training.backbones import create_encoder
from emoreg.tuning import disk
from emoreg.tuning.disk import DiskUse, check_disk, estimate_disk
from tests.helpers.studies import tiny_study
from tests.helpers.trials import TINY, run, tiny

MIB = 2**20
_BUILT = create_encoder("test_resnet", image_size=16, drop_path=0.0, weights=None, seed=0)
ENCODER = sum(value.nbytes for value in _BUILT.state_dict().values())
LENGTHS = {"pretraining.epochs": Choice((1, 2))}
USE = DiskUse(networks=MIB, checkpoints=2 * MIB, experiences=MIB)


def estimate(slots: int = 1, **changes: Any) -> DiskUse:
    settings: dict[str, Any] = {"search_space": LENGTHS, "controls": ()}
    return estimate_disk(tiny_study(**settings | changes), slots=slots)


def test_networks_by_what_is_kept() -> None:
    assert estimate().networks == 2 * ENCODER, "the best trial's two encoders"
    assert estimate(resources=ResourcesConfig(keep_networks="all")).networks == 3 * 2 * ENCODER
    assert estimate(resources=ResourcesConfig(keep_networks="none")).networks == 0
    confirmed = tuple(
        dataclasses.replace(TINY, seed=seed, control=control) for seed in (1000, 1001) for control in ("regulated", "plain")
    )
    assert estimate(num_trials=0, confirmed=confirmed).networks == 2 * 2 * ENCODER
    everything = estimate(num_trials=0, confirmed=confirmed, resources=ResourcesConfig(keep_networks="all"))
    assert everything.networks == 2 * (2 + 1) * ENCODER, "the plain control has one encoder"


def test_checkpoints_hold_the_optimizer_and_one_more_is_being_written() -> None:
    adam = 2 * 3 * ENCODER
    assert estimate(slots=1).checkpoints == 2 * adam
    assert estimate(slots=2).checkpoints == 3 * adam
    assert estimate(slots=64).checkpoints == 4 * adam, "there are three trials"


def test_experiences_are_the_snapshots_of_shared_runs() -> None:
    state = 3 * ENCODER
    assert estimate(num_trials=20).experiences == 2 * state, "lengths 1 and 2 of one run"
    longer: dict[str, Any] = {"search_space": {"pretraining.epochs": Choice((6, 7))}, "num_trials": 20}
    assert estimate(**longer).experiences == 5 * state, "6 and 7, and on the way 1, 2 and 4"
    cooled = tiny(pretraining__cooldown_epochs=3)
    assert estimate(num_trials=20, trial=cooled).experiences == 4 * state, "lengths 1 and 2, and each cooled down"
    apart = {**LENGTHS, "regulation.balance": Float(0.1, 0.9)}
    assert estimate(search_space=apart, experience=ExperienceConfig(share=False)).experiences == 3 * state, "each its own"
    every: dict[str, Any] = {"search_space": {"pretraining.epochs": Int(1, 9)}, "num_trials": 200}
    assert estimate(**every).experiences == 9 * state
    assert estimate(**every, experience=ExperienceConfig(budget_gib=state / 2**30)).experiences == state


def test_each_backbone_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    real = disk.create_encoder
    monkeypatch.setattr(disk, "create_encoder", lambda name, **options: built.append(name) or real(name, **options))
    estimate(search_space={"backbone": Choice(("test_resnet", "test_vit")), **LENGTHS}, num_trials=30)
    assert sorted(built) == ["test_resnet", "test_vit"]


def test_a_wide_network_is_counted_as_large_as_it_is() -> None:
    built = create_encoder("test_resnet", image_size=16, drop_path=0.0, weights=None, seed=0, width=2)
    wide = sum(value.nbytes for value in built.state_dict().values())
    assert 3.9 * ENCODER < wide < 4 * ENCODER
    everything = ResourcesConfig(keep_networks="all")
    found = estimate(num_trials=0, controls=("regulated", "wide"), resources=everything)
    assert found.networks == 2 * ENCODER + wide
    assert found.checkpoints == 2 * 3 * wide, "one encoder, which is larger than two"


def test_it_is_about_what_a_trial_leaves(storage: Path) -> None:
    run(TINY, storage, folder=storage / "trial")
    assert estimate().networks == pytest.approx((storage / "trial" / "trial.ckpt").stat().st_size, rel=0.1)
    assert [path.stat().st_size for path in storage.glob("experience/*/1.ckpt")] == [pytest.approx(3 * ENCODER, rel=0.1)]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how much of every disk is free."""

    def set_free(size: int) -> None:
        usage = namedtuple("usage", "total used free")(10**12, 0, size)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)

    return set_free


def test_a_disk_with_too_little_room_is_refused_with_the_ways_out(tmp_path: Path, free: Callable[[int], None]) -> None:
    config = tiny_study(storage=str(tmp_path / "not there yet"))
    free(4 * MIB)
    check_disk(config, USE)
    free(4 * MIB - MIB // 2)
    with pytest.raises(StorageError) as refused:
        check_disk(config, USE)
    message = str(refused.value)
    assert message.startswith(f"Free 0.5 MiB in {str(tmp_path)!r}, or ask for less: --resources.keep-networks none")
    assert "networks 1.0 MiB, checkpoints of running trials 2.0 MiB, experiences 1.0 MiB" in message
    assert "3.5 MiB of the 4.0 MiB still to come are free" in message


def test_what_is_there_already_is_not_asked_for_twice(tmp_path: Path, free: Callable[[int], None]) -> None:
    Files(str(tmp_path / "tiny")).write("trials/abc/trial.ckpt", b"x" * MIB)
    store = Files(str(tmp_path / "experience"))
    store.write(f"{'a' * 16}/1.ckpt", b"x" * MIB)
    record_use(store, "a" * 16, Use(study="tiny", identity="abc", epochs=1, time=0.0))
    free(2 * MIB)
    check_disk(tiny_study(storage=str(tmp_path)), USE)
    free(2 * MIB - 1)
    with pytest.raises(StorageError, match="still to come"):
        check_disk(tiny_study(storage=str(tmp_path)), USE)


def test_a_full_store_grows_no_more_and_an_object_store_is_not_asked(
    tmp_path: Path, bucket: str, free: Callable[[int], None]
) -> None:
    Files(str(tmp_path / "experience")).write(f"{'b' * 16}/1.ckpt", b"x" * MIB)
    free(3 * MIB)
    full = tiny_study(storage=str(tmp_path), experience=ExperienceConfig(budget_gib=MIB / 2**30))
    check_disk(full, USE)
    free(3 * MIB - 1)
    with pytest.raises(StorageError, match="still to come"):
        check_disk(full, USE)
    free(0)
    check_disk(tiny_study(storage=bucket), USE)
