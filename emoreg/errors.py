"""What can go wrong, as one tree.

EmoregError
├── UserError (also a ValueError)   the input is wrong: the message says what to do, the constraint and the value; exit code 2
│   ├── ConfigError                 a configuration value, an override, a study file
│   ├── ImageSetError               an image set that is missing, broken or laid out wrongly
│   └── StorageError                a folder or a file that cannot be used
├── Diverged                        a loss left the finite numbers; ends the trial as pruned, with the step
├── Interrupted                     a trial or a study was asked to stop, and has saved all it did
└── StudyAborted                    faults in code broke too many trials of a study; what had ended stays
"""

from __future__ import annotations


class EmoregError(Exception):
    """Root of every error that emoreg raises on purpose.

    Example:
        >>> import emoreg
        >>> try:
        ...     emoreg.RegulationConfig(balance=1.5)
        ... except emoreg.EmoregError as error:
        ...     print(error)
        Choose a number in [0, 1]: regulation.balance must lie in [0, 1], but it is 1.5
    """


class UserError(EmoregError, ValueError):
    """Wrong input. The message says what to do, then the constraint and the value that breaks it."""


class ConfigError(UserError):
    """A configuration that breaks a constraint."""


class ImageSetError(UserError):
    """An image set that cannot be read as asked."""


class StorageError(UserError):
    """A storage that cannot be used as asked."""


class Diverged(EmoregError):
    """A loss that is not finite.

    Attributes:
        stage: ``"pretraining"`` or ``"regulation"``.
        step: the optimizer update (from 0, within the stage) whose loss was the first not finite.
    """

    def __init__(self, stage: str, step: int) -> None:
        super().__init__(f"the loss of {stage} is not finite at step {step}")
        self.stage = stage
        self.step = step

    def __reduce__(self) -> tuple[type[Diverged], tuple[str, int]]:
        return (Diverged, (self.stage, self.step))


class Interrupted(EmoregError):
    """A trial or a study that was asked to stop has saved its state: run again, it goes on from there, to the bit on CPU."""


class StudyAborted(EmoregError):
    """Faults in code broke ``resources.max_failures`` trials of a study, so it stopped: run again, it goes on."""
