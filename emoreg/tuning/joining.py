"""Becoming a driver of a Ray cluster that runs, from one of its machines."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Literal

import ray
from ray.exceptions import AuthenticationError

from emoreg.errors import ConfigError

Answer = Literal["open", "refused", "silent"]

ANSWER_SECONDS = 30.0
"""How long a node may take to answer."""
_CONNECT_SECONDS = 5.0


class OtherVersions(ConfigError):
    """The cluster's Ray or Python is not this machine's."""

    cure = "run this in the cluster's image or environment"

    def __init__(self, mismatch: str) -> None:
        super().__init__(f"a cluster and its drivers must have the same Ray and Python, but {mismatch}: {self.cure}")
        self.mismatch = mismatch


def join(address: str, *, settings: Mapping[str, str], from_outside: str) -> str:
    """Become a driver of a running cluster.

    Args:
        address: HOST:PORT of its head, or "auto" for the cluster that this machine belongs to.
        settings: environment variables of what this driver runs there.
        from_outside: the way for who is on no machine of it, for a message.

    Returns:
        The URL of its dashboard, empty for none.

    Raises:
        OtherVersions: for a cluster of another Ray or Python.
        ConfigError: for one that does not answer, or does not let this client in.
    """
    if "://" in address:
        raise ConfigError(
            f"--address must be HOST:PORT of a Ray cluster, or 'auto', on one of its machines, but it is {address!r}: from "
            f"outside, {from_outside}"
        )
    if address != "auto":
        _require_answer(address)
    try:
        context = ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": dict(settings)},
        )
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if str(cause).startswith("Version mismatch"):
                raise OtherVersions(" ".join(str(cause).split()).removeprefix("Version mismatch: ")) from error
            cause = cause.__cause__ or cause.__context__
        _require_answer(address)
        raise ConfigError(f"the cluster at {address!r} cannot be joined ({error}): run this on one of its machines") from error
    return str(context.dashboard_url or "")


def knock(address: str, **environment: str) -> Answer:
    """Whether a cluster lets a client with these environment variables in: a process of its own, for Ray reads them once."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "silent"
    if done.returncode == 0 or "version mismatch" in done.stderr:  # it has told its version
        return "open"
    return "refused" if "AuthenticationError" in done.stderr else "silent"


def _require_answer(address: str) -> None:
    """Refuse an address at which no Ray is, or one that does not take this token: Ray would try for long.

    Raises:
        ConfigError: with the way out.
    """
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
        answer, why = knock(address), "no Ray is there"
    except (OSError, ValueError, OverflowError) as error:
        answer, why = "silent", str(error)
    if answer == "refused":
        raise ConfigError(
            f"a client must have the cluster's token, but {address!r} refuses this one: set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on the head"
        )
    if answer == "silent":
        raise ConfigError(
            f"--address must be HOST:PORT of a running Ray cluster, or 'auto', but {address!r} does not answer ({why}): start "
            "one with `ray start --head`, or leave --address out"
        )
