from __future__ import annotations

import re
import time
from collections.abc import Callable

import pytest

from emoreg.storage import retry
from emoreg.storage.retry import Patience

REASON = "the server does not answer"


def is_away(error: Exception) -> bool:
    return isinstance(error, ConnectionError)


class Server:
    """Answers from the call of some number on."""

    def __init__(self, answers_from: float) -> None:
        self.num_calls = 0
        self._answers_from = answers_from

    def __call__(self) -> str:
        self.num_calls += 1
        if self.num_calls < self._answers_from:
            raise ConnectionError(f"call {self.num_calls}")
        return "answer"


def seconds_of(call: Callable[[], object]) -> float:
    started = time.monotonic()
    with pytest.raises(ConnectionError):
        call()
    return time.monotonic() - started


def test_a_server_is_asked_until_it_answers() -> None:
    said: list[str] = []
    server = Server(answers_from=3)
    assert Patience(60, notify=said.append).retry(server, when=is_away, reason=REASON) == "answer"
    assert server.num_calls == 3
    assert said == [], "so short an outage is nobody's concern"


def test_what_is_an_answer_is_not_asked_for_again() -> None:
    calls: list[int] = []

    def refuse() -> None:
        calls.append(1)
        raise PermissionError("no")

    with pytest.raises(PermissionError):
        Patience(60).retry(refuse, when=is_away, reason=REASON)
    assert len(calls) == 1


@pytest.mark.slow
def test_an_outage_is_told_within_five_seconds_once_and_with_its_end() -> None:
    said: list[tuple[float, str]] = []
    started = time.monotonic()
    patience = Patience(5.0, notify=lambda text: said.append((time.monotonic() - started, text)))
    with pytest.raises(ConnectionError):
        patience.retry(Server(answers_from=float("inf")), when=is_away, reason=REASON)
    ((seconds, text),) = said
    assert seconds < 5
    assert re.fullmatch(rf"{REASON}; waiting until \d\d:\d\d", text)


def test_a_slow_failure_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_HICCUP_SECONDS", 0.1)
    said: list[str] = []
    num_calls = 0

    def hang() -> None:
        nonlocal num_calls
        num_calls += 1
        time.sleep(0.2)  # a server that accepts, and never answers
        raise ConnectionError

    patience = Patience(60, notify=said.append, should_stop=lambda: bool(said))
    seconds_of(lambda: patience.retry(hang, when=is_away, reason=REASON))
    assert (num_calls, len(said)) == (1, 1)


def test_an_outage_is_waited_for_once_whoever_asks() -> None:
    patience = Patience(0.3)
    away = Server(answers_from=float("inf"))
    assert seconds_of(lambda: patience.retry(away, when=is_away, reason=REASON)) >= 0.3
    calls = away.num_calls
    assert seconds_of(lambda: patience.retry(away, when=is_away, reason=REASON)) < 0.2
    assert away.num_calls == calls, "it was not even asked"
    assert patience.retry(Server(1), when=is_away, reason="another one") == "answer"


def test_a_server_that_answers_again_is_waited_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_SPENT_SECONDS", 0.0)
    patience = Patience(0.3)
    assert seconds_of(lambda: patience.retry(Server(float("inf")), when=is_away, reason=REASON)) >= 0.3
    assert seconds_of(lambda: patience.retry(Server(float("inf")), when=is_away, reason=REASON)) < 0.3
    assert patience.retry(Server(1), when=is_away, reason=REASON) == "answer"
    assert seconds_of(lambda: patience.retry(Server(float("inf")), when=is_away, reason=REASON)) >= 0.3


def test_a_stop_ends_a_wait_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_HICCUP_SECONDS", 0.1)
    monkeypatch.setattr(retry, "_PAUSE_SECONDS", (20.0, 20.0))
    end = time.monotonic() + 0.3
    patience = Patience(60, should_stop=lambda: time.monotonic() >= end)
    assert 0.3 <= seconds_of(lambda: patience.retry(Server(float("inf")), when=is_away, reason=REASON)) < 15


def test_what_is_saved_at_a_stop_is_not_lost_by_a_hiccup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_HICCUP_SECONDS", 1.0)
    patience = Patience(60, should_stop=lambda: True)
    assert patience.retry(Server(answers_from=2), when=is_away, reason=REASON) == "answer"
    assert seconds_of(lambda: patience.retry(Server(float("inf")), when=is_away, reason=REASON)) < 4
