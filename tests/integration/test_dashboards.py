"""The dashboards on a study, started by the command line and opened in a real Chromium."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from emoreg.tracking.study_board import RUN, StudyBoard
from playwright.sync_api import expect

from emoreg.results.records import Records
from emoreg.storage.files import Files
from emoreg.tracking.tensorboard import finish, write_experiment
from emoreg.tuning.optuna_study import open_study
from emoreg.tuning.postgres import address_of
from emoreg.tuning.reconcile import reconcile
from tests.helpers.browser import needs_chromium, opened
from tests.helpers.written import made_up_config, write_study
from tests.integration.test_tensorboard_server import wait_until

CONFIG = made_up_config()
SECONDS = 30_000
"""Most that an element of a page may take, in the milliseconds that Playwright counts: TensorBoard loads 5 MB of script."""

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up study with Optuna's history and the events of its trials and its own."""
    folder = write_study(tmp_path_factory.mktemp("dashboards"), CONFIG, num_seeds=0)
    records = Records(folder)
    reconcile(open_study(CONFIG, folder), CONFIG, records.trials)
    write_experiment(folder, CONFIG)
    for record in records.trials.values():
        finish(folder, record)
    board = StudyBoard(folder, CONFIG, records, 1)
    for record in list(records.trials.values())[-3:]:
        board.ended(record, running=2, slots=2, gpu_utilisation=0.75)
    board.end(draw=True)
    return folder


@contextmanager
def served(*arguments: str) -> Iterator[list[str]]:
    """The addresses that a command prints, which Ctrl-C ends well at the end of a block, leaving nothing of it."""
    command = [sys.executable, "-m", "emoreg", *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            lines = list(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
            yield re.findall(r"http://127\.0\.0\.1:\d+\S*", "".join(lines))
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
            wait_until(lambda: not _group(process.pid), "the end of what it started")
        finally:
            for pid in _group(process.pid):
                os.kill(pid, signal.SIGKILL)


def _group(leader: int) -> list[int]:
    """The living processes of a group."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(pid) for pid, group, state in map(str.split, found) if int(group) == leader and not state.startswith("Z")]


def own(address: str, requests: list[str]) -> list[str]:
    """What was asked of anybody else than the server."""
    server = re.match(r"http://[^/]+/", address)
    assert server is not None
    return [url for url in requests if not url.startswith((server[0], "data:", "blob:"))]


def answer(url: str) -> Any:
    with OPENER.open(url, timeout=10) as response:
        return json.load(response)


@needs_chromium
def test_optuna_dashboard_shows_the_search_and_changes_nothing(study: Path) -> None:
    journal = (study / "optuna.journal").read_bytes()
    with served("dashboard", str(study)) as (address,):
        assert re.search(r"/dashboard/studies/\d+$", address)
        with opened(address) as found:
            expect(found.page.get_by_text("made-up").first).to_be_visible(timeout=SECONDS)
            expect(found.page.locator(".js-plotly-plot").first).to_be_visible(timeout=SECONDS)
        assert found.errors == []
        assert own(address, found.requests) == []
        request = urllib.request.Request(f"{address.partition('/dashboard')[0]}/api/studies/0", method="DELETE")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            OPENER.open(request)
    assert (study / "optuna.journal").read_bytes() == journal


@needs_chromium
def test_tensorboard_draws_regulation_and_its_controls_in_one_chart(study: Path) -> None:
    with served("tensorboard", str(study)) as (address, whole):
        wait_until(lambda: f"{RUN}/untrained" in answer(f"{address}data/runs"), "the controls' runs")
        with opened(whole, width=1400, height=1000) as found:
            page = found.page
            chart = page.locator("tf-custom-scalar-multi-line-chart-card").first
            expect(chart).to_be_visible(timeout=SECONDS)
            expect(page.get_by_text("Matches (6)")).to_have_count(2, timeout=SECONDS)
            page.goto(f"{address}#images&regexInput=%5Estudy")
            page.reload()
            expect(page.locator("tf-image-loader")).to_have_count(2, timeout=SECONDS)
            expect(page.locator("tf-image-loader img").first).to_be_visible(timeout=SECONDS)
        assert found.errors == []
        assert own(address, found.requests) == []


@pytest.mark.parametrize("command", ["dashboard", "tensorboard"])
def test_a_port_that_is_taken_is_said(study: Path, command: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = [sys.executable, "-m", "emoreg", command, str(study), "--port", str(port)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert f"127.0.0.1:{port} cannot be listened on" in done.stderr
    assert "Traceback" not in done.stderr


def test_they_follow_a_study_in_an_object_store(study: Path, bucket: str) -> None:
    files = Files(bucket)

    def upload(*names: str) -> None:
        for name in names:
            files.write(name, (study / name).read_bytes())

    events = [path.relative_to(study).as_posix() for path in (study / "events").rglob("*") if path.is_file()]
    upload("study.json", "optuna.journal", *[name for name in events if name.count("/") < 2])
    with served("tensorboard", bucket) as (address, _):
        assert RUN not in answer(f"{address}data/runs")
        upload(*[name for name in events if f"/{RUN}/" in name])
        wait_until(lambda: RUN in answer(f"{address}data/runs"), "what came later")
    with served("dashboard", bucket) as (address,):
        number = address.rpartition("/")[2]
        shown = answer(f"{address.partition('/dashboard')[0]}/api/studies/{number}")
        assert len(shown["trials"]) >= CONFIG.num_trials


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_the_search_of_a_study_in_a_database(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path}/search.db" if kind == "sqlite" else request.getfixturevalue("database")
    config = made_up_config(optuna_storage=url, num_trials=3, controls=())
    folder = write_study(tmp_path, config, num_seeds=0)
    history = optuna.storages.RDBStorage(address_of(url).render_as_string(hide_password=False))
    search = optuna.create_study(storage=history, study_name=config.name, direction="maximize")
    search.add_trials([optuna.trial.create_trial(value=0.5)] * 3)
    history.engine.dispose()
    assert "secret" not in (folder / "study.json").read_text()
    with served("dashboard", str(folder)) as (address,):
        number = address.rpartition("/")[2]
        shown = answer(f"{address.partition('/dashboard')[0]}/api/studies/{number}")
    assert [trial["state"] for trial in shown["trials"]] == ["Complete"] * 3
