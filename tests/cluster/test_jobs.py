"""What is decided before a job is submitted; the jobs themselves are in ``integration/test_jobs.py``."""

from __future__ import annotations

import dataclasses
import http.server
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ray.job_submission import JobDetails

from emoreg import provenance
from emoreg.cli.cluster import Logs, Submit
from emoreg.cli.commands import Status
from emoreg.cli.main import main
from emoreg.cluster import bundle, client
from emoreg.cluster.client import NoAnswer, connect, follow
from emoreg.cluster.jobs import Job, Submission, list_jobs, newest_job, prepare, study_status, submit
from emoreg.config import ExperienceConfig, ImageSetConfig, StudyConfig
from emoreg.errors import ConfigError, ImageSetError
from tests.helpers.studies import study_file, tiny_study
from tests.helpers.trials import TINY
from tests.helpers.written import BEGAN, write_study

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and an environment that says nothing of a cluster; the command line may change it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="module")
def _git_is_asked_once() -> Iterator[None]:
    """Each study that is made ready asks git the same of this checkout, which no test changes."""
    with pytest.MonkeyPatch.context() as patch:
        asked_once = cache(provenance.git)
        for module in (provenance, bundle):
            patch.setattr(module, "git", asked_once)
        yield


# The command


def prepared(study: StudyConfig, *options: str, confirm: bool = False) -> Submission:
    return prepare("studies.quickstart", study, options, confirm=confirm, command="emoreg submit studies.quickstart")


def words(study: StudyConfig, *options: str, confirm: bool = False) -> list[str]:
    """The command of the job, from its options on."""
    found = shlex.split(prepared(study, *options, confirm=confirm).entrypoint)
    assert found[:4] == ["exec", "python", "-m", "emoreg"]
    assert found[4:6] == ["confirm" if confirm else "run", "studies.quickstart"]
    assert found[-2:] == ["--address", "auto"]
    return found[6:-2]


def test_a_job_runs_the_study_with_its_overrides() -> None:
    options = ["--num-trials", "4", "--name", "a b; rm -rf $HOME", "--trial.stimuli.path=it's", "--storage", "s3://bucket/x"]
    study = tiny_study(storage="s3://bucket/x")
    assert words(study, *options) == options
    assert "'a b; rm -rf $HOME'" in prepared(study, *options).entrypoint


def repeated(*typed: str, **settings: Any) -> list[str]:
    return Submit(study="s.py", config=tiny_study(), typed=("submit", "s.py", *typed), **settings).repeated()


@pytest.mark.parametrize(
    "own",
    ["--address http://h:1", "--address=http://h:1", "--follow", "--no-follow", "--no_follow", "--debug", "--dry-run"],
)
def test_what_is_said_to_submit_is_not_said_to_run(own: str) -> None:
    assert repeated("--num-trials", "4", *own.split(), "--name", "x") == ["--num-trials", "4", "--name", "x"]


def test_a_job_confirms_a_study_with_the_options_for_that() -> None:
    typed = ("--confirm", "--top", "2", "--seeds=3", "--first_seed", "7", "--again", "--no-follow", "--name", "x")
    options = repeated(*typed, confirm=True, top=2, seeds=3, first_seed=7, again=True)
    assert options == ["--name", "x", "--top=2", "--seeds=3", "--first-seed=7", "--smallest-effect=0.5", "--looks=1", "--again"]
    assert words(tiny_study(storage="s3://b/x"), *options, confirm=True) == options
    assert prepared(tiny_study(), confirm=True).study == "tiny.confirm"


@pytest.mark.parametrize("setting", [{"top": 2}, {"seeds": 3}, {"first_seed": 7}, {"again": True}])
def test_what_a_confirmation_takes_a_study_does_not(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Add --confirm, or drop --top, .* but the study itself is submitted"):
        repeated(**setting)


def test_folders_that_are_written_to_are_absolute_since_the_jobs_own_is_removed(tmp_path: Path) -> None:
    study = tiny_study(storage="runs", experience=ExperienceConfig(uri="store"))
    places = ["--storage", f"{tmp_path}/runs", "--experience.uri", f"{tmp_path}/store"]
    assert words(study, "--storage=runs", "--name", "x") == ["--storage=runs", "--name", "x", *places], "the last one counts"
    assert words(tiny_study(storage="~/runs")) == ["--storage", "~/runs"]
    assert prepared(study).metadata["place"] == f"{tmp_path}/runs/tiny"


def test_where_a_study_lies_is_not_told_with_a_password() -> None:
    assert prepared(tiny_study(storage="s3://bucket/x?region=a")).metadata["place"] == "s3://bucket/x/tiny?region=a"
    assert prepared(tiny_study(storage="s3://AK:SK@bucket/x")).metadata["place"] == ""


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("runs", "--storage is {}/runs on"),
        ("/nfs/runs", "--storage is /nfs/runs on"),
        ("file:///nfs", "--storage is file:///nfs"),
    ],
)
def test_a_folder_must_be_seen_by_all_machines(storage: str, said: str, tmp_path: Path) -> None:
    [sentence] = prepared(tiny_study(storage=storage)).notes
    assert sentence.startswith(said.format(tmp_path))
    assert prepared(tiny_study(storage="s3://bucket/x", experience=ExperienceConfig(uri="gs://bucket/y"))).notes == ()


def test_a_password_on_the_command_line_is_refused() -> None:
    prepared(tiny_study(), "--optuna-storage", "postgresql://anna@db/x", "--storage", "s3://bucket/x?region=a")
    with pytest.raises(
        ConfigError, match=r"Take it out, .* PGPASSWORD.* --optuna-storage=postgresql://anna:\*\*\*@db"
    ) as error:
        prepared(tiny_study(), "--name", "x", "--optuna-storage=postgresql://anna:pw@db")
    assert "pw@" not in str(error.value)


# What no cluster could run


def checked(study: StudyConfig) -> set[str]:
    """What travels with a study that passes."""
    return set(prepared(study).bundle.files)


BAD = [
    ({"backbone": "resnt18"}, ConfigError, "must be a timm model"),
    ({"stimuli": ImageSetConfig(name="openmojo")}, ConfigError, r"trial\.stimuli: Register the image set 'openmojo'"),
    ({"task": ImageSetConfig(name="folder")}, ImageSetError, r"trial\.task: Give 'folder' a path"),
    ({"task": ImageSetConfig(name="folder", path="nowhere")}, ConfigError, r"trial\.task\.path .* 'nowhere' is relative"),
    ({"weights": "x.pt"}, ConfigError, r"Give an absolute path .* trial\.weights .* 'x\.pt' is relative and does not travel"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD, ids=[message for *_, message in BAD])
def test_a_study_that_no_cluster_could_run_is_refused(changes: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        checked(tiny_study(trial=dataclasses.replace(TINY, **changes), search_space=tiny_study().search_space))


def test_a_backbone_that_a_control_cannot_widen_is_refused() -> None:
    checked(tiny_study(controls=("wide",)))
    with pytest.raises(ConfigError, match=r"^Leave the control wide out, .* but backbone is 'test_convnext'"):
        checked(tiny_study(controls=("wide",), trial=dataclasses.replace(TINY, backbone="test_convnext")))


def test_a_database_in_the_jobs_own_folder_is_refused() -> None:
    checked(tiny_study(optuna_storage="sqlite:////nfs/x.db"))
    with pytest.raises(ConfigError, match=r"Leave optuna_storage out .* outlive the job, but 'sqlite:///x\.db'"):
        checked(tiny_study(optuna_storage="sqlite:///x.db"))


def test_paths_of_the_clusters_machines_need_not_be_here() -> None:
    trial = dataclasses.replace(TINY, task=ImageSetConfig(name="folder", path="/of/the/nodes"), weights="/of/the/nodes.pt")
    checked(tiny_study(trial=trial))
    with pytest.raises(ConfigError, match=r"trial\.weights .* 'nodes\.pt' is relative"):
        checked(tiny_study(trial=dataclasses.replace(trial, weights="nodes.pt")))


def test_relative_paths_may_lead_to_what_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    trial = dataclasses.replace(TINY, task=ImageSetConfig(name="folder", path="studies"))
    assert "studies/quickstart.py" in checked(tiny_study(trial=trial))
    with pytest.raises(ConfigError, match=r"'\.git' is relative and does not travel"):
        checked(tiny_study(trial=dataclasses.replace(TINY, task=ImageSetConfig(name="folder", path=".git"))))


# The cluster


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("head:6379", r"Give .* http://head:8265 .*6379.* must be the URL of a Ray dashboard, but it is 'head:6379'"),
        ("ray://head:10001", "Give http://HOST:PORT, which is http://head:8265"),
        ("auto", "which is http://HEAD:8265"),
        ("http://anna:pw@head:8265", r"'http://anna:\*\*\*@head:8265'"),
        ("http://127.0.0.1:1", r"See that the cluster runs, .* http://127\.0\.0\.1:1 does not answer as the dashboard"),
    ],
)
def test_a_wrong_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        connect(address)


class Dashboard(http.server.ThreadingHTTPServer):
    """Answers as Ray's dashboard does: text by path; what it is not told to answer is 500."""

    def __init__(self, answers: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.refusal = 0
        self.address = f"http://127.0.0.1:{self.server_port}"

    def has(self, *jobs: dict[str, Any], log: str = "") -> None:
        self.answers["/api/jobs/"] = json.dumps(jobs)
        for job in jobs:
            self.answers[f"/api/jobs/{job['submission_id']}"] = json.dumps(job)
            self.answers[f"/api/jobs/{job['submission_id']}/logs"] = json.dumps({"logs": log})


class Handler(http.server.BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        answer = self.server.answers.get(self.path)
        self.send_response(self.server.refusal or (500 if answer is None else 200))
        self.end_headers()
        self.wfile.write((answer or "broken").encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(client, "_POLL_SECONDS", (0.01, 0.05))
    with Dashboard({"/api/version": json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": "x"})}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def job(state: str, number: int = 1, study: str = "tiny", **changes: Any) -> dict[str, Any]:
    metadata = {"study": study, "user": "anna", "place": "", "command": "emoreg submit s.py"}
    settings = {"status": state, "submission_id": f"{study}-{number}", "start_time": 1000 * number, "type": "SUBMISSION"}
    return {"metadata": metadata, "entrypoint": "exec python", **settings, **changes}


@pytest.mark.parametrize("answer", ["<html>", "{}", None])
def test_what_is_no_dashboard_is_told_from_one(answer: str | None, dashboard: Dashboard) -> None:
    dashboard.answers = {} if answer is None else {"/api/version": answer}
    with pytest.raises(NoAnswer, match="does not answer as the dashboard"):
        connect(dashboard.address)


def test_another_environment_variable_does_not_lead_elsewhere(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    dashboard.has()
    assert list_jobs(connect(dashboard.address)) == []
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:1"


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "aiohttp" else find(name, *rest))
    with pytest.raises(ConfigError, match=r'Run pip install "emoreg\[cluster\]": .* lacks aiohttp here'):
        connect("http://127.0.0.1:8265")


def test_the_newest_job_of_a_study_is_found_by_its_name_or_its_file(dashboard: Dashboard, tmp_path: Path) -> None:
    dashboard.has(job("SUCCEEDED", 1), job("RUNNING", 3), job("SUCCEEDED", 2), job("RUNNING", 9, study="other"))
    client = connect(dashboard.address)
    assert [found.id for found in list_jobs(client)] == ["other-9", "tiny-3", "tiny-2", "tiny-1"]
    assert newest_job("tiny", client).id == newest_job(study_file(tmp_path), client).id == "tiny-3"
    with pytest.raises(ConfigError, match="the cluster has no job of 'theirs', but of other, tiny"):
        newest_job("theirs", client)
    with pytest.raises(ConfigError, match="no file"):
        newest_job("theirs.py", client)


def test_a_study_has_one_job_at_a_time(dashboard: Dashboard) -> None:
    dashboard.has(job("PENDING", 3), job("SUCCEEDED", 1))
    with pytest.raises(ConfigError, match=r"Stop it first .* but tiny-3 of anna has not ended"):
        submit(prepared(tiny_study()), connect(dashboard.address))


@pytest.mark.slow
def test_a_log_is_followed_to_the_end_of_its_job_through_an_outage(dashboard: Dashboard) -> None:
    dashboard.has(job("RUNNING"), log="one\n")
    messages: list[str] = []
    pieces = follow(connect(dashboard.address), "tiny-1", seen=2, notify=messages.append)
    assert next(pieces) == "e\n"
    answers = dashboard.answers
    dashboard.answers = {}

    def come_back() -> None:
        dashboard.answers = answers
        dashboard.has(job("FAILED"), log="one\ntwo\n")

    later = threading.Timer(2.5, come_back)
    later.start()
    assert list(pieces) == ["two\n"]
    later.join()
    [message] = messages
    assert message.startswith("the dashboard does not answer; waiting until ")


def test_an_outage_that_does_not_end_is_told(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_OUTAGE_SECONDS", 0.1)
    dashboard.has(job("RUNNING"))
    pieces = follow(connect(dashboard.address), "tiny-1", notify=lambda message: None)
    dashboard.answers = {}
    with pytest.raises(NoAnswer):
        list(pieces)


def test_how_a_study_stands_is_read_from_its_records_or_told_as_ray_does(
    dashboard: Dashboard, tmp_path: Path, capsys: Output
) -> None:
    dashboard.has(job("RUNNING"), log="first\nlast\n\n")
    assert Status(study="tiny", address=dashboard.address, json=True)() == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["status"], told["last_line"]) == ("RUNNING", None, "last")
    found = newest_job("tiny", connect(dashboard.address))
    assert (found.has_ended, study_status(found)) == (False, None)
    assert study_status(dataclasses.replace(found, place=str(tmp_path / "nowhere"))) is None

    place = str(write_study(tmp_path, num_seeds=0))
    began = dataclasses.replace(found, place=place, submitted=BEGAN.timestamp())
    status = study_status(began)
    assert status is not None
    assert (status.place, status.trials.planned >= 40) == (place, True)
    assert study_status(dataclasses.replace(began, submitted=BEGAN.timestamp() + 600)) is None, "it has not begun yet"


def test_what_ray_tells_of_a_job() -> None:
    details = JobDetails(**job("FAILED", driver_exit_code=3, end_time=61_000, message="it failed", metadata={"study": "tiny"}))
    found = Job.of(details)
    assert (found.id, found.study, found.user, found.exit_code, found.message) == ("tiny-1", "tiny", "", 3, "it failed")
    assert (found.submitted, found.ended, found.node, found.has_ended) == (1.0, 61.0, None, True)


@pytest.mark.parametrize(
    ("state", "exit_code", "code", "said"),
    [
        ("SUCCEEDED", 0, 0, "study 'tiny': done, job tiny-1\n"),
        ("FAILED", 2, 2, "study 'tiny': failed with exit code 2, job tiny-1\n"),
        ("FAILED", 130, 130, "study 'tiny': interrupted, job tiny-1\nTo go on, submit it again .*\n  emoreg submit s.py\n"),
        ("STOPPED", None, 130, "study 'tiny': stopped, job tiny-1\nTo go on, submit it again .*\n  emoreg submit s.py\n"),
        ("FAILED", None, 1, "study 'tiny': failed, job tiny-1\nno node\n"),
    ],
)
def test_who_follows_gets_the_code_of_the_job(
    state: str, exit_code: int | None, code: int, said: str, dashboard: Dashboard, capsys: Output
) -> None:
    dashboard.has(job(state, driver_exit_code=exit_code, message="no node "), log="its log\n")
    assert Logs(study="tiny", address=dashboard.address, follow=True)() == code
    out = capsys.readouterr().out
    assert re.fullmatch(f"its log\n{said}", out), out


def test_a_log_that_is_not_followed_is_printed_as_it_is(dashboard: Dashboard, capsys: Output) -> None:
    dashboard.has(job("FAILED", driver_exit_code=2), log="its log\n")
    assert Logs(study="tiny", address=dashboard.address)() == 0
    assert capsys.readouterr().out == "its log\n"


# The command line


def emoreg_(capsys: Output, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_a_dry_run_says_what_would_travel_and_run(tmp_path: Path, capsys: Output) -> None:
    study = study_file(tmp_path)
    code, out, err = emoreg_(
        capsys, "submit", study, "--trial.regulation.balance", "0.25", "--storage", "s3://b/x", "--dry-run"
    )
    assert (code, err) == (0, "")
    pinned, travel, would, command = out.splitlines()
    assert pinned == "regulation.balance is 0.25, by the command line: it leaves the search space"
    assert travel.startswith("study 'tiny': ")
    assert would == "it would run on the head of http://127.0.0.1:8265:"
    run = "run submitted/tiny_cli_study.py --trial.regulation.balance 0.25 --storage s3://b/x --address auto"
    assert command == f"  exec python -m emoreg {run}"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("submit STUDY --num-trials -1 --dry-run", "num_trials must be 0 or more"),
        ("submit STUDY --trial.backbone resnt18 --dry-run", "must be a timm model"),
        ("submit --address http://h:1 STUDY", "it must come right after `emoreg submit`, but there is '--address'"),
        (
            "submit STUDY --storage s3://A:key@b/x",
            "Ray's dashboard shows a submitted command, but there is a password or key in --storage s3://A:***@b/x",
        ),
        ("status tiny --address h:8265", "must be the URL of a Ray dashboard"),
        ("logs tiny --address http://127.0.0.1:1", "does not answer"),
        ("stop tiny --address http://127.0.0.1:1", "does not answer"),
    ],
)
def test_bad_input_is_one_message_and_code_2(command: str, message: str, tmp_path: Path, capsys: Output) -> None:
    code, _, err = emoreg_(capsys, *command.replace("STUDY", study_file(tmp_path)).split())
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_mode_of_authentication_that_ray_would_overlook_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "tokens")
    code, _, err = emoreg_(capsys, "status", "tiny", "--address", "http://127.0.0.1:1")
    assert code == 2
    assert err == "emoreg: Unset RAY_AUTH_MODE for 'token': it must be 'token' or 'disabled', but it is 'tokens'\n"


def test_a_missing_token_is_named(dashboard: Dashboard, tmp_path: Path) -> None:
    dashboard.refusal = 401
    given = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "emoreg", "logs", "tiny", "--address", dashboard.address],
        env={**given, "HOME": str(tmp_path)},  # Ray reads it once a process
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or write ~/.ray/auth_token" in done.stderr
    assert "Traceback" not in done.stderr
