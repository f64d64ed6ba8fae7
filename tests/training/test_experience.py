from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import logging
import multiprocessing
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterable
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Barrier
from multiprocessing.synchronize import Event as Signal
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from torch import Tensor

from emoreg.config import TrialConfig, Value, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.config.sharing import shared_runs
from emoreg.errors import ConfigError, Diverged, Interrupted
from emoreg.results.records import EpochRecord, ProbeRecord
from emoreg.storage import checkpoint, housekeeping
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.housekeeping import entries
from emoreg.storage.locks import FileLocks
from emoreg.training.experience import experience_key
from emoreg.training.history import History
from tests.helpers.experiences import obtain, pretraining_of
from tests.helpers.trials import (
    CPU,
    RANDOM,
    TINY,
    Recorder,
    Stop,
    bytes_of,
    equal,
    experience_folders,
    load_state,
    run,
    same,
    tiny,
    train,
)
from tests.helpers.values import OTHER_VALUES, whole
from tests.helpers.waiting import PATIENCE

DECIDES_THE_WEIGHTS = {
    "backbone",
    "width",
    "drop_path",
    "stem",
    "weights",
    "image_size",
    "stimuli.num_images",
    "stimuli.validation_fraction",
    "stimuli.split_seed",
    "stimuli.num_folds",
    "pretraining.batch_size",
    "pretraining.lr_schedule",
    "pretraining.warmup_steps",
    "pretraining.cooldown_epochs",
    "pretraining.label_smoothing",
    "pretraining.sampling",
    "pretraining.class_weights",
    "pretraining.shuffle_labels",
    *(path for path in OTHER_VALUES if path.startswith(("pretraining.optimizer.", "pretraining.augmentation."))),
    "control",  # whose other value in the table is `shuffled`
    "seed",
    "deterministic",
    "precision",
    "compile",
}


def key(config: TrialConfig, fingerprint: str = "f", device: torch.device = CPU, salt: str = "") -> str:
    applied = resolve_trial(config).config
    return experience_key(applied, applied.stimuli, fingerprint, device, salt=salt)


def name(config: TrialConfig) -> str | None:
    """Of the run whose end a trial takes."""
    return next(reversed(shared_runs(resolve_trial(config))), None)


# The key


@pytest.mark.parametrize("path", OTHER_VALUES)
def test_the_key_holds_what_decides_the_weights_and_nothing_else(path: str, tmp_path: Path) -> None:
    value = OTHER_VALUES[path]
    if path == "weights":
        (tmp_path / "weights.pth").write_bytes(b"weights")
        value = str(tmp_path / "weights.pth")
    changed = replace_paths(whole(), {path: value})
    assert (key(changed) != key(whole())) == (path in DECIDES_THE_WEIGHTS)
    # By the configuration alone the name of an image set decides too: its content does not count.
    assert (name(changed) != name(whole())) == (path in DECIDES_THE_WEIGHTS | CONTENT)


def test_the_key_goes_by_content(tmp_path: Path) -> None:
    assert key(TINY, "a") != key(TINY, "b")
    paths = []
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    keys = [key(dataclasses.replace(TINY, weights=str(path))) for path in paths]
    assert keys[0] == keys[1] != keys[2]
    with pytest.raises(ConfigError, match=r"path of weights: it must be a readable file, but .*gone"):
        key(dataclasses.replace(TINY, weights=str(tmp_path / "gone")))
    fast = dataclasses.replace(TINY, deterministic=False)
    assert key(fast) == key(dataclasses.replace(fast, precision="float32"))  # what `auto` means on a CPU
    assert key(TINY) != key(TINY, device=torch.device("cuda"))  # which rounds differently
    assert key(TINY) != key(TINY, salt="a")


def test_trials_that_need_no_experience_share_no_run() -> None:
    assert name(TINY) is not None
    assert name(tiny(control="plain")) is None
    assert name(tiny(control="untrained")) is None
    assert name(tiny(pretraining__epochs=0)) is None
    assert name(tiny(regulation__balance=0.0)) is None
    assert name(tiny(control="emotional")) == name(TINY) == name(resolve_trial(tiny(pretraining__epochs=7)).config)
    neutral = replace_paths(whole(), {"control": "neutral"})
    assert name(neutral) != name(whole())
    assert name(neutral) != name(replace_paths(neutral, {"neutral.name": "oasis"}))
    cosine = {"pretraining.lr_schedule": "cosine"}
    assert name(replace_paths(TINY, cosine)) != name(replace_paths(TINY, {**cosine, "pretraining.epochs": 7}))


# For every setting two values that give other weights after an epoch. What is not here gives the same.
BITES: dict[str, tuple[Value, Value]] = {
    "backbone": ("test_resnet", "test_vit"),
    "drop_path": (0.0, 0.3),
    "image_size": (16, 24),
    "stimuli.num_images": (20, 28),
    "stimuli.validation_fraction": (0.95, 0.96),
    "stimuli.split_seed": (0, 1),
    "pretraining.batch_size": (8, 12),
    "pretraining.lr_schedule": ("constant", "cosine"),
    "pretraining.warmup_steps": (0, 1),
    "pretraining.label_smoothing": (0.0, 0.1),
    "pretraining.sampling": ("natural", "balanced"),
    "pretraining.class_weights": ("none", "balanced"),
    "pretraining.shuffle_labels": (False, True),
    "pretraining.optimizer.name": ("adamw", "sgd"),
    "pretraining.optimizer.learning_rate": (0.001, 0.01),
    "pretraining.optimizer.weight_decay": (0.0, 0.1),
    "pretraining.optimizer.momentum": (0.5, 0.9),
    "pretraining.optimizer.gradient_clip": (0.01, 0.02),
    "pretraining.augmentation.crop_padding": (0, 2),
    "pretraining.augmentation.flip": (False, True),
    "pretraining.augmentation.color_jitter": (0.0, 0.3),
    "pretraining.augmentation.random_erasing": (0.0, 0.9),
    "pretraining.augmentation.mixup": (0.0, 0.4),
    "pretraining.augmentation.cutmix": (0.0, 0.7),
    "control": ("emotional", "shuffled"),
    "seed": (0, 1),
    "precision": ("float32", "bf16"),
    "stem": ("small", "own"),
    "width": (1, 2),
}
BASE = replace_paths(
    whole(),
    {
        "backbone": "test_resnet",
        "image_size": 16,
        "stimuli.name": "digits",
        "stimuli.num_images": 20,
        "pretraining.epochs": 1,
        "pretraining.batch_size": 8,
    },
)
CHEAP: dict[str, Value] = {"backbone": "test_resnet", "width": 1, "image_size": 16}
# The image set by content, the lengths (whose beginnings are alike), what may round differently without having to, and folds,
# which exclude a fraction.
CONTENT = {f"stimuli.{name}" for name in ("name", "path", "target", "image_column", "fit", "group")}
LENGTHS = {"pretraining.epochs", "pretraining.cooldown_epochs"}
NOT_COMPARED = CONTENT | LENGTHS | {"weights", "deterministic", "compile", "stimuli.num_folds"}
AFTER = OTHER_VALUES.keys() - NOT_COMPARED - BITES.keys()
ALONE = {path for path in AFTER if path.endswith((".form", ".num_folds"))}  # which do not go with all others


def weights_and_key(config: TrialConfig, storage: Path) -> tuple[dict[str, Tensor], str]:
    """The weights after the first epoch of pre-training, and the key."""
    stage, learner = pretraining_of(config, storage)
    _, states, _ = train(stage, learner)
    return states[0]["network"], key(config, stage.image_set.fingerprint)


def whole_set(config: TrialConfig) -> TrialConfig:
    return dataclasses.replace(config, stimuli=dataclasses.replace(config.stimuli, num_images=None))


@functools.cache
def of_the_stimuli_alone(storage: Path) -> tuple[dict[str, Tensor], str]:
    return weights_and_key(BASE, storage)


@pytest.mark.parametrize("path", sorted(AFTER))
def test_what_comes_after_does_not_change_the_key(path: str) -> None:
    assert path.startswith(("regulation.", "task.", "neutral.", "relabelled.", "metrics", "probe", "exclude_test_images"))
    assert key(replace_paths(BASE, {path: OTHER_VALUES[path]})) == key(BASE)


@pytest.mark.parametrize("part", sorted({path.partition(".")[0] for path in AFTER - ALONE} | ALONE))
def test_what_comes_after_changes_neither_weights_nor_key(part: str, prepared: Path) -> None:
    paths = [part] if part in ALONE else [path for path in AFTER - ALONE if path.partition(".")[0] == part]
    weights, its_key = weights_and_key(replace_paths(BASE, {path: OTHER_VALUES[path] for path in paths}), prepared)
    expected, expected_key = of_the_stimuli_alone(prepared)
    assert equal(weights, expected)
    assert its_key == expected_key


@pytest.mark.parametrize("path", sorted(BITES))
def test_what_changes_the_weights_changes_the_key(path: str, prepared: Path) -> None:
    chance = random.Random(path)
    base = {other: chance.choice(values) for other, values in BITES.items()} | CHEAP
    if path in ("pretraining.shuffle_labels", "control"):  # either shuffles
        base["pretraining.shuffle_labels"], base["control"] = False, "emotional"
    base["stem"] = "small"  # its own one leaves a single pixel of 16
    if path == "stimuli.validation_fraction":  # a subset is the same, drawn of more or fewer
        del base["stimuli.num_images"]
    start = BASE if path != "stimuli.validation_fraction" else whole_set(BASE)
    before, after = (replace_paths(start, {**base, path: value}) for value in BITES[path])
    first, first_key = weights_and_key(before, prepared)
    again, again_key = weights_and_key(before, prepared)
    second, second_key = weights_and_key(after, prepared)
    assert equal(first, again)
    assert first_key == again_key
    assert not equal(first, second)
    assert first_key != second_key


@pytest.mark.parametrize(("schedule", "shares"), [("constant", True), ("cosine", False)])
def test_the_length_decides_where_the_schedule_knows_it(schedule: str, shares: bool, storage: Path) -> None:
    short, long = (
        weights_and_key(
            tiny(pretraining__epochs=epochs, pretraining__lr_schedule=schedule, pretraining__warmup_steps=0), storage
        )
        for epochs in (1, 2)
    )
    assert equal(short[0], long[0]) == shares
    assert (short[1] == long[1]) == shares


# Sharing


def test_trials_that_differ_in_regulation_alone_pay_once(storage: Path) -> None:
    first, paid, _ = run(tiny(regulation__balance=0.5, regulation__epochs=1), storage)
    second, free, _ = run(tiny(regulation__balance=0.8, regulation__epochs=1, regulation__kind="learnable"), storage)
    assert len(paid.epochs("pretraining")) == 1
    assert first.pretraining.paid_seconds == paid.epochs("pretraining")[0].seconds
    assert free.epochs("pretraining") == []
    assert second.pretraining.paid_seconds == 0
    assert second.pretraining.experience_seconds == first.pretraining.experience_seconds == first.pretraining.paid_seconds
    assert len(experience_folders(storage)) == 1


def test_without_sharing_each_trial_pays_and_the_numbers_are_the_same(storage: Path) -> None:
    store = ExperienceStore(str(storage / "experience"), user="study", share=False)
    taken = [obtain(tiny(regulation__balance=balance, pretraining__epochs=3), storage, store) for balance in (0.2, 0.3, 0.3)]
    assert [epochs for _, epochs, _ in taken] == [[1, 2, 3], [1, 2, 3], [1, 2, 3]]
    assert taken[2][0].paid_seconds == taken[1][0].paid_seconds  # the last is the second again: told, not trained
    assert equal(taken[0][2].state_dict(), taken[1][2].state_dict())
    both = entries(store.files)
    assert [entry.lengths for entry in both] == [(3,), (3,)]  # what only others would look for is not kept
    assert all(use.paid_seconds == use.experience_seconds for entry in both for use in entry.uses)
    other = ExperienceStore(str(storage / "experience"), user="other", share=False)
    assert obtain(tiny(regulation__balance=0.2, pretraining__epochs=3), storage, other)[1] == [1, 2, 3]


def test_nothing_is_continued_where_the_schedule_knows_the_length(storage: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ExperienceStore(str(storage / "experience"))
    cosine = tiny(pretraining__lr_schedule="cosine")
    for epochs in (2, 4):
        config = replace_paths(cosine, {"pretraining.epochs": epochs})
        assert obtain(config, storage, store)[1] == list(range(1, epochs + 1))
        assert obtain(replace_paths(config, {"regulation.balance": 0.1}), storage, store)[1] == []  # its own length is shared
    assert "depends on the total length" in caplog.text
    assert sorted(entry.lengths for entry in entries(store.files)) == [(2,), (4,)]


def test_what_is_kept_and_who_used_it(storage: Path) -> None:
    first = ExperienceStore(str(storage / "experience"), user="first", keep=(3, 99))
    config = tiny(pretraining__epochs=6)
    paid, _, _ = obtain(config, storage, first)
    (entry,) = entries(first.files)
    assert entry.lengths == (1, 2, 3, 4, 6)
    assert entry.description == "test_resnet, digits, seed 0"
    made = housekeeping.read_json(first.files, f"{entry.key}/made.json")
    assert made["versions"]["torch"] == torch.__version__
    assert made["settings"]["seed"] == 0
    second = ExperienceStore(str(storage / "experience"), user="second")
    reused, epochs, _ = obtain(config, storage, second)  # the very same trial, in another study
    assert epochs == []
    assert (reused.paid_seconds, reused.experience_seconds) == (0, paid.experience_seconds)
    longer, epochs, _ = obtain(replace_paths(config, {"pretraining.epochs": 7}), storage, second)
    assert epochs == [7]
    assert longer.experience_seconds == pytest.approx(paid.experience_seconds + longer.paid_seconds)
    (entry,) = entries(second.files)
    assert {(use.study, use.epochs, use.paid_seconds) for use in entry.uses} == {
        ("first", 6, paid.paid_seconds),
        ("second", 6, 0),
        ("second", 7, longer.paid_seconds),
    }
    assert sum(use.paid_seconds for use in entry.uses) == pytest.approx(longer.experience_seconds)
    reused = sum(use.experience_seconds - use.paid_seconds for use in entry.uses)
    assert reused == pytest.approx(2 * paid.experience_seconds)


def test_two_stores_on_s3_share(bucket: str, storage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(storage))  # where the locks are
    first, second = (ExperienceStore(bucket, user=user) for user in ("first", "second"))
    _, epochs, net = obtain(tiny(pretraining__epochs=3), storage, first)
    assert epochs == [1, 2, 3]
    _, epochs, other = obtain(tiny(pretraining__epochs=3, regulation__balance=0.1), storage, second)
    assert epochs == []
    assert equal(net.state_dict(), other.state_dict())
    assert obtain(tiny(pretraining__epochs=4), storage, second)[1] == [4]
    (entry,) = entries(first.files)
    assert entry.lengths == (1, 2, 3, 4)
    assert {use.study for use in entry.uses} == {"first", "second"}

    with pytest.raises(Interrupted):
        obtain(tiny(pretraining__epochs=6), storage, second, should_stop=stopped_after(1))
    (partial,) = [found.name for found in second.files.find() if found.name.endswith(".partial")]
    assert obtain(tiny(pretraining__epochs=6), storage, first)[1] == [5, 6]
    assert not second.files.exists(partial)  # overtaken

    second.files.write(f"{entry.key}/6.ckpt", b"torn")
    assert obtain(tiny(pretraining__epochs=6), storage, second)[1] == [5, 6]
    assert second.files.exists(f"{entry.key}/6.ckpt.bad")
    pruned = housekeeping.prune(first.files, first.locks, 0)
    assert [entry.key for entry in pruned.removed] == [entry.key]
    assert entries(first.files) == []


# Continuing


def straight(config: TrialConfig, storage: Path, folder: Path) -> tuple[ExperienceStore, dict[str, Tensor]]:
    """The store and the net of a training that never stopped."""
    store = ExperienceStore(str(folder))
    _, epochs, net = obtain(config, storage, store)
    assert epochs == list(range(1, config.pretraining.epochs + 1))
    return store, net.state_dict()


def final_state(store: ExperienceStore, epochs: int) -> checkpoint.State:
    (entry,) = entries(store.files)
    assert store.files.folder is not None
    state = load_state(store.files.folder / entry.key / f"{epochs}.ckpt")
    assert state is not None
    return state


def _continue(storage: Path, folder: Path, configs: list[TrialConfig]) -> None:
    for config in configs:
        obtain(config, storage, ExperienceStore(str(folder)))


def servers() -> ForkServerContext:
    """Processes that import torch once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers.experiences"])
    return context


EXACT: dict[str, dict[str, Value]] = {
    "everything random": {**RANDOM},
    "mixed precision": {**RANDOM, "deterministic": False, "precision": "bf16"},
    "sgd": {"pretraining.optimizer.name": "sgd", "pretraining.augmentation.flip": True},
}


@pytest.mark.slow
def test_a_longer_experience_continues_a_shorter_one_to_the_bit_in_two_processes(storage: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    bases = {name: replace_paths(TINY, {**paths, "regulation.kind": "fixed"}) for name, paths in EXACT.items()}
    lengths = {name: [replace_paths(base, {"pretraining.epochs": n}) for n in (2, 4, 6)] for name, base in bases.items()}
    for name, configs in lengths.items():
        _continue(storage, tmp_path / name, configs[:1])
    # the other process goes on from two to four, and this one from four to six
    child = servers().Process(target=_continue_all, args=(storage, tmp_path, {name: [c[1]] for name, c in lengths.items()}))
    child.start()
    child.join(PATIENCE)
    assert child.exitcode == 0
    for name, configs in lengths.items():
        store = ExperienceStore(str(tmp_path / name))
        _, epochs, net = obtain(configs[2], storage, store)
        assert epochs == [5, 6], name
        other, expected = straight(configs[2], storage, tmp_path / "straight" / name)
        assert equal(net.state_dict(), expected), name
        assert any("running_mean" in parameter for parameter in expected)
        first, second = final_state(store, 6), final_state(other, 6)
        losses = [[row["record"]["train_loss"] for row in state.pop("history")] for state in (first, second)]
        assert losses[0] == losses[1]
        assert same(first, second), name


def _continue_all(storage: Path, folder: Path, configs: dict[str, list[TrialConfig]]) -> None:
    torch.set_num_threads(1)
    for name, some in configs.items():
        _continue(storage, folder / name, some)


def test_a_shorter_one_starts_from_the_longest_that_is_not_too_long(storage: Path) -> None:
    store = ExperienceStore(str(storage / "experience"))
    assert obtain(tiny(pretraining__epochs=6), storage, store)[1] == [1, 2, 3, 4, 5, 6]
    assert obtain(tiny(pretraining__epochs=5), storage, store)[1] == [5]
    assert obtain(tiny(pretraining__epochs=3), storage, store)[1] == [3]
    assert obtain(tiny(pretraining__epochs=4), storage, store)[1] == []


def test_one_that_is_asked_to_stop_loses_nothing_not_even_in_mid_epoch(storage: Path, tmp_path: Path) -> None:
    config = replace_paths(TINY, {**RANDOM, "pretraining.epochs": 3, "pretraining.batch_size": 4})
    store = ExperienceStore(str(storage / "experience"))
    trained: list[int] = []
    for _ in range(20):
        asked = iter([False] * 3)
        try:
            _, epochs, net = obtain(config, storage, store, should_stop=lambda: next(asked, True))  # noqa: B023
        except Interrupted:
            assert len(partials(store)) <= 1
            trained.append(len(partials(store)))
        else:
            break
    assert any(trained)
    assert epochs == [1, 2, 3]
    assert partials(store) == []
    other, expected = straight(config, storage, tmp_path / "straight")
    assert equal(net.state_dict(), expected)
    assert same(final_state(store, 3)["optimizer"], final_state(other, 3)["optimizer"])


def partials(store: ExperienceStore) -> list[str]:
    return [found.name.partition("/")[2] for found in store.files.find() if found.name.endswith(".partial")]


def test_a_trial_that_is_lost_tells_what_it_stored_and_another_tells_the_rest(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth epoch was trained, and not stored: nobody goes on from it, so it is trained and told by another."""
    config = tiny(pretraining__epochs=6, regulation__epochs=1)
    first, add = Recorder(), History.add

    def lost(history: History, record: EpochRecord, probes: Iterable[ProbeRecord]) -> None:
        if record.epoch == 6:
            raise Stop
        add(history, record, probes)

    monkeypatch.setattr(History, "add", lost)
    with pytest.raises(Stop):
        run(config, storage, first)
    monkeypatch.undo()
    assert {row.epoch for row in first.epochs("pretraining")} <= {1, 2, 3, 4}
    other = replace_paths(config, {"regulation.balance": 0.1})
    _, others, _ = run(other, storage)
    assert [row.epoch for row in others.epochs("pretraining")] == [5, 6]
    result, again, _ = run(config, storage)
    own = again.epochs("pretraining")
    assert [row.epoch for row in own] == [1, 2, 3, 4]
    assert result.pretraining.paid_seconds == sum(row.seconds for row in own)
    theirs = sum(row.seconds for row in others.epochs("pretraining"))
    assert result.pretraining.experience_seconds == pytest.approx(result.pretraining.paid_seconds + theirs)


# What cannot be trusted


def torn(path: Path) -> bytes:
    return path.read_bytes()[: path.stat().st_size // 2]


def foreign(path: Path) -> bytes:
    """Whole, ours, and of another run."""
    return bytes_of({**(load_state(path) or {}), "key": "f" * 16})


def another_place(path: Path) -> bytes:
    """Whole, ours, and of another length."""
    return bytes_of({**(load_state(path) or {}), "epoch": 1})


class Evil:
    ran: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.ran,))


def evil(path: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    body = buffer.getvalue()
    tail = b"emoreg checkpoint" + (1).to_bytes(4, "little") + len(body).to_bytes(8, "little")
    return body + tail + xxhash.xxh3_128_digest(body)


@pytest.mark.parametrize("damage", [torn, foreign, another_place, evil])
def test_what_cannot_be_trusted_is_set_aside_and_built_again(
    damage: Callable[[Path], bytes], storage: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Evil.ran = storage / "ran"
    store = ExperienceStore(str(storage / "experience"))
    config = tiny(pretraining__epochs=2)
    _, _, net = obtain(config, storage, store)
    (entry,) = entries(store.files)
    path = storage / "experience" / entry.key / "2.ckpt"
    content = damage(path)
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        _, epochs, again = obtain(tiny(pretraining__epochs=2, regulation__balance=0.1), storage, store)
    assert epochs == [2]  # from the snapshot of the first
    assert equal(net.state_dict(), again.state_dict())
    assert f"{entry.key}/2.ckpt cannot be trusted" in caplog.text
    assert path.with_name("2.ckpt.bad").read_bytes() == content
    assert not Evil.ran.exists()


def test_a_torn_partial_state_is_set_aside_too(storage: Path) -> None:
    store = ExperienceStore(str(storage / "experience"))
    config = tiny(pretraining__epochs=3)
    with pytest.raises(Interrupted):
        obtain(config, storage, store, should_stop=stopped_after(4))
    (name,) = partials(store)
    (entry,) = entries(store.files)
    path = storage / "experience" / entry.key / name
    path.write_bytes(torn(path))
    _, epochs, net = obtain(tiny(pretraining__epochs=3, regulation__balance=0.1), storage, store)
    assert epochs == [2, 3]
    assert path.with_name(f"{name}.bad").exists()
    assert partials(store) == []
    assert equal(net.state_dict(), straight(config, storage, storage / "straight")[1])


def stopped_after(times: int) -> Callable[[], bool]:
    left = iter([False] * times)
    return lambda: next(left, True)


# Single flight


def test_a_waiter_that_is_asked_to_stop_stops(storage: Path) -> None:
    store = ExperienceStore(str(storage / "experience"))
    config = tiny(pretraining__epochs=3)
    with pytest.raises(Interrupted):
        obtain(config, storage, store, should_stop=lambda: True)
    (entry,) = entries(store.files)
    holder = FileLocks.of(store.files)
    assert holder.try_acquire(entry.key)
    assert not holder.try_acquire(entry.key)
    with pytest.raises(Interrupted, match="waited"):
        obtain(config, storage, store, should_stop=stopped_after(2))
    assert store.files.exists(f"{entry.key}/3.wanted")
    holder.release(entry.key)
    cost, _, _ = obtain(config, storage, store)
    assert cost.waiting_seconds == 0
    assert not store.files.exists(f"{entry.key}/3.wanted")


def _wait_for(storage: Path, epochs: int, waits: Signal, has_it: Signal, trained: Any) -> None:
    times = 0

    def asked() -> bool:
        nonlocal times
        times += 1
        if times == 2:  # its wish is known since the first time
            waits.set()
        return False

    store = ExperienceStore(str(storage / "experience"), user="waiter")
    cost, paid, _ = obtain(tiny(pretraining__epochs=epochs, regulation__balance=epochs / 10), storage, store, should_stop=asked)
    assert cost.waiting_seconds > 0
    trained.put((epochs, paid))
    has_it.set()


@pytest.mark.slow
def test_a_waiter_goes_on_as_soon_as_its_snapshot_is_there_and_not_when_the_run_ends(storage: Path) -> None:
    server = servers()
    wanted = (2, 5)  # the one is kept anyway, the other because it is waited for
    trained = server.Queue()
    signals = {epochs: (server.Event(), server.Event()) for epochs in wanted}
    waiters = [server.Process(target=_wait_for, args=(storage, epochs, *signals[epochs], trained)) for epochs in wanted]

    def at_epoch(row: EpochRecord) -> None:
        """The run stands still until the waiters are where they should be: it would for ever if they waited for its end."""
        if row.epoch == 1:
            for waiter in waiters:
                waiter.start()
            assert all(waits.wait(PATIENCE) for waits, _ in signals.values())
        elif row.epoch in (4, 7):
            assert signals[2 if row.epoch == 4 else 5][1].wait(PATIENCE)

    store = ExperienceStore(str(storage / "experience"), user="holder")
    _, epochs, _ = obtain(tiny(pretraining__epochs=8), storage, store, at_epoch=at_epoch)
    assert epochs == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sorted(trained.get(timeout=PATIENCE) for _ in wanted) == [(2, []), (5, [])]
    for waiter in waiters:
        waiter.join(PATIENCE)
        assert waiter.exitcode == 0
    (entry,) = entries(store.files)
    assert entry.lengths == (1, 2, 4, 5, 8)


def _at_once(storage: Path, user: str, epochs: int, barrier: Barrier, trained: Any) -> None:
    barrier.wait(PATIENCE)
    store = ExperienceStore(str(storage / "experience"), user=user)
    trained.put(obtain(tiny(pretraining__epochs=epochs, regulation__balance=epochs / 10), storage, store)[1])


@pytest.mark.slow
def test_of_many_at_once_one_trains_each_epoch(storage: Path) -> None:
    server = servers()
    lengths = (3, 7, 5, 7)
    barrier, trained = server.Barrier(len(lengths)), server.Queue()
    users = [(f"study{number}", epochs) for number, epochs in enumerate(lengths)]
    processes = [server.Process(target=_at_once, args=(storage, *user, barrier, trained)) for user in users]
    for process in processes:
        process.start()
    epochs = [trained.get(timeout=PATIENCE) for _ in lengths]
    for process in processes:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert sorted(itertools.chain(*epochs)) == [1, 2, 3, 4, 5, 6, 7]
    store = ExperienceStore(str(storage / "experience"))
    assert partials(store) == []
    assert [found.name for found in store.files.find() if found.name.endswith((".wanted", ".tmp", ".bad"))] == []


def _killed(storage: Path, has_begun: Signal, other_waits: Signal) -> None:
    store = ExperienceStore(str(storage / "experience"))
    epochs = 0

    def count(row: EpochRecord) -> None:
        nonlocal epochs
        epochs = row.epoch

    def asked() -> bool:
        """Asked after every step: die in the middle of the third epoch, with its beginning on disk and somebody waiting."""
        if epochs == 2 and any(name.startswith("2+") for name in partials(store)):
            has_begun.set()
            assert other_waits.wait(PATIENCE)
            os.kill(os.getpid(), signal.SIGKILL)
        return False

    config = tiny(pretraining__epochs=4, pretraining__batch_size=2)
    obtain(config, storage, store, at_epoch=count, checkpoint_seconds=0, should_stop=asked)


@pytest.mark.slow
def test_a_holder_that_is_killed_gives_way_at_once_and_its_work_is_continued(storage: Path) -> None:
    server = servers()
    has_begun, waits = server.Event(), server.Event()
    holder = server.Process(target=_killed, args=(storage, has_begun, waits))
    holder.start()
    assert has_begun.wait(PATIENCE)
    store = ExperienceStore(str(storage / "experience"))
    config = tiny(pretraining__epochs=4, pretraining__batch_size=2, regulation__balance=0.1)
    steps: list[int] = []

    def asked() -> bool:
        if not waits.is_set():
            waits.set()
        else:
            steps.append(len(steps))
        return False

    cost, epochs, net = obtain(config, storage, store, should_stop=asked)
    holder.join(PATIENCE)
    assert holder.exitcode == -signal.SIGKILL
    assert epochs == [3, 4]
    assert cost.waiting_seconds < 5
    assert len(steps) < 3 + 2 * 8 + 3  # less than two whole epochs: steps, epochs, and a few times while it waited
    assert equal(net.state_dict(), straight(config, storage, storage / "straight")[1])
    store.sweep()
    assert list((storage / "experience").rglob(".*.tmp")) == []


def test_a_shared_run_that_diverges_does_so_once(storage: Path) -> None:
    wild: dict[str, Value] = {
        "pretraining.optimizer.name": "sgd",
        "pretraining.optimizer.learning_rate": 1e30,
        "pretraining.warmup_steps": 0,
    }
    config = replace_paths(TINY, {**wild, "pretraining.optimizer.gradient_clip": 1e30, "pretraining.epochs": 3})
    store = ExperienceStore(str(storage / "experience"))
    with pytest.raises(Diverged) as first:
        obtain(config, storage, store)
    steps: list[int] = []
    with pytest.raises(Diverged) as second:
        obtain(
            replace_paths(config, {"pretraining.epochs": 4}),
            storage,
            store,
            should_stop=lambda: bool(steps.append(1)),  # asked after every step: there is none
        )
    assert (second.value.stage, second.value.step) == (first.value.stage, first.value.step)
    assert steps == []
    key = next((storage / "experience").glob("*/diverged.json")).parent.name
    assert store.locks.try_acquire(key), "the lock was kept"
    store.locks.release(key)
