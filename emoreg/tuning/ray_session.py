"""A Ray for the time of a block: private to this process, or a running cluster that is joined from one of its machines."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import ray
from ray._private import worker
from ray._private.authentication import authentication_token_setup
from ray.exceptions import AuthenticationError
from ray.tune.execution import class_cache

from emoreg.errors import ConfigError
from emoreg.tuning.private_ray import PrivateRay, environment, private_ray

Answer = Literal["open", "refused", "silent"]

ANSWER_SECONDS = 30.0
"""How long a cluster may take to answer."""
_CONNECT_SECONDS = 5.0


@contextmanager
def ray_session(
    address: str | None,
    settings: Mapping[str, str],
    *,
    from_outside: str = "use `emoreg submit`",
    private: PrivateRay | None = None,
) -> Iterator[None]:
    """Start a private Ray or join a cluster, and leave it at the end.

    Args:
        address: HOST:PORT of a cluster's head, "auto" for the cluster that this machine belongs to; None for a Ray that nothing
            else uses, whatever runs on this machine.
        settings: environment variables, until the end, of this process and of all that it runs there.
        from_outside: the way out for a machine that is not the cluster's, for a message.
        private: that Ray, with these settings, where it was begun before.

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
            private = private or end.enter_context(private_ray(settings))
            _keep_token()
            end.enter_context(_plain_actors())
            end.callback(ray.shutdown)
            _init(private.address)
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
def _plain_actors() -> Iterator[None]:
    """Within, Tune asks for actors that any worker can be: it gives them variables, which all workers have here already."""

    def get(cache: class_cache._ActorClassCache, trainable: type) -> Any:
        return cache._cache.setdefault(trainable, ray.remote(trainable))

    before = class_cache._ActorClassCache.get
    class_cache._ActorClassCache.get = get
    try:
        yield
    finally:
        class_cache._ActorClassCache.get = before


def _keep_token() -> None:
    """Let this process in where a private Ray wants a token, as it does unless told otherwise: see the head's ``ray.init``."""
    logger = logging.getLogger(authentication_token_setup.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)  # it says that it does, to everybody
    try:
        authentication_token_setup.enable_token_auth_by_default()
    finally:
        logger.setLevel(level)


def _init(address: str, **options: Any) -> None:
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it prints a traceback for each trial that the machine broke


def _join(address: str, settings: Mapping[str, str]) -> None:
    try:
        _init(address, runtime_env={"env_vars": dict(settings)})
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
