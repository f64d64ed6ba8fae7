"""Kills -9 of a study's processes: at random moments, and at exact writes."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from random import Random

from tests.faults.harness import Disturbed, Ground, Tally, fault, total

AT_WRITES = {
    **{"study.json": 1, ".arrow": 2, "runs.parquet": 1, "epochs.parquet": 6, "probes.parquet": 6, "trials.parquet": 6},
    **{"optuna.journal": 20, "trial.ckpt": 12, "made.json": 2, "3.ckpt": 1, "4+1.partial": 1},
}
"""Files that somebody is killed over, and how often each is written at least: one of these times is chosen."""


@fault("kill -9 of the driver, a worker, or the driver with all its processes, at random moments")
def kill_at_random(ground: Ground, chance: Random) -> Tally:
    tallies: list[Tally] = []
    while sum(tally.tried for tally in tallies) < ground.kills:
        with ground.study() as study:
            study.start()
            left = ground.kills - sum(tally.tried for tally in tallies)
            while study.tally.tried < left and _comes_to_a_moment(study, chance):
                _kill_one(study, chance)
            tallies.append(study.finish())
    return total(tallies)


def _comes_to_a_moment(study: Disturbed, chance: Random) -> bool:
    """Whether a random moment comes, in a driver that is started again where it was killed, before the study has ended."""
    if study.driver.process.poll() is not None:
        if study.ended(study.driver) == 0:
            return False
        study.start()
    if chance.random() < 0.25:  # by the clock: also while it starts
        moment = study.driver.began + chance.uniform(0.5, 12.0)
        return study.driver.wait_for(lambda: time.monotonic() >= moment)
    lines = study.num_log_lines() + chance.randrange(1, 9)
    return study.driver.wait_for(lambda: study.num_log_lines() >= lines)


def _kill_one(study: Disturbed, chance: Random) -> None:
    driver, workers, choice = study.driver, study.workers(), chance.random()
    if workers and choice < 0.6:
        victim = "a worker"
        with suppress(ProcessLookupError):
            os.kill(chance.choice(workers), signal.SIGKILL)
    elif choice < 0.8:
        victim = "the driver"
        driver.process.kill()
    else:
        victim = "all"
        driver.signal_all(signal.SIGKILL)
    if victim != "a worker":
        driver.process.wait()
    study.tally.tried += 1
    study.tally.answers[victim] += 1


@fault("kill -9 between write and rename, or within a line of the journal")
def kill_at_writes(ground: Ground, chance: Random) -> Tally:
    moments = ground.new_folder("moments")
    moments.mkdir()
    for name, times in AT_WRITES.items():
        (moments / name).touch()
        for number in range(1, chance.randrange(times) + 1):
            (moments / f"{name}~{number}").touch()
    with ground.study(moments=moments) as study:
        study.start()
        tally = study.finish()
        never = [path.name for path in moments.iterdir()]
        tally.tried = len(AT_WRITES) - sum("~" not in name for name in never)
        tally.notes += [f"the moment never came: {name}" for name in never]
        return tally
