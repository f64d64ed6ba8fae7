"""A run asks itself to stop in time before its budget, or Slurm, would end it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from emoreg.config import BudgetConfig, ResourcesConfig, StudyConfig
from emoreg.errors import ConfigError
from emoreg.results.records import RunRecord
from emoreg.tracking.observer import RunStatus
from emoreg.tuning.budget import Budget, slurm_seconds_left
from emoreg.tuning.signals import Stop
from tests.helpers.studies import tiny_study

HOUR = 3600.0


class Run:
    """A run with a budget, a clock that the test turns, and so many device hours in slots."""

    def __init__(self, *, hours_before: float = 0.0, grace_seconds: float = 36.0, **budget: float) -> None:
        config: StudyConfig = tiny_study(
            budget=BudgetConfig(**budget), resources=ResourcesConfig(grace_seconds=grace_seconds, gpus_per_trial=0)
        )
        self.now, self.messages = 0.0, list[str]()
        self.stop = Stop(grace_seconds)
        self._before = {1: run_record(1, hours_before)} if hours_before else {}
        self.budget = Budget(config, self.stop, self.messages.append, clock=lambda: self.now)

    def check(self) -> None:
        self.budget.check(self._before)

    def tick(self, *, hours: float, num_running: int = 1) -> None:
        run = run_record(2, hours)
        self.budget.on_tick(RunStatus(run=run, num_running=num_running, num_waiting=0, trials={}, num_planned=9))


def run_record(run: int, hours: float) -> RunRecord:
    return RunRecord(run=run, study="tiny", storage="runs", started="", slots=1, slot_seconds=hours * HOUR)


def test_hours_are_those_of_this_run_and_trials_have_their_grace_before_the_end() -> None:
    run = Run(hours=2.0, hours_before=100.0)
    run.check()
    run.now = 2 * HOUR - 37
    run.tick(hours=4.0)
    assert not run.stop.is_asked
    run.now = 2 * HOUR - 36
    run.tick(hours=4.0)
    assert run.stop.reason == "before its 2 hours were over (budget.hours)"
    assert run.messages == ["The study stops before its 2 hours were over (budget.hours)"]
    run.tick(hours=4.0)
    assert len(run.messages) == 1, "it is told once"


def test_device_hours_are_those_of_all_runs_and_each_running_trial_has_its_grace() -> None:
    run = Run(device_hours=10.0, hours_before=6.0)
    run.check()
    run.tick(hours=3.97, num_running=2)
    assert not run.stop.is_asked
    run.tick(hours=3.98, num_running=2)
    assert run.stop.reason == "before its 10 device hours were used up, so raise budget.device_hours"


def test_a_cost_is_device_hours_at_a_price() -> None:
    run = Run(cost=25.0, price_per_hour=2.5, device_hours=20.0)
    run.check()
    run.tick(hours=9.98)
    assert not run.stop.is_asked
    run.tick(hours=9.99)
    assert run.stop.reason == "before its 10 device hours were used up, so raise budget.cost"


def test_half_a_gpu_is_half_a_device_hour() -> None:
    config = tiny_study(budget=BudgetConfig(device_hours=1.0), resources=ResourcesConfig(gpus_per_trial=0.5))
    Budget(config, Stop(), print).check({1: run_record(1, 1.9)})
    with pytest.raises(ConfigError, match=r"1 of 1 have been used"):
        Budget(config, Stop(), print).check({1: run_record(1, 2.0)})


def test_what_is_used_up_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"^Raise budget.device_hours to go on: .* 9.995 of 10 have been used"):
        Run(device_hours=10.0, hours_before=9.995).check()
    Run(hours_before=1e6).check()


def test_a_stop_before_an_end_keeps_the_reason_and_is_over_after_its_grace() -> None:
    stop = Stop(grace_seconds=1e-9)
    stop.ask_before("before the end")
    stop.ask_before("before another")
    assert (stop.is_asked, stop.reason, stop.is_overdue) == (True, "before the end", True)
    signalled = Stop()
    signalled.ask(2)
    signalled.ask_before("before the end")
    assert signalled.reason is None, "a signal was first"


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"hours": 0.0}, "budget.hours must be above 0"),
        ({"hours": 0.001}, r"^Give more, .* longer than resources.grace_seconds \(25 s\)"),
        ({"cost": 3.0}, "^Give what an hour of the device costs: budget.price_per_hour must be given for a cost"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(budget: dict[str, float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tiny_study(budget=BudgetConfig(**budget))


def test_slurm_s_end_is_found_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 1000))
    run = Run()
    run.now = 1000 - 60 - 36 - 2
    run.tick(hours=0.0)
    assert not run.stop.is_asked
    run.now = 1000 - 60 - 36
    run.tick(hours=0.0)
    assert run.stop.reason == "before Slurm ends job 7"


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [
        ("echo 3:04", 184.0),
        ("echo 1:02:03", 3723.0),
        ("echo 2-00:00:01", 172801.0),
        ("echo UNLIMITED", None),
        ("echo INVALID", None),
        ("echo no such job >&2; exit 1", None),
    ],
)
def test_where_the_environment_does_not_say_squeue_is_asked(
    answer: str, seconds: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$*" = "--noheader --job=7 --format=%L" ] || exit 2\n{answer}\n')
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    messages: list[Any] = []
    for environment in ({"SLURM_JOB_ID": "7"}, {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "0"}):
        messages.clear()
        assert slurm_seconds_left(environment, messages.append) == seconds
    assert len(messages) == (answer not in ("echo UNLIMITED",) and seconds is None)


def test_without_squeue_it_says_so_and_outside_of_a_job_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    messages: list[str] = []
    assert slurm_seconds_left({"SLURM_JOB_ID": "7"}, messages.append) is None
    assert messages[0].startswith("Give the study an end with --budget.hours")
    assert slurm_seconds_left({}, messages.append) is None
    assert len(messages) == 1
