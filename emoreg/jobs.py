"""Studies as jobs of a Ray cluster, over the HTTP address of its dashboard: submitted, followed, looked at, stopped.

A job runs `emoreg run` on the cluster's head, with the code of this machine. Ray keeps it going when nobody follows.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import pwd
import re
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import emoreg
from emoreg.bundle import NO_SECRETS, Bundle, collect, secrets_of, without_secrets
from emoreg.config import StudyConfig
from emoreg.errors import ConfigError, ImageSetError
from emoreg.progress import duration
from emoreg.study_file import load_study

_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 60.0
_POLL_SECONDS = 0.5
_PROBE_SECONDS = 120.0
_SILENT_SECONDS = 60.0  # a study says something every 20 seconds: a connection that is silent for longer is made anew
_PATIENCE_SECONDS = 300.0
_ENDING_SECONDS = 60  # beyond the trials' grace: what is in memory goes to the storage, Ray is left
_NUM_VALUES = {"--address": 1, "--follow": 0, "--no-follow": 0, "--dry-run": 0, "--debug": 0}  # of submit's own options
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_STATES = {"PENDING": "waiting to start", "RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped"}
_PROGRESS_LINE = re.compile(r"^\d+/\d+ trials: .*|^\d+ trials?: .*", re.MULTILINE)

_PROBE = """\
import json, platform
from importlib import metadata
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
print("emoreg-probe", json.dumps({"python": platform.python_version(), **{name: version(name) for name in %r}}))
"""


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
                names.append(load_study(reference).name)
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
                    _write(chunk[max(0, seen - start) :])
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


def submit_study(
    reference: str,
    config: StudyConfig,
    arguments: Sequence[str],
    address: str,
    *,
    follow: bool = True,
    dry_run: bool = False,
) -> int:
    """Run a study on a cluster, with the code of this machine, and follow its log.

    Args:
        reference: to the study: a module or a file.
        config: the study with the overrides.
        arguments: of the command line, after the study.
        address: of the cluster's dashboard.
        follow: False leaves as soon as the job is submitted.
        dry_run: only say what would travel and run.

    Returns:
        The exit code: of the job where it was followed to its end; 0 where Ctrl-C detached.
    """
    check_arguments(arguments)
    bundle = collect(reference, config)
    entrypoint = job_command(bundle.study, config, arguments)
    cluster = None if dry_run else Cluster(address)
    if cluster is not None:
        _check_is_alone(config.name, cluster)
    check_config(config, bundle)
    print(f"study {config.name!r}: {bundle} travel")
    for sentence in local_paths(config):
        print(sentence)
    if cluster is None:
        print(f"it would run on the head of {address}:\n  {entrypoint}")
        return 0
    with tempfile.TemporaryDirectory(prefix="emoreg-") as scratch:
        package = Path(scratch) / "emoreg.zip"
        bundle.write(package, secrets_of(config))
        for sentence in compare_versions(cluster):
            print(sentence)
        job_id = f"{config.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        metadata = {"study": config.name, "user": _user(), "command": shlex.join(["emoreg", "submit", reference, *arguments])}
        cluster.submit(
            entrypoint=entrypoint,
            job_id=job_id,
            package=package,
            metadata=metadata | ({} if bundle.commit is None else {"commit": bundle.commit}),
            stop_seconds=round(config.resources.grace_seconds) + _ENDING_SECONDS,
        )
    print(f"study {config.name!r}: submitted to {cluster.address} as job {job_id}", flush=True)
    if not follow:
        print(_ways(config.name, cluster.address))
        return 0
    return _follow(cluster, config.name, job_id)


def _check_is_alone(study: str, cluster: Cluster) -> None:
    """Refuse a second job of a study."""
    for job in cluster.jobs():
        if job.study == study and not job.has_ended:
            raise ConfigError(
                f"a study has one job at a time, but {job.id} of {job.user or 'somebody'} is {_STATES[job.state]}:\n"
                f"{_ways(study, cluster.address)}"
            )


def print_status(reference: str, address: str, *, as_json: bool) -> int:
    """Print how the newest job of a study stands."""
    cluster = Cluster(address)
    job = cluster.newest(reference)
    lines = _PROGRESS_LINE.findall(cluster.log(job.id))
    progress = lines[-1] if lines else None
    if as_json:
        print(json.dumps(dataclasses.asdict(job) | {"progress": progress}, indent=2))
        return 0
    taken = duration((job.ended or time.time()) - job.submitted)
    since = f"submitted {datetime.fromtimestamp(job.submitted, UTC):%Y-%m-%d %H:%M} UTC by {job.user or 'somebody'}"
    print(f"study {job.study!r}: {_ending(job)}; {since}, {taken}{'' if job.ended is None else ' in all'}")
    print(f"  job {job.id}{'' if job.node is None else f', driver on {job.node}'}")
    if progress is not None:
        print(f"  {progress}")
    return 0


def print_logs(reference: str, address: str, *, follow: bool) -> int:
    """Print what the newest job of a study has printed; where ``follow``, until it ends: the exit code is then the job's."""
    cluster = Cluster(address)
    job = cluster.newest(reference)
    if follow:
        return _follow(cluster, job.study, job.id)
    _write(cluster.log(job.id))
    return 0


def stop_study(reference: str, address: str) -> int:
    """Stop the newest job of a study, wait until its trials have saved and it has ended, and say how to go on."""
    cluster = Cluster(address)
    job = cluster.newest(reference)
    if job.has_ended:
        print(f"study {job.study!r}: job {job.id} is {_ending(job)} already")
        return 0
    seen = len(cluster.log(job.id))
    cluster.stop(job.id)
    print(f"study {job.study!r}: job {job.id} is told to stop; its trials save first", flush=True)
    job = cluster.follow(job.id, seen=seen)
    print(f"study {job.study!r}: {_ending(job)}")
    if job.state == "STOPPED" and "Interrupted: run the same command again" not in cluster.log(job.id)[seen:]:
        print("It did not end by itself in time, and was killed: trials go on from their last checkpoints.")
    print(_how_to_go_on(job), end="")
    return 0


def _write(text: str) -> None:
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:  # who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _follow(cluster: Cluster, study: str, job_id: str) -> int:
    try:
        job = cluster.follow(job_id)
    except KeyboardInterrupt:
        print(f"\nDetached: job {job_id} goes on.\n{_ways(study, cluster.address)}")
        return 0
    print(f"study {study!r}: {_ending(job)}, job {job.id}")
    match job.state:
        case "SUCCEEDED":
            return 0
        case "STOPPED":
            print(_how_to_go_on(job), end="")
            return 130
    if job.exit_code is None:  # the study's own words are missing
        print(job.message.strip())
        return 1
    return job.exit_code


def _ending(job: Job) -> str:
    """The state in words, with the exit code of a study that failed."""
    return _STATES[job.state] + (f" with exit code {job.exit_code}" if job.state == "FAILED" and job.exit_code else "")


def _how_to_go_on(job: Job) -> str:
    return f"To go on, submit it again from where it was submitted:\n  {job.command}\n" if job.command else ""


def _ways(study: str, address: str) -> str:
    options = "" if address == DEFAULT_ADDRESS else f" --address {shlex.quote(address)}"
    return "\n".join(
        f"  emoreg {command}{options}" for command in (f"logs {study} --follow", f"status {study}", f"stop {study}")
    )


DEFAULT_ADDRESS = "http://127.0.0.1:8265"
"""Ray's own default, and the near end of a forwarded port."""


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        return str(os.getuid())


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse passwords and keys on the command line, which Ray's dashboard would show.

    Raises:
        ConfigError: with the argument, masked.
    """
    for argument in arguments:
        masked = without_secrets(argument)
        if masked != argument:
            raise ConfigError(
                f"a submitted command must hold no password or key, since Ray's dashboard shows it, but there is {masked!r}: "
                f"{NO_SECRETS}"
            )


def check_config(config: StudyConfig, bundle: Bundle) -> None:
    """Refuse what the cluster could not run either; what only its machines can tell, such as paths of theirs, is left to it.

    Raises:
        ConfigError: for an unknown backbone, or a path that would lead nowhere on the cluster.
        ImageSetError: for an image set that cannot be.
    """
    from emoreg.backbones import check_backbone
    from emoreg.imagesets import check

    trial = config.trial
    for backbone in config.backbones():
        check_backbone(backbone, image_size=trial.image_size, weights=None)
    for role, image_set in (("task", trial.task), ("stimuli", trial.stimuli), ("neutral", trial.neutral)):
        if image_set is None:
            continue
        try:
            check(image_set)
        except ImageSetError as error:
            if image_set.path is None or "://" in image_set.path or Path(image_set.path).expanduser().exists():
                raise ImageSetError(f"trial.{role}: {error}") from error
        _check_travels(f"trial.{role}.path", image_set.path, bundle)
    _check_travels("trial.weights", None if trial.weights == "hub" else trial.weights, bundle)
    url = config.optuna_storage
    if url is not None and re.match(r"sqlite[^/]*:///[^/]", url):
        raise ConfigError(
            f"optuna_storage must outlive the job, but {url!r} is a file in the job's own folder: leave it out for the journal "
            "in the study's folder, or give a PostgreSQL URL"
        )


def _check_travels(name: str, path: str | None, bundle: Bundle) -> None:
    if path is None or "://" in path or path.startswith("~") or Path(path).is_absolute():
        return
    inside = Path(path).as_posix()
    is_there = Path.cwd().resolve() == bundle.root
    if not is_there or not any(file == inside or file.startswith(f"{inside}/") for file in bundle.files):
        raise ConfigError(
            f"{name} must lead somewhere on the cluster's machines, but {path!r} is relative and does not travel: give an "
            "absolute path that each of them has, or a URI"
        )


def local_paths(config: StudyConfig) -> Iterator[str]:
    """A sentence for each folder that the study writes to and that is no object store's."""
    for option, place in _places(config).items():
        if "://" not in place or place.startswith("file://"):
            yield (
                f"{option} is {place} on the cluster's machines: right only if all of them see the same folder (NFS, or one "
                "machine); otherwise give a URI (s3://, gs://)"
            )


def _places(config: StudyConfig) -> dict[str, str]:
    """Where the study writes to, by option: folders absolute, as they are here, since Ray removes a job's working directory."""
    places = {"--storage": config.storage, "--experience.uri": config.experience.uri}
    return {
        option: place if "://" in place or place.startswith("~") else str(Path(place).absolute())
        for option, place in places.items()
        if place is not None
    }


def job_command(study: str, config: StudyConfig, arguments: Sequence[str]) -> str:
    """What the job runs, quoted for a shell: `emoreg run` with the overrides among ``arguments``."""
    places = {option: place for option, place in _places(config).items() if "://" not in place}
    num_values = _NUM_VALUES | dict.fromkeys(places, 1)
    overrides = []
    left = iter(arguments)
    for argument in left:
        flag, equals, _ = argument.partition("=")
        num = num_values.get(flag.replace("_", "-"))
        if num is None:
            overrides.append(argument)
        elif num and not equals:
            next(left, None)
    written = [text for option in places.items() for text in option]
    return "exec " + shlex.join(["python", "-m", "emoreg", "run", study, *overrides, *written, "--address", "auto"])


def compare_versions(cluster: Cluster) -> list[str]:
    """Compare the cluster's packages with this machine's; sentences on differences that do no harm.

    Raises:
        ConfigError: where Ray or Python differ, or the cluster lacks a package of emoreg's.
    """
    here = importlib.metadata.version("ray")
    if cluster.ray_version != here:
        raise ConfigError(
            f"a cluster and those who submit to it must have the same Ray, but {cluster.address} has {cluster.ray_version} and "
            f'this machine {here}: run pip install "ray[default,tune]=={cluster.ray_version}" here, or start the cluster anew '
            f"with {here}"
        )
    required = [line for line in importlib.metadata.requires("emoreg") or () if "extra" not in line]
    needed = [match[0] for line in required if (match := _NAME.match(line))]
    output = cluster.run_to_end(shlex.join(["python", "-c", _PROBE % needed]), f"emoreg-probe-{secrets.token_hex(4)}")
    there: dict[str, str | None] = json.loads(output.rpartition("emoreg-probe ")[2])
    return compare(there, address=cluster.address)


_NAME = re.compile(r"[\w.-]+")


def compare(there: dict[str, str | None], *, address: str) -> list[str]:
    """Compare versions of a cluster's head, by package and ``python``, with this machine's. See ``compare_versions``."""
    python, here = str(there["python"]), platform.python_version()
    if python.split(".")[:2] != here.split(".")[:2]:
        raise ConfigError(
            f"a cluster and those who submit to it must have the same Python, major and minor, but {address} has {python} and "
            f"this machine {here}: submit from an environment with Python {'.'.join(python.split('.')[:2])}, or start the "
            "cluster anew"
        )
    missing = sorted(name for name, version in there.items() if version is None)
    if missing:
        raise ConfigError(
            f"the cluster must have emoreg's packages, but the head of {address} lacks {', '.join(missing)}: install emoreg's "
            f"requirements on all its machines, of version {emoreg.__version__}, or use the image of cluster/"
        )
    torch, torch_here = str(there["torch"]).partition("+")[0], importlib.metadata.version("torch").partition("+")[0]
    if torch != torch_here:
        return [f"torch is {torch} on the cluster and {torch_here} here: the numbers may differ in the last digits"]
    return []
