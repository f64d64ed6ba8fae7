"""The command line: ``emoreg run|trial|show|doctor|data``. tyro makes it from the configuration's own types.

Heavy imports stand inside the commands, so that ``--help`` and a mistyped option answer at once. Exit codes: 0 done, 1 done
with failed trials or a doctor's finding, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from tyro.conf import AvoidSubcommands, Positional, arg

from emoreg.config import Float, ImageSetConfig, StudyConfig, leaves
from emoreg.errors import ConfigError, UserError
from emoreg.search_space import pin
from emoreg.study_file import load_study

_STUDY_COMMANDS = ("run", "trial", "show")
_OVERVIEW = """\
Hyperparameter studies of emotional regulation: a network is pre-trained on affective stimuli, then its emotionally-influenced
response is balanced against a plain one on the task. Does that help, and how much of it?

  emoreg run studies.quickstart                     a whole study with its controls; run it again to go on
  emoreg show studies.quickstart                    what that study would do, and what it would cost
  emoreg trial studies.quickstart --trial.seed 1    one trial, in this process, without Ray
  emoreg run STUDY --help                           every setting of that study, with its value
  emoreg data list                                  the image sets, and where to get them
  emoreg doctor                                     what this machine lacks, and the cure
"""

_Study = Annotated[
    Positional[str], arg(metavar="STUDY", help="A module (studies.quickstart), or a path to a Python file with study().")
]
_Config = Annotated[StudyConfig, arg(name="")]
_Debug = Annotated[bool, arg(help="Show the traceback of an error.")]
_Evaluate = Literal["validation", "test"]
_Device = Literal["auto", "cpu", "cuda"]
_Storage = Annotated[str, arg(help="Folder that holds prepared image sets.")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that ``arguments`` (by default the program's own) name, and exit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _dispatch(arguments)
    except UserError as error:
        if "--debug" in arguments:
            raise
        print(f"emoreg: {error}", file=sys.stderr)
        code = 2
    sys.exit(code)


def _dispatch(arguments: list[str]) -> int:
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    study = StudyConfig(search_space={"regulation.balance": Float(0.0, 1.0)})
    named = command in _STUDY_COMMANDS and rest[:1] and not rest[0].startswith("-")
    if named:
        study = load_study(rest[0])
    commands = _commands(study, _overridden(rest))
    config = (AvoidSubcommands,)
    if command in commands:
        prog = f"emoreg {command} {rest[0]}" if named else f"emoreg {command}"
        code: int = tyro.cli(commands[command], prog=prog, args=rest, config=config)
        return code
    tyro.extras.subcommand_cli_from_dict(  # shows the overview, or says which commands there are
        commands, prog="emoreg", description=_OVERVIEW, args=arguments or ["--help"], config=config
    )
    raise AssertionError("a command that is not ours was run")


def _overridden(arguments: Sequence[str]) -> set[str]:
    """The paths into the trial that the command line sets: ``--trial.drop-path=0.1`` sets ``drop_path``."""
    flags = (argument.partition("=")[0] for argument in arguments)
    return {flag.removeprefix("--trial.").replace("-", "_") for flag in flags if flag.startswith("--trial.")}


def _commands(default: StudyConfig, overridden: set[str]) -> dict[str, Callable[..., int]]:
    """The commands by name, whose options have the values of the study ``default``."""

    def run(
        study: _Study, config: _Config = default, dry_run: bool = False, address: str | None = None, debug: _Debug = False
    ) -> int:
        """Run a study on Ray: what is missing of it. Interrupt it, kill it, and run it again: finished trials stay finished.

        Any setting can be overridden by its dotted path; a searched path that is set here leaves the search space.

        Args:
            dry_run: Show what would run and what it would cost, like `emoreg show`.
            address: A Ray cluster's address, or `auto` for the one that this machine belongs to. None: this machine.
        """
        searched = _pinned(config, overridden)
        return _show(study, searched) if dry_run else _run(study, searched, address)

    def trial(
        study: _Study,
        config: _Config = default,
        evaluate: _Evaluate = "validation",
        device: _Device = "auto",
        debug: _Debug = False,
    ) -> int:
        """Run one trial of a study in this process, without Ray: the trial as configured, and under a debugger if you like.

        Args:
            evaluate: `test` opens the test split once at the end, and is recorded.
            device: Where to compute; `auto` takes the GPU where there is one.
        """
        return _trial(study, config, evaluate, device)

    def show(study: _Study, config: _Config = default, debug: _Debug = False) -> int:
        """Show a study before it runs: its configuration, search space, number of trials, and an estimate of its cost."""
        return _show(study, _pinned(config, overridden))

    def doctor(storage: _Storage = default.storage, debug: _Debug = False) -> int:
        """Examine this machine: a verdict and, where something lacks, a cure on each line."""
        from emoreg.doctor import examine, print_findings

        return print_findings(examine(Path(storage)), Console())

    def data(
        action: Annotated[
            Positional[Literal["list", "prepare", "show"]],
            arg(help="list: the readers. prepare: decode NAME once. show: write a contact sheet of NAME."),
        ],
        name: Annotated[Positional[str | None], arg(metavar="NAME", help="The image set's reader.")] = None,
        path: str | None = None,
        target: str | None = None,
        image_size: int = default.trial.image_size,
        storage: _Storage = default.storage,
        output: str | None = None,
        debug: _Debug = False,
    ) -> int:
        """List, prepare or look at image sets.

        Args:
            path: File or folder of the images, for readers that need one.
            target: What is learned, where the reader offers several.
            image_size: Side in pixels.
            output: The contact sheet's file; NAME.png where left out.
        """
        if action == "list":
            return _list_image_sets()
        if name is None:
            raise ConfigError(f"emoreg data {action} needs the NAME of an image set, but there is none: see `emoreg data list`")
        config = ImageSetConfig(name=name, path=path, target=target)
        sheet = Path(output or f"{name}.png") if action == "show" else None
        return _prepare_image_set(config, image_size, storage, sheet)

    return {"run": run, "trial": trial, "show": show, "doctor": doctor, "data": data}


def _pinned(config: StudyConfig, overridden: set[str]) -> StudyConfig:
    """The study with what the command line sets taken out of its search space."""
    values = {path: value for path, value in leaves(config.trial) if path in overridden and path in config.search_space}
    for path, value in values.items():
        print(f"{path} is {value!r}, by the command line: it leaves the search space")
    return dataclasses.replace(config, search_space=pin(config.search_space, values)) if values else config


def _run(study: str, config: StudyConfig, address: str | None) -> int:
    from emoreg.preflight import check_study, only_driver, prepare_image_sets, write_study_file
    from emoreg.progress import StudyProgress
    from emoreg.records import Records
    from emoreg.summary import print_summary

    console = Console()
    check_study(config)
    with only_driver(config) as folder:
        records = Records(folder)
        console.print(f"study {config.name!r}: preparing image sets", highlight=False)
        write_study_file(config, prepare_image_sets(config))
        from emoreg.study import run_study  # ray takes seconds to import: only when everything else holds

        progress = StudyProgress(config, records.trials, console)
        console.print(f"study {config.name!r}: starting Ray", highlight=False)
        with progress.shown():
            run_study(config, records, progress, address=address)
        print_summary(config, records, folder, console)
    if progress.num_missing:
        console.print(
            f"Interrupted with {progress.num_missing} trials to go. Go on with the same command: emoreg run {study} ..."
        )
        return 130
    return 1 if any(record.status == "failed" for record in records.trials.values()) else 0


def _trial(
    study: str, config: StudyConfig, evaluate: Literal["validation", "test"], device: Literal["auto", "cpu", "cuda"]
) -> int:
    from emoreg.preflight import check_storage, check_trial, local_storage, only_driver
    from emoreg.single import run_single

    check_trial(config.trial)
    check_storage(local_storage(config.storage))
    with only_driver(config) as folder:
        return run_single(config, folder, evaluate, device, Console())


def _show(study: str, config: StudyConfig) -> int:
    from emoreg.preflight import check_study
    from emoreg.summary import print_plan

    check_study(config)
    print_plan(study, config, Console())
    return 0


def _list_image_sets() -> int:
    from rich.table import Table

    from emoreg.imagesets import READERS

    table = Table(show_lines=True)
    for column in ("name", "for", "what", "where to get it", "layout of --path", "targets"):
        table.add_column(column)
    for name, reader in READERS.items():
        table.add_row(name, reader.kind, reader.description, reader.source, reader.layout, ", ".join(reader.targets))
    Console().print(table)
    return 0


def _prepare_image_set(config: ImageSetConfig, image_size: int, storage: str, sheet: Path | None) -> int:
    from emoreg.imagesets import check, contact_sheet, load
    from emoreg.preflight import check_storage, local_storage

    check(config)
    check_storage(local_storage(storage))
    image_set = load(config, image_size=image_size, storage=local_storage(storage))
    console = Console(highlight=False)
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
