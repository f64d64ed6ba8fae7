from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._private.utils import push_error_to_driver
from ray._private.worker import global_worker

from emoreg.config import Float, ResourcesConfig, StudyConfig
from emoreg.errors import ConfigError
from emoreg.report.images import _with_descendants
from emoreg.storage.files import scratch_folder
from emoreg.tuning.coordination import StopSignal
from emoreg.tuning.machine import MachineShare
from emoreg.tuning.private_ray import TUNE_SETTINGS, _end_orphans, num_warm_workers, private_ray
from emoreg.tuning.ray_head import patient
from emoreg.tuning.ray_session import knock, ray_session
from tests.helpers.waiting import PATIENCE


def test_a_folder_whose_sockets_would_have_too_long_paths_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", f"{tmp_path}/scratch_local_job_1234567")
    with (
        pytest.raises(ConfigError, match=r"Set RAY_TMPDIR to a shorter path, .*scratch_local"),
        private_ray({}),
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
            assert agents[0].wait(timeout=PATIENCE) == -signal.SIGKILL
            assert [agent.poll() for agent in agents[1:]] == [None, None]
        finally:
            for agent in agents:
                agent.kill()
                agent.communicate()


def test_a_ray_that_does_not_start_is_told_of(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp))
    monkeypatch.setattr("emoreg.tuning.private_ray.sys.executable", shutil.which("false"))
    with private_ray({}) as begun, pytest.raises(ConfigError, match=r"a Ray must start on this machine, but it ended with"):
        print(begun.address)
    assert not list((short_tmp / f"emoreg-ray-{os.getuid()}").iterdir())


@pytest.mark.parametrize("is_alive", [True, False])
def test_a_node_is_waited_for_as_long_as_it_may_come(is_alive: bool) -> None:
    looks = []

    def get_node(address: str, node: str) -> str:
        looks.append((address, node))
        if len(looks) < 3:
            raise RuntimeError("not yet")
        return "up"

    look = patient(get_node, lambda: is_alive)
    if is_alive:
        assert look("head", "1") == "up"
        assert looks == [("head", "1")] * 3
    else:
        with pytest.raises(RuntimeError, match="not yet"):
            look("head", "1")


@pytest.mark.parametrize(("settings", "num_workers"), [({}, 4), ({"cpus_per_trial": 2.0}, 2), ({"max_concurrent": 3}, 3)])
def test_as_many_workers_are_warmed_as_trials_fit(
    settings: dict[str, Any], num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emoreg.tuning.private_ray.machine_share", lambda: MachineShare(cpus=4, memory=3 * 2**30))
    resources = ResourcesConfig(gpus_per_trial=0, **settings)
    config = StudyConfig(search_space={"regulation.balance": Float(0.0, 1.0)}, num_trials=9, resources=resources)
    assert num_warm_workers(config) == num_workers
    assert num_warm_workers(dataclasses.replace(config, num_trials=1)) == 1


@pytest.mark.slow
def test_its_workers_wait_with_what_a_trial_needs(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short_tmp))
    with private_ray(TUNE_SETTINGS, num_workers=1) as begun, ray_session(None, TUNE_SETTINGS, private=begun):
        StopSignal()  # an actor of ours, which leaves them to the trials
        names, variable = ray.get(ray.remote(lambda: (set(sys.modules), os.environ["PL_DISABLE_FORK"])).remote())
    assert "emoreg.tuning.trainable" in names
    assert variable == "1"


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
    monkeypatch.setattr("emoreg.tuning.private_ray.machine_share", lambda: here)
    before = {*_with_descendants(os.getpid())}  # another test's cluster, perhaps
    with ray_session(None, {"EMOREG_SETTING": "1"}):
        (node,) = ray.nodes()
        assert {name: node["Resources"][name] for name in here.resources} == here.resources
        own = {*_with_descendants(os.getpid())} - before
        started = [(Path("/proc") / str(number) / "cmdline").read_text() for number in own]
        assert any("ray_head.py" in command for command in started)
        assert not [command for command in started if "dashboard.py" in command or "monitor.py" in command]
        push_error_to_driver(global_worker, "worker_died", "A worker died")
        assert ray.get(ray.remote(lambda: os.environ["EMOREG_SETTING"]).remote()) == "1"
        assert knock(ray.get_runtime_context().gcs_address) == "open"
        (folder,) = (path for path in (short_tmp / f"emoreg-ray-{os.getuid()}").iterdir() if path.is_dir())
        assert list(folder.glob("session_*/logs"))
    assert not ray.is_initialized()
    assert "A worker died" not in capfd.readouterr().out
    assert {"EMOREG_SETTING", "RAY_preload_python_modules"} & os.environ.keys() == set()
    assert logging.getLogger("ray.tune").level == level, "a user's own Tune speaks as before"
    assert not list((short_tmp / f"emoreg-ray-{os.getuid()}").iterdir()), "Ray's session is gone, and that of a killed run"
