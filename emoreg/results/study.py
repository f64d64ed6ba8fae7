"""What a study left, read back: typed rows, DataFrames and its confirmation. Imports neither torch nor Ray.

Everything comes from the study's folder: ``study.json``, the records and, of a confirmation, ``plan.json``. What is damaged is
left out and told, as long as the trials themselves can be read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from emoreg.config import CONFIRM, Distribution, Objective, StudyConfig, in_order
from emoreg.errors import StorageError
from emoreg.results.analysis import averaged, best_by_backbone, leading
from emoreg.results.confirmation import Confirmed, ControlRow, confirmed_rows, control_rows, ladders_of, verdicts
from emoreg.results.ladder import Comparisons, Verdict
from emoreg.results.ledger import Entry, Ledger, earlier
from emoreg.results.plan import PLAN, Opening, read_openings
from emoreg.results.predictions import read_predictions
from emoreg.results.records import EpochRecord, EvaluationRecord, ProbeRecord, Row, RunRecord, TrialRecord
from emoreg.results.written import WrittenStudy, read_written, stored_rows
from emoreg.storage.files import Files
from emoreg.storage.working_copy import split

_LOST = {
    "epochs": "learning curves and balances over epochs",
    "runs": "waiting, restarts and versions by run",
    "probes": "what probes saw",
    "evaluations": "how each class was recognised",
}
"""What is not known without a table of the records that nothing is concluded from."""


@dataclass(frozen=True, kw_only=True)
class StudyResults:
    """A study as it stands in its folder.

    Attributes:
        place: its folder or URI.
        folder: its path, where it lies in a file system of this machine.
        written: its ``study.json``.
        trials: every trial that ended, in the order of their ends.
        epochs: every epoch, by trial, in the order in which they were reported.
        runs: every time that it was run.
        probes: every number that a probe returned.
        evaluations: how each trial did on each class.
        openings: of the test set, the first one first; none but for a confirmation.
        ledger: the openings of the test splits that those are of, by whatever study; None where they have no ledger.
        confirmation: the study's, where it has one.
        problems: what could not be read, and what can then not be concluded.
        beside: ladders of other studies that are shown with it, for which its verdicts are corrected too.
    """

    place: str
    written: WrittenStudy
    trials: tuple[TrialRecord, ...]
    epochs: tuple[EpochRecord, ...]
    runs: tuple[RunRecord, ...]
    probes: tuple[ProbeRecord, ...] = ()
    evaluations: tuple[EvaluationRecord, ...] = ()
    folder: Path | None = None
    openings: tuple[Opening, ...] = ()
    ledger: tuple[Entry, ...] | None = None
    confirmation: StudyResults | None = None
    problems: tuple[str, ...] = ()
    beside: tuple[Comparisons, ...] = ()

    @property
    def config(self) -> StudyConfig:
        """The study, without passwords."""
        return self.written.config

    @property
    def name(self) -> str:
        """Of the study."""
        return self.config.name

    @property
    def search_space(self) -> Mapping[str, Distribution]:
        """Distributions by path into the trial."""
        return self.config.search_space

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What the search makes large or small."""
        return self.config.objectives

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbones that the study compares, in its own order."""
        return self.config.backbones()

    @functools.cached_property
    def searched(self) -> tuple[TrialRecord, ...]:
        """The trials of the search, by Optuna's number; of several seeds one, with their means."""
        return tuple(sorted((row for row in averaged(self.trials) if row.is_searched), key=lambda row: row.number or 0))

    def num_seeds(self, identity: str) -> int:
        """Seeds that a trial's numbers are means of: those of its proposal, where it is one of the search."""
        return 1 + sum(row.repeats == identity for row in self.trials)

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
    def tuned(self) -> dict[tuple[str, str], TrialRecord]:
        """The best finished trial of each control's own search, by control and backbone. Selected."""
        bests = {
            control: best_by_backbone(self.trials, self.objectives[0], search_of=control)
            for control in in_order({row.search_of for row in self.trials if row.search_of is not None})
        }
        return {(control, name): best[name] for name in self.backbones for control, best in bests.items() if name in best}

    @property
    def with_confirmation(self) -> tuple[StudyResults, ...]:
        """The study and, where it has one, its confirmation."""
        return (self,) if self.confirmation is None else (self, self.confirmation)

    @property
    def confirming(self) -> StudyResults:
        """The study's confirmation; the study itself where it has none, or is one."""
        return self.confirmation or self

    @property
    def opening(self) -> Opening | None:
        """The last opening of the test set by the confirmation, with what was looked at; None before there is one."""
        return self.confirming.openings[-1].looked_at if self.confirming.openings else None

    @functools.cached_property
    def confirmed(self) -> list[Confirmed]:
        """What the last opening of the test set has found, each control at its own best where it was tuned."""
        if self.opening is None:
            return []
        return confirmed_rows(self.opening, self.confirming.by_identity)

    @property
    def ladders(self) -> dict[str, Comparisons]:
        """What each confirmed configuration was compared with, by the identity of its trial in the search."""
        return ladders_of(self.confirmed)

    @functools.cached_property
    def same_settings(self) -> list[Confirmed]:
        """The same with every control at the settings of what was chosen, which tells the mechanism.

        Empty where no control has had a search of its own: then ``confirmed`` is that.
        """
        if self.opening is None or not self.opening.tuned_trials:
            return []
        return confirmed_rows(self.opening, self.confirming.by_identity, same_settings=True)

    @functools.cached_property
    def verdicts(self) -> dict[str, Verdict]:
        """What may be said of each confirmed configuration, by the identity of its trial in the search."""
        if self.opening is None:
            return {}
        found = verdicts(self.opening, self.confirmed, self.confirming.by_identity, self.beside)
        why = self.exploratory
        return {identity: verdict.exploratory(why) if why else verdict for identity, verdict in found.items()}

    @functools.cached_property
    def exploratory(self) -> str:
        """Why the last opening may have been chosen knowing an earlier one's answer; empty where it was not."""
        openings, ledger = self.confirming.openings, self.confirming.ledger
        if self.opening is None:
            return ""
        if len(openings) > 1:
            former, last = openings[-2:]
            if len(openings) == 2 and last.extends(former):
                return f"the seeds were extended from {len(former.seeds)} to {len(last.seeds)} once their answer could be known"
            return f"this confirmation opened the test set {len(openings)} times"
        study = self.confirming.name.removesuffix(CONFIRM)
        if ledger is None or openings[-1].digest not in {entry.plan for entry in ledger if entry.study == study}:
            return "the ledger of the test set lacks this opening, so earlier ones cannot be told"
        before = [*dict.fromkeys(map(str, earlier(ledger, self.opening, study)))]
        more = f" and {len(before) - 1} more" if len(before) > 1 else ""
        return f"the test set had been opened by {before[0]}{more}" if before else ""

    @property
    def unplanned_openings(self) -> list[TrialRecord]:
        """Trials that have opened the test set though no plan has them: `emoreg trial --evaluate test` does so."""
        planned = {trial.identity for opening in self.confirming.openings for trial in opening.every_trial}
        return [row for row in self.all_trials if row.test_accuracy is not None and row.identity not in planned]

    @property
    def all_trials(self) -> tuple[TrialRecord, ...]:
        """The trials of the study and of its confirmation."""
        return tuple(row for study in self.with_confirmation for row in study.trials)

    @functools.cached_property
    def by_identity(self) -> dict[str, TrialRecord]:
        """The trials by their identities."""
        return {row.identity: row for row in self.trials}

    def epochs_of(self, identity: str) -> list[EpochRecord]:
        """The epochs of one trial."""
        return self._epochs_by_trial.get(identity, [])

    def predictions_of(self, identity: str) -> pa.Table | None:
        """What one trial, of the study or its confirmation, took each image for; None where its network is not kept.

        Raises:
            StorageError: for a file that is damaged.
        """
        return read_predictions(*(Files(study.place) for study in self.with_confirmation), identity=identity)

    @functools.cached_property
    def _epochs_by_trial(self) -> dict[str, list[EpochRecord]]:
        found: dict[str, list[EpochRecord]] = {}
        for row in self.epochs:
            found.setdefault(row.identity, []).append(row)
        return found

    def trials_frame(self) -> pd.DataFrame:
        """One row a trial: the columns of the records, each searched path as ``params.PATH``, each registered metric."""
        params = pd.DataFrame([row.sampled for row in self.trials], columns=[*self.search_space]).add_prefix("params.")
        return pd.concat([_frame(self.trials, TrialRecord), params, _metrics(self.trials)], axis=1)

    def epochs_frame(self) -> pd.DataFrame:
        """One row an epoch of a stage of a trial, with each registered metric as a column."""
        return pd.concat([_frame(self.epochs, EpochRecord), _metrics(self.epochs)], axis=1)

    def runs_frame(self) -> pd.DataFrame:
        """One row a run of the study."""
        return _frame(self.runs, RunRecord)

    def probes_frame(self) -> pd.DataFrame:
        """One row a number that a probe returned after an epoch."""
        return _frame(self.probes, ProbeRecord)

    def evaluations_frame(self) -> pd.DataFrame:
        """One row a class of a split that a trial was evaluated on, at its end."""
        return _frame(self.evaluations, EvaluationRecord)


def load_results(place: str | Path) -> StudyResults:
    """Read what a study left.

    Args:
        place: its folder (``runs/quickstart``), or URI in an object store (``s3://bucket/studies/quickstart``).

    Raises:
        ConfigError: where there is no study.
        StorageError: where it cannot be read, or nothing can be concluded from what can.
    """
    place = str(place)
    study = _load(Files(place))
    if study.name.endswith(CONFIRM):
        return study
    base, question, query = place.partition("?") if study.folder is None else (str(study.folder), "", "")
    beside = Files(f"{base.rstrip('/')}{CONFIRM}{question}{query}")
    try:
        confirmation = _load(beside) if beside.exists("study.json") else None
    except StorageError as error:
        lost = f"The confirmation of {study.place} cannot be read, so nothing is claimed from it: {error}."
        return dataclasses.replace(study, problems=(*study.problems, lost))
    return dataclasses.replace(study, confirmation=confirmation)


def _load(files: Files) -> StudyResults:
    written = read_written(files)
    trials = stored_rows(files, "trials", TrialRecord)
    problems: list[str] = []

    def rows_or_none(table: str, row_type: type[Row]) -> tuple[Row, ...]:
        """The rows of a table, or none and a problem."""
        why = f"There is no records/{table}.parquet of {files.uri!r}"
        try:
            rows = stored_rows(files, table, row_type)
            is_lost = rows is None and bool(trials) and table not in ("probes", "evaluations")
        except StorageError as error:
            rows, why, is_lost = None, str(error), True
        if is_lost:
            problems.append(f"{why}. Without it nothing is known of {_LOST[table]}; accuracies and verdicts stand.")
        return tuple(rows or ())

    openings = tuple(read_openings(files))
    try:
        ledger = _ledger(files.uri, openings)
    except StorageError as error:
        ledger = None
        problems.append(str(error))
    if not openings and any(row.role == "confirm" and row.test_accuracy is not None for row in trials or ()):
        problems.append(
            f"There is no {PLAN} of {files.uri!r}, though its trials have opened the test set: nothing says what was fixed "
            "before, so nothing is concluded."
        )
    return StudyResults(
        place=files.uri,
        folder=files.folder,
        written=written,
        trials=tuple(sorted(trials or (), key=lambda row: row.ended)),
        epochs=rows_or_none("epochs", EpochRecord),
        runs=tuple(sorted(rows_or_none("runs", RunRecord), key=lambda row: row.run)),
        probes=rows_or_none("probes", ProbeRecord),
        evaluations=rows_or_none("evaluations", EvaluationRecord),
        openings=openings,
        ledger=ledger,
        problems=tuple(problems),
    )


def _ledger(place: str, openings: Sequence[Opening]) -> tuple[Entry, ...] | None:
    test_splits = openings[-1].test_splits if openings else ()
    if not test_splits:
        return None
    ledgers = [Ledger(split(place)[0], test_split) for test_split in test_splits]
    return tuple(sorted((entry for ledger in ledgers for entry in ledger.entries()), key=lambda entry: entry.opened))


def _frame(rows: Sequence[Row], row_type: type[Row]) -> pd.DataFrame:
    return pd.DataFrame([*rows], columns=[item.name for item in dataclasses.fields(row_type)])


def _metrics(rows: Iterable[TrialRecord | EpochRecord]) -> pd.DataFrame:
    return pd.DataFrame([json.loads(row.metrics) for row in rows])
