"""Studies as jobs of a real Ray cluster: its head, with a dashboard and a token, on this machine."""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError

import pytest

from tests.integration.cluster import Cluster, free_port
from tests.integration.test_study import STUDY, trials, wait_for

BIN = Path(sys.executable).parent
LONG = (
    "--num-trials",
    "1",
    "--controls",
    "regulated",
    "--trial.regulation.epochs",
    "160",
    "--resources.checkpoint-seconds",
    "1",
)


@dataclass
class Dashboard:
    """A head, and the `emoreg` of a user who is allowed to use it."""

    url: str
    environment: dict[str, str]
    folder: Path
    head: subprocess.Popen[bytes]
    followers: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, address: str | None = None, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [BIN / "emoreg", *arguments, "--address", address or self.url],
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.followers.append(process)
        return process

    def emoreg(self, *arguments: str, **environment: str) -> tuple[int, str]:
        """Exit code and output of a command."""
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=300)
        assert self.environment["RAY_AUTH_TOKEN"] not in output
        return process.returncode, output

    def state(self, study: str) -> dict[str, str]:
        code, output = self.emoreg("status", study, "--json")
        assert code == 0, output
        found: dict[str, str] = json.loads(output)
        return found


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/version").close()
    except URLError as error:
        return getattr(error, "code", None) == 401  # it asks for the token
    return True


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dashboard]:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    environment = {**os.environ, **token, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "100"}
    cluster = Cluster(f"127.0.0.1:{free_port()}", environment, [])
    port = free_port()
    head = cluster.add_node(
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={cluster.address.rpartition(':')[2]}",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={port}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--dashboard-agent-grpc-port={free_port()}",
        f"--temp-dir={tmp_path_factory.mktemp('r')}",
    )
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: answers(url), head)
    made = Dashboard(url, environment, tmp_path_factory.mktemp("user"), head)
    yield made
    for follower in made.followers:
        with follower:
            follower.kill()  # that of a test that failed
    head.terminate()  # it ends its processes, in order; told all at once they take half a minute
    head.wait(60)


def read_until(process: subprocess.Popen[str], pattern: str, seconds: float = 120.0) -> str:
    """What a process prints up to a line that has the pattern."""
    assert process.stdout is not None
    said = ""
    while not re.search(pattern, said):
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        assert ready, f"silent for {seconds} s after: {said}"
        line = process.stdout.readline()
        assert line, f"ended with: {said}"
        said += line
    return said


def test_a_study_and_its_confirmation_are_submitted_and_followed_to_their_ends(dashboard: Dashboard, tmp_path: Path) -> None:
    """The study lies outside the checkout."""
    (tmp_path / "my_helper.py").write_text("NAME = 'mine'\n")
    shutil.copy(STUDY, tmp_path / "tiny.py")
    (tmp_path / "my_study.py").write_text(
        "import dataclasses, emoreg, my_helper\n"
        "from tiny import CONFIG\n"
        "def study():\n"
        "    print('emoreg is from', emoreg.__file__)\n"
        "    return emoreg.Study.from_config(dataclasses.replace(CONFIG, name=my_helper.NAME, controls=('regulated',)))\n"
    )
    submit = ("submit", str(tmp_path / "my_study.py"), "--num-trials", "1", "--storage", str(tmp_path / "a folder"))
    code, output = dashboard.emoreg(*submit)
    assert code == 0, output
    assert "WARNING" not in output
    assert re.search(r"emoreg is from .*/working_dir_files/\S*/emoreg/__init__\.py", output)
    assert re.search(r"\d+ trials: 2 finished", output)
    assert output.splitlines()[-1].startswith("study 'mine': done, job mine-")
    assert [row["status"] for row in trials(tmp_path / "a folder", "mine").values()] == ["finished"] * 2

    job = dashboard.state("mine")
    assert (job["state"], job["exit_code"]) == ("SUCCEEDED", 0)
    assert job["progress"].startswith("2 trials: 2 finished")
    assert dashboard.emoreg("logs", "mine")[1] in output
    assert dashboard.emoreg("stop", "mine") == (0, f"study 'mine': job {job['id']} is done already\n")

    code, output = dashboard.emoreg(*submit, "--confirm", "--seeds", "1")
    assert code == 0, output
    assert output.splitlines()[-1].startswith("study 'mine.confirm': done, job mine.confirm-")
    confirmed = trials(tmp_path / "a folder", "mine.confirm").values()
    assert [(row["status"], row["seed"], row["test_accuracy"] is None) for row in confirmed] == [("finished", 1000, False)] * 6
    assert dashboard.state("mine")["id"] == job["id"], "the newest job of the study itself"
    confirming = dashboard.state("mine.confirm")
    assert confirming["command"].endswith(f" --confirm --seeds 1 --address {dashboard.url}")
    assert dashboard.emoreg("logs", "mine.confirm")[1] in output
    code, said = dashboard.emoreg("stop", "mine.confirm")
    assert (code, said) == (0, f"study 'mine.confirm': job {confirming['id']} is done already\n")


def test_a_wrong_token_is_refused(dashboard: Dashboard) -> None:
    code, output = dashboard.emoreg("submit", str(STUDY), RAY_AUTH_TOKEN="0" * 32)
    assert code == 2
    assert f"a cluster takes its own token alone, but {dashboard.url} refuses the one given" in output
    assert "Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "environment", "message"),
    [
        (
            "status",
            {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/nowhere"},
            "there is none here (RAY_AUTH_TOKEN_PATH is set but",
        ),
        ("logs", {"RAY_AUTH_TOKEN": "", "HOME": "/nowhere"}, "`ray get-auth-token --generate` makes one"),
        ("stop", {"RAY_AUTH_MODE": "disabled"}, "asks for its token, but RAY_AUTH_MODE is 'disabled': unset it"),
    ],
)
def test_a_missing_token_is_named(command: str, environment: dict[str, str], message: str, dashboard: Dashboard) -> None:
    code, output = dashboard.emoreg(command, "tiny", **environment)
    assert code == 2
    assert message in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_a_study_that_was_never_submitted_is_named(dashboard: Dashboard) -> None:
    code, output = dashboard.emoreg("status", "theirs")
    assert code == 2
    assert f"{dashboard.url} has none of 'theirs': it has" in output


@pytest.mark.slow
def test_the_code_of_a_job_that_fails_is_passed_on(dashboard: Dashboard, tmp_path: Path) -> None:
    code, output = dashboard.emoreg("submit", str(STUDY), "--storage", str(tmp_path), "--resources.cpus-per-trial", "64")
    assert code == 2, output
    assert "a trial of backbone 'test_resnet' asks for 64 CPUs and the cluster has 1 node with" in output
    assert "study 'tiny': failed with exit code 2, job tiny-" in output


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_detached_looked_at_stopped_and_taken_up_again(dashboard: Dashboard, tmp_path: Path) -> None:
    submit = ("submit", str(STUDY), "--storage", str(tmp_path), *LONG)
    follower = dashboard.start(*submit)
    read_until(follower, "starting Ray")
    os.kill(follower.pid, signal.SIGINT)
    rest, _ = follower.communicate(timeout=60)
    assert follower.returncode == 0, rest
    assert re.search(rf"Detached: job (tiny-\S+) goes on\.\n  emoreg logs tiny --follow --address {dashboard.url}\n", rest)

    wait_for(lambda: any((tmp_path / "tiny" / "trials").glob("*/trial.ckpt")), dashboard.head)
    assert dashboard.state("tiny")["state"] == "RUNNING"
    code, output = dashboard.emoreg(*submit)
    assert code == 2
    assert "a study has one job at a time, but tiny-" in output
    assert f"emoreg stop tiny --address {dashboard.url}" in output

    code, output = dashboard.emoreg("stop", str(STUDY))
    assert code == 0, output
    assert "Interrupted: run the same command again" in output, "the job was killed before it could save"
    assert "was killed" not in output
    assert output.endswith(f"  emoreg {' '.join(submit)} --address {dashboard.url}\n")
    assert dashboard.state("tiny")["state"] == "STOPPED"
    before = {identity for identity, row in trials(tmp_path).items() if row["status"] == "finished"}
    assert len(before) < 2
    assert any((tmp_path / "tiny" / "trials").glob("*/trial.ckpt"))

    code, output = dashboard.emoreg(*submit)
    assert code == 0, output
    rows = trials(tmp_path)
    assert [row["status"] for row in rows.values()] == ["finished"] * 2
    assert before <= rows.keys()


@dataclass
class Tunnel:
    """A forwarded port that breaks, as `ssh -L` does: every connection at once, and for a while each new one."""

    target: int
    is_broken: bool = False
    sockets: list[socket.socket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self.is_broken:
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            self.sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    def cut(self) -> None:
        self.is_broken = True
        for end in self.sockets:
            shut(end)
        self.sockets.clear()

    def close(self) -> None:
        shut(self._server)
        self._server.close()
        self._thread.join()
        self.cut()


def shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while piece := source.recv(65536):
            sink.sendall(piece)
    except OSError:
        pass
    shut(sink)
    source.close()


@pytest.mark.slow
def test_following_survives_a_tunnel_that_breaks(dashboard: Dashboard, tmp_path: Path) -> None:
    tunnel = Tunnel(int(dashboard.url.rpartition(":")[2]))
    follower = dashboard.start(
        "submit", str(STUDY), "--storage", str(tmp_path), "--num-trials", "2", address=f"http://127.0.0.1:{tunnel.port}"
    )
    said = read_until(follower, "preparing image sets")
    tunnel.cut()
    said += read_until(follower, "does not answer now .*: asked again")
    tunnel.is_broken = False
    rest, _ = follower.communicate(timeout=200)
    tunnel.close()
    said += rest
    assert follower.returncode == 0, said
    for line in dashboard.emoreg("logs", "tiny")[1].splitlines():
        if line.strip("─ "):
            assert said.count(line) == 1, f"{line!r} in {said}"
