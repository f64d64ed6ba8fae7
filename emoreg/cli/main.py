"""The command line: ``emoreg run|trial|show|submit|...``. tyro makes the options from the configuration's types.

Heavy imports stand inside the commands, so that ``--help`` and a mistyped option answer at once. Exit codes: 0 done, 1
with failed trials, a diverged `emoreg trial` or a doctor's finding, 2 wrong input, 130 interrupted. Who follows a job gets the
job's, and 0 after Ctrl-C, which leaves the job alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import AvoidSubcommands, FlagCreatePairsOff, Positional, arg

import emoreg
from emoreg.config import FIRST_SEED, Float, ImageSetConfig, StudyConfig, require
from emoreg.config.search_space import SearchSpace
from emoreg.errors import ConfigError, StorageError, UserError
from emoreg.storage.files import without_credentials
from emoreg.study_file import Launch, find_study, read_study_file, shipped_studies

_STUDY_COMMANDS = ("run", "confirm", "submit", "trial", "show")
_OVERVIEW = """\
Hyperparameter studies of emotional regulation: a network is pre-trained on
affective stimuli, then its emotionally-influenced response is balanced against
a plain one on the task. Does that help, and how much of it?

  emoreg run STUDY          run a study with its controls; run it again to go on
  emoreg show STUDY         what that would do, and what it would cost
  emoreg confirm STUDY      its best on fresh seeds, beside every control, once on
                            the test split: the answer, and how sure it is
  emoreg report STUDY...    its answer as one HTML file: verdicts, curves, costs
  emoreg status STUDY       how it stands; with --address, how its job does
  emoreg dashboard STUDY    its search in optuna-dashboard
  emoreg tensorboard STUDY  its trials in TensorBoard
  emoreg trial STUDY        one trial, in this process, without Ray
  emoreg experience list    what the experience store holds, and what it saved
  emoreg experience prune   remove of it what was not used for longest
  emoreg data list          the image sets, and where to get them
  emoreg data prepare NAME  decode one, once for all studies of a storage
  emoreg data show NAME     a contact sheet of one
  emoreg doctor             what this machine or a cluster lacks, and the cure
  emoreg submit STUDY       run a study, or confirm it, on a Ray cluster
  emoreg logs STUDY         what the job of a submitted study has printed
  emoreg stop STUDY         let its trials save, and end it

STUDY is a module or a Python file with study(), or the name or folder of one
that was run where it is only looked at. emoreg ships:
  {studies}
Every setting of a study can be overridden by its dotted path:

  emoreg run studies.quickstart --num-trials 4 --trial.regulation.epochs 5
  emoreg run studies.quickstart --help    every setting, with the study's value
  emoreg COMMAND --help                   the options of a command
  emoreg --version

Exit codes: 0 done; 1 with failed trials, one that diverged under `emoreg trial`,
or a finding of `emoreg doctor`; 2 wrong input; 130 interrupted. Following a job
that ends gives the job's code; Ctrl-C leaves the job running, and gives 0.
"""

_Command = Callable[[], int]
_Study = Annotated[
    Positional[str], arg(metavar="STUDY", help="A module (studies.quickstart), or a path to a Python file with study().")
]
_Submitted = Annotated[
    Positional[str], arg(metavar="STUDY", help="The name of a submitted study, or the module or file that it was submitted as.")
]
_WRITTEN = "A study that was run: its name, its folder or URI, or the module or file that defines it."
_Written = Annotated[Positional[str], arg(metavar="STUDY", help=_WRITTEN)]
_LOOPBACK = "127.0.0.1"
_Config = Annotated[StudyConfig, arg(name="")]
_Debug = Annotated[FlagCreatePairsOff[bool], arg(help="Show the traceback of an error.")]
_Switch = FlagCreatePairsOff[bool]
_Evaluate = Literal["validation", "test"]
_Device = Literal["auto", "cpu", "cuda"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that ``arguments`` (by default the program's own) name, and exit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _parse(arguments)()
    except UserError as error:
        if "--debug" in arguments:
            traceback.print_exception(error)
        else:
            print(f"emoreg: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("emoreg: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _parse(arguments: list[str]) -> _Command:
    """The command, ready to be called.

    Raises:
        UserError: for a study that cannot be had, or a setting that breaks a rule.
        SystemExit: after tyro has shown help, or said what is wrong with an option.
    """
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("-h", "--help"):
        return partial(_say, _OVERVIEW.format(studies="\n  ".join(shipped_studies())))
    if command == "--version":
        return partial(_say, f"emoreg {emoreg.__version__}\n")
    study = StudyConfig(search_space={"regulation.balance": Float(0.0, 1.0)})
    named = command in _STUDY_COMMANDS and rest[:1] and not rest[0].startswith("-")
    if named:
        study = read_study_file(rest[0])
    elif command in _STUDY_COMMANDS and rest and not {"-h", "--help"} & set(rest):
        raise ConfigError(
            f"STUDY must come right after `emoreg {command}`, but there is {rest[0]!r}: put the options behind it, since they "
            "are the study's"
        )
    space = study.search_space
    if named and command != "trial":  # what is set is checked without the ranges that it replaces
        study = _without(study, _overridden(rest))
    commands = _commands(study, space, arguments)
    if command not in commands:
        raise ConfigError(f"a command must be one of {', '.join(commands)}, but it is {command!r}: see `emoreg --help`")
    prog = f"emoreg {command} {rest[0]}" if named else f"emoreg {command}"
    with _own_errors():
        parsed: _Command = tyro.cli(commands[command], prog=prog, args=rest, config=(AvoidSubcommands,))
    return parsed


@contextlib.contextmanager
def _own_errors() -> Iterator[None]:
    """Let our errors through, which tyro takes for its own: it calls the configuration by names that no user knows."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit as end:
        cause = end.__context__
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        print(said.getvalue(), end="", file=sys.stderr)
        raise
    except BrokenPipeError:  # the reader of --help has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def _say(text: str) -> int:
    print(text, end="")
    return 0


def _overridden(arguments: Sequence[str]) -> set[str]:
    """The paths into the trial that the command line may set: ``--trial.drop-path=0.1`` sets ``drop_path``."""
    flags = (argument.partition("=")[0] for argument in arguments)
    paths = {flag.removeprefix("--trial.").replace("-", "_") for flag in flags if flag.startswith("--trial.")}
    switched_off = {".".join((*owner, name.removeprefix("no_"))) for *owner, name in (path.split(".") for path in paths)}
    return paths | switched_off


def _without(study: StudyConfig, paths: set[str]) -> StudyConfig:
    """The study without the paths in its search space, and without conditions on them."""
    left = {
        path: dataclasses.replace(distribution, when=None)
        if distribution.when and distribution.when.path in paths
        else distribution
        for path, distribution in study.search_space.items()
        if path not in paths
    }
    return dataclasses.replace(study, search_space=left)


def _commands(default: StudyConfig, space: SearchSpace, arguments: list[str]) -> dict[str, Callable[..., _Command]]:
    """The commands by name, whose options have the values of the study ``default``. Called, each gives what is to be done.

    ``space`` is the whole search space, before the command line set anything.
    """
    overridden = _overridden(arguments)

    def launch(study: str, config: StudyConfig, address: str | None = None) -> Launch:
        return Launch(study, config, space, overridden, address, f"emoreg {shlex.join(arguments)}")

    def run(
        study: _Study, config: _Config = default, dry_run: _Switch = False, address: str | None = None, debug: _Debug = False
    ) -> _Command:
        """Run a study on Ray: what is missing of it.

        Interrupt it, kill it, and run it again: finished trials stay finished.

        Every setting can be overridden by its dotted path.

        A searched path that is set here leaves the search space.

        Args:
            dry_run: Show what would run and what it would cost, like `emoreg show`.
            address: A Ray cluster's address, or `auto` for the one that this machine belongs to. None: this machine.
        """
        return partial(_show if dry_run else _run, launch(study, config, address))

    def confirm(
        study: _Study,
        config: _Config = default,
        top: int = 1,
        seeds: int = 10,
        first_seed: int = FIRST_SEED,
        again: _Switch = False,
        dry_run: _Switch = False,
        address: str | None = None,
        debug: _Debug = False,
    ) -> _Command:
        """Confirm the best of a study's search, on fresh seeds and on the test split.

        The best configurations of each backbone are fixed, on validation.

        They and every control run on the same seeds, and open the test split once.

        Interrupted, it goes on like a study.

        Args:
            top: How many configurations of each backbone.
            seeds: How many seeds.
            first_seed: The first of them: none may have been used in the search.
            again: Look at the test split a further time, for other configurations or seeds. It is recorded.
            dry_run: Only say what would run, and what it would cost.
            address: A Ray cluster's address, or `auto` for the one that this machine belongs to. None: this machine.
        """
        _check_confirmation(top, seeds, first_seed)
        return partial(_confirm, launch(study, config, address), top, seeds, first_seed, again, dry_run)

    def trial(
        study: _Study,
        config: _Config = default,
        evaluate: _Evaluate = "validation",
        device: _Device = "auto",
        replay: str | None = None,
        debug: _Debug = False,
    ) -> _Command:
        """Run one trial of a study in this process, without Ray.

        The trial is the study's, as configured; nothing is searched.

        It goes on from its last checkpoint, and works under a debugger.

        Args:
            evaluate: `test` opens the test split once at the end, and is recorded.
            device: Where to compute; `auto` takes the GPU where there is one.
            replay: Identity of a recorded trial, of the study or its confirmation: run it again, and compare.
        """
        if replay is not None:
            require(
                evaluate == "validation" and not overridden,
                "--replay runs a trial as it was recorded, so it goes without --evaluate and --trial options",
                shlex.join(arguments),
                "drop them",
            )
            return partial(_replay, config, replay, device)
        return partial(_trial, config, evaluate, device)

    def show(study: _Study, config: _Config = default, debug: _Debug = False) -> _Command:
        """Show a study before it runs.

        Its configuration, search space, number of trials, and an estimate of its cost.

        A few training steps are measured; image sets that are new are prepared.
        """
        return partial(_show, launch(study, config))

    head = os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265")

    def submit(
        study: _Study,
        config: _Config = default,
        address: str = head,
        confirm: _Switch = False,
        top: int = 1,
        seeds: int = 10,
        first_seed: int = FIRST_SEED,
        again: _Switch = False,
        follow: bool = True,
        dry_run: _Switch = False,
        debug: _Debug = False,
    ) -> _Command:
        """Run a study on a Ray cluster, as a job of its head, and follow its log.

        With --confirm its confirmation: a job of its own, named NAME.confirm.

        Ctrl-C detaches: the job goes on. Submitted again, a study goes on.

        Code travels: emoreg's checkout but what git ignores, and the study.

        Args:
            address: The URL of the cluster's dashboard.
            confirm: Confirm the best of the study's search, like `emoreg confirm`, in place of running the study.
            top: With --confirm: how many configurations of each backbone.
            seeds: With --confirm: how many seeds.
            first_seed: With --confirm: the first of them.
            again: With --confirm: look at the test split a further time.
            follow: Print the log until the job ends; `--no-follow` leaves as soon as it is submitted.
            dry_run: Only say what would travel and run.
        """
        _check_confirmation(top, seeds, first_seed)
        return partial(_submit, launch(study, config, address), arguments[2:], confirm, follow, dry_run)

    def status(
        study: _Written,
        storage: str | None = None,
        address: str | None = None,
        json: _Switch = False,
        debug: _Debug = False,
    ) -> _Command:
        """Show how a study stands: trials done and running, the best so far, the time left.

        Args:
            storage: Folder or URI that holds it, where it is not `runs` or what the study's file says.
            address: The URL of a cluster's dashboard: how the newest job of the study stands there.
            json: Print it for programs.
        """
        if address is not None:
            return partial(_job_status, study, address, json)
        return partial(_status, study, storage, json)

    def report(
        studies: Annotated[Positional[tuple[str, ...]], arg(metavar="STUDY [STUDY ...]", help=_WRITTEN)],
        storage: str | None = None,
        output: str | None = None,
        price_per_hour: float | None = None,
        images: bool = True,
        debug: _Debug = False,
    ) -> _Command:
        """Write a study's report, or that of several side by side: one HTML file that needs no server and no network.

        Args:
            storage: Folder or URI that holds them, where it is not `runs` or what the study's file says.
            output: Folder to write to. None: `report` in the folder of the first study.
            price_per_hour: What an hour of the device costs, for the account of costs.
            images: Every figure as PNG and SVG too, which takes a Chrome or Chromium; `--no-images` leaves them out.
        """
        require(len(studies) > 0, "emoreg report needs a STUDY", studies, "name one, e.g. `emoreg report quickstart`")
        require(
            price_per_hour is None or 0 <= price_per_hour < math.inf,
            "--price-per-hour must be 0 or more",
            price_per_hour,
            "give what an hour of the device costs",
        )
        return partial(_report, studies, storage, output, price_per_hour, images)

    def dashboard(
        study: _Written, storage: str | None = None, host: str = _LOOPBACK, port: int = 8080, debug: _Debug = False
    ) -> _Command:
        """Look at a study's search in optuna-dashboard, also while it runs, until Ctrl-C.

        Args:
            storage: Folder or URI that holds it, where it is not `runs` or what the study's file says.
            host: Address to listen on: this machine alone, unless you say otherwise.
            port: Port to listen on; 0 takes a free one.
        """
        return partial(_dashboard, study, storage, host, port)

    def tensorboard(
        study: _Written, storage: str | None = None, host: str = _LOOPBACK, port: int = 6006, debug: _Debug = False
    ) -> _Command:
        """Look at a study's trials in TensorBoard, also while it runs, until Ctrl-C.

        Args:
            storage: Folder or URI that holds it, where it is not `runs` or what the study's file says.
            host: Address to listen on: this machine alone, unless you say otherwise.
            port: Port to listen on; 0 takes a free one.
        """
        return partial(_tensorboard, study, storage, host, port)

    def logs(study: _Submitted, address: str = head, follow: _Switch = False, debug: _Debug = False) -> _Command:
        """Print what the newest job of a study has printed.

        Args:
            address: The URL of the cluster's dashboard.
            follow: Go on until the job ends; Ctrl-C detaches.
        """
        return partial(_logs, study, address, follow)

    def stop(study: _Submitted, address: str = head, debug: _Debug = False) -> _Command:
        """Stop the newest job of a study: its trials save, and submitting it again goes on.

        Args:
            address: The URL of the cluster's dashboard.
        """
        return partial(_stop, study, address)

    def experience(
        action: Annotated[
            Positional[Literal["list", "prune"]],
            arg(help="list: what the store holds, who used it, what it saved. prune: remove the least recently used."),
        ],
        storage: str = default.storage,
        uri: str | None = None,
        budget_gib: float | None = None,
        dry_run: _Switch = False,
        debug: _Debug = False,
    ) -> _Command:
        """List or prune the experience store.

        Pruning never removes what a running study needs.

        Args:
            storage: Folder of the studies, whose `experience` is the store.
            uri: Folder or URI (file://, s3://, gs://) of the store, where it is another one.
            budget_gib: What prune may leave.
            dry_run: Only say what prune would remove.
        """
        if action == "list":
            return partial(_list_experience, storage, uri)
        require(
            budget_gib is not None and 0 <= budget_gib < math.inf,
            "emoreg experience prune needs --budget-gib, what it may leave, from 0 upwards",
            budget_gib,
            "give it, e.g. --budget-gib 20",
        )
        assert budget_gib is not None
        return partial(_prune_experience, storage, uri, budget_gib, dry_run)

    def doctor(storage: str = default.storage, address: str | None = None, debug: _Debug = False) -> _Command:
        """Examine this machine, or a Ray cluster: a verdict and, where something lacks, a cure on each line.

        Args:
            storage: Folder, or URI (file://, s3://, gs://), that studies will write to.
            address: HOST:PORT of a Ray cluster, or `auto` for the one that this machine belongs to. None: this machine.
        """
        return partial(_doctor, storage, address)

    def data(
        action: Annotated[
            Positional[Literal["list", "prepare", "show"]],
            arg(help="list: the readers. prepare: decode NAME once. show: write a contact sheet of NAME."),
        ],
        name: Annotated[Positional[str | None], arg(metavar="[NAME]", help="The image set's reader.")] = None,
        path: str | None = None,
        target: str | None = None,
        image_size: int = default.trial.image_size,
        storage: str = default.storage,
        output: str | None = None,
        debug: _Debug = False,
    ) -> _Command:
        """List, prepare or look at image sets.

        Args:
            path: File or folder of the images, for readers that need one.
            target: What is learned, where the reader offers several.
            image_size: Side in pixels.
            storage: Folder that holds prepared image sets.
            output: The contact sheet's file; NAME.png where left out.
        """
        if action == "list":
            return _list_image_sets
        if name is None:
            raise ConfigError(f"emoreg data {action} needs the NAME of an image set, but there is none: see `emoreg data list`")
        config = ImageSetConfig(name=name, path=path, target=target)
        sheet = Path(output or f"{name}.png") if action == "show" else None
        return partial(_prepare_image_set, config, image_size, storage, sheet)

    return {
        "run": run,
        "confirm": confirm,
        "trial": trial,
        "show": show,
        "experience": experience,
        "doctor": doctor,
        "data": data,
        "submit": submit,
        "status": status,
        "report": report,
        "dashboard": dashboard,
        "tensorboard": tensorboard,
        "logs": logs,
        "stop": stop,
    }


def _check_confirmation(top: int, seeds: int, first_seed: int) -> None:
    """Refuse what no confirmation can be asked for."""
    require(top > 0, "--top must be above 0", top, "1 confirms the best of each backbone")
    require(seeds > 0, "--seeds must be above 0", seeds, "10 show differences of about 1.5 standard deviations")
    require(first_seed >= 0, "--first-seed must be 0 or more", first_seed, "give a natural number")


def _run(launch: Launch) -> int:
    from emoreg.cli.launch import run

    return run(launch)


def _confirm(launch: Launch, top: int, num_seeds: int, first_seed: int, again: bool, dry_run: bool) -> int:
    from emoreg.cli.launch import confirm

    return confirm(launch, top=top, num_seeds=num_seeds, first_seed=first_seed, again=again, dry_run=dry_run)


def _show(launch: Launch) -> int:
    from emoreg.cli.launch import show

    return show(launch)


def _trial(config: StudyConfig, evaluate: _Evaluate, device: _Device) -> int:
    from emoreg.cli.local import run_single
    from emoreg.training.devices import pick_device
    from emoreg.tuning.preflight import check_storage, check_trial, driving

    chosen = pick_device(device)
    check_trial(config.trial)
    check_storage(config.storage)
    with driving(config) as (copy, records, _):
        return run_single(config, copy, records, evaluate, chosen, Console(highlight=False))


def _submit(launch: Launch, arguments: list[str], confirm: bool, follow: bool, dry_run: bool) -> int:
    from emoreg.cli.launch import pinned
    from emoreg.cluster.jobs import submit_study

    assert launch.address is not None
    _prepare_for_ray(launch.address)
    return submit_study(
        launch.reference, pinned(launch), arguments, launch.address, confirm=confirm, follow=follow, dry_run=dry_run
    )


def _job_status(study: str, address: str, as_json: bool) -> int:
    from emoreg.cluster.jobs import print_status

    _prepare_for_ray(address)
    return print_status(study, address, as_json=as_json)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Around a command that looks at what is stored: the storage may not answer, or not let it."""
    try:
        yield
    except BrokenPipeError:  # who reads our output has enough of it
        raise
    except OSError as error:
        raise StorageError(
            f"a storage must let itself be read, but this one does not ({without_credentials(str(error))}): check its address, "
            "its permissions and that it answers"
        ) from error


@_reading()
def _status(study: str, storage: str | None, as_json: bool) -> int:
    from emoreg.results.status import print_study_status

    return print_study_status(find_study(study, storage), as_json=as_json)


@_reading()
def _report(studies: Sequence[str], storage: str | None, output: str | None, price_per_hour: float | None, images: bool) -> int:
    from emoreg.report import print_report

    places = [find_study(study, storage) for study in studies]
    return print_report(places, output, price_per_hour=price_per_hour, images=images, console=Console(highlight=False))


@_reading()
def _dashboard(study: str, storage: str | None, host: str, port: int) -> int:
    from emoreg.cli.viewers import serve_dashboard

    return serve_dashboard(find_study(study, storage), host, port)


@_reading()
def _tensorboard(study: str, storage: str | None, host: str, port: int) -> int:
    from emoreg.cli.viewers import serve_tensorboard

    return serve_tensorboard(find_study(study, storage), host, port)


def _replay(config: StudyConfig, identity: str, device: _Device) -> int:
    from emoreg.cli.replay import replay
    from emoreg.training.devices import pick_device

    return replay(config, identity, pick_device(device), Console(highlight=False))


def _logs(study: str, address: str, follow: bool) -> int:
    from emoreg.cluster.jobs import print_logs

    _prepare_for_ray(address)
    return print_logs(study, address, follow=follow)


def _stop(study: str, address: str) -> int:
    from emoreg.cluster.jobs import stop_study

    _prepare_for_ray(address)
    return stop_study(study, address)


def _prepare_for_ray(address: str) -> None:
    """Let Ray's client send its token unless it is told not to, and go where it is told: it would prefer what it reads here."""
    mode = os.environ.setdefault("RAY_AUTH_MODE", "token")
    if mode not in ("token", "disabled"):  # Ray would take it for the latter
        raise ConfigError(f"RAY_AUTH_MODE must be 'token' or 'disabled', but it is {mode!r}: unset it for 'token'")
    os.environ["RAY_API_SERVER_ADDRESS"] = address


def _list_experience(storage: str, uri: str | None) -> int:
    from emoreg.cli.inventory import print_inventory

    print_inventory(_experience_uri(storage, uri), Console(highlight=False))
    return 0


def _prune_experience(storage: str, uri: str | None, budget_gib: float, dry_run: bool) -> int:
    from emoreg.cli.inventory import print_pruning

    print_pruning(_experience_uri(storage, uri), budget_gib, Console(highlight=False), dry_run=dry_run)
    return 0


def _experience_uri(storage: str, uri: str | None) -> str:
    from emoreg.storage.working_copy import join

    return uri or join(storage, "experience")


def _doctor(storage: str, address: str | None) -> int:
    from emoreg.cluster.machine import examine, print_findings

    console = Console(highlight=False)
    if address is None:
        return print_findings(examine(storage), console)
    from emoreg.cluster.doctor import examine_cluster

    return print_findings(examine_cluster(address, storage), console)


def _list_image_sets() -> int:
    from rich.table import Table

    from emoreg.data import IMAGE_SETS

    console = Console(highlight=False, markup=False)
    for name, reader in IMAGE_SETS.items():
        console.print(f"{name} ({reader.kind}): {reader.description}")
        lines = Table.grid(padding=(0, 2))
        lines.add_column(no_wrap=True)
        for label, text in (
            ("from", reader.source),
            ("--path", reader.layout),
            ("--target", ", ".join(reader.targets)),
            ("licence", reader.licence),
        ):
            lines.add_row(f"  {label}", text)
        console.print(lines)
    return 0


def _prepare_image_set(config: ImageSetConfig, image_size: int, storage: str, sheet: Path | None) -> int:
    from emoreg.data import check, contact_sheet, load
    from emoreg.data.fetch import offer
    from emoreg.storage.files import Files
    from emoreg.storage.working_copy import join
    from emoreg.tuning.preflight import check_storage, image_storage

    check(config)
    check_storage(storage)
    image_set = load(config, image_size=image_size, storage=image_storage(storage))
    offer(config, image_size=image_size, storage=image_storage(storage), files=Files(join(storage, "imagesets")))
    console = Console(highlight=False, markup=False)
    console.print(
        f"{image_set.name}: {len(image_set.train)} training and {len(image_set.test)} test images of {image_size} px, "
        f"fingerprint {image_set.fingerprint[:12]}"
    )
    console.print(f"{'targets' if image_set.regression else 'classes'}: {', '.join(image_set.class_names)}")
    for what, count in image_set.summary.items():
        console.print(f"  {count} x {what}")
    if sheet is not None:
        contact_sheet(image_set, sheet)
        console.print(f"contact sheet: {sheet}")
    return 0
