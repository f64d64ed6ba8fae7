"""Studies as jobs of a Ray cluster, over the HTTP address of its dashboard: submitted, followed, looked at, stopped.

A job runs `emoreg run`, or `emoreg confirm`, on the cluster's head, with the code of this machine. Ray keeps it going when
nobody follows.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import pwd
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import emoreg
from emoreg.cluster.bundle import NO_SECRETS, Bundle, collect, secrets_of
from emoreg.cluster.client import Cluster, Job, write
from emoreg.config import CONFIRM, StudyConfig, without_secrets
from emoreg.errors import ConfigError, ImageSetError
from emoreg.formatting import duration

_ENDING_SECONDS = 60  # beyond the trials' grace: what is in memory goes to the storage, Ray is left
_NUM_VALUES = {"--address": 1, "--follow": 0, "--no-follow": 0, "--confirm": 0, "--dry-run": 0, "--debug": 0}  # submit's own
_CONFIRM_OPTIONS = ("--top", "--seeds", "--first-seed", "--again")
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


def submit_study(
    reference: str,
    config: StudyConfig,
    arguments: Sequence[str],
    address: str,
    *,
    confirm: bool = False,
    follow: bool = True,
    dry_run: bool = False,
) -> int:
    """Run a study, or its confirmation, on a cluster, with the code of this machine, and follow its log.

    Args:
        reference: to the study: a module or a file.
        config: the study with the overrides.
        arguments: of the command line, after the study.
        address: of the cluster's dashboard.
        confirm: run the confirmation, with the options for it among the ``arguments``: a job of its own, ``NAME.confirm``.
        follow: False leaves as soon as the job is submitted.
        dry_run: only say what would travel and run.

    Returns:
        The exit code: of the job where it was followed to its end; 0 where Ctrl-C detached.
    """
    check_arguments(arguments, confirm=confirm)
    bundle = collect(reference, config)
    entrypoint = job_command(bundle.study, config, arguments, confirm=confirm)
    name = f"{config.name}{CONFIRM}" if confirm else config.name
    cluster = None if dry_run else Cluster(address)
    if cluster is not None:
        _check_is_alone(name, cluster)
    check_config(config, bundle)
    print(f"study {name!r}: {bundle} travel")
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
        job_id = f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        metadata = {"study": name, "user": _user(), "command": shlex.join(["emoreg", "submit", reference, *arguments])}
        cluster.submit(
            entrypoint=entrypoint,
            job_id=job_id,
            package=package,
            metadata=metadata | ({} if bundle.commit is None else {"commit": bundle.commit}),
            stop_seconds=round(config.resources.grace_seconds) + _ENDING_SECONDS,
        )
    print(f"study {name!r}: submitted to {cluster.address} as job {job_id}", flush=True)
    if not follow:
        print(_ways(name, cluster.address))
        return 0
    return _follow(cluster, name, job_id)


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
    write(cluster.log(job.id))
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


def check_arguments(arguments: Sequence[str], *, confirm: bool) -> None:
    """Refuse passwords and keys on the command line, which Ray's dashboard would show, and what only a confirmation takes.

    Raises:
        ConfigError: with the argument, masked.
    """
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag in _CONFIRM_OPTIONS and not confirm:
            raise ConfigError(f"{flag} is for a confirmation, but the study itself is submitted: add --confirm, or drop it")
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
    from emoreg.data import check
    from emoreg.training.backbones import check_backbone

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


def job_command(study: str, config: StudyConfig, arguments: Sequence[str], *, confirm: bool = False) -> str:
    """What the job runs, quoted for a shell: `emoreg run`, or `confirm`, with the ``arguments`` that are not submit's own."""
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
    command = "confirm" if confirm else "run"
    return "exec " + shlex.join(["python", "-m", "emoreg", command, study, *overrides, *written, "--address", "auto"])


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
