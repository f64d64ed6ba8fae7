"""From what was typed to a command: a dataclass, whose fields are options and whose docstring is help."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Callable
from typing import TypeVar

import tyro

from emoreg.cli.options import StudyCommand, StudyOptions
from emoreg.cli.terminal import leave_stdout
from emoreg.config import Float, StudyConfig, without_secrets
from emoreg.config.paths import parts
from emoreg.errors import ConfigError, UserError
from emoreg.study_file import read_study_file

Command = TypeVar("Command", bound=Callable[[], int])


def parse(kind: type[Callable[[], int]], name: str, rest: list[str]) -> Callable[[], int]:
    """A command, with what was typed behind its name, ready to be called.

    Raises:
        UserError: for a study that cannot be had, or a setting that breaks a rule.
        SystemExit: after help was shown, or what is wrong with an option.
    """
    prog = f"emoreg {name}"
    if not issubclass(kind, StudyCommand):
        return _options(kind, prog, rest)
    study = StudyConfig(search_space={"regulation.balance": Float(0.0, 1.0)})
    if rest and not rest[0].startswith("-"):
        study = read_study_file(rest[0]).config
        prog += f" {rest[0]}"
    elif rest and not {"-h", "--help"} & set(rest):
        raise ConfigError(
            f"Put the options behind STUDY, whose settings they are: it must come right after `emoreg {name}`, but there is "
            f"{rest[0]!r}"
        )
    options = StudyOptions(**dict(parts(study)))
    command = _options(kind, prog, rest, default=kind(study=tyro.MISSING, config=options, typed=(name, *rest)))
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
