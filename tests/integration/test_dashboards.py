"""TensorBoard and optuna-dashboard on a study, started by the command line and opened in a real Chromium."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import optuna
import pytest
from playwright.sync_api import expect

from emoreg.config.resolved import resolve_trial
from emoreg.results.tables import Records
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tracking.study_tensorboard import RUN, write_study
from emoreg.tracking.tensorboard import finish, write_experiment
from emoreg.tuning.optuna_study import open_study
from emoreg.tuning.postgres import address_of
from emoreg.tuning.reconcile import reconcile
from tests.helpers.browser import needs_chromium, opened
from tests.helpers.tensorboard import Server
from tests.helpers.waiting import PATIENCE, wait_for
from tests.helpers.written import made_up_config
from tests.helpers.written import write_study as write_made_up

CONFIG = made_up_config(num_trials=20)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up study with Optuna's history, and the events of its trials and its own."""
    folder = write_made_up(tmp_path_factory.mktemp("dashboards"), CONFIG, num_seeds=0)
    records = Records(folder)
    reconcile(open_study(CONFIG, folder), CONFIG, records.trials, resolve_trial)
    write_experiment(folder, CONFIG)
    for record in records.trials.values():
        finish(folder, record)
    write_study(WorkingCopy(Files(str(folder))), CONFIG, records.trials, draw=True)
    return folder


EVERY_SECOND = "import sys; from emoreg.cli import main, serve; serve.FOLLOW_SECONDS = 1.0; main.main(sys.argv[1:])"
"""The command line, but it asks an object store every second."""


@contextmanager
def served(*arguments: str) -> Iterator[tuple[Server, list[str]]]:
    """The server that a command starts, and the lines that it prints. Ctrl-C ends it well, leaving nothing of it."""
    command = [sys.executable, "-c", EVERY_SECOND, *arguments, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            lines = list(iter(process.stdout.readline, "Ctrl-C ends it.\n"))
            server = Server(re.findall(r"http://127\.0\.0\.1:\d+", lines[0])[0])
            wait_for(lambda: answers(server), told=lambda: "an answer")
            yield server, lines
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=PATIENCE) == 0
            wait_for(lambda: not _group(process.pid), told=lambda: "the end of what it started")
        finally:
            for pid in _group(process.pid):
                os.kill(pid, signal.SIGKILL)


def _group(leader: int) -> list[int]:
    """The living processes of a group."""
    found = subprocess.run(["ps", "-eo", "pid=,pgid=,stat="], capture_output=True, text=True, check=True).stdout.splitlines()
    return [int(pid) for pid, group, state in map(str.split, found) if int(group) == leader and not state.startswith("Z")]


def answers(server: Server) -> bool:
    with suppress(OSError):
        return bool(server.get(""))
    return False


@pytest.mark.slow
def test_a_program_that_ends_by_itself_is_heard(tmp_path: Path) -> None:
    folder = write_made_up(tmp_path, made_up_config(num_trials=0, controls=()), num_seeds=0)
    (folder / "optuna.journal").write_bytes(b"SQLite format 3\x00 and not a journal")
    command = [sys.executable, "-m", "emoreg", "dashboard", str(folder), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 1
    assert "Please specify 'sqlite:///" in done.stderr


def states(server: Server, name: str) -> list[str]:
    """States of the trials that optuna-dashboard shows of a study."""
    (found,) = [item for item in server.json("api/studies")["study_summaries"] if item["study_name"] == name]
    return [trial["state"] for trial in server.json(f"api/studies/{found['study_id']}")["trials"]]


def others(server: Server, requests: list[str]) -> list[str]:
    """What was asked of anybody else than the server."""
    return [url for url in requests if not url.startswith((server.address, "data:", "blob:"))]


@needs_chromium
@pytest.mark.slow
def test_optuna_dashboard_shows_the_search(study: Path) -> None:
    with served("dashboard", str(study)) as (server, lines):
        assert "What you change there is changed in the study's history." in lines[1]
        assert len(states(server, CONFIG.name)) >= CONFIG.num_trials
        with opened(f"{server.address}/dashboard/studies/0") as found:
            expect(found.page.get_by_text("made-up").first).to_be_visible()
            expect(found.page.locator(".js-plotly-plot").first).to_be_visible()
        assert found.errors == []
        assert others(server, found.requests) == []


@needs_chromium
@pytest.mark.slow
def test_tensorboard_draws_regulation_and_its_controls_in_one_chart(study: Path) -> None:
    with served("tensorboard", str(study)) as (server, lines):
        wait_for(lambda: f"{RUN}/untrained" in server.json("data/runs"), told=lambda: "the controls' runs")
        with opened(lines[1].split()[-1], width=1400, height=1000) as found:
            page = found.page
            expect(page.locator("tf-custom-scalar-multi-line-chart-card").first).to_be_visible()
            expect(page.get_by_text("Matches (6)")).to_have_count(2)
            page.goto(f"{server.address}/#images&regexInput=%5Estudy")
            page.reload()
            expect(page.locator("tf-image-loader")).to_have_count(2)
            expect(page.locator("tf-image-loader img").first).to_be_visible()
        assert found.errors == []
        assert others(server, found.requests) == []


@pytest.mark.slow
def test_they_follow_a_study_in_an_object_store(study: Path, bucket: str) -> None:
    files = Files(bucket)

    def upload(*names: str) -> None:
        for name in names:
            files.write(name, (study / name).read_bytes())

    events = [path.relative_to(study).as_posix() for path in (study / "events").rglob("*") if path.is_file()]
    upload("study.json", *[name for name in events if name.count("/") < 2])
    with served("tensorboard", bucket) as (server, printed):
        assert "This is a copy" in printed[2]
        assert RUN not in server.json("data/runs")
        upload(*[name for name in events if f"/{RUN}/" in name])
        wait_for(lambda: RUN in server.json("data/runs"), told=lambda: "what came later")
    journal = (study / "optuna.journal").read_bytes().splitlines(keepends=True)
    files.write("optuna.journal", b"".join(journal[: len(journal) // 2]))
    with served("dashboard", bucket) as (server, _):
        before = len(states(server, CONFIG.name))
        upload("optuna.journal")
        wait_for(lambda: len(states(server, CONFIG.name)) >= CONFIG.num_trials, told=lambda: "what came later")
        assert before < CONFIG.num_trials


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.slow
def test_the_search_of_a_study_in_a_database(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path}/search.db" if kind == "sqlite" else request.getfixturevalue("database")
    config = made_up_config(optuna_storage=url, num_trials=3, controls=())
    folder = write_made_up(tmp_path, config, num_seeds=0)
    history = optuna.storages.RDBStorage(address_of(url).render_as_string(hide_password=False))
    search = optuna.create_study(storage=history, study_name=config.name, direction="maximize")
    search.add_trials([optuna.trial.create_trial(value=0.5)] * 3)
    history.engine.dispose()
    with served("dashboard", str(folder)) as (server, _):
        assert states(server, config.name) == ["Complete"] * 3
        processes = subprocess.run(["ps", "-ww", "-eo", "args="], capture_output=True, text=True, check=True).stdout
        shown = [line for line in processes.splitlines() if "optuna-dashboard" in line]
        assert shown
        assert not any("secret" in line for line in (*shown, (folder / "study.json").read_text()))
