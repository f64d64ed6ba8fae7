"""Servers that freeze, lie, stop and start again, and a driver that was frozen while another took its study."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from random import Random

from tests.faults.harness import Disturbed, Ground, Tally, family, fault
from tests.helpers.postgres import PostgreSQL, postgresql_server
from tests.helpers.s3 import s3_server
from tests.integration.gate import Gate

AWAY = "does not answer; waiting until"
FENCED = "It stores nothing more"
LIES = 6


@fault("a driver suspended, its study in S3 taken over, and woken")
def zombie(ground: Ground, chance: Random) -> Tally:
    with s3_server() as server, ground.study(server.bucket()) as study:
        first = study.start()
        study.comes_to(1)
        suspended = family(first.process.pid) if chance.random() < 0.5 else [first.process.pid]
        _send(suspended, signal.SIGSTOP)
        num_before = len(study.recorded())
        study.start()
        study.comes_to(num_before + 1)
        woken = time.monotonic()
        _send(suspended, signal.SIGCONT)
        study.waited(first, FENCED, woken)
        code = study.ended(first)
        if code != 2:
            study.tally.notes.append(f"the suspended driver ended with {code}: {first.output}")
        study.tally.tried = 1
        return study.finish()


def _send(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


@fault("the S3 server frozen")
def frozen_s3(ground: Ground, chance: Random) -> Tally:
    with s3_server() as server, Gate(server.address) as gate:
        bucket = server.bucket()
        with ground.study(bucket) as study:
            driver = study.start(bucket.replace(server.address, gate.address))
            for num_trials in (1, 4):
                if study.comes_to(num_trials):
                    with gate.frozen():
                        if driver.wait_for(lambda: gate.first_held is not None, pause=0.1):
                            assert gate.first_held is not None
                            study.waited(driver, AWAY, gate.first_held)
                            study.tally.tried += 1
                        time.sleep(chance.uniform(0, 5))  # the fault itself: for so long it lasts
            return study.finish()


class Liar:
    """Changes some of what a server answers: a bit, or all that would come after."""

    def __init__(self, chance: Random, num_lies: int) -> None:
        self.num_told = 0
        self._chance = chance
        self._num_lies = num_lies
        self._lock = threading.Lock()

    def __call__(self, content: bytes) -> bytes:
        with self._lock:
            if self.num_told == self._num_lies or self._chance.random() > 0.02:
                return content
            self.num_told += 1
            if self._chance.random() < 0.3:
                return content[: self._chance.randrange(len(content))]
            lie = bytearray(content)
            lie[self._chance.randrange(len(lie))] ^= 1 << self._chance.randrange(8)
            return bytes(lie)


@fault("an S3 server that lies: a wrong bit in an answer, or an answer cut short")
def lying_s3(ground: Ground, chance: Random) -> Tally:
    liar = Liar(chance, LIES)
    with s3_server() as server, Gate(server.address, liar) as gate:
        bucket = server.bucket()
        with ground.study(bucket) as study:
            study.ended(study.start(bucket.replace(server.address, gate.address)))
            study.tally.tried = liar.num_told
            return study.finish()


@fault("PostgreSQL stopped and started, crashed, frozen")
def postgresql_away(ground: Ground, chance: Random) -> Tally:
    def stopped(server: PostgreSQL, while_away: Callable[[], None]) -> None:
        server.stop()
        while_away()
        server.start()

    def restarted(server: PostgreSQL, while_away: Callable[[], None]) -> None:
        server.stop()
        server.start()

    def crashed(server: PostgreSQL, while_away: Callable[[], None]) -> None:
        server.stop("immediate")
        while_away()
        server.start()

    def frozen(server: PostgreSQL, while_away: Callable[[], None]) -> None:
        with server.frozen():
            while_away()
            time.sleep(chance.uniform(0, 5))  # the fault itself: for so long it lasts

    acts = [stopped, restarted, crashed, frozen]
    chance.shuffle(acts)
    with postgresql_server() as server, ground.study(database=server.create("emoreg")) as study:
        study.start()
        for number, act in enumerate(acts):
            if study.comes_to(1 + 2 * number):
                act(server, lambda: _wait_for_word(study))
                study.tally.tried += act is restarted  # which nobody need notice
        return study.finish()


def _wait_for_word(study: Disturbed) -> None:
    """Count the outage that begins now, and how long it is silent."""
    study.waited(study.driver, AWAY, time.monotonic())
    study.tally.tried += 1
