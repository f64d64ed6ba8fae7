from __future__ import annotations

import dataclasses
import multiprocessing
import os
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
import torch

from emoreg import checkpoint
from emoreg.config import TrialConfig, replace_paths
from emoreg.errors import ConfigError
from emoreg.experience import experience_key
from emoreg.records import EpochRecord
from emoreg.reporter import Event
from tests.trials import CPU, RANDOM, TINY, Recorder, Stop, equal, experience_folders, run, tiny
from tests.values import OTHER_VALUES, whole

DECIDES_THE_WEIGHTS = {
    "backbone",
    "drop_path",
    "weights",
    "image_size",
    "stimuli.num_images",
    "stimuli.validation_fraction",
    "stimuli.split_seed",
    "pretraining.batch_size",
    "pretraining.warmup_steps",
    "pretraining.label_smoothing",
    "pretraining.shuffle_labels",
    *(path for path in OTHER_VALUES if path.startswith(("pretraining.optimizer.", "pretraining.augmentation."))),
    "control",  # whose other value in the table is `shuffled`
    "seed",
    "deterministic",
    "precision",
}


def key(config: TrialConfig, fingerprint: str = "f", device: torch.device = CPU) -> str:
    applied = config.applied()
    return experience_key(applied, applied.stimuli, fingerprint, device)


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_the_key_holds_what_decides_the_weights_and_nothing_else(path: str, tmp_path: Path) -> None:
    value = OTHER_VALUES[path]
    if path == "weights":
        (tmp_path / "weights.pth").write_bytes(b"weights")
        value = str(tmp_path / "weights.pth")
    changed = replace_paths(whole(), {path: value})
    assert (key(changed) != key(whole())) == (path in DECIDES_THE_WEIGHTS)


def test_the_key_goes_by_content(tmp_path: Path) -> None:
    assert key(TINY, "a") != key(TINY, "b")
    paths = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    keys = [key(dataclasses.replace(TINY, weights=str(path))) for path in paths]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(ConfigError, match=r"weights must be a readable file, but .*gone"):
        key(dataclasses.replace(TINY, weights=str(tmp_path / "gone")))
    fast = dataclasses.replace(TINY, deterministic=False)
    assert key(fast) == key(dataclasses.replace(fast, precision="float32"))  # what `auto` means on a CPU


def test_trials_that_differ_in_regulation_alone_pay_once(storage: Path) -> None:
    first, paid, _ = run(tiny(regulation__balance=0.5, regulation__epochs=1), storage)
    second, free, _ = run(tiny(regulation__balance=0.8, regulation__epochs=1, regulation__kind="learnable"), storage)
    assert len(paid.epochs("pretraining")) == 1
    assert first.pretraining_seconds == paid.epochs("pretraining")[0].seconds
    assert free.epochs("pretraining") == []
    assert second.pretraining_seconds == 0
    assert len(experience_folders(storage)) == 1


def snapshot(storage: Path, epochs: int) -> dict[str, Any]:
    (folder,) = experience_folders(storage)
    state = checkpoint.load(storage / "experience" / folder / f"{epochs}.ckpt")
    assert state is not None
    return state


def test_a_longer_experience_continues_a_shorter_one_to_the_bit(storage: Path, prepared: Path, tmp_path: Path) -> None:
    config = replace_paths(TINY, {**RANDOM, "regulation.kind": "fixed", "regulation.epochs": 1})
    short, long = (replace_paths(config, {"pretraining.epochs": epochs}) for epochs in (3, 6))
    run(short, storage)
    result, recorder, network = run(long, storage)
    assert [row.epoch for row in recorder.epochs("pretraining")] == [4, 5, 6]
    assert result.pretraining_seconds == pytest.approx(sum(row.seconds for row in recorder.epochs("pretraining")))

    other = tmp_path / "other"
    other.mkdir()
    (other / "imagesets").symlink_to(prepared / "imagesets")
    _, straight, expected = run(long, other)
    assert [row.epoch for row in straight.epochs("pretraining")] == [1, 2, 3, 4, 5, 6]
    assert recorder.losses("pretraining") == straight.losses("pretraining")[3:]
    assert equal(network, expected)
    assert equal(snapshot(storage, 6)["net"], snapshot(other, 6)["net"])
    # ... and a shorter one starts from the longest that is not too long.
    _, between, _ = run(replace_paths(config, {"pretraining.epochs": 5}), other)
    assert [row.epoch for row in between.epochs("pretraining")] == [5]
    _, again, _ = run(replace_paths(short, {"regulation.balance": 0.1}), storage)
    assert again.epochs("pretraining") == []


def test_a_torn_snapshot_is_set_aside_and_built_again(storage: Path) -> None:
    run(tiny(regulation__epochs=1, pretraining__epochs=2), storage)
    whole_net = snapshot(storage, 2)["net"]
    (folder,) = experience_folders(storage)
    path = storage / "experience" / folder / "2.ckpt"
    path.write_bytes(path.read_bytes()[:100])
    _, recorder, _ = run(tiny(regulation__epochs=1, pretraining__epochs=2, regulation__balance=0.3), storage)
    assert [row.epoch for row in recorder.epochs("pretraining")] == [2]  # from the snapshot of the first
    assert path.with_name("2.ckpt.bad").exists()
    assert equal(snapshot(storage, 2)["net"], whole_net)


def test_a_killed_trial_reports_what_it_paid_for_and_no_other_trial_does(storage: Path) -> None:
    config = tiny(pretraining__epochs=3, regulation__epochs=1)
    first = Recorder(("pretraining", 2))
    with pytest.raises(Stop):
        run(config, storage, first)
    other = replace_paths(config, {"regulation.balance": 0.1})
    _, others, _ = run(other, storage)
    assert [row.epoch for row in others.epochs("pretraining")] == [3]
    result, again, _ = run(config, storage)
    own = again.epochs("pretraining")
    assert [row.epoch for row in own] == [1, 2]  # the third epoch was the other's
    assert result.pretraining_seconds == sum(row.seconds for row in own)
    third = others.epochs("pretraining")[0].seconds
    assert result.experience_seconds == pytest.approx(result.pretraining_seconds + third)


class _Killed:
    """Ends its process, as a machine does, after an epoch of pre-training."""

    def report(self, event: Event) -> None:
        if isinstance(event, EpochRecord):
            os._exit(9)


def _trial(storage: Path, balance: float, barrier: Barrier | None, epochs: multiprocessing.Queue[list[int]] | None) -> None:
    recorder = Recorder() if epochs is not None else _Killed()
    if barrier is not None:
        barrier.wait(120)
    run(tiny(regulation__balance=balance, regulation__epochs=1, pretraining__epochs=4), storage, recorder)  # type: ignore[arg-type]
    assert isinstance(recorder, Recorder)
    assert epochs is not None
    epochs.put([row.epoch for row in recorder.epochs("pretraining")])


def test_two_processes_at_once_train_once_and_a_dead_one_holds_nobody_up(storage: Path) -> None:
    server = multiprocessing.get_context("forkserver")  # torch is imported once for the three of them
    server.set_forkserver_preload(["tests.trials"])
    dead = server.Process(target=_trial, args=(storage, 0.1, None, None))
    dead.start()
    dead.join(120)
    assert dead.exitcode == 9
    assert [path.name for path in (storage / "experience").glob("*/*.ckpt")] == ["1.ckpt"]

    barrier, epochs = server.Barrier(2), server.Queue()
    processes = [server.Process(target=_trial, args=(storage, balance, barrier, epochs)) for balance in (0.5, 0.8)]
    for process in processes:
        process.start()
    found = sorted(epochs.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert found == [[], [2, 3, 4]]
