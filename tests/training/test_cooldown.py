"""The cool-down of pre-training: what it shares, what it pays, and that it goes on to the bit."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from emoreg.config import ImageSetConfig, TrialConfig, Value, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.config.sharing import least_epochs, shared_runs
from emoreg.errors import Diverged, Interrupted
from emoreg.results.records import EpochRecord
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.housekeeping import entries
from emoreg.training.experience import experience_key
from tests.helpers.experiences import obtain
from tests.helpers.trials import CPU, RANDOM, TINY, WRITTEN_DOWN, Recorder, Stop, equal, load_state, run, same, tiny

STEPS = 2  # of an epoch of TINY's stimuli


def cooled(epochs: int = 2, cooldown_epochs: int = 2, **paths: Value) -> TrialConfig:
    return tiny(pretraining__epochs=epochs, pretraining__cooldown_epochs=cooldown_epochs, **paths)


def key(config: TrialConfig) -> str:
    applied = resolve_trial(config).config
    return experience_key(applied, applied.stimuli, "f", CPU)


def store_in(folder: Path, *, share: bool = True) -> ExperienceStore:
    return ExperienceStore(str(folder / "experience"), user="study", share=share)


def states(storage: Path) -> dict[tuple[str, int, int], Path]:
    """The files of the store, by the last word of what made them, and epochs and steps of the next one."""
    store, found = storage / "experience", {}
    for entry in entries(store_in(storage).files):
        run = (entry.description or "").rpartition(", ")[2]
        for path in (store / entry.key).iterdir():
            if path.suffix in (".ckpt", ".partial"):
                epochs, _, steps = path.stem.partition("+")
                found[run, int(epochs), int(steps or 0)] = path
    return found


# Keys


def test_without_a_cooldown_keys_are_what_they_were() -> None:
    written = replace_paths(TINY, WRITTEN_DOWN)
    cosine = replace_paths(written, {"pretraining.lr_schedule": "cosine", "pretraining.epochs": 3})
    assert (key(written), key(cosine)) == ("cfdd41c6aa42f714", "9d82567cf9be1dff")
    assert [len(shared_runs(resolve_trial(trial))) for trial in (written, cosine)] == [1, 1]


def test_a_cooldown_is_a_run_of_its_own_after_the_one_that_all_lengths_share() -> None:
    short, long, slow = (shared_runs(resolve_trial(config)) for config in (cooled(2, 2), cooled(4, 2), cooled(2, 3)))
    constant, first = short
    assert [constant] == [*shared_runs(resolve_trial(TINY))]
    assert [run.config.pretraining.total_epochs for run in (*short.values(), *long.values())] == [2, 4, 4, 6]
    assert {constant} == short.keys() & long.keys() == short.keys() & slow.keys()
    assert shared_runs(resolve_trial(cooled(2, 2, regulation__balance=0.1))).keys() == {constant, first}
    assert len({key(config) for config in (TINY, cooled(2, 2), cooled(4, 2), cooled(2, 3))}) == 4
    assert shared_runs(resolve_trial(cooled(0, 2))) == {}, "what was not begun is not cooled down"


def test_the_least_is_the_longest_of_each_run_and_every_cooldown() -> None:
    def least(*configs: TrialConfig) -> int:
        return least_epochs(resolve_trial(config) for config in configs)

    assert least() == least(cooled(0, 2)) == 0
    assert least(cooled(4, 0), cooled(2, 0), cooled(2, 0, regulation__balance=0.1)) == 4
    assert least(cooled(4, 2), cooled(2, 2), cooled(3, 0)) == 4 + 2 + 2
    assert least(cooled(4, 0), cooled(3, 0, seed=1)) == 7, "another seed's"
    cosine = {"pretraining__lr_schedule": "cosine"}
    assert least(cooled(4, 0, **cosine), cooled(3, 0, **cosine)) == 7, "its lengths share nothing"


# The rate


def test_the_rate_goes_to_nothing_over_the_last_epochs_alone(storage: Path) -> None:
    rows: list[EpochRecord] = []
    obtain(cooled(3, 2), storage, store_in(storage), at_epoch=rows.append)
    assert [(row.stage, row.epoch, row.step) for row in rows] == [("pretraining", n, STEPS * n) for n in range(1, 6)]
    peak = TINY.pretraining.optimizer.learning_rate
    warm, *rest = (row.learning_rate / peak for row in rows)  # of the last step of each epoch
    assert warm == pytest.approx(2 / 3)
    assert rest == pytest.approx([1, 1, 3 / 4, 1 / 4])


# Sharing


def test_lengths_share_all_that_is_before_their_cooldowns(storage: Path) -> None:
    store = store_in(storage)
    short, epochs, net = obtain(cooled(2, 2), storage, store)
    assert epochs == [1, 2, 3, 4]
    again, epochs, same_net = obtain(cooled(2, 2, regulation__balance=0.1), storage, store)
    assert epochs == []
    assert (again.paid_seconds, again.experience_seconds) == (0, short.experience_seconds)
    reused = sum(use.experience_seconds - use.paid_seconds for entry in entries(store.files) for use in entry.uses)
    assert reused == pytest.approx(short.experience_seconds), "with what is before the cool-down"
    assert equal(net.state_dict(), same_net.state_dict())
    branch = states(storage)["seed 0", 2, 0]
    before = branch.read_bytes()
    long, epochs, _ = obtain(cooled(4, 2), storage, store)
    assert epochs == [3, 4, 5, 6], "4 + 2 * 2 epochs in all"
    other, epochs, _ = obtain(cooled(2, 1), storage, store)
    assert epochs == [3]
    assert branch.read_bytes() == before, "a cool-down leaves the state that it begins with as it was"
    assert obtain(tiny(pretraining__epochs=4), storage, store)[1] == [], "what is not cooled down is on the way"
    assert sorted((entry.description, entry.lengths) for entry in entries(store.files)) == [
        ("test_resnet, digits, seed 0", (1, 2, 4)),
        ("test_resnet, digits, seed 0, cooled down after 2 epochs", (3,)),
        ("test_resnet, digits, seed 0, cooled down after 2 epochs", (4,)),
        ("test_resnet, digits, seed 0, cooled down after 4 epochs", (6,)),
    ]
    assert long.experience_seconds > long.paid_seconds > 0
    paid = sum(use.paid_seconds for entry in entries(store.files) for use in entry.uses)
    assert paid == pytest.approx(sum(cost.paid_seconds for cost in (short, long, other))), "no second counts for two runs"


def test_trials_of_a_study_cool_down_once_and_its_controls_too(storage: Path) -> None:
    config = cooled(2, 1, regulation__epochs=1)
    first, paid, _ = run(config, storage)
    second, free, _ = run(replace_paths(config, {"regulation.balance": 0.8, "regulation.kind": "learnable"}), storage)
    assert [row.epoch for row in paid.epochs("pretraining")] == [1, 2, 3]
    assert free.epochs("pretraining") == []
    assert first.pretraining.paid_seconds == pytest.approx(sum(row.seconds for row in paid.epochs("pretraining")))
    assert second.pretraining.experience_seconds == first.pretraining.experience_seconds == first.pretraining.paid_seconds
    images = ImageSetConfig(name="digits", split_seed=5)
    for control in ("shuffled", "neutral"):
        _, recorder, _ = run(replace_paths(config, {"control": control, "neutral": images}), storage)
        assert [row.learning_rate for row in recorder.epochs("pretraining")] == [
            row.learning_rate for row in paid.epochs("pretraining")
        ], control
    for control in ("emotional", "untrained", "plain"):
        assert run(replace_paths(config, {"control": control}), storage)[1].epochs("pretraining") == [], control


# To the bit


EVERYTHING = replace_paths(TINY, {**RANDOM, "pretraining.epochs": 2, "pretraining.cooldown_epochs": 2})


def final_state(storage: Path) -> object:
    """Network, optimizer, streams and losses at the end of its cool-down, whoever trained the epochs."""
    state = load_state(states(storage)["cooled down after 2 epochs", 4, 0])
    assert state is not None
    losses = [row["record"]["train_loss"] for row in state["history"]]
    assert len(losses) == 4
    return {**state, "history": losses, "key": None}


def apart(storage: Path, name: str) -> Path:
    """A storage of its own, with the image sets of another."""
    folder = storage / name
    folder.mkdir()
    (folder / "imagesets").symlink_to(storage / "imagesets")
    return folder


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_cooldown_from_a_shared_run_is_as_one_that_was_trained_alone(optimizer: str, storage: Path) -> None:
    config = replace_paths(EVERYTHING, {"pretraining.optimizer.name": optimizer})
    obtain(replace_paths(config, {"pretraining.epochs": 3, "pretraining.cooldown_epochs": 0}), storage, store_in(storage))
    _, epochs, net = obtain(config, storage, store_in(storage))
    assert epochs == [3, 4]
    alone = apart(storage, "alone")
    _, epochs, expected = obtain(config, alone, store_in(alone, share=False))
    assert epochs == [1, 2, 3, 4]
    assert equal(net.state_dict(), expected.state_dict())
    assert same(final_state(storage), final_state(alone))
    constant = replace_paths(config, {"pretraining.epochs": 4, "pretraining.cooldown_epochs": 0})
    assert not equal(net.state_dict(), obtain(constant, storage, store_in(storage))[2].state_dict())


def test_one_that_is_stopped_after_every_step_goes_on_to_the_bit(storage: Path) -> None:
    straight = apart(storage, "straight")
    _, _, expected = obtain(EVERYTHING, straight, store_in(straight))
    places = []
    while True:
        with contextlib.suppress(Interrupted):
            _, epochs, net = obtain(EVERYTHING, storage, store_in(storage), should_stop=lambda: True)
            break
        places.append(max(states(storage), key=lambda place: place[1:]))
    constant = [("seed 0", *place) for place in ((0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0))]
    cooldown = [("cooled down after 2 epochs", *place) for place in ((2, 1), (2, 2), (3, 0), (3, 1), (3, 2), (4, 0))]
    assert places == constant + cooldown
    assert epochs == [1, 2, 3, 4]
    assert equal(net.state_dict(), expected.state_dict())
    assert same(final_state(storage), final_state(straight))


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_killed_trial_goes_on_to_the_bit(epoch: int, storage: Path) -> None:
    config = replace_paths(EVERYTHING, {"regulation.epochs": 1})
    with pytest.raises(Stop):
        run(config, storage, Recorder(("pretraining", epoch)), checkpoint_seconds=0)
    again, recorder, network = run(config, storage)
    straight = apart(storage, "straight")
    whole, events, expected = run(config, straight)
    assert equal(network, expected)
    assert recorder.numbers() == events.numbers(), "every epoch once, in order"
    assert again.val_loss == whole.val_loss
    assert again.pretraining.paid_seconds == pytest.approx(sum(row.seconds for row in recorder.epochs("pretraining")))
    assert sum(use.paid_seconds for entry in entries(store_in(storage).files) for use in entry.uses) == pytest.approx(
        again.pretraining.paid_seconds
    )


def test_a_shared_run_that_diverges_is_not_cooled_down(storage: Path) -> None:
    wild: dict[str, Value] = {
        "pretraining.optimizer.name": "sgd",
        "pretraining.optimizer.learning_rate": 1e30,
        "pretraining.optimizer.gradient_clip": 1e30,
        "pretraining.warmup_steps": 0,
    }
    config = replace_paths(cooled(3, 1), wild)
    with pytest.raises(Diverged) as first:
        obtain(config, storage, store_in(storage))
    steps: list[int] = []
    for other in (config, replace_paths(config, {"pretraining.cooldown_epochs": 2})):
        with pytest.raises(Diverged) as second:
            obtain(other, storage, store_in(storage), should_stop=lambda: bool(steps.append(1)))
        assert (second.value.stage, second.value.step) == (first.value.stage, first.value.step)
    assert steps == []
    store = store_in(storage)
    for entry in entries(store.files):
        assert store.locks.try_acquire(entry.key), "the lock was kept"
        store.locks.release(entry.key)
