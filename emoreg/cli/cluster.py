"""The commands that reach a Ray cluster from outside, by its dashboard; and how a doctor's findings are shown."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.text import Text
from tyro.conf import Positional, arg

from emoreg.cli.options import ConfirmationOptions, Debug, StudyCommand, Switch, reading
from emoreg.cli.terminal import leave_stdout, new_table, terminal
from emoreg.errors import ConfigError
from emoreg.formatting import duration
from emoreg.study import load_study
from emoreg.study_file import find_study

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from emoreg.cluster.doctor import Finding
    from emoreg.cluster.jobs import Job

_DASHBOARD = "http://127.0.0.1:8265"
"""Ray's own default, and the near end of a forwarded port."""
_STATES = {"PENDING": "waiting to start", "RUNNING": "running", "SUCCEEDED": "done", "FAILED": "failed", "STOPPED": "stopped"}
_STYLES = {"ok": "green", "note": "yellow", "bad": "red"}
_INTERRUPTED = 130


def _dashboard() -> str:
    return os.environ.get("RAY_API_SERVER_ADDRESS", _DASHBOARD)


@dataclass(frozen=True, kw_only=True)
class _SubmitOptions(ConfirmationOptions):
    """The options that are no settings of the study."""

    address: str = field(default_factory=_dashboard)
    """The URL of the cluster's dashboard."""
    confirm: Switch = False
    """Confirm the best of the study's search, like `emoreg confirm`, in place of running the study."""
    follow: bool = True
    """Print the log until the job ends; `--no-follow` leaves as soon as it is submitted."""
    dry_run: Switch = False
    """Only say what would travel and run."""
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class Submit(_SubmitOptions, StudyCommand):
    """Run a study on a Ray cluster, as a job of its head, and follow its log.

    With --confirm its confirmation: a job of its own, named NAME.confirm.

    Ctrl-C detaches: the job goes on. Submitted again, a study goes on.

    Code travels: emoreg's checkout but what git ignores, and the study.
    """

    def __call__(self) -> int:
        """The exit code: the job's if it was followed to its end; 0 after Ctrl-C."""
        from emoreg.cluster.client import connect
        from emoreg.cluster.jobs import prepare, submit

        submission = prepare(self.study, self.config, self.repeated(), confirm=self.confirm, command=self.command)
        print(f"study {submission.study!r}: {submission.bundle} travel")
        for note in submission.notes:
            print(note)
        if self.dry_run:
            print(f"it would run on the head of {self.address}:\n  {submission.entrypoint}")
            return 0
        client = connect(self.address)
        job_id = submit(submission, client)
        print(f"study {submission.study!r}: submitted to {self.address} as job {job_id}", flush=True)
        if self.follow:
            return _follow(client, submission.study, job_id, self.address)
        print(_ways(submission.study, self.address))
        return 0

    def repeated(self) -> list[str]:
        """What was typed after STUDY for the study itself, to be repeated on the cluster, and what its confirmation takes.

        Raises:
            ConfigError: for what only a confirmation takes, without --confirm.
        """
        _, options = tyro.cli(_SubmitOptions, args=self.typed[2:], return_unknown_args=True)
        if self.confirm:
            return [*options, *_typed(self)]
        if any(getattr(self, item.name) != item.default for item in dataclasses.fields(ConfirmationOptions)):
            raise ConfigError(
                "Add --confirm, or drop --top, --seeds, --first-seed, --smallest-effect, --looks, --underpowered and --again: "
                "they are for a confirmation, but the study itself is submitted"
            )
        return options


def _typed(asked: ConfirmationOptions) -> list[str]:
    """What a confirmation takes, as one types it."""
    values = {item.name.replace("_", "-"): getattr(asked, item.name) for item in dataclasses.fields(ConfirmationOptions)}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in values.items() if value is not False]


@dataclass(frozen=True, kw_only=True)
class _JobCommand:
    """A command on the newest job of a study."""

    study: Annotated[
        Positional[str],
        arg(metavar="STUDY", help="The name of a submitted study, or the module or file that it was submitted as."),
    ]
    address: str = field(default_factory=_dashboard)
    """The URL of the cluster's dashboard."""
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class Logs(_JobCommand):
    """Print what the newest job of a study has printed."""

    follow: Switch = False
    """Go on until the job ends; Ctrl-C detaches."""

    def __call__(self) -> int:
        """The exit code: the job's if it was followed to its end."""
        from emoreg.cluster.client import connect
        from emoreg.cluster.jobs import newest_job

        client = connect(self.address)
        job = newest_job(self.study, client)
        if self.follow:
            return _follow(client, job.study, job.id, self.address)
        _write(client.get_job_logs(job.id))
        return 0


@dataclass(frozen=True, kw_only=True)
class Stop(_JobCommand):
    """Stop the newest job of a study: its trials save, and submitting it again goes on.

    With --trial one trial of its search alone, wherever the study runs.
    """

    trial: str | None = None
    """Identity, or its beginning, of a trial that runs (`emoreg status`): it saves, counts as pruned, and the study goes on."""
    storage: str | None = None
    """With --trial: folder or URI that holds the study, where it is not `runs` or what the study's file says."""

    def __call__(self) -> int:
        """The exit code."""
        if self.trial is not None:
            with reading():
                study = load_study(find_study(self.study, self.storage))
                identity = study.stop_trial(self.trial)
            print(f"study {study.name!r}: trial {identity} is told to stop; it saves first, and counts as pruned")
            return 0
        from emoreg.cluster.client import connect, follow
        from emoreg.cluster.jobs import Job, newest_job, study_status

        client = connect(self.address)
        job = newest_job(self.study, client)
        if job.has_ended:
            print(f"study {job.study!r}: job {job.id} is {_ending(job)} already")
            return 0
        seen = len(client.get_job_logs(job.id))
        client.stop_job(job.id)
        print(f"study {job.study!r}: job {job.id} is told to stop; its trials save first", flush=True)
        for text in follow(client, job.id, seen=seen, notify=_notify):
            _write(text)
        job = Job.of(client.get_job_info(job.id))
        print(f"study {job.study!r}: {_ending(job)}")
        status = study_status(job)
        if status is not None and status.state == "killed":
            print("It did not end by itself in time, and was killed: trials go on from their last checkpoints.")
        _print_how_to_go_on(job)
        return 0


def print_job_status(reference: str, address: str, *, as_json: bool) -> int:
    """Print how the newest job of a study stands: `emoreg status --address`; the exit code."""
    from emoreg.cli.look import print_status
    from emoreg.cluster.client import connect
    from emoreg.cluster.jobs import newest_job, study_status

    client = connect(address)
    job = newest_job(reference, client)
    status = study_status(job)
    lines = [line for line in client.get_job_logs(job.id).splitlines() if line.strip()]
    last_line = lines[-1] if lines else ""
    if as_json:
        told = None if status is None else dataclasses.asdict(status)
        print(json.dumps(dataclasses.asdict(job) | {"status": told, "last_line": last_line}, indent=2))
        return 0
    taken = duration((job.ended or time.time()) - job.submitted)
    since = f"submitted {datetime.fromtimestamp(job.submitted, UTC):%Y-%m-%d %H:%M} UTC by {job.user}"
    print(f"study {job.study!r}: {_ending(job)}; {since}, {taken}{'' if job.ended is None else ' in all'}")
    print(f"  job {job.id}{'' if job.node is None else f', driver on {job.node}'}")
    if status is None:
        print(f"  {last_line}")
    else:
        print_status(status, terminal())
    return 0


def print_findings(findings: Iterable[Finding]) -> int:
    """Print a doctor's findings as a table; the exit code is 1 if one is bad."""
    console, table = terminal(), new_table(None, "", "what", "found", "cure")
    table.columns[1].no_wrap = True
    num_bad = 0
    for finding in findings:
        table.add_row(Text(finding.verdict, _STYLES[finding.verdict]), finding.what, finding.found, finding.cure)
        num_bad += finding.verdict == "bad"
    console.print(table)
    console.print(f"{num_bad} of these would stop a study." if num_bad else "Nothing here would stop a study.")
    return 1 if num_bad else 0


def _follow(client: JobSubmissionClient, study: str, job_id: str, address: str) -> int:
    """Print a job's log until it ends, or Ctrl-C; the exit code."""
    from emoreg.cluster.client import follow
    from emoreg.cluster.jobs import Job

    try:
        for text in follow(client, job_id, notify=_notify):
            _write(text)
    except KeyboardInterrupt:
        print(f"\nDetached: job {job_id} goes on.\n{_ways(study, address)}")
        return 0
    job = Job.of(client.get_job_info(job_id))
    print(f"study {study!r}: {_ending(job)}, job {job.id}")
    if job.state == "STOPPED" or job.exit_code == _INTERRUPTED:
        _print_how_to_go_on(job)
        return _INTERRUPTED
    if job.exit_code is None:  # the study's own words are missing
        print(job.message.strip())
        return 1
    return job.exit_code


def _ending(job: Job) -> str:
    """The state in words, with the exit code of a study that failed."""
    if job.exit_code == _INTERRUPTED:
        return "interrupted"
    return _STATES[job.state] + (f" with exit code {job.exit_code}" if job.state == "FAILED" and job.exit_code else "")


def _print_how_to_go_on(job: Job) -> None:
    print(f"To go on, submit it again from where it was submitted:\n  {job.command}")


def _ways(study: str, address: str) -> str:
    options = "" if address == _DASHBOARD else f" --address {shlex.quote(address)}"
    commands = (f"logs {study} --follow", f"status {study}", f"stop {study}")
    return "\n".join(f"  emoreg {command}{options}" for command in commands)


def _notify(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    """Print, and leave quietly if nobody reads any more."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        leave_stdout()
        sys.exit(0)
