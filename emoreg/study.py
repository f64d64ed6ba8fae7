"""The face's ``Study``: configured, run, confirmed, reported, read back. Imports Ray, torch and pandas when it needs them."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

from emoreg.config import (
    STORAGE,
    BudgetConfig,
    ConfirmationConfig,
    Distribution,
    ExperienceConfig,
    Objective,
    ResourcesConfig,
    SamplerConfig,
    SchedulerConfig,
    StudyConfig,
    TrialConfig,
    TrialResources,
    Value,
)
from emoreg.config.paths import parts
from emoreg.errors import ConfigError, Interrupted, StudyAborted
from emoreg.formatting import by_status, configuration, counted, metric_text
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join, split

if TYPE_CHECKING:
    import pandas as pd

    from emoreg.results.confirmation import Confirmed, ControlRow
    from emoreg.results.ladder import Verdict
    from emoreg.results.outcome import Outcome
    from emoreg.results.records import EpochRecord, RunRecord, TrialRecord
    from emoreg.results.status import Status
    from emoreg.results.study import StudyResults
    from emoreg.tracking.observer import StudyObserver
    from emoreg.tuning.private_ray import PrivateRay

imported_file: ContextVar[str | None] = ContextVar("imported_file", default=None)
"""The study file that is being imported; None outside of an import."""


def refuse_while_imported(call: str) -> None:
    """Refuse a call that a study file makes when it is only imported.

    Raises:
        ConfigError: while a study file is imported.
    """
    file = imported_file.get()
    if file is not None:
        raise ConfigError(
            f'Put {call} under `if __name__ == "__main__":`: importing a study file must run nothing, but {file!r} runs a study'
        )


class ConfirmationSettings(TypedDict, total=False):
    """What ``Study.confirm`` takes: the settings of a ``ConfirmationConfig``, which documents them and has their defaults."""

    num_seeds: int | None
    top: int
    first_seed: int
    smallest_effect: float
    looks: Literal[1, 2]
    underpowered: bool
    again: bool


class StudySettings(TypedDict, total=False):
    """What ``Study`` takes beside its name: the settings of a ``StudyConfig``, which documents them and has their defaults."""

    storage: str
    trial: TrialConfig
    search_space: Mapping[str, Distribution]
    fixed: Mapping[str, Value]
    num_trials: int
    seeds_per_trial: int
    sampler: SamplerConfig
    scheduler: SchedulerConfig
    objectives: tuple[Objective, ...]
    controls: tuple[str, ...]
    controls_search: Literal["none", "required", "all"]
    control_seeds: tuple[int, ...]
    confirmed: tuple[TrialConfig, ...]
    resources: ResourcesConfig
    budget: BudgetConfig
    resources_by_backbone: Mapping[str, TrialResources]
    loggers: tuple[str, ...]
    notify: str | None
    experience: ExperienceConfig
    warm_start_from: tuple[str, ...]
    optuna_storage: str | None


class Study:
    """A study: a trial, what is searched around it, and the controls beside it.

    ``run`` does what is missing of it, ``confirm`` gives the answer on fresh seeds and the test split, ``report`` writes it up.
    What was found is read when it is first asked for, and again after ``run``, ``confirm`` and ``refresh``.

    Attributes:
        config: every setting of the study.

    Example:
        >>> import emoreg
        >>> study = emoreg.Study("faces", search_space={"regulation.balance": emoreg.Float(0.05, 0.95)}, num_trials=4)
        >>> study
        Study('faces', 4 trials over regulation.balance, in runs/faces: not run yet)
    """

    config: StudyConfig

    def __init__(self, name: str, **settings: Unpack[StudySettings]) -> None:
        """Configure a study; nothing is read or run.

        Args:
            name: of its folder in the storage.
            **settings: of a ``StudyConfig``; ``search_space`` must be among them.

        Raises:
            ConfigError: for settings that break a rule.
        """
        self.config = StudyConfig(name=name, **settings)
        self._results: StudyResults | None = None

    @classmethod
    def from_config(cls, config: StudyConfig) -> Study:
        """The study of a configuration."""
        return cls(**dict(parts(config)))

    @property
    def name(self) -> str:
        """The study's name."""
        return self.config.name

    @property
    def place(self) -> str:
        """The study's folder or URI."""
        return join(self.config.storage, self.config.name)

    def run(self, *, address: str | None = None, observers: Sequence[StudyObserver] = (), command: str | None = None) -> Study:
        """Run what is missing of the study, with its progress in the terminal or the notebook.

        A study that was interrupted, killed or finished before goes on from what it has. The first Ctrl-C (or SIGTERM,
        SIGHUP, SIGUSR1, SIGUSR2) lets the running trials save, Ctrl-C or SIGTERM after it leaves at once; both raise
        ``Interrupted``, and running the study again goes on.

        Args:
            address: of a Ray cluster, or "auto" for the one that this machine belongs to; None starts Ray here.
            observers: told what happens, beside the progress.
            command: what was typed, for the records.

        Returns:
            The study itself.

        Raises:
            UserError: for a study that cannot run here, with what to do.
            Interrupted: where it was told to stop.
            StudyAborted: where faults in code broke ``resources.max_failures`` trials.
        """
        refuse_while_imported("study.run()")
        from emoreg.cli.progress import Progress

        with self._ray_begun(address) as private:
            from emoreg.tuning.preflight import check_study

            check_study(self.config, address=address)  # before Ray is imported, which takes seconds
            from emoreg.tuning.study import run_study

            with Progress(self.place) as progress, self._notifying(progress):
                told = (progress, *observers)
                end = run_study(self.config, address=address, observers=told, command=command, private=private)
        return self._ended(end)

    def confirm(
        self,
        *,
        address: str | None = None,
        observers: Sequence[StudyObserver] = (),
        command: str | None = None,
        **asked: Unpack[ConfirmationSettings],
    ) -> Study:
        """Run the best configurations of the search beside every control, on fresh seeds, and open the test split once.

        Args:
            asked: the settings of a ``ConfirmationConfig``, which documents them: ``num_seeds=10``, ``smallest_effect=0.5``.
            address: as for ``run``.
            observers: as for ``run``.
            command: as for ``run``.

        Returns:
            The study of the confirmation, whose ``verdicts`` are the answer.

        Raises:
            UserError, Interrupted, StudyAborted: as ``run`` does.
        """
        refuse_while_imported("study.confirm()")
        from emoreg.cli.progress import Progress

        with self._ray_begun(address) as private:
            from emoreg.tuning.preflight import check_home

            check_home(address)  # before Ray is imported
            from emoreg.tuning.confirm import plan_confirmation, run_confirmation

            plan = plan_confirmation(self.config, ConfirmationConfig(**asked), address=address)
            confirmation = Study.from_config(plan.config)
            with Progress(confirmation.place) as progress, confirmation._notifying(progress):
                told = (progress, *observers)
                end = run_confirmation(plan, address=address, observers=told, command=command, private=private)
        self.refresh()
        return confirmation._ended(end)

    def _ray_begun(self, address: str | None) -> AbstractContextManager[PrivateRay | None]:
        """Begin to start Ray on this machine, while this process imports and checks what it needs; None for a cluster."""
        if address is not None:
            return nullcontext()
        from emoreg.tuning.private_ray import TUNE_SETTINGS, num_warm_workers, private_ray

        return private_ray(TUNE_SETTINGS, num_workers=num_warm_workers(self.config))

    def _notifying(self, progress: StudyObserver) -> AbstractContextManager[None]:
        """Send a word at the end of a run within, if the study asks for one."""
        if self.config.notify is None:
            return nullcontext()
        from emoreg.tracking.notify import notifying

        return notifying(self.config.notify, self.name, self.place, progress.on_message)

    def _ended(self, end: str) -> Study:
        """The study after a run that ended so, to be read anew."""
        from emoreg.tuning.study import RunEnd

        self.refresh()
        match end:
            case RunEnd.INTERRUPTED:
                why, status = self.runs[-1].stop_reason, self.status()
                how, used = "was interrupted" if why is None else f"stopped {why}", status.used and f"; {status.used}"
                raise Interrupted(
                    f"Run study {self.name!r} again to go on: it {how}; {status.trials.ended} of "
                    f"{counted(status.trials.planned, 'trial')} have ended, and what the others did is saved{used}"
                )
            case RunEnd.ABORTED:
                last = max((row for row in self.trials if row.status == "failed"), key=lambda row: row.ended)
                raise StudyAborted(
                    f"Mend the fault and run study {self.name!r} again to go on: faults in code broke "
                    f"{self.config.resources.max_failures} trials (resources.max_failures), the last one trial "
                    f"{last.identity}:\n{last.log_tail}"
                )
        return self

    def enqueue(self, values: Mapping[str, Value]) -> Study:
        """Have a trial with these values tried first in the search, whether the study runs now or later.

        It counts as a trial of the search, and runs even where ``num_trials`` have been proposed.

        Args:
            values: by searched path; the sampler proposes those that are left out.

        Returns:
            The study itself.

        Raises:
            ConfigError: for values that the search space does not have, that break a rule together, or of a trial that has run.
        """
        refuse_while_imported("study.enqueue()")
        from emoreg.results.requests import enqueue

        enqueue(Files(self.place), self.config, values)
        return self

    def stop_trial(self, identity: str) -> str:
        """Have a trial of the search that runs now save and end, as pruned; the study goes on.

        Args:
            identity: the trial's, or its beginning.

        Returns:
            Its whole identity.

        Raises:
            ConfigError: where no such trial runs.
        """
        from emoreg.results.requests import ask_to_stop

        control = self.config.trial.control  # whoever could stop those of others could tune them less
        running = [
            trial.identity for trial in self.status().running or () if (trial.role, trial.control) == ("search", control)
        ]
        return ask_to_stop(Files(self.place), self.config, running, identity)

    def report(self, output: str | Path | None = None, *, images: bool = True, price_per_hour: float | None = None) -> Path:
        """Write the report: one HTML file that needs no server and no network.

        Args:
            output: folder to write to; None: ``report`` in the study's folder.
            images: whether every figure becomes a PNG and an SVG too, which takes a Chrome or Chromium.
            price_per_hour: what an hour of the device costs, for the account of costs.

        Returns:
            The path of ``index.html``.

        Raises:
            UserError: for a study that has not run, cannot be read, or a folder that cannot be written to.
        """
        refuse_while_imported("study.report()")
        from emoreg.report import write_report

        return write_report([self.place], output=output, images=images, price_per_hour=price_per_hour)

    def export(self, to: str | Path, *, trial: str = "best", onnx: bool = False) -> TrialRecord:
        """Write a trained network where ``emoreg.load_network`` finds it, with its configuration and a model card.

        Args:
            to: folder or URI to write to; what was exported there before is replaced.
            trial: "best", of the search by its first objective; "confirmed", the confirmed configuration that was best on
                validation, on the first fresh seed; or the identity of a finished trial whose network was kept.
            onnx: write it in ONNX too, in float32, for other runtimes (extra `onnx`).

        Returns:
            The record of the exported trial.

        Raises:
            UserError: where there is no such trial, its network was not kept, or the folder cannot be written to.
        """
        refuse_while_imported("study.export()")
        from emoreg.training.export import export_network

        return export_network(self.results, self.config.storage, to, trial, onnx=onnx)

    def refresh(self) -> Study:
        """Forget what was read, so that it is read again when it is asked for; the study itself."""
        self._results = None
        return self

    @property
    def results(self) -> StudyResults:
        """All that the study has found, as it was when it was first asked for.

        Raises:
            ConfigError: where the study has not run.
            StorageError: where it cannot be read.
        """
        if self._results is None:
            from emoreg.results.study import load_results

            self._results = load_results(self.place)
        return self._results

    @property
    def best(self) -> Mapping[str, TrialRecord]:
        """The best finished trial of the search for each backbone. Selected, so its metric flatters it."""
        return self.results.best

    @property
    def trials(self) -> tuple[TrialRecord, ...]:
        """Every trial that ended, in the order of their ends."""
        return self.results.trials

    @property
    def epochs(self) -> tuple[EpochRecord, ...]:
        """Every epoch of every trial."""
        return self.results.epochs

    @property
    def runs(self) -> tuple[RunRecord, ...]:
        """Every time that the study was run."""
        return self.results.runs

    @property
    def controls(self) -> Sequence[ControlRow]:
        """Regulation as configured beside its controls, on validation: nothing selected."""
        return self.results.controls

    @property
    def verdicts(self) -> Mapping[str, Verdict]:
        """What its confirmation lets be said of each confirmed configuration, by the identity of its trial in the search."""
        return self.results.verdicts

    @property
    def confirmed(self) -> Sequence[Confirmed]:
        """Regulation beside its controls on the test set: each at its own best (``is_tuned``) where it was tuned for itself."""
        return self.results.confirmed

    @property
    def same_settings(self) -> Sequence[Confirmed]:
        """The same with the controls at regulation's settings: the mechanism. Empty where ``confirmed`` is that already."""
        return self.results.same_settings

    def trials_frame(self) -> pd.DataFrame:
        """One row a trial: the columns of the records, and each searched path as ``params.PATH``."""
        return self.results.trials_frame()

    def epochs_frame(self) -> pd.DataFrame:
        """One row an epoch of a stage of a trial."""
        return self.results.epochs_frame()

    def predictions_frame(self) -> pd.DataFrame | None:
        """One row an image of a split, for the trials of the study and its confirmation whose networks are kept.

        None where there are none. Columns say what each encoder took the image for: agreement is ``plain_predicted ==
        emotional_predicted``.

        Raises:
            StorageError: where one cannot be read.
        """
        from emoreg.results.predictions import read_predictions

        places = dict.fromkeys((self.place, join(self.config.storage, self.results.confirming.name)))
        predictions = read_predictions(*map(Files, places))
        return None if predictions is None else predictions.to_pandas()

    def status(self) -> Status:
        """How the study stands now, also while another process runs it.

        Raises:
            ConfigError: where it has not run.
        """
        from emoreg.results.status import read_status

        return read_status(self.place)

    def __repr__(self) -> str:
        return f"Study({self.name!r}, {self._plan()}, in {self.place}: {'; '.join(self._standing())})"

    def _repr_html_(self) -> str:
        lines = "".join(f"<br>{html.escape(line)}" for line in self._standing())
        return f"<b>Study {html.escape(self.name)}</b>: {html.escape(f'{self._plan()}, in {self.place}')}{lines}"

    def _plan(self) -> str:
        return f"{counted(self.config.num_trials, 'trial')} over {', '.join(self.config.search_space)}"

    def _standing(self) -> list[str]:
        """How it stands, from its folder: a storage far away is not asked for a repr."""
        if "://" in self.place and not self.place.startswith("file://"):
            return ["call status() to see how it stands"]
        if not Files(self.place).exists("study.json"):
            return ["not run yet"]
        status = self.status()
        counts = {"finished": status.trials.finished, "pruned": status.trials.pruned, "failed": status.trials.failed}
        lines = [f"{status.state}, {by_status(counts)}"]
        if status.best is not None:
            found = configuration(status.best.backbone, status.best.params)
            lines.append(f"best {metric_text(status.best.metric, status.best.value)} ({found})")
        return lines


def load_study(place: str | Path) -> Study:
    """The study in a folder (``runs/quickstart``) or at a URI (``s3://bucket/studies/quickstart``), as it was run last.

    Its results are read when they are asked for. It can be run again where what its file registers (controls, backbones) is
    registered too.

    Raises:
        ConfigError: where there is no study, or its folder was renamed.
        StorageError: where it cannot be read.

    Example:
        >>> import emoreg
        >>> study = emoreg.load_study("runs/mine")
        >>> sorted(study.best)
        ['test_resnet', 'test_vit']
        >>> study.best["test_vit"].control
        'regulated'
    """
    from emoreg.results.written import read_written

    files = Files(str(place))
    config = read_written(files).config
    storage, folder = split(str(place))
    if folder != config.name:
        raise ConfigError(
            f"Rename the folder to {config.name!r}: a study lies in a folder of its name, but this is {files.uri!r}"
        )
    return Study.from_config(dataclasses.replace(config, storage=storage, notify=None))


def run_trial(trial: TrialConfig, *, storage: str = STORAGE, device: Literal["auto", "cpu", "cuda"] = "auto") -> Outcome:
    """Run one trial in this process, without Ray, from its last checkpoint where it has one. The test set stays closed.

    Args:
        trial: to run.
        storage: folder of checkpoints, experience and prepared image sets.
        device: where to compute; "auto" takes the GPU where there is one.

    Returns:
        What it measured. A trial whose loss leaves the finite numbers ends too, with ``outcome.end`` "diverged".

    Raises:
        UserError: for a trial that cannot run here, with what to do.

    Example:
        >>> import emoreg
        >>> outcome = emoreg.run_trial(
        ...     emoreg.TrialConfig(
        ...         backbone="test_resnet",
        ...         image_size=8,
        ...         stimuli=emoreg.ImageSetConfig(name="digits", num_images=40, validation_fraction=0.0),
        ...         task=emoreg.ImageSetConfig(name="digits", num_images=40),
        ...         pretraining=emoreg.PretrainingConfig(epochs=1),
        ...         regulation=emoreg.RegulationConfig(epochs=1),
        ...     )
        ... )
        >>> outcome.end.value, 0 <= outcome.val_accuracy <= 1
        ('completed', True)
    """
    refuse_while_imported("emoreg.run_trial()")
    from emoreg.tuning.adapters import run_here

    return run_here(trial, storage=storage, device=device)
