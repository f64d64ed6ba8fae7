"""The command line: ``emoreg run|trial|show|submit|...``. A command is a dataclass: its fields are options, its docstring help.

Heavy imports stand inside the commands, so that ``--help`` and a mistyped option answer at once. Exit codes: 0 done, 1
with failed trials, a diverged `emoreg trial` or a doctor's finding, 2 wrong input, 130 interrupted, by whatever signal. Who
follows a job gets the job's, and 0 after Ctrl-C, which leaves the job alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import tyro

import emoreg
from emoreg.cli import cluster, commands, serve
from emoreg.cli.options import StudyCommand, StudyOptions, Switch
from emoreg.cli.terminal import terminal
from emoreg.config import Float, StudyConfig, without_secrets
from emoreg.errors import ConfigError, Interrupted, StudyAborted, UserError
from emoreg.storage.files import refused_error
from emoreg.study import Study
from emoreg.study_file import read_study_file, shipped_studies
from emoreg.tuning.signals import stop_on_signals

_OVERVIEW = """\
Hyperparameter studies of emotional regulation: a network is pre-trained on
affective stimuli, then its emotionally-influenced response is balanced against
a plain one on the task. Does that help, and how much of it?

  emoreg run STUDY          run a study with its controls; run it again to go on
  emoreg show STUDY         what that would do, and what it would cost
  emoreg confirm STUDY      its best on fresh seeds, beside every control, once on
                            the test split: the answer, and how sure it is
  emoreg report STUDY...    its answer as one HTML file: verdicts, curves, costs
  emoreg export STUDY       a trained network, to be used outside of its study
  emoreg status STUDY       how it stands; with --address, how its job does
  emoreg enqueue STUDY PATH=VALUE...   put a trial first in its search
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
  emoreg stop STUDY         let its trials save, and end its job, or --trial ID

STUDY is a module or a Python file with `study`, or the name or folder of one
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that ``arguments`` (by default the program's own) name, and exit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with stop_on_signals(_interrupt):  # where no study runs, which saves first
            command = _parse(arguments)
            code = command()
    except BrokenPipeError:  # the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except (UserError, OSError) as error:
        if "--debug" in arguments:
            shown = "".join(traceback.format_exception(error)).rstrip()
        else:
            shown = f"emoreg: {error if isinstance(error, UserError) else refused_error(error)}"
        print(without_secrets(shown), file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("emoreg: interrupted", file=sys.stderr)
        code = 130
    sys.exit(code)


def _interrupt(number: int) -> None:
    raise KeyboardInterrupt


def _parse(arguments: list[str]) -> Callable[[], int]:
    """The command, ready to be called.

    Raises:
        UserError: for a study that cannot be had, or a setting that breaks a rule.
        SystemExit: after help was shown, or what is wrong with an option.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(_OVERVIEW.format(studies="\n  ".join(shipped_studies())), end="")
        sys.exit(0)
    if name == "--version":
        print(f"emoreg {emoreg.__version__}")
        sys.exit(0)
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
    options = StudyOptions(**{item.name: getattr(study, item.name) for item in dataclasses.fields(study)})
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
