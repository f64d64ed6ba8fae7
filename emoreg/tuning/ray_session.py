"""A Ray for the time of a block: private to this process, or a running cluster that is joined from one of its machines."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Literal

import ray
from ray._private import worker
from ray.exceptions import AuthenticationError

from emoreg.errors import ConfigError
from emoreg.storage.files import scratch_folder
from emoreg.tuning.machine import machine_share
from emoreg.tuning.signals import signals_blocked

Answer = Literal["open", "refused", "silent"]

ANSWER_SECONDS = 30.0
"""How long a cluster may take to answer."""
_CONNECT_SECONDS = 5.0
_LONGEST_ROOT = 107 - len("/0123abcd/session_2026-11-29_12-00-00_000000_4194304/sockets/plasma_store")
_USAGE_STATISTICS = "RAY_USAGE_STATS_ENABLED"


@contextmanager
def ray_session(
    address: str | None, settings: Mapping[str, str], *, from_outside: str = "use `emoreg submit`"
) -> Iterator[None]:
    """Start a private Ray or join a cluster, and leave it at the end.

    Args:
        address: HOST:PORT of a cluster's head, "auto" for the cluster that this machine belongs to; None starts a Ray that
            nothing else uses, whatever runs on this machine.
        settings: environment variables, until the end, of this process and of all that it runs there.
        from_outside: the way out for a machine that is not the cluster's, for a message.

    Raises:
        ConfigError: for a cluster that does not answer or does not let this process in, or if this process uses a Ray already.
    """
    if ray.is_initialized():
        raise ConfigError(
            "Call ray.shutdown() first: a study starts or joins a Ray of its own, but this process uses one already"
        )
    if address is not None:
        _check_address(address, from_outside)
    with environment(settings), _without_lines_of_ray(), ExitStack() as end:
        tune_log = logging.getLogger("ray.tune")
        end.callback(tune_log.setLevel, tune_log.level)
        if address is None:
            # Its logs and sockets, of which Ray itself removes nothing. First goes what killed runs have left.
            # The paths of sockets must be short, which TMPDIR may not be.
            root = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / f"emoreg-ray-{os.getuid()}"
            _check_length(root)
            folder = end.enter_context(scratch_folder(root))
            _end_orphans(root)
            end.callback(ray.shutdown)
            end.enter_context(environment({_USAGE_STATISTICS: os.environ.get(_USAGE_STATISTICS, "0")}))
            with signals_blocked():  # what Ray starts inherits it: it lives until the trials have saved
                _start(settings, folder)
        else:
            end.callback(ray.shutdown)
            _join(address, settings)
        yield


@contextmanager
def _without_lines_of_ray() -> Iterator[None]:
    """Within, Ray prints no coloured lines among those of the study: the switch is its debugger's, and it has no other."""
    before = worker._worker_logs_enabled
    worker._worker_logs_enabled = False
    try:
        yield
    finally:
        worker._worker_logs_enabled = before


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


def _start(settings: Mapping[str, str], folder: Path) -> None:
    here = machine_share()  # Ray itself counts the machine's cores and, in a job, the machine's memory
    _init(
        "local",
        settings,
        include_dashboard=False,
        num_cpus=here.cpus,
        object_store_memory=here.object_store,
        _memory=round(here.resources["memory"]),
        _temp_dir=str(folder),
    )


def _init(address: str, settings: Mapping[str, str], **options: bool | int | str) -> None:
    environment = {"env_vars": dict(settings)}
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment, **options)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints a traceback for each trial that the machine broke


def _join(address: str, settings: Mapping[str, str]) -> None:
    try:
        _init(address, settings)
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        cause = f"{error} {error.__cause__ or error.__context__ or ''}"
        if isinstance(error, AuthenticationError) or AuthenticationError.__name__ in cause:
            raise _refused(address) from error
        raise ConfigError(
            f"Run this on a machine of the cluster, in its environment, or leave --address out: {address!r} cannot be joined "
            f"({' '.join(cause.split())[:500]})"
        ) from error


def knock(address: str, **environment: str) -> Answer:
    """Whether a cluster lets a client with these environment variables in: asks by `ray`, which reads them once a process."""
    command = [str(Path(sys.executable).with_name("ray")), "status", "--address", address]
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "silent"
    if done.returncode == 0 or "version mismatch" in done.stderr:  # it has told its version
        return "open"
    return "refused" if AuthenticationError.__name__ in done.stderr else "silent"


def _check_address(address: str, from_outside: str) -> None:
    """Refuse an address that is no cluster's, or a cluster that does not take this token: Ray itself would try for minutes."""
    if "://" in address:
        raise ConfigError(
            f"From outside a cluster, {from_outside}: --address must be HOST:PORT of its head, or 'auto', on one of its "
            f"machines, but it is {address!r}"
        )
    if address == "auto":
        return
    try:
        host, _, port = address.rpartition(":")
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        answer, why = knock(address), "no Ray is there"
    except (OSError, ValueError, OverflowError) as error:
        answer, why = "silent", str(error)
    if answer == "refused":
        raise _refused(address)
    if answer == "silent":
        raise ConfigError(
            "Start a cluster with `ray start --head`, or leave --address out: it must be HOST:PORT of a running Ray cluster, "
            f"or 'auto', but {address!r} does not answer ({why})"
        )


def _refused(address: str) -> ConfigError:
    return ConfigError(
        "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on the head: a client must have the cluster's "
        f"token, but {address!r} refuses this one"
    )
