from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing

import pytest
import ray

from emoreg.tuning.coordination import ActorLeases, StopSign

pytestmark = pytest.mark.usefixtures("ray_local")


class Holder:
    def take(self, key: str) -> tuple[bool, int]:
        self.leases = ActorLeases("/store")
        return self.leases.try_acquire(key), os.getpid()


def until(condition: Callable[[], bool], seconds: float = 30.0) -> float:
    """Seconds until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.01)  # between two looks at the condition
    return time.monotonic() - start


def test_one_holder_a_trunk_and_a_store() -> None:
    one, other = ActorLeases("/store"), ActorLeases("file:///store")
    assert one.try_acquire("a")
    assert not other.try_acquire("a")
    assert other.try_acquire("b")
    elsewhere = ActorLeases("/another store")
    assert elsewhere.try_acquire("a")
    one.release("a")
    until(lambda: other.try_acquire("a"))
    for leases, key in ((other, "a"), (other, "b"), (elsewhere, "a")):
        leases.release(key)


def test_a_holder_killed_gives_its_lease_back_within_seconds() -> None:
    holder = ray.remote(num_cpus=0)(Holder).remote()
    taken, pid = ray.get(holder.take.remote("c"))
    assert taken
    leases = ActorLeases("/store")
    assert not leases.try_acquire("c")
    os.kill(pid, 9)
    assert until(lambda: leases.try_acquire("c")) < 5
    leases.release("c")


def test_a_stop_sign_reaches_who_looks_already_and_who_comes_later() -> None:
    def look(sign: StopSign, wait: bool) -> bool:
        with closing(sign.watch()) as is_up:
            if wait:
                until(is_up)
            return is_up()

    sign = StopSign()
    looker = ray.remote(num_cpus=0)(look)
    assert ray.get(looker.remote(sign, False)) is False
    waiting = looker.remote(sign, True)
    assert ray.wait([waiting], timeout=0.5) == ([], [waiting])
    sign.put_up()
    assert ray.get(waiting) is True
    assert ray.get(looker.remote(sign, True)) is True


def test_a_sign_that_is_gone_tells_nobody_to_stop() -> None:
    sign = StopSign()
    with closing(sign.watch()) as is_up:
        ray.kill(sign._actor)
        until(lambda: bool(ray.wait([is_up._call], timeout=0)[0]))
        until(lambda: is_up._next_look == float("inf") or is_up())
        assert not is_up()
