from __future__ import annotations

import os
from contextlib import closing

import pytest
import ray

from emoreg.tuning.coordination import ActorLocks, StopSignal
from tests.helpers.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("ray_local")]


class Holder:
    def take(self, key: str) -> tuple[bool, int]:
        self.locks = ActorLocks("/store")
        return self.locks.try_acquire(key), os.getpid()


def test_one_holder_a_key_and_a_store() -> None:
    one, other = ActorLocks("/store"), ActorLocks("file:///store")
    assert one.try_acquire("a")
    assert not other.try_acquire("a")
    assert other.try_acquire("b")
    elsewhere = ActorLocks("/another store")
    assert elsewhere.try_acquire("a")
    one.release("a")
    wait_for(lambda: other.try_acquire("a"))
    for locks, key in ((other, "a"), (other, "b"), (elsewhere, "a")):
        locks.release(key)


def test_a_holder_killed_gives_its_lock_back_within_seconds() -> None:
    holder = ray.remote(num_cpus=0)(Holder).remote()
    taken, pid = ray.get(holder.take.remote("c"))
    assert taken
    locks = ActorLocks("/store")
    assert not locks.try_acquire("c")
    os.kill(pid, 9)
    assert wait_for(lambda: locks.try_acquire("c")) < 5
    locks.release("c")


def test_a_stop_signal_reaches_who_watches_already_and_who_comes_later_and_no_other_trial() -> None:
    def watch(signal: StopSignal, wait: bool) -> bool:
        with closing(signal.watch("a")) as is_set:
            if wait:
                wait_for(is_set)
            return is_set()

    signal = StopSignal()
    watcher = ray.remote(num_cpus=0)(watch)
    with closing(signal.watch("b")) as first, closing(signal.watch("b")) as again:
        signal.set("b")  # for one trial
        wait_for(first)
        wait_for(again)
    assert ray.get(watcher.remote(signal, False)) is False
    waiting = watcher.remote(signal, True)
    assert ray.wait([waiting], timeout=0.5) == ([], [waiting])
    signal.set()  # for all
    assert ray.get(waiting) is True
    assert ray.get(watcher.remote(signal, True)) is True


def test_a_signal_that_is_gone_tells_nobody_to_stop() -> None:
    signal = StopSignal()
    with closing(signal.watch("a")) as is_set:
        ray.kill(signal._actor)
        wait_for(lambda: bool(ray.wait([is_set._call], timeout=0)[0]))
        wait_for(lambda: is_set._next_poll == float("inf") or is_set())
        assert not is_set()
