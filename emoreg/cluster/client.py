"""A Ray cluster behind the HTTP address of its dashboard: its jobs begun, looked at, followed and stopped."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from emoreg.config import without_secrets
from emoreg.errors import ConfigError
from emoreg.formatting import duration
from emoreg.study_file import read_study_file

_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 60.0
_POLL_SECONDS = 0.5
_PROBE_SECONDS = 120.0
_SILENT_SECONDS = 60.0  # a study says something every 20 seconds: a connection that is silent for longer is made anew
_PATIENCE_SECONDS = 300.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A study's job as Ray knows it; times in seconds since 1970, None where they are still to come."""

    id: str
    study: str
    state: str
    submitted: float
    ended: float | None
    node: str | None
    exit_code: int | None
    message: str
    user: str
    commit: str | None
    command: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in _ENDED


class Cluster:
    """A Ray cluster behind the address of its dashboard.

    Attributes:
        address: ``http://HOST:PORT``.
        ray_version: that the cluster runs.
    """

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            ConfigError: for an address that is no dashboard's or does not answer, a token that is missing or wrong, or
                where this machine lacks what Ray needs to submit.
        """
        _check_address(address)
        missing = [name for name in ("aiohttp", "requests", "pydantic") if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"submitting to a cluster needs Ray's job client, but it lacks {', '.join(missing)} here: run "
                'pip install "emoreg[cluster]"'
            )
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard").propagate = False  # warnings are still shown

        class Client(JobSubmissionClient):
            """Ray's, which by itself waits for an answer without end."""

            def _do_request(self, *arguments: Any, **options: Any) -> Any:
                return super()._do_request(*arguments, timeout=(_CONNECT_SECONDS, _ANSWER_SECONDS), **options)

        self.address = address.rstrip("/")
        with self._answering():
            self._client = Client(self.address)
            self.ray_version: str = self._client._server_ray_version

    def jobs(self) -> list[Job]:
        """All jobs that are studies, the newest first."""
        with self._answering():
            listed = self._client.list_jobs()
        found = [_job(details) for details in listed if details.submission_id and "study" in (details.metadata or {})]
        return sorted(found, key=lambda job: -job.submitted)

    def job(self, job_id: str) -> Job:
        """One job as it is now."""
        with self._answering():
            return _job(self._client.get_job_info(job_id))

    def newest(self, reference: str) -> Job:
        """The newest job of a study, which is named by its name, its module or its file.

        Raises:
            ConfigError: where there is none.
        """
        jobs = self.jobs()
        names = [reference]
        if all(job.study != reference for job in jobs):
            try:
                names.append(read_study_file(reference).name)
            except ConfigError:
                if reference.endswith(".py") or "/" in reference:
                    raise
        for job in jobs:
            if job.study in names:
                return job
        there = ", ".join(dict.fromkeys(job.study for job in jobs)) or "no study"
        raise ConfigError(
            f"a job must be named by its study, but {self.address} has none of {names[-1]!r}: it has {there}; give the study's "
            "name, as --name set it, or submit it"
        )

    def run_to_end(self, entrypoint: str, job_id: str) -> str:
        """Run a command of seconds on the head, forget its job, and give back its output.

        Raises:
            ConfigError: where it fails, or does not end.
        """
        with self._answering():
            self._client.submit_job(entrypoint=entrypoint, submission_id=job_id)
            deadline = time.monotonic() + _PROBE_SECONDS
            while not (info := self._client.get_job_info(job_id)).status.is_terminal() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS / 2)
            if not info.status.is_terminal():
                self._client.stop_job(job_id)
                raise ConfigError(
                    f"the cluster must run a job within {_PROBE_SECONDS:.0f} seconds, but {job_id} at {self.address} has not "
                    "ended by then: look at it with `ray job logs`, and at the cluster with `ray status`"
                )
            output: str = self._client.get_job_logs(job_id)
            self._client.delete_job(job_id)
        if info.driver_exit_code != 0:
            no_python = info.driver_exit_code == 127
            raise ConfigError(
                f"the cluster's head must run `python`, but at {self.address} "
                + ("there is none on its PATH" if no_python else f"it fails: {(info.message or output).strip()}")
                + ": start Ray there from the environment that has emoreg's packages"
            )
        return output

    def submit(self, *, entrypoint: str, job_id: str, package: Path, metadata: dict[str, str], stop_seconds: int) -> None:
        """Submit a job whose working directory is unpacked from ``package``, and which has so long to end once told to stop."""
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(stop_seconds)}  # Ray's own patience is 3 seconds
        with self._answering():
            self._client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env={"working_dir": str(package), "env_vars": environment},
                metadata=metadata,
            )

    def stop(self, job_id: str) -> None:
        """Ask a job to end. Does not wait."""
        with self._answering():
            self._client.stop_job(job_id)

    def log(self, job_id: str) -> str:
        """What a job has printed."""
        with self._answering():
            text: str = self._client.get_job_logs(job_id)
        return text

    def follow(self, job_id: str, *, seen: int = 0) -> Job:
        """Print a job's log from character ``seen`` on, as it comes, until the job has ended.

        Raises:
            ConfigError: where the dashboard does not answer for five minutes.
        """
        with self._answering():
            asyncio.run(self._print_log(job_id, seen))
        return self.job(job_id)

    async def _print_log(self, job_id: str, seen: int) -> None:
        broken_since: float | None = None
        while True:
            try:
                async for chunk, start in self._chunks(job_id):
                    broken_since = None
                    write(chunk[max(0, seen - start) :])
                    seen = max(seen, start + len(chunk))
                if self._client.get_job_status(job_id).is_terminal():
                    return
            except self._breaks as error:
                if broken_since is None:
                    broken_since = time.monotonic()
                    print(f"{self.address} does not answer now ({_first_line(error)}): asked again", file=sys.stderr)
                elif time.monotonic() - broken_since > _PATIENCE_SECONDS:
                    raise ConfigError(
                        f"the dashboard must answer, but {self.address} has not for {duration(_PATIENCE_SECONDS)}: the job "
                        "goes on if its cluster does; look at the cluster, then use `emoreg logs`"
                    ) from error
            except TimeoutError:  # silence: perhaps the connection is dead and nobody told us
                pass
            await asyncio.sleep(2 * _POLL_SECONDS)

    async def _chunks(self, job_id: str) -> AsyncIterator[tuple[str, int]]:
        """Pieces of the log from its beginning, each with the place where it begins."""
        place = 0
        async with aclosing(self._client.tail_job_logs(job_id)) as chunks:
            while True:
                async with asyncio.timeout(_SILENT_SECONDS):
                    chunk: str | None = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk, place
                place += len(chunk)

    @cached_property
    def _breaks(self) -> tuple[type[Exception], ...]:
        """What Ray raises where a dashboard does not answer, or answers nonsense."""
        import aiohttp
        import requests

        return (aiohttp.ClientError, requests.RequestException, ConnectionError, RuntimeError, KeyError, json.JSONDecodeError)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise ConfigError(_token_refused(self.address, str(error))) from error
        except self._breaks as error:
            said = without_secrets(str(error)).strip()
            if said.startswith("Request failed with status code"):
                raise ConfigError(
                    f"the cluster must be able to do what it is asked, but {self.address} is not ({said.splitlines()[-1]}): "
                    "see logs/dashboard*.log in the folder of Ray's session on the head"
                ) from error
            raise ConfigError(
                f"--address must be the dashboard of a running Ray cluster, but {self.address} does not answer as one "
                f"({_first_line(error)}): see that the cluster runs, and that the port is forwarded to this machine, e.g. "
                "ssh -L 8265:127.0.0.1:8265 HEAD"
            ) from error


def _check_address(address: str) -> None:
    """Refuse what is not the URL of a dashboard."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        host = parts.hostname or (address.partition(":")[0] if ":" in address else "HEAD")
        raise ConfigError(
            f"--address must be the URL of a Ray dashboard, but it is {without_secrets(address)!r}: give http://HOST:PORT, "
            f"which is http://{host}:8265 unless the cluster was told otherwise (6379 and 10001 are other services of Ray)"
        )


def _token_refused(address: str, said: str) -> str:
    cure = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, or write it to ~/.ray/auth_token"
    if "Authentication failed" in said:
        return f"a cluster takes its own token alone, but {address} refuses the one given: {cure}"
    if "Authentication required" in said:
        return f"{address} asks for its token, but RAY_AUTH_MODE is 'disabled': unset it, and {cure}"
    return (
        f"a cluster is reached with its token, but there is none here ({_first_line(said).partition('. ')[0]}): {cure}; "
        "`ray get-auth-token --generate` makes one for a cluster that is then started with it. RAY_AUTH_MODE=disabled does "
        "without, where the cluster does"
    )


def _first_line(error: object) -> str:
    return without_secrets(str(error)).strip().partition("\n")[0].rstrip(".")[:300]


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    return Job(
        id=details.submission_id,
        study=metadata.get("study", ""),
        state=details.status.value,
        submitted=details.start_time / 1000,
        ended=None if details.end_time is None else details.end_time / 1000,
        node=None if details.driver_info is None else details.driver_info.node_ip_address,
        exit_code=details.driver_exit_code,
        message=details.message or "",
        user=metadata.get("user", ""),
        commit=metadata.get("commit"),
        command=metadata.get("command", ""),
    )


def write(text: str) -> None:
    """Print, and leave quietly where nobody reads any more."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
