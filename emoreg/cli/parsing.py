"""From what was typed to a command: a dataclass, whose fields are options and whose docstring is help."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import tyro

from emoreg.cli import cluster, commands, serve
from emoreg.cli.options import StudyCommand, StudyOptions, Switch
from emoreg.cli.terminal import leave_stdout, terminal
from emoreg.config import Float, StudyConfig, without_secrets
from emoreg.config.paths import parts
from emoreg.errors import ConfigError, Interrupted, StudyAborted, UserError
from emoreg.study import Study
from emoreg.study_file import read_study_file


@dataclass(frozen=True, kw_only=True)
class Run(StudyCommand):
    """Run a study on Ray: what is missing of it.

    Interrupt it, kill it, and run it again: finished trials stay finished.

    Every setting can be overridden by its dotted path.

    A searched path that is set here leaves the search space.
    """

    dry_run: Switch = False
    """Show what would run and what it would cost, like `emoreg show`."""
    address: str | None = None
    """A Ray cluster's address, or `auto` for the one that this machine belongs to. None: this machine."""

    def __call__(self) -> int:
        """The exit code."""
        from emoreg.cli.summary import exit_code, print_plan, print_summary

        study, console = Study.from_config(self.config), terminal()
        if self.dry_run:
            print_plan(self.study, self.config, console)
            return 0
        ended: Interrupted | StudyAborted | None = None
        try:
            study.run(address=self.address, command=self.command)
        except (Interrupted, StudyAborted) as error:
            ended = error
        print_summary(study.results, console)
        return exit_code(study.results, ended, self.command, console)


Command = TypeVar("Command", bound=Callable[[], int])

COMMANDS: dict[str, type[Callable[[], int]]] = {
    "run": Run,
    "confirm": commands.Confirm,
    "trial": commands.Trial,
    "show": commands.Show,
    "enqueue": commands.Enqueue,
    "experience": commands.Experience,
    "doctor": commands.Doctor,
    "data": commands.Data,
    "submit": cluster.Submit,
    "status": commands.Status,
    "report": commands.Report,
    "export": commands.Export,
    "dashboard": serve.Dashboard,
    "tensorboard": serve.TensorBoard,
    "logs": cluster.Logs,
    "stop": cluster.Stop,
}


def parse(arguments: list[str]) -> Callable[[], int]:
    """The command that the arguments name, ready to be called.

    Raises:
        UserError: for a study that cannot be had, or a setting that breaks a rule.
        SystemExit: after help was shown, or what is wrong with an option.
    """
    name, *rest = arguments
    if name not in COMMANDS:
        raise ConfigError(f"See `emoreg --help`: a command must be one of {', '.join(COMMANDS)}, but it is {name!r}")
    kind = COMMANDS[name]
    if not issubclass(kind, StudyCommand):
        return _options(kind, f"emoreg {name}", rest)
    study = StudyConfig(search_space={"regulation.balance": Float(0.0, 1.0)})
    prog = f"emoreg {name}"
    if rest and not rest[0].startswith("-"):
        study = read_study_file(rest[0]).config
        prog += f" {rest[0]}"
    elif rest and not {"-h", "--help"} & set(rest):
        raise ConfigError(
            f"Put the options behind STUDY, whose settings they are: it must come right after `emoreg {name}`, but there is "
            f"{rest[0]!r}"
        )
    options = StudyOptions(**dict(parts(study)))
    command = _options(kind, prog, rest, default=kind(study=tyro.MISSING, config=options, typed=tuple(arguments)))
    config, told = command.settled()
    for sentence in told:
        print(sentence)
    return dataclasses.replace(command, config=config)


def _options(kind: type[Command], prog: str, arguments: list[str], default: Command | None = None) -> Command:
    """The command with its options.

    Our errors are let through, which tyro takes for its own: it calls the settings by names that no user knows.
    """
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            command = tyro.cli(kind, prog=prog, args=arguments, default=default, config=(tyro.conf.AvoidSubcommands,))
            assert command is not None
            return command
    except SystemExit as end:
        cause = end.__context__
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        print(without_secrets(told.getvalue()), end="", file=sys.stderr)
        raise
    except BrokenPipeError:  # the reader of --help has seen enough
        leave_stdout()
        sys.exit(0)
