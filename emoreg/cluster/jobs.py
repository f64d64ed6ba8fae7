"""Studies as jobs of a Ray cluster: made ready, submitted, found again, asked how they stand.

A job runs `emoreg run`, or `emoreg confirm`, on the cluster's head, with the code of this machine. Ray keeps it going when
nobody follows.
"""

from __future__ import annotations

import os
import re
import secrets
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from emoreg.cluster.bundle import NO_SECRETS, Bundle, collect, secrets_of
from emoreg.config import CONFIRM, StudyConfig, without_secrets
from emoreg.errors import ConfigError, EmoregError
from emoreg.results.status import Status, read_status
from emoreg.storage.files import expand
from emoreg.storage.permissions import user_name
from emoreg.storage.working_copy import join
from emoreg.study_file import names_file, read_study_file

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

_ENDING_SECONDS = 60  # beyond the trials' grace: what is in memory goes to the storage, Ray is left
_SKEW_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A study's job as Ray knows it; times in seconds since 1970, None if they are still to come.

    Attributes:
        state: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        exit_code: of `emoreg`; None for a job that has not ended, or was stopped.
        place: the study's folder or URI; empty if it holds a password.
        command: what was typed to submit it.
    """

    id: str
    study: str
    state: str
    submitted: float
    ended: float | None
    node: str | None
    exit_code: int | None
    message: str
    user: str
    commit: str
    place: str
    command: str

    @property
    def has_ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("SUCCEEDED", "FAILED", "STOPPED")

    @classmethod
    def of(cls, details: JobDetails) -> Job:
        """The job of a study, from what Ray tells."""
        told = {name: details.metadata.get(name, "") for name in ("study", "user", "commit", "place", "command")}
        return cls(
            id=details.submission_id,
            state=details.status.value,
            submitted=details.start_time / 1000,
            ended=None if details.end_time is None else details.end_time / 1000,
            node=None if details.driver_info is None else details.driver_info.node_ip_address,
            exit_code=details.driver_exit_code,
            message=details.message or "",
            **told,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job that is ready to be submitted.

    Attributes:
        study: its name; that of a confirmation ends in ``CONFIRM``.
        bundle: the code that travels.
        entrypoint: what the head runs, for its shell.
        secrets: what no file of the bundle may hold.
        metadata: what Ray keeps with the job.
        stop_seconds: how long the job may take to end once it is told to stop.
        notes: sentences on folders that all machines must see.
    """

    study: str
    bundle: Bundle
    entrypoint: str
    secrets: set[str]
    metadata: dict[str, str]
    stop_seconds: int
    notes: tuple[str, ...]


def prepare(reference: str, config: StudyConfig, options: Sequence[str], *, confirm: bool, command: str) -> Submission:
    """Make a study, or its confirmation, ready to be submitted, and refuse what the cluster could not run either.

    ``options`` are for `emoreg run` or `emoreg confirm` on the cluster: the overrides, as they were typed in ``command``.

    Raises:
        ConfigError: for a password among the options, code that cannot travel, an unknown backbone, or a path that would lead
            nowhere on the cluster.
        ImageSetError: for an image set that cannot be.
    """
    masked = without_secrets(shlex.join(options))
    if masked != shlex.join(options):
        raise ConfigError(
            f"{NO_SECRETS}: Ray's dashboard shows a submitted command, but there is a password or key in {masked}"
        )
    bundle = collect(reference, config)
    _check_config(config, bundle)
    places = _places(config)
    study = f"{config.name}{CONFIRM}" if confirm else config.name
    place = join(places["--storage"], study)
    folders = [text for option, place in places.items() if "://" not in place for text in (option, place)]
    words = ["python", "-m", "emoreg", "confirm" if confirm else "run", bundle.study, *options, *folders, "--address", "auto"]
    metadata = {"study": study, "user": user_name(os.getuid()), "command": command, "commit": bundle.commit or ""}
    return Submission(
        study=study,
        bundle=bundle,
        entrypoint=f"exec {shlex.join(words)}",
        secrets=secrets_of(config),
        metadata=metadata | {"place": place if without_secrets(place) == place else ""},
        stop_seconds=round(config.resources.grace_seconds) + _ENDING_SECONDS,
        notes=tuple(
            f"{option} is {place} on the cluster's machines: right only if all of them see the same folder (NFS, or one "
            "machine); otherwise give a URI (s3://, gs://)"
            for option, place in places.items()
            if "://" not in place or place.startswith("file://")
        ),
    )


def submit(submission: Submission, client: JobSubmissionClient) -> str:
    """Submit a job; its id.

    Raises:
        ConfigError: for a study with a job that has not ended, or a file with a password of the study.
    """
    for job in list_jobs(client):
        if job.study == submission.study and not job.has_ended:
            raise ConfigError(
                f"Stop it first (`emoreg stop {job.study}`), or follow it (`emoreg logs {job.study} --follow`): a study has "
                f"one job at a time, but {job.id} of {job.user} has not ended"
            )
    with tempfile.TemporaryDirectory(prefix="emoreg-") as scratch:
        package = Path(scratch) / "emoreg.zip"
        submission.bundle.write(package, submission.secrets)
        environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(submission.stop_seconds)}  # Ray itself kills after 3 seconds
        job_id: str = client.submit_job(
            entrypoint=submission.entrypoint,
            submission_id=f"{submission.study}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}",
            runtime_env={"working_dir": str(package), "env_vars": environment},
            metadata=submission.metadata,
        )
    return job_id


def list_jobs(client: JobSubmissionClient) -> list[Job]:
    """All jobs of a cluster that are studies, the newest first."""
    found = [Job.of(item) for item in client.list_jobs() if item.submission_id and "study" in (item.metadata or {})]
    return sorted(found, key=lambda job: -job.submitted)


def newest_job(reference: str, client: JobSubmissionClient) -> Job:
    """The newest job of a study, which is named by its name, its module or its file.

    Raises:
        ConfigError: if there is none.
    """
    newest: dict[str, Job] = {}
    for job in list_jobs(client):
        newest.setdefault(job.study, job)
    name = reference
    if name not in newest:
        try:
            name = read_study_file(reference).name
        except ConfigError:
            if names_file(reference):
                raise
    if name not in newest:
        there = ", ".join(newest) or "no study"
        raise ConfigError(
            f"Give the study's name, as --name set it, or submit it: the cluster has no job of {name!r}, but of {there}"
        )
    return newest[name]


def study_status(job: Job) -> Status | None:
    """How the study of a job stands by its own records; None if they are not seen from here, or are older than the job."""
    if not job.place:
        return None
    try:
        status = read_status(job.place)
    except (EmoregError, OSError):  # what its machines see need not be seen here
        return None
    began = None if status.started is None else datetime.fromisoformat(status.started).timestamp()
    return status if began is not None and began > job.submitted - _SKEW_SECONDS else None


def _check_config(config: StudyConfig, bundle: Bundle) -> None:
    """Refuse what the cluster could not run either; what only its machines can tell, such as paths of theirs, is left to it."""
    from emoreg.data import check
    from emoreg.training.backbones import check_backbone
    from emoreg.tuning.images import image_sets, naming
    from emoreg.tuning.preflight import check_widths

    for backbone in config.backbones():
        check_backbone(backbone, image_size=config.trial.image_size, weights=None, width=config.trial.width)
    check_widths(config)
    for role, image_set in image_sets(config):
        path = image_set.path
        _check_travels(f"trial.{role}.path", path, bundle)
        if path is None or "://" in path or expand(path).exists():
            with naming(role):
                check(image_set)
    weights = config.trial.weights
    _check_travels("trial.weights", None if weights == "hub" else weights, bundle)
    url = config.optuna_storage
    if url is not None and re.match(r"sqlite[^/]*:///[^/]", url):
        raise ConfigError(
            "Leave optuna_storage out for the journal in the study's folder, or give a PostgreSQL URL: it must outlive the "
            f"job, but {url!r} is a file in the job's own folder"
        )


def _check_travels(name: str, path: str | None, bundle: Bundle) -> None:
    if path is None or "://" in path or path.startswith("~") or Path(path).is_absolute():
        return
    inside = Path(path).as_posix()
    is_there = Path.cwd().resolve() == bundle.root
    if not is_there or not any(file == inside or file.startswith(f"{inside}/") for file in bundle.files):
        raise ConfigError(
            f"Give an absolute path that each of the cluster's machines has, or a URI: {name} must lead somewhere there, but "
            f"{path!r} is relative and does not travel"
        )


def _places(config: StudyConfig) -> dict[str, str]:
    """Where the study writes to, by option: folders absolute, as they are here, since Ray removes a job's working directory."""
    places = {"--storage": config.storage, "--experience.uri": config.experience.uri}
    return {
        option: place if "://" in place or place.startswith("~") else str(Path(place).absolute())
        for option, place in places.items()
        if place is not None
    }
