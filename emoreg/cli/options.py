"""What the options of several commands share: how STUDY is named, a study's settings as options, switches, errors."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, Suppress, arg
from tyro.constructors import PrimitiveConstructorSpec

from emoreg.config import (
    ConfirmationConfig,
    Distribution,
    StudyConfig,
    TrialConfig,
    TrialResources,
    Value,
    leaves,
    without_secrets,
)
from emoreg.config.by_hand import parse_values
from emoreg.config.paths import parts
from emoreg.config.search_space import pin
from emoreg.errors import StorageError

WRITTEN = "A study that was run: its name, its folder or URI, or the module or file that defines it."
Switch = FlagCreatePairsOff[bool]
Debug = Annotated[Switch, arg(help="Show the traceback of an error.")]
_CONFIRMED = ConfirmationConfig()
Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyOptions(StudyConfig):
    """A study's settings as options.

    Three can be set in a study file alone. The study is checked once it is known what leaves its search space.
    """

    search_space: Suppress[Mapping[str, Distribution]] = field(default_factory=dict)
    fixed: Annotated[
        Mapping[str, Value],
        PrimitiveConstructorSpec(
            nargs="*",
            metavar="[PATH=VALUE ...]",
            instance_from_str=parse_values,
            is_instance=lambda value: isinstance(value, Mapping),
            str_from_instance=lambda values: [f"{path}={value}" for path, value in values.items()],
        ),
    ] = field(default_factory=dict)
    confirmed: Suppress[tuple[TrialConfig, ...]] = ()
    resources_by_backbone: Suppress[Mapping[str, TrialResources]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check nothing yet."""


@dataclass(frozen=True, kw_only=True)
class StudyCommand:
    """A command on a study whose settings are its options."""

    study: Annotated[
        Positional[str], arg(metavar="STUDY", help="A module (studies.quickstart), or a path to a Python file with `study`.")
    ]
    config: Annotated[StudyConfig, arg(name="", constructor=StudyOptions)]
    typed: Suppress[tuple[str, ...]] = ()
    debug: Debug = False

    @property
    def command(self) -> str:
        """What was typed."""
        return f"emoreg {shlex.join(self.typed)}"

    @property
    def overridden(self) -> set[str]:
        """The paths into the trial that the command line may have set: ``--trial.drop-path=0.1`` sets ``drop_path``."""
        flags = (argument.partition("=")[0] for argument in self.typed)
        paths = {flag.removeprefix("--trial.").replace("-", "_") for flag in flags if flag.startswith("--trial.")}
        switched_off = {".".join((*owner, name.removeprefix("no_"))) for *owner, name in (path.split(".") for path in paths)}
        return paths | switched_off

    def settled(self) -> tuple[StudyConfig, list[str]]:
        """The study with the search space that the command line leaves, and sentences on what it takes out.

        Raises:
            ConfigError: for settings that break a rule together.
        """
        space, overridden = self.config.search_space, self.overridden
        values = {path: value for path, value in leaves(self.config.trial) if path in overridden and path in space}
        left = pin(space, values)
        told = [f"{path} is {value!r}, by the command line: it leaves the search space" for path, value in values.items()]
        told += [f"{path} leaves the search space with it" for path in space.keys() - left.keys() - values.keys()]
        return self.checked(search_space=left), told

    def checked(self, **changes: object) -> StudyConfig:
        """The study that the options make.

        Raises:
            ConfigError: for settings that break a rule together.
        """
        return StudyConfig(**{**dict(parts(self.config)), **changes})


@dataclass(frozen=True, kw_only=True)
class ConfirmationOptions:
    """What a confirmation takes beside its study."""

    top: int = _CONFIRMED.top
    """Of a confirmation: how many configurations of each backbone."""
    seeds: int | Literal["auto"] = _CONFIRMED.num_seeds or "auto"
    """Of a confirmation: how many seeds; `auto` for as many as the smallest effect takes, by what the controls vary."""
    first_seed: int = _CONFIRMED.first_seed
    """Of a confirmation: the first of the seeds, of which none may have been used in the search."""
    smallest_effect: float = _CONFIRMED.smallest_effect
    """Of a confirmation: the least gain that matters, in points of accuracy. Kept before the test split is opened."""
    looks: Literal[1, 2] = _CONFIRMED.looks
    """Of a confirmation: 2 to look after half of the seeds too, and to end there where the answer is clear."""
    underpowered: Switch = False
    """Of a confirmation: run it though it would rather not see the smallest effect."""
    again: Switch = False
    """Of a confirmation: open the test split a further time, for another plan. Recorded; its verdict is exploratory."""

    @property
    def asked(self) -> ConfirmationConfig:
        """What a confirmation is asked for."""
        return ConfirmationConfig(
            num_seeds=None if self.seeds == "auto" else self.seeds,
            top=self.top,
            first_seed=self.first_seed,
            smallest_effect=self.smallest_effect,
            looks=self.looks,
            underpowered=self.underpowered,
            again=self.again,
        )


@dataclass(frozen=True, kw_only=True)
class WrittenCommand:
    """A command on a study that was run."""

    study: Annotated[Positional[str], arg(metavar="STUDY", help=WRITTEN)]
    storage: str | None = None
    """Folder or URI that holds it, where it is not `runs` or what the study's file says."""
    debug: Debug = False


@contextmanager
def reading(
    refusal: str = "Check the storage's address, its permissions and that it answers: it cannot be read",
) -> Iterator[None]:
    """Read a storage within, which may not answer, or not let it: then the user is told so."""
    try:
        yield
    except BrokenPipeError:  # the reader of our output has enough of it
        raise
    except OSError as error:
        raise StorageError(f"{refusal} ({without_secrets(str(error))})") from error
