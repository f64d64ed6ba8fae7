"""What a study left, read back: typed rows, DataFrames and its confirmation. Imports neither torch nor Ray.

    study = emoreg.load_study("runs/quickstart")

Everything comes from the study's folder: ``study.json``, the records and, of a confirmation, ``plan.json``. What is damaged is
left out and said, as long as the trials themselves can be read.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from emoreg.config import CONFIRM, Distribution, Objective, StudyConfig
from emoreg.errors import ConfigError, StorageError
from emoreg.results.analysis import ControlRow, best_by_backbone, control_rows, leading
from emoreg.results.confirmation import PLAN, Look, Row, opened_beside, read_looks, rows_of, verdicts
from emoreg.results.records import SCHEMA_VERSION, EpochRecord, RunRecord, TrialRecord, read_rows, schema_version
from emoreg.results.statistics import Verdict
from emoreg.results.written import read_written
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy, join


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study as it stands in its folder.

    Attributes:
        name: of the study.
        place: its folder or URI.
        config: of the study.
        written: ``study.json``: the config again, fingerprints, trainer, versions, git_commit, device, platform.
        trials: every trial that ended, in the order of their ends.
        epochs: every epoch, by trial, in the order in which they were reported.
        runs: every time that it was run.
        looks: at the test split, the first one first; none but for a confirmation.
        confirmation: the study's, where it has one.
        problems: what could not be read, and what can then not be concluded.
    """

    name: str
    place: str
    config: StudyConfig
    written: Mapping[str, Any]
    trials: tuple[TrialRecord, ...]
    epochs: tuple[EpochRecord, ...]
    runs: tuple[RunRecord, ...]
    looks: tuple[Look, ...] = ()
    confirmation: Study | None = None
    problems: tuple[str, ...] = ()

    @property
    def search_space(self) -> Mapping[str, Distribution]:
        """Distributions by path into the trial."""
        return self.config.search_space

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the search makes large or small."""
        return self.config.objectives

    @functools.cached_property
    def searched(self) -> tuple[TrialRecord, ...]:
        """The trials of the search, by Optuna's number."""
        return tuple(sorted((row for row in self.trials if row.number is not None), key=lambda row: row.number or 0))

    @property
    def trainer(self) -> Mapping[str, int]:
        """Versions of the code that decides numbers, by stage; studies from before there were any have the first."""
        versions: Mapping[str, int] = self.written.get("trainer", {"pretraining": 1, "regulation": 1})
        return versions

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbones that the study compares, in its own order."""
        return self.config.backbones()

    @functools.cached_property
    def best(self) -> dict[str, TrialRecord]:
        """The best finished trial of the search for each backbone, by the first objective."""
        return best_by_backbone(self.trials, self.objectives[0])

    @functools.cached_property
    def leading(self) -> list[TrialRecord]:
        """What the search has found: the best of each backbone, or the Pareto front of several objectives."""
        return leading(self.trials, self.objectives, self.backbones)

    @functools.cached_property
    def controls(self) -> list[ControlRow]:
        """Regulation as configured, beside its controls, on validation."""
        return control_rows(self.trials)

    @functools.cached_property
    def confirmed(self) -> list[Row]:
        """What the last look at the test split has found; for a study, that of its confirmation."""
        study = self.confirmation or self
        return rows_of(study.looks[-1], study._by_identity) if study.looks else []

    @functools.cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """What may be said of each confirmed configuration, by the identity of its trial in the search."""
        study = self.confirmation or self
        return verdicts(study.looks[-1], self.confirmed, study._by_identity) if study.looks else {}

    @property
    def opened_beside(self) -> list[TrialRecord]:
        """Trials that have opened the test split though no look planned them, of the study and its confirmation."""
        confirmation = self.confirmation or self
        trials = self.trials if confirmation is self else (*self.trials, *confirmation.trials)
        return opened_beside(confirmation.looks, trials)

    def epochs_of(self, identity: str) -> list[EpochRecord]:
        """The epochs of one trial."""
        return self._epochs_by_trial.get(identity, [])

    @functools.cached_property
    def _by_identity(self) -> dict[str, TrialRecord]:
        return {row.identity: row for row in self.trials}

    @functools.cached_property
    def _epochs_by_trial(self) -> dict[str, list[EpochRecord]]:
        found: dict[str, list[EpochRecord]] = {}
        for row in self.epochs:
            found.setdefault(row.identity, []).append(row)
        return found

    def trials_frame(self) -> pd.DataFrame:
        """One row a trial: the columns of the records, and each searched path as ``params.PATH``."""
        frame = _frame(self.trials, TrialRecord)
        params = [row.sampled for row in self.trials]
        for path in self.search_space:
            frame[f"params.{path}"] = [values.get(path) for values in params]
        return frame

    def epochs_frame(self) -> pd.DataFrame:
        """One row an epoch of a stage of a trial."""
        return _frame(self.epochs, EpochRecord)

    def runs_frame(self) -> pd.DataFrame:
        """One row a run of the study."""
        return _frame(self.runs, RunRecord)


def load_study(place: str | Path) -> Study:
    """Read what a study left.

    Args:
        place: its folder (``runs/quickstart``), or URI in an object store (``s3://bucket/studies/quickstart``).

    Raises:
        ConfigError: where there is no study.
        StorageError: where it cannot be read, or nothing can be concluded from what can.
    """
    place = str(place)
    study = _load(place)
    if study is None:
        raise ConfigError(f"a study is a folder with study.json, but {Files(place).uri!r} has none: see `ls` of your storage")
    if study.name.endswith(CONFIRM):
        return study
    try:
        confirmation = _load(_beside(place))
    except StorageError as error:
        lost = f"The confirmation of {study.place} cannot be read, so nothing is claimed from it: {error}."
        return dataclasses.replace(study, problems=(*study.problems, lost))
    return dataclasses.replace(study, confirmation=confirmation)


def _beside(place: str) -> str:
    """Where the confirmation of the study in a folder or at a URI is."""
    folder = Files(place).folder
    if folder is not None:
        return f"{folder}{CONFIRM}"
    base, question, query = place.partition("?")
    return f"{base.rstrip('/')}{CONFIRM}{question}{query}"


def _load(place: str) -> Study | None:
    files = Files(place)
    if not files.exists("study.json"):
        return None
    config, written = read_written(files)
    with WorkingCopy(files) as copy:
        copy.pull("records", PLAN)
        records = copy.folder / "records"
        trials = read_rows(records / "trials.parquet", TrialRecord, name=join(files.uri, "records/trials.parquet"))
        problems = _age(records / "trials.parquet", files.uri)
        has_any = bool(trials)

        def rows_or_none(table: str, row_type: Any, lost: str) -> list[Any]:
            path, name = records / f"{table}.parquet", join(files.uri, f"records/{table}.parquet")
            return _or_none(path, name, row_type, problems, lost, has_any)

        epochs = rows_or_none("epochs", EpochRecord, "learning curves and balances over epochs")
        runs = rows_or_none("runs", RunRecord, "waiting, restarts and versions by run")
        looks = read_looks(copy.folder)
    return Study(
        name=config.name,
        place=files.uri,
        config=config,
        written=written,
        trials=tuple(sorted(trials, key=lambda row: row.ended)),
        epochs=tuple(epochs),
        runs=tuple(sorted(runs, key=lambda row: row.run)),
        looks=tuple(looks),
        problems=tuple(problems),
    )


def _age(path: Path, place: str) -> list[str]:
    version = schema_version(pq.read_schema(path)) if path.exists() else SCHEMA_VERSION
    if version == SCHEMA_VERSION:
        return []
    return [
        f"The records of {place} have schema version {version}, and this emoreg writes {SCHEMA_VERSION}: what was not recorded "
        "then is empty, or counted as none. Running the study again writes them anew."
    ]


def _or_none(path: Path, name: str, row_type: Any, problems: list[str], lost: str, is_expected: bool) -> list[Any]:
    """The rows, or none and a word on what is lost without them."""
    why = None
    try:
        rows = read_rows(path, row_type, name=name)
        if is_expected and not path.exists():
            why = f"There is no {name}"
    except StorageError as error:
        rows, why = [], str(error)
    if why is not None:
        problems.append(f"{why}. Without it nothing is known of {lost}; accuracies and verdicts stand.")
    return rows


def _frame(rows: tuple[Any, ...], row_type: Any) -> pd.DataFrame:
    names = [item.name for item in dataclasses.fields(row_type)]
    return pd.DataFrame({name: [getattr(row, name) for row in rows] for name in names}, columns=names)
