"""What is decided before a job is submitted; the jobs themselves are in ``integration/test_jobs.py``."""

from __future__ import annotations

import dataclasses
import http.server
import json
import platform
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from emoreg.cli.main import main
from emoreg.cluster.bundle import collect
from emoreg.cluster.client import Cluster
from emoreg.cluster.jobs import check_arguments, check_config, compare, compare_versions, job_command, local_paths
from emoreg.config import ExperienceConfig, ImageSetConfig, StudyConfig
from emoreg.errors import ConfigError, ImageSetError
from tests.helpers.studies import study_file, tiny_study
from tests.helpers.trials import TINY

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, and an environment that says nothing of a cluster; the command line may change it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("RAY_AUTH_MODE", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


# The command


def words(command: str) -> list[str]:
    return shlex.split(command)


def test_a_job_runs_the_study_with_its_overrides() -> None:
    study = tiny_study(storage="s3://bucket/x")
    arguments = ["--num-trials", "4", "--name", "a b; rm -rf $HOME", "--trial.stimuli.path=it's", "--storage", "s3://bucket/x"]
    command = job_command("studies.x", study, arguments)
    assert words(command) == ["exec", "python", "-m", "emoreg", "run", "studies.x", *arguments, "--address", "auto"]
    assert "'a b; rm -rf $HOME'" in command


@pytest.mark.parametrize(
    "own",
    ["--address http://h:1", "--address=http://h:1", "--follow", "--no-follow", "--no_follow", "--debug", "--dry-run"],
)
def test_what_is_said_to_submit_is_not_said_to_run(own: str) -> None:
    command = job_command("s.py", tiny_study(storage="s3://b/x"), ["--num-trials", "4", *own.split(), "--name", "x"])
    assert words(command)[5:] == ["s.py", "--num-trials", "4", "--name", "x", "--address", "auto"]


def test_a_job_confirms_a_study_with_the_options_for_that() -> None:
    options = ["--top", "2", "--seeds=3", "--first-seed", "7", "--again"]
    command = job_command("s.py", tiny_study(storage="s3://b/x"), ["--confirm", *options, "--no-follow"], confirm=True)
    assert words(command) == ["exec", "python", "-m", "emoreg", "confirm", "s.py", *options, "--address", "auto"]


@pytest.mark.parametrize("option", ["--top", "--seeds=3", "--first_seed", "--again"])
def test_what_a_confirmation_takes_a_study_does_not(option: str) -> None:
    check_arguments([option], confirm=True)
    with pytest.raises(ConfigError, match="is for a confirmation, but the study itself is submitted: add --confirm, or drop"):
        check_arguments([option], confirm=False)


def test_folders_that_are_written_to_are_absolute_since_the_jobs_own_is_removed(tmp_path: Path) -> None:
    study = tiny_study(storage="runs", experience=ExperienceConfig(uri="store"))
    command = job_command("s.py", study, ["--storage=runs", "--name", "x", "--experience.uri", "store"])
    places = ["--storage", f"{tmp_path}/runs", "--experience.uri", f"{tmp_path}/store"]
    assert words(command)[5:] == ["s.py", "--name", "x", *places, "--address", "auto"]
    assert words(job_command("s.py", tiny_study(storage="~/runs"), []))[6:8] == ["--storage", "~/runs"]


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("runs", "--storage is {}/runs on"),
        ("/nfs/runs", "--storage is /nfs/runs on"),
        ("file:///nfs", "--storage is file:///nfs"),
    ],
)
def test_a_folder_must_be_seen_by_all_machines(storage: str, said: str, tmp_path: Path) -> None:
    [sentence] = local_paths(tiny_study(storage=storage))
    assert sentence.startswith(said.format(tmp_path))
    assert not list(local_paths(tiny_study(storage="s3://bucket/x", experience=ExperienceConfig(uri="gs://bucket/y"))))


def test_a_password_on_the_command_line_is_refused() -> None:
    check_arguments(["--optuna-storage", "postgresql://anna@db/x", "--storage", "s3://bucket/x?region=a"], confirm=False)
    with pytest.raises(
        ConfigError, match=r"'--optuna-storage=postgresql://anna:\*\*\*@db': take it out, .* PGPASSWORD"
    ) as error:
        check_arguments(["--name", "x", "--optuna-storage=postgresql://anna:pw@db"], confirm=False)
    assert "pw@" not in str(error.value)


# What no cluster could run


def checked(study: StudyConfig) -> set[str]:
    """What travels with a study that passes."""
    bundle = collect("studies.quickstart", study)
    check_config(study, bundle)
    return set(bundle.files)


BAD = [
    ({"backbone": "resnt18"}, ConfigError, "must be a timm model"),
    ({"stimuli": ImageSetConfig(name="openmojo")}, ImageSetError, r"trial\.stimuli: .* did you mean"),
    ({"task": ImageSetConfig(name="folder")}, ImageSetError, r"trial\.task: 'folder' needs a path"),
    ({"task": ImageSetConfig(name="folder", path="nowhere")}, ConfigError, r"trial\.task\.path .* 'nowhere' is relative"),
    ({"weights": "x.pt"}, ConfigError, r"trial\.weights .* 'x\.pt' is relative and does not travel: give an absolute path"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD, ids=[message for *_, message in BAD])
def test_a_study_that_no_cluster_could_run_is_refused(changes: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        checked(tiny_study(trial=dataclasses.replace(TINY, **changes), search_space=tiny_study().search_space))


def test_a_database_in_the_jobs_own_folder_is_refused() -> None:
    checked(tiny_study(optuna_storage="sqlite:////nfs/x.db"))
    with pytest.raises(ConfigError, match=r"must outlive the job, but 'sqlite:///x\.db'"):
        checked(tiny_study(optuna_storage="sqlite:///x.db"))


def test_paths_of_the_clusters_machines_need_not_be_here() -> None:
    trial = dataclasses.replace(TINY, task=ImageSetConfig(name="folder", path="/of/the/nodes"), weights="/of/the/nodes.pt")
    assert not [name for name in checked(tiny_study(trial=trial)) if "nodes" in name]
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
        ("head:6379", r"must be the URL of a Ray dashboard, but it is 'head:6379': give .* http://head:8265 .*6379"),
        ("ray://head:10001", "give http://HOST:PORT, which is http://head:8265"),
        ("auto", "which is http://HEAD:8265"),
        ("http://anna:pw@head:8265", r"'http://anna:\*\*\*@head:8265'"),
        ("http://127.0.0.1:1", r"http://127\.0\.0\.1:1 does not answer as one \(.*\): see that the cluster runs"),
    ],
)
def test_a_wrong_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Cluster(address)


@pytest.fixture
def dashboard(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an HTTP server that gives one answer to everything."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(request.param)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("dashboard", [json.dumps({"ray_version": "2.9.1"}).encode()], indirect=True)
def test_another_ray_is_refused(dashboard: str) -> None:
    import ray

    with pytest.raises(ConfigError) as error:
        compare_versions(Cluster(dashboard))
    assert f"{dashboard} has 2.9.1 and this machine {ray.__version__}" in str(error.value)
    assert 'pip install "ray[default,tune]==2.9.1" here' in str(error.value)


@pytest.mark.parametrize("dashboard", [b"<html>", b"{}"], indirect=True)
def test_what_is_no_dashboard_is_told_from_one(dashboard: str) -> None:
    with pytest.raises(ConfigError, match="does not answer as one"):
        Cluster(dashboard)


def test_versions_of_python_and_packages_are_compared() -> None:
    import torch

    same = {"python": platform.python_version(), "torch": torch.__version__.partition("+")[0], "timm": "1"}
    assert compare(same, address="http://h:1") == []
    assert compare(same | {"torch": f"{same['torch']}+cu130"}, address="http://h:1") == []
    with pytest.raises(ConfigError, match=r"http://h:1 has 3\.9\.1 and this machine 3\..*: submit .* with Python 3\.9"):
        compare(same | {"python": "3.9.1"}, address="http://h:1")
    with pytest.raises(ConfigError, match=r"the head of http://h:1 lacks pyarrow, timm: install"):
        compare(same | {"timm": None, "pyarrow": None}, address="http://h:1")
    assert "torch is 2.0.0 on the cluster" in compare(same | {"torch": "2.0.0"}, address="http://h:1")[0]


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ConfigError, match=r'lacks aiohttp here: run pip install "emoreg\[cluster\]"'):
        Cluster("http://127.0.0.1:8265")


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
        ("submit --address http://h:1 STUDY", "STUDY must come right after `emoreg submit`, but there is '--address'"),
        (
            "submit STUDY --storage s3://A:key@b/x",
            "must hold no password or key, since Ray's dashboard shows it, but there is 's3://A:***@b/x'",
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
    assert err == "emoreg: RAY_AUTH_MODE must be 'token' or 'disabled', but it is 'tokens': unset it for 'token'\n"
