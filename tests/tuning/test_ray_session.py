from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.utils import push_error_to_driver
from ray._private.worker import global_worker

from emoreg.errors import ConfigError
from emoreg.report.images import _with_descendants
from emoreg.storage.files import scratch_folder
from emoreg.tuning.machine import MachineShare
from emoreg.tuning.ray_session import _end_orphans, environment, knock, ray_session


def test_variables_are_set_for_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOREG_OLD", "before")
    monkeypatch.delenv("EMOREG_NEW", raising=False)
    with environment({"EMOREG_OLD": "within", "EMOREG_NEW": "within"}):
        assert (os.environ["EMOREG_OLD"], os.environ["EMOREG_NEW"]) == ("within", "within")
    assert os.environ["EMOREG_OLD"] == "before"
    assert "EMOREG_NEW" not in os.environ


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", r"From outside a cluster, use `emoreg submit`: --address must be HOST:PORT"),
        ("ray://127.0.0.1:10001", r"From outside a cluster, use `emoreg submit`"),
        ("127.0.0.1:1", r"or leave --address out: .*'127\.0\.0\.1:1' does not answer \(.*refused\)"),
        ("nonsense", r"'nonsense' does not answer"),
        ("host:99999", r"'host:99999' does not answer"),
    ],
)
def test_an_address_of_no_cluster_is_refused_at_once(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message), ray_session(address, {}):
        pass


def test_another_server_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emoreg.tuning.ray_session.ANSWER_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"{address}' does not answer \(no Ray is there\)"), ray_session(address, {}):
            pass


def test_a_process_that_uses_a_ray_already_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"Call ray\.shutdown\(\) first"), ray_session(None, {}):
        pass


def test_a_folder_whose_sockets_would_have_too_long_paths_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"{tmp_path}/scratch_local_job_1234567")
    with (
        pytest.raises(ConfigError, match=r"Set RAY_TMPDIR to a shorter path, .*scratch_local"),
        ray_session(None, {}),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def short_tmp() -> Iterator[Path]:
    """Ray's sockets lie in it, whose paths must be short."""
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as folder:
        yield Path(folder)


def test_what_a_killed_ray_left_running_is_ended_and_a_living_one_is_left_alone(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as living:
        command = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
        gone = tmp_path / "0badcafe"
        agents = [
            subprocess.Popen([*command, f"--session-dir={folder}/session_1"], stdout=subprocess.PIPE)
            for folder in (gone, living, tmp_path.with_name("elsewhere") / "0badcafe")
        ]
        for agent in agents:
            assert agent.stdout is not None
            agent.stdout.readline()  # it runs
        _end_orphans(tmp_path)
        try:
            assert agents[0].wait(timeout=30) == -signal.SIGKILL
            assert [agent.poll() for agent in agents[1:]] == [None, None]
        finally:
            for agent in agents:
                agent.kill()
                agent.communicate()


@pytest.mark.slow
def test_without_an_address_a_private_ray_runs_for_the_block(
    monkeypatch: pytest.MonkeyPatch, short_tmp: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    level = logging.getLogger("ray.tune").level
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp))
    (short_tmp / f"emoreg-ray-{os.getuid()}" / "0badcafe" / "session").mkdir(parents=True)
    (short_tmp / f"emoreg-ray-{os.getuid()}" / "0badcafe.lock").touch()  # of a killed run
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    here = MachineShare(cpus=1, memory=3 * 2**30)
    monkeypatch.setattr("emoreg.tuning.ray_session.machine_share", lambda: here)
    with ray_session(None, {"EMOREG_SETTING": "1"}):
        (node,) = ray.nodes()
        assert {name: node["Resources"][name] for name in here.resources} == here.resources
        started = [Path("/proc") / str(number) for number in _with_descendants(os.getpid())]
        (reporter,) = (process for process in started if "UsageStatsHead" in (process / "cmdline").read_text())
        assert "RAY_USAGE_STATS_ENABLED=0" in (reporter / "environ").read_text()
        push_error_to_driver(global_worker, "worker_died", "A worker died")
        assert ray.get(ray.remote(lambda: os.environ["EMOREG_SETTING"]).remote()) == "1"
        assert knock(ray.get_runtime_context().gcs_address) == "open"
        (folder,) = (path for path in (short_tmp / f"emoreg-ray-{os.getuid()}").iterdir() if path.is_dir())
        assert list(folder.glob("session_*/logs"))
    assert not ray.is_initialized()
    assert "A worker died" not in capfd.readouterr().out
    assert {"EMOREG_SETTING", "RAY_USAGE_STATS_ENABLED"} & os.environ.keys() == set()
    assert logging.getLogger("ray.tune").level == level, "a user's own Tune speaks as before"
    assert not list((short_tmp / f"emoreg-ray-{os.getuid()}").iterdir()), "Ray's session is gone, and that of a killed run"
