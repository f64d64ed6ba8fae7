"""A word at the end of a run, taken by a server on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import emoreg
from emoreg.config import from_json, shown_url, to_json, without_secrets
from emoreg.errors import ConfigError, StorageError
from emoreg.tracking.notify import notifying
from tests.helpers.studies import tiny_study
from tests.helpers.written import made_up_config, write_study


class Server(HTTPServer):
    """Takes POSTs, and answers as it is told to."""

    answer = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.taken: list[tuple[str, dict[str, str], Any]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.append((self.path, dict(self.headers), content))
        self.send_response(self.server.answer)
        self.send_header("Location", f"{self.server.url}/elsewhere")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.taken.append((self.path, dict(self.headers), None))

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0))


def test_it_says_how_the_study_ended_its_trials_and_the_best(server: Server, place: str) -> None:
    messages: list[str] = []
    with notifying(f"{server.url}/hook", "made-up", place, messages.append):
        assert server.taken == []
    ((path, headers, content),) = server.taken
    assert (path, headers["Content-Type"], messages) == ("/hook", "application/json", [])
    assert content.keys() == {"text", "study", "place", "ending", "reason", "trials", "best"}
    assert (content["study"], content["ending"], content["reason"]) == ("made-up", "completed", None)
    assert content["trials"]["ended"] == content["trials"]["planned"] == 38
    best = content["best"]
    assert content["text"].startswith("study 'made-up': completed, 38 of 38 trials have ended, ")
    assert f"best validation accuracy {100 * best['value']:.1f} %: {best['backbone']}, " in content["text"]


def test_it_says_why_a_study_could_not_go_on(server: Server, place: str) -> None:
    with (
        pytest.raises(StorageError),
        notifying(server.url, "made-up", place, print),
    ):
        raise StorageError("Mend s3://key:hush@bucket: the disk is full")
    ((_, _, content),) = server.taken
    assert (content["ending"], content["study"]) == ("error", "made-up")
    assert content["reason"] == "Mend s3://key:***@bucket: the disk is full"


def test_a_user_and_password_go_into_a_header_and_nowhere_else(server: Server, place: str) -> None:
    with notifying(server.url.replace("://", "://me:p%40ss@") + "/topic", "made-up", place, print):
        pass
    ((path, headers, _),) = server.taken
    assert (path, headers["Authorization"]) == ("/topic", "Basic bWU6cEBzcw==")
    assert "@" not in headers["Host"]


@pytest.mark.parametrize("answer", [302, 404, 500])
def test_what_is_not_taken_is_told_and_never_followed_elsewhere(answer: int, server: Server, place: str) -> None:
    server.answer = answer
    messages: list[str] = []
    with notifying(f"{server.url}/T0/secret", "made-up", place, messages.append):
        pass
    assert len(server.taken) == 1
    (message,) = messages
    assert message.startswith("Check --notify: http://127.0.0.1/*** must take a POST of JSON, but it did not (")
    assert "secret" not in message


def test_a_server_that_is_not_there_is_told(place: str) -> None:
    messages: list[str] = []
    with notifying("http://127.0.0.1:9/secret", "made-up", place, messages.append):
        pass
    assert "Connection refused" in messages[0]
    assert "secret" not in messages[0]


def test_a_study_sends_it_when_it_is_run(server: Server, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from emoreg.tuning.study import RunEnd

    monkeypatch.setattr("emoreg.tuning.study.run_study", lambda *_, **__: RunEnd.COMPLETED)
    monkeypatch.setattr("emoreg.tuning.preflight.check_study", lambda *_, **__: None)
    study = emoreg.load_study(place)
    study.run()
    assert server.taken == []
    study.config = emoreg.Study("made-up", search_space=study.config.search_space, notify=f"{server.url}/hook").config
    study.config = type(study.config)(
        **{name: getattr(study.config, name) for name in ("name", "search_space", "notify")}, storage=str(Path(place).parent)
    )
    study.run()
    assert [path for path, _, _ in server.taken] == ["/hook"]


def test_its_url_is_kept_nowhere_and_shown_nowhere(place: str) -> None:
    secret = "https://me:hush@hooks.example.com/services/T0/B0/hush"
    study = tiny_study(notify=secret)
    assert "hush" not in repr(study)
    written = to_json(study.without_password())
    assert written["notify"] == "https://hooks.example.com/***" == shown_url(secret)
    assert from_json(type(study), written).notify == "https://hooks.example.com/***"
    for command in (
        f"emoreg run x --notify {secret}",
        f"emoreg run x --notify={secret} --num-trials 3",
        f"--notify '{secret}'",
    ):
        assert "hush" not in without_secrets(command)
    assert without_secrets(f"run --notify={secret} --num-trials 3") == "run --notify=https://*** --num-trials 3"
    assert emoreg.load_study(place).config.notify is None


@pytest.mark.parametrize("url", ["hooks.example.com/hush", "ftp://example.com/hush", "https:///hush", "https://a b/hush", ""])
def test_what_is_no_url_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigError, match=r"^Give one whole: notify must be an http:// or https:// URL, but it is") as told:
        tiny_study(notify=url)
    assert "hush" not in str(told.value)
