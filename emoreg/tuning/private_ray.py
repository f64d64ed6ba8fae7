"""A Ray of a study's own, on this machine: begun before its driver has imported anything heavy, used once that is done.

Imports neither Ray nor torch. Ray's head is a process of its own (``ray_head``), which ends when this one does, however that
ends. The workers begin to import what a trial needs as soon as Ray is up, while the driver still prepares the study.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from emoreg.config import StudyConfig
from emoreg.errors import ConfigError
from emoreg.storage.files import scratch_folder
from emoreg.tuning.machine import machine_share, num_fit, with_gpus
from emoreg.tuning.signals import signals_blocked

# What Tune would do for every trainable of anybody's and emoreg does itself, or not at all.
TUNE_SETTINGS = {
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # pre-training reports progress, never the metric
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # records and events are ours
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # ours lets trials save
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "600",  # a trial that is stopped ends the write of its checkpoint first
    "RAY_TRAIN_COUNT_PREEMPTION_AS_FAILURE": "1",  # else Tune begins such trials again itself, and tells nobody
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray 2.60 warns of its coming default without it
}
IS_LIGHT = "EMOREG_WORKER_IS_LIGHT"
"""Environment variable of workers that run no trial, and import nothing for one."""
_SETTINGS = {
    "RAY_preload_python_modules": "emoreg.tuning.warm",
    "RAY_num_workers_soft_limit": "1000000",  # beyond it Ray ends workers that have nothing to do for a second
    "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
    "PL_DISABLE_FORK": "1",  # as Tune itself sets it for every trial
}
_LONGEST_ROOT = 107 - len("/0123abcd/session_2026-11-29_12-00-00_000000_4194304/sockets/plasma_store")
_END_SECONDS = 30.0


class PrivateRay:
    """The head of a private Ray, from ``private_ray``."""

    def __init__(self, process: subprocess.Popen[str], errors: Path, **asked: Any) -> None:
        self._process = process
        self._errors = errors
        self._address: str | None = None
        assert process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended: whoever asks for its address is told
            process.stdin.write(f"{json.dumps(asked)}\n")
            process.stdin.flush()

    @property
    def address(self) -> str:
        """HOST:PORT, once it is up.

        Raises:
            ConfigError: where Ray does not start.
        """
        if self._address is None:
            assert self._process.stdout is not None
            self._address = self._process.stdout.readline().strip()
        if not self._address:
            told = self._errors.read_text(errors="replace").strip().splitlines()
            raise ConfigError(
                "Run `emoreg doctor`, or join a cluster with --address: a Ray must start on this machine, but it ended with "
                f"{told[-1] if told else 'no word'!r}"
            )
        return self._address

    def end(self) -> None:
        """End it: well if it is up, at once else."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        if self._address:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
        self._process.kill()
        for process in Path("/proc").glob("[0-9]*"):  # on Linux alone
            with suppress(OSError):  # it is gone
                if os.getsid(int(process.name)) == self._process.pid:
                    os.kill(int(process.name), signal.SIGKILL)
        self._process.wait()


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the time of a block: what Ray offers no argument for."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def private_ray(settings: Mapping[str, str], *, num_workers: int = 1) -> Iterator[PrivateRay]:
    """Begin to start a Ray for the time of a block, and return at once.

    Args:
        settings: environment variables of all its processes.
        num_workers: that are started, and import what a trial needs, before they are asked for.

    Raises:
        ConfigError: for a folder of Ray's whose path is too long.
    """
    # Its logs and sockets, of which Ray itself removes nothing. First goes what killed runs have left.
    # The paths of sockets must be short, which TMPDIR may not be.
    root = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / f"emoreg-ray-{os.getuid()}"
    _check_length(root)
    here = machine_share()  # Ray itself counts the machine's cores and, in a job, the machine's memory
    with scratch_folder(root) as folder:
        _end_orphans(root)
        options = {
            "num_cpus": here.cpus,
            "object_store_memory": here.object_store,
            "_memory": round(here.resources["memory"]),
            "_temp_dir": str(folder),
        }
        program, errors = str(Path(__file__).with_name("ray_head.py")), folder / "head.err"
        with signals_blocked(), open(errors, "w") as stream:  # what Ray starts inherits it: it lives until trials have saved
            process = subprocess.Popen(
                [sys.executable, "-P", program],  # -P: the modules beside it are none of Python's own names
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
                env={**os.environ, **_SETTINGS, **settings},
                start_new_session=True,  # Ctrl-C is the driver's
            )
        started = PrivateRay(process, errors, num_workers=num_workers, options=options)
        with process:
            try:
                yield started
            finally:
                started.end()


def num_warm_workers(config: StudyConfig) -> int:
    """How many workers a study is likely to use on this machine, GPUs counted by their device files."""
    num_gpus = len([*Path("/dev").glob("nvidia[0-9]*")])
    asked = with_gpus(config.trial_resources(config.trial.backbone), has_gpus=num_gpus > 0)
    here = {**machine_share().resources, "GPU": num_gpus}
    fit = num_fit(dataclasses.replace(asked, accelerator_type=None), here)
    return max(1, min(fit, config.resources.max_concurrent or fit, config.num_trials))


def _check_length(root: Path) -> None:
    if len(bytes(root)) > _LONGEST_ROOT:
        raise ConfigError(
            "Set RAY_TMPDIR to a shorter path, or leave it out for /tmp: the paths of Ray's sockets may have 107 bytes, so its "
            f"folder's {_LONGEST_ROOT}, but {str(root)!r} has {len(bytes(root))}"
        )


def _end_orphans(root: Path) -> None:
    """End what is left of a private Ray that was killed: processes whose options name a folder below ``root`` that is gone.

    Ray's agents outlive a Ray that was killed by more than a minute.
    """
    for command in Path("/proc").glob("[0-9]*/cmdline"):  # on Linux alone
        with suppress(OSError):
            named = re.search(rb"dir=(%s/[0-9a-f]+)" % re.escape(bytes(root)), command.read_bytes())
            if named and not Path(os.fsdecode(named[1])).exists():
                os.kill(int(command.parent.name), signal.SIGKILL)
