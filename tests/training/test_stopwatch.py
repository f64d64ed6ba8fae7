from __future__ import annotations

import time
from pathlib import Path

import pytest

from emoreg.training.stopwatch import Profile, Stopwatch
from tests.helpers.trials import CPU


def test_a_phase_does_not_count_what_another_one_within_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    profile = Profile(CPU, tmp_path)

    def forward(seconds: float) -> float:
        clock[0] += seconds
        return seconds

    for _ in range(2):
        with profile.phase("backward"):
            clock[0] += 2.0
            assert profile.timed("forward", forward)(1.0) == 1.0
            clock[0] += 3.0
    assert profile.seconds == {"forward": 2.0, "backward": 10.0}
    assert [*profile.each("data", (forward(number) for number in (4.0, 5.0)))] == [4.0, 5.0]
    assert profile.seconds["data"] == 9.0


def test_a_phase_that_breaks_is_counted_too(tmp_path: Path) -> None:
    profile = Profile(CPU, tmp_path)
    with pytest.raises(ValueError, match="broken"), profile.phase("writing"):
        raise ValueError("broken")
    assert profile.seconds.keys() == {"writing"}


def test_who_does_not_listen_is_told_and_does_nothing() -> None:
    stopwatch = Stopwatch()
    with stopwatch.stage("regulation"), stopwatch.phase("forward"):
        stopwatch.step()
    assert [*stopwatch.each("data", "ab")] == ["a", "b"]
