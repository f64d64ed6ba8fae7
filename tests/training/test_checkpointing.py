from __future__ import annotations

import math
import threading

import pytest
import torch
from torch import nn

from emoreg.config.resolved import resolve_trial
from emoreg.errors import Diverged, Interrupted
from emoreg.storage.checkpoint import State
from emoreg.training.checkpointing import Checkpointer, LoopState
from emoreg.training.history import History
from emoreg.training.oom import MicroBatches
from tests.helpers.trials import TINY, Recorder
from tests.helpers.waiting import PATIENCE
from tests.helpers.written import epoch_record


def state_of() -> LoopState:
    network = nn.Linear(2, 2)
    return LoopState(
        stage="pretraining",
        network=network,
        device=torch.device("cpu"),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        batches=torch.Generator(),
        micro_batches=MicroBatches(network),
    )


def test_sums_weigh_batches_by_their_size() -> None:
    state = state_of()
    state.add_step(torch.tensor(1.0), torch.tensor([0, 1, 1]), torch.eye(2)[[0, 1, 0]])
    state.add_step(torch.tensor(5.0), torch.tensor([1]), torch.eye(2)[[1]])
    assert state.train_loss == pytest.approx(2.0)
    assert state.train_accuracy == 0.75
    assert (state.epoch, state.step, state.step_in_epoch) == (0, 2, 2)
    other = state_of()
    other.load_dict(state.to_dict())
    assert (other.train_loss, other.train_accuracy, other.step) == (state.train_loss, 0.75, 2)
    state.add_step(torch.tensor(5.0), torch.eye(2), torch.eye(2))
    assert state.train_accuracy is None  # not counted for all
    state.end_epoch()
    assert (state.epoch, state.step, state.step_in_epoch) == (1, 3, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_the_first_step_that_is_not_finite_is_named(bad: float) -> None:
    state = state_of()
    state.step = 100
    for loss in (1.0, 2.0):
        state.add_step(torch.tensor(loss), torch.tensor([0]), torch.eye(2)[:1])
    state.check_finite()
    for loss in (bad, 1.0, bad):
        state.add_step(torch.tensor(loss), torch.tensor([0]), torch.eye(2)[:1])
    with pytest.raises(Diverged) as caught:
        state.check_finite()
    assert (caught.value.stage, caught.value.step) == ("pretraining", 102)


def test_a_state_is_saved_when_it_counts_when_time_has_passed_and_before_a_stop() -> None:
    written: list[tuple[int, bool]] = []
    asked = False

    def write(saved: State, is_kept: bool) -> None:
        written.append((saved["epoch"], is_kept))

    def should_stop() -> bool:
        return asked

    def checkpointer(seconds: float) -> Checkpointer:
        return Checkpointer(
            latest=None,
            history=History("", "", []),
            keeps=lambda epoch: epoch == 2,
            write=write,
            seconds=seconds,
            should_stop=should_stop,
            last_epoch=4,
        )

    state = state_of()
    with checkpointer(math.inf) as seldom:
        for _ in range(3):
            state.end_epoch()
            assert not seldom.should_save()
            seldom.save(state)
    assert written == [(2, True)]
    with checkpointer(0.0) as often:
        assert often.should_save()
        often.save(state)
    assert written[1:] == [(3, False)]
    asked = True
    with checkpointer(math.inf) as stopping:
        assert stopping.should_save()
        with pytest.raises(Interrupted):
            stopping.save(state)
        assert written[2:] == [(3, False)]  # safe before it raises
        state.end_epoch()
        stopping.save(state)  # the end is no stop
    assert written[3:] == [(4, False)]


@pytest.mark.parametrize("is_shared", [True, False])
def test_an_epoch_that_others_may_train_again_is_told_once_it_is_stored(is_shared: bool) -> None:
    trial, recorder, may_write = resolve_trial(TINY), Recorder(), threading.Event()

    def told() -> list[int]:
        return [row.epoch for row in recorder.epochs("pretraining")]

    state = state_of()
    with Checkpointer(
        latest=None,
        history=History("", trial.identity, [recorder]),
        keeps=lambda epoch: epoch == 2,
        write=lambda saved, is_kept: may_write.wait(PATIENCE) or pytest.fail("it may never write"),
        seconds=math.inf,
        should_stop=lambda: False,
        is_shared=is_shared,
    ) as checkpointer:
        for epoch in (1, 2, 3):
            checkpointer.history.add(epoch_record(trial, "pretraining", epoch, 0.5), [])
            state.end_epoch()
            checkpointer.save(state)
            checkpointer.report()
        assert told() == ([] if is_shared else [1, 2, 3]), "the second epoch is being written"
        may_write.set()
        while is_shared and len(told()) < 2:
            checkpointer.report()
        assert told() == ([1, 2] if is_shared else [1, 2, 3])
    assert told() == [1, 2, 3], "a loop that has ended tells all"
