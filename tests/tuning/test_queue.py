from __future__ import annotations

from emoreg.config import Value, replace_paths
from emoreg.config.resolved import resolve_trial
from emoreg.tuning.queue import Job, JobQueue
from tests.helpers.trials import TINY


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def job(**values: Value) -> Job:
    config = replace_paths(TINY, {path.replace("__", "."): value for path, value in values.items()})
    return Job(trial=resolve_trial(config), role="search")


def queue_of(*jobs: Job) -> JobQueue:
    queue = JobQueue(clock=Clock())
    for item in jobs:
        queue.add(item)
    return queue


def test_one_trial_trains_a_shared_run_and_the_others_start_at_their_lengths() -> None:
    long, short, middle = (job(pretraining__epochs=epochs, regulation__balance=epochs / 100) for epochs in (8, 2, 4))
    queue = queue_of(long, short, middle)
    assert queue.start() is long
    assert queue.start() is None
    assert queue.num_waiting == 2
    queue.reached(long.identity, 1)
    assert queue.start() is None
    queue.reached(long.identity, 2)
    assert queue.start() is short  # while the shared run goes on
    assert queue.start() is None
    queue.reached(long.identity, 4)
    assert queue.start() is middle
    assert queue.num_waiting == 0


def test_a_longer_trial_takes_the_shared_run_further_once_its_trainer_has_its_own() -> None:
    short, long, other = (
        job(pretraining__epochs=2),
        job(pretraining__epochs=8),
        job(pretraining__epochs=8, regulation__balance=0.9),
    )
    queue = queue_of(short, long, other)
    assert queue.start() is short
    assert queue.start() is None
    queue.experience_ready(short.identity)
    assert queue.start() is long
    assert queue.start() is None, "two would train the same pre-training"
    queue.experience_ready(long.identity)
    assert queue.start() is other


def test_a_cooldown_is_waited_for_and_the_run_before_it_no_longer() -> None:
    first, again, longer, other = (
        job(pretraining__epochs=2, pretraining__cooldown_epochs=3),
        job(pretraining__epochs=2, pretraining__cooldown_epochs=3, regulation__balance=0.9),
        job(pretraining__epochs=4, pretraining__cooldown_epochs=3),
        job(pretraining__epochs=2, pretraining__cooldown_epochs=1),
    )
    queue = queue_of(first, again, longer, other)
    assert queue.start() is first
    queue.reached(first.identity, 1)
    assert queue.start() is None
    queue.reached(first.identity, 2)
    assert queue.start() is longer, "the first cools down, and trains what all lengths share no more"
    assert queue.start() is other, "the state that it begins its own cool-down with is there"
    queue.reached(first.identity, 4)
    assert queue.start() is None, "epochs of a cool-down are none of the shared run"
    assert queue.num_waiting == 1
    queue.experience_ready(first.identity)
    assert queue.start() is again


def test_trials_of_other_shared_runs_and_of_none_go_first() -> None:
    first, waits, other_seed = job(), job(regulation__balance=0.9), job(seed=7)
    plain, untrained = job(control="plain"), job(pretraining__epochs=0)
    queue = queue_of(first, waits, other_seed, plain, untrained)
    assert [queue.start() for _ in range(5)] == [first, other_seed, plain, untrained, None]
    assert queue.num_waiting == 1


def test_a_trainer_that_dies_gives_the_shared_run_to_the_next_and_pauses_before_it_comes_again() -> None:
    clock = Clock()
    queue = JobQueue(clock=clock)
    first, second = job(), job(regulation__balance=0.9)
    queue.add(first)
    queue.add(second)
    assert queue.start() is first
    assert first.identity in queue
    queue.add(queue.end(first.identity), pause=5.0)
    assert first.identity in queue
    assert queue.start() is second
    queue.experience_ready(second.identity)
    clock.now = 4.9
    assert queue.start() is None
    assert queue.num_waiting == 0  # it waits for its pause, not for a shared run
    clock.now = 5.0
    assert queue.start() is first
    assert (first.attempts, second.attempts) == (2, 1)


def test_an_end_forgets_the_trial() -> None:
    only = job()
    queue = queue_of(only)
    queue.start()
    assert queue.end(only.identity) is only
    assert only.identity not in queue
    assert len(queue) == 0
