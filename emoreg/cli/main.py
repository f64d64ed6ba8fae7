"""The command line: ``emoreg run|trial|show|submit|...``.

What takes a while to import is imported where it is needed, so that ``--help`` and a mistyped option answer at once.

Exit codes: 0 done, 1 with failed trials, a diverged `emoreg trial` or a doctor's finding, 2 wrong input, 130 interrupted, by
whatever signal. Who follows a job gets the job's, and 0 after Ctrl-C, which leaves the job alone.
"""

from __future__ import annotations

import pkgutil
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import emoreg
from emoreg.cli.options import StudyCommand, Switch
from emoreg.config import without_secrets
from emoreg.errors import ConfigError, Interrupted, StudyAborted, UserError
from emoreg.provenance import shipped_studies
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


COMMANDS = {
    "run": "main:Run",
    "confirm": "commands:Confirm",
    "trial": "commands:Trial",
    "show": "commands:Show",
    "enqueue": "commands:Enqueue",
    "experience": "commands:Experience",
    "doctor": "commands:Doctor",
    "data": "commands:Data",
    "submit": "cluster:Submit",
    "status": "commands:Status",
    "report": "commands:Report",
    "export": "commands:Export",
    "dashboard": "serve:Dashboard",
    "tensorboard": "serve:TensorBoard",
    "logs": "cluster:Logs",
    "stop": "cluster:Stop",
}
"""Module and class of each command."""


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
        from emoreg.cli.terminal import terminal
        from emoreg.study import Study

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that ``arguments`` (by default the program's own) name, and exit."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with stop_on_signals(_interrupt):  # where no study runs, which saves first
            command = command_of(arguments)
            code = command()
    except BrokenPipeError:  # the reader has seen enough
        from emoreg.cli.terminal import leave_stdout

        leave_stdout()
        code = 1
    except (UserError, OSError) as error:
        from emoreg.storage.files import refused_error

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


def command_of(arguments: list[str]) -> Callable[[], int]:
    """What was typed, ready to be called for its exit code.

    Raises:
        UserError: for no command, a study that cannot be had, or a setting that breaks a rule.
        SystemExit: after help was shown, or what is wrong with an option.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        return _show_overview
    name, *rest = arguments
    if name == "--version":
        return _show_version
    if name not in COMMANDS:
        raise ConfigError(f"See `emoreg --help`: a command must be one of {', '.join(COMMANDS)}, but it is {name!r}")
    from emoreg.cli.parsing import parse

    return parse(pkgutil.resolve_name(f"emoreg.cli.{COMMANDS[name]}"), name, rest)


def _show_overview() -> int:
    print(_OVERVIEW.format(studies="\n  ".join(shipped_studies())), end="")
    return 0


def _show_version() -> int:
    print(f"emoreg {emoreg.__version__}")
    return 0
