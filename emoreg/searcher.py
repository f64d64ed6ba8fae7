"""Optuna as a searcher of Ray Tune that tells Optuna the truth about every trial.

Finished -> COMPLETE. Stopped by a scheduler -> PRUNED, with its intermediate values. Diverged -> PRUNED, with the step where
it did. Broken on every attempt -> FAIL. The storage holds the search's whole state: what an interrupted driver left RUNNING
is told from the records, or handed out again under its own number.

This is the one place where metric and mode become Optuna's directions, and where the keys of Tune's results are named.
"""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from emoreg.config import Choice, Distribution, Float, Int, Objective, SamplerConfig, StudyConfig, TrialConfig, Value
from emoreg.errors import ConfigError, Diverged, StorageError
from emoreg.records import EpochRecord, Role, TrialRecord
from emoreg.search_space import grid, resolve, suggest
from emoreg.seeding import derive_seed

STATUS = "status"
"""Key of a trial's last result: ``"finished"`` or ``"diverged"``. No other result has it."""
REGULATION_EPOCH = "regulation_epoch"
"""Key that schedulers compare by (their ``time_attr``)."""

_GRID = "grid"
_INVALID = "invalid"
_MAX_INVALID = 100


def metric_key(metric: Literal["accuracy", "loss", "device_seconds"]) -> str:
    """The key of a metric in Tune's results: ``"metric/accuracy"``."""
    return f"metric/{metric}"


def epoch_result(row: EpochRecord, *, role: Role, num_epochs: int) -> dict[str, Any]:
    """What a trial reports to Tune after an epoch.

    The metrics are there after epochs of regulation only, so that pre-training is never compared. Schedulers see
    ``REGULATION_EPOCH`` in searched trials only (controls run to their end), and not in the last of ``num_epochs``: stopping
    there would save nothing and make a trial that is complete look pruned. Its last result stands for that epoch.
    """
    result = dataclasses.asdict(row)
    if row.stage == "regulation":
        for key, value in (("accuracy", row.validation_accuracy), ("loss", row.validation_loss)):
            if value is not None:
                result[f"metric/{key}"] = value
        if role == "search" and row.epoch < num_epochs:
            result[REGULATION_EPOCH] = row.epoch
    return result


def last_result(
    *,
    role: Role,
    epochs: int,
    accuracy: float | None,
    loss: float | None,
    device_seconds: float,
    diverged: Diverged | None = None,
) -> dict[str, Any]:
    """What a trial reports to Tune when it has ended by itself, after its last epoch's own result.

    Tune's median rule reads ``REGULATION_EPOCH`` and the metrics of every trial's last result. Controls and diverged trials
    have it at 0, which is below every rung: nothing is compared with them.
    """
    result: dict[str, Any] = {
        STATUS: "finished" if diverged is None else "diverged",
        REGULATION_EPOCH: epochs if role == "search" and diverged is None else 0,
        metric_key("accuracy"): math.nan if accuracy is None else accuracy,
        metric_key("loss"): math.nan if loss is None else loss,
        metric_key("device_seconds"): device_seconds,
    }
    if diverged is not None:
        result |= {"diverged_stage": diverged.stage, "diverged_step": diverged.step}
    return result


def open_study(config: StudyConfig, folder: Path) -> optuna.Study:
    """Optuna's study of this name, begun or taken up again: a journal in ``folder``, or the database of ``optuna_storage``.

    The sampler's seed depends on how many trials the storage holds, so that a search taken up again goes on to new points.

    Raises:
        StorageError: for a storage that cannot be opened, or that holds a study with other objectives or other kinds of
            parameters.
    """
    directions = ["maximize" if objective.mode == "max" else "minimize" for objective in config.objectives]
    if config.optuna_storage is None:
        study = _create(config, directions, _journal(folder / "optuna.journal"))
    else:
        study = _open_database(config, directions, config.optuna_storage)
    _check_same_search(study, config)
    with _no_experimental_warnings():
        if study.metric_names is None:
            study.set_metric_names([objective.metric for objective in config.objectives])
        study.sampler = _sampler(config.sampler, len(study.get_trials(deepcopy=False)))
    return study


def _create(config: StudyConfig, directions: list[Any], storage: optuna.storages.BaseStorage) -> optuna.Study:
    # Optuna tells of each study that it creates or loads, on stderr, at INFO.
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        return optuna.create_study(
            study_name=config.name,
            storage=storage,
            directions=directions,
            load_if_exists=True,
            pruner=optuna.pruners.NopPruner(),  # Tune's schedulers prune
        )
    finally:
        optuna.logging.set_verbosity(before)


def _journal(path: Path) -> optuna.storages.BaseStorage:
    # Absolute, because Optuna's lock is a symbolic link to this path: one to a relative path dangles, and a lock that a killed
    # driver left behind would then never be released.
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _drop_torn_line(path)
        return optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(
            f"Optuna's journal must be readable and writable, but {path} is not ({error}): mend its permissions, or move it "
            "away to begin the search anew; recorded trials are not run again"
        ) from error


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line without an end, as a kill in mid-write leaves it: Optuna would append to it and never read on."""
    if not path.exists():
        return
    with open(path, "rb+") as stream:
        text = stream.read()
        if not text.endswith(b"\n"):
            stream.truncate(text.rfind(b"\n") + 1)


def _open_database(config: StudyConfig, directions: list[Any], url: str) -> optuna.Study:
    import sqlalchemy

    def refuse(reason: object, cure: str) -> StorageError:
        return StorageError(f"optuna_storage must be a database that can be used, but {shown} is not ({reason}): {cure}")

    try:
        address = sqlalchemy.engine.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        shown = f"{url.partition('://')[0][:20]!r}..."
        raise refuse("it is no database URL", "write it like sqlite:///study.db or postgresql://user@host/name") from error
    shown = address.render_as_string(hide_password=True)
    is_sqlite = address.get_backend_name() == "sqlite"
    # A file that another process writes to is waited for; a connection that the server closed in between is made again.
    engine = {"connect_args": {"timeout": 60}} if is_sqlite else {"pool_pre_ping": True}
    try:
        return _create(config, directions, optuna.storages.RDBStorage(url, engine_kwargs=engine))
    except (ImportError, sqlalchemy.exc.NoSuchModuleError) as error:
        raise refuse("its driver is not installed", "install the driver, psycopg2-binary for PostgreSQL, say") from error
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        reason = str(error.__cause__ or error).splitlines()[0].replace(address.password or "\0", "***")
        raise refuse(reason, "check that the server runs and the folder exists, and user, password and name") from error
    except RuntimeError as error:  # another version's tables
        raise refuse(error, "run `optuna storage upgrade`, or begin another database") from error


def _check_same_search(study: optuna.Study, config: StudyConfig) -> None:
    def refuse(what: str, kept: object, given: object) -> StorageError:
        return StorageError(
            f"a study keeps its {what}, but the storage of {config.name!r} has {kept} and the configuration {given}: give the "
            "study another name, or restore them"
        )

    kept = [
        (name, "max" if direction == optuna.study.StudyDirection.MAXIMIZE else "min")
        for name, direction in zip(
            study.metric_names or [item.metric for item in config.objectives], study.directions, strict=False
        )
    ]
    given = [(objective.metric, objective.mode) for objective in config.objectives]
    if kept != given:
        raise refuse("objectives", kept, given)
    for trial in study.get_trials(deepcopy=False):
        for path, old in trial.distributions.items():
            new = config.search_space.get(path)
            if new is not None and not _is_compatible(old, new):
                raise refuse(f"kind of parameter {path}", old, new)


def _is_compatible(old: optuna.distributions.BaseDistribution, new: Distribution) -> bool:
    """Whether Optuna can go on: ranges may change, kinds, log and choices may not."""
    match new:
        case Choice():
            return isinstance(old, CategoricalDistribution) and old.choices == new.values
        case Float():
            return isinstance(old, FloatDistribution) and old.log == new.log
        case Int():
            return isinstance(old, IntDistribution) and old.log == new.log


@contextmanager
def _no_experimental_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _sampler(config: SamplerConfig, num_trials: int) -> optuna.samplers.BaseSampler:
    samplers = optuna.samplers
    seed = derive_seed(config.seed, "sampler", num_trials) % 2**32
    startup = config.num_startup_trials
    match config.name:
        case "tpe":
            return samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True, constant_liar=True)
        case "gp":
            return samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)
        case "random" | "grid":
            return samplers.RandomSampler(seed=seed)
        case "qmc":
            # The storage remembers the place in the sequence, which is one sequence only as long as its seed stays.
            return samplers.QMCSampler(
                seed=derive_seed(config.seed, "sampler") % 2**32,
                scramble=True,
                independent_sampler=samplers.RandomSampler(seed=seed),
                warn_independent_sampling=False,
            )
        case "nsga2":
            # Its first generation is random.
            return samplers.NSGAIISampler(seed=seed, population_size=max(2, startup))


@dataclass
class _Proposal:
    """A trial that Optuna holds as RUNNING."""

    trial: optuna.Trial
    params: dict[str, Value]
    config: TrialConfig
    identity: str
    intermediate: dict[int, float]
    """Metric by regulation epoch, as Optuna has it."""


@dataclass
class _Run:
    """A trial that Tune was given."""

    identity: str
    proposal: _Proposal | None
    """None for a control."""
    intermediate: dict[int, float]
    last: Mapping[str, Any] | None = None
    """The last result that the trial gave by itself."""


@dataclass(frozen=True)
class _Outcome:
    """How a trial ended, as Optuna is told."""

    state: TrialState
    values: list[float] | None = None
    intermediate: Mapping[int, float] = field(default_factory=dict)
    attributes: Mapping[str, str | int] = field(default_factory=dict)


class OptunaSearcher(Searcher):
    """Hands out the controls, then what an interrupted driver left, then new proposals, and tells Optuna how they ended.

    ``suggest`` gives Tune ``{"trial": TrialConfig, "role": "control" | "search", "number": int | None, "params": dict}``.
    A proposal whose identity is recorded as finished or pruned is told from the record and not run; one whose identity is
    running is told what that trial ends with. A proposal that breaks a rule of the configuration is told FAIL, with the rule
    in its user attribute ``invalid``, and does not count as one of ``num_trials``.

    It says itself when the search is over: give ``TuneConfig(num_samples=-1)``. One driver a study: the caller holds its lock.
    """

    def __init__(
        self,
        study: optuna.Study,
        config: StudyConfig,
        *,
        controls: Sequence[TrialConfig] = (),
        records: Mapping[str, TrialRecord],
        on_repeat: Callable[[str, int, Mapping[str, Value]], None] = lambda identity, number, params: None,
    ) -> None:
        """Take up what the storage holds.

        Args:
            study: from ``open_study(config, ...)``.
            config: the study's configuration.
            controls: run first, outside Optuna's history, unless recorded as finished or pruned.
            records: trials that ended, by identity; read anew at each proposal.
            on_repeat: told the identity, number and values of a proposal that a recorded trial, a control's perhaps, stands
                for, before Optuna is.

        Raises:
            ConfigError: for a grid over a ``Float`` without a step.
        """
        super().__init__()
        self._study = study
        self._config = config
        self._records = records
        self._on_repeat = on_repeat
        self._controls = deque(controls)
        self._runs: dict[str, _Run] = {}
        self._twins: dict[str, list[_Proposal]] = {}
        self._num_invalid_in_a_row = 0
        self._is_exhausted = False
        trials = study.get_trials(deepcopy=False)
        self._num_proposed = sum(trial.state != TrialState.WAITING and _INVALID not in trial.user_attrs for trial in trials)
        self._grid: Iterator[dict[str, Value]] | None = None
        if config.sampler.name == "grid":
            enqueued = {trial.user_attrs.get(_GRID) for trial in trials}
            points = grid(config.search_space, config.trial)
            self._grid = (point for point in points if json.dumps(point) not in enqueued)
        self._orphans: deque[_Proposal] = deque()
        for trial in trials:
            if trial.state == TrialState.RUNNING:
                orphan = self._propose(optuna.Trial(study, trial._trial_id), dict(trial.intermediate_values))
                if orphan is not None and not self._is_told_from_records(orphan):
                    self._orphans.append(orphan)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accept what ``TuneConfig`` names for its scheduler; the objectives are the study's own."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        """The next trial to run, or ``Searcher.FINISHED``.

        Raises:
            ConfigError: after 100 proposals in a row that break a rule of the configuration.
        """
        running = {run.identity for run in self._runs.values()}
        while self._controls:
            control = self._controls.popleft()
            identity = control.identity
            if identity not in running and not self._is_recorded(identity):
                self._runs[trial_id] = _Run(identity, None, {})
                return {"trial": control, "role": "control", "number": None, "params": {}}
        while (proposal := self._next_proposal()) is not None:
            if proposal.identity in running:
                self._twins.setdefault(proposal.identity, []).append(proposal)
            elif not self._is_told_from_records(proposal):
                self._runs[trial_id] = _Run(proposal.identity, proposal, dict(proposal.intermediate))
                number = proposal.trial.number
                return {"trial": proposal.config, "role": "search", "number": number, "params": proposal.params}
        self._is_exhausted = True
        return str(Searcher.FINISHED)

    @property
    def has_work(self) -> bool:
        """Whether a trial may be missing: a control, one that an interrupted driver left, or a proposal."""
        missing = any(not self._is_recorded(control.identity) for control in self._controls)
        return missing or bool(self._orphans) or self._num_proposed < self._config.num_trials

    @property
    def is_done(self) -> bool:
        """Whether every trial was handed out and has ended."""
        return self._is_exhausted and not self._runs

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Pass a regulation epoch's metric on to Optuna, and remember a trial's own last result.

        Tune does not call this for the result at which a scheduler stops a trial: ``on_trial_complete`` brings that one.
        """
        run = self._runs.get(trial_id)
        if run is None:
            return
        if STATUS in result:
            run.last = dict(result)
        key = metric_key(self._config.objectives[0].metric)
        if len(self._config.objectives) == 1 and result.get("stage") == "regulation" and key in result:
            run.intermediate[result["epoch"]] = result[key]
            if run.proposal is not None:
                _report(run.proposal, run.intermediate)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended; its twins ended the same way."""
        if result is not None:
            self.on_trial_result(trial_id, result)
        run = self._runs.pop(trial_id, None)
        if run is None:
            return
        outcome = self._outcome(run, error)
        twins = self._twins.pop(run.identity, [])
        for twin in twins:
            if self._is_recorded(twin.identity):
                self._on_repeat(twin.identity, twin.trial.number, twin.params)
        for proposal in [run.proposal, *twins] if run.proposal is not None else twins:
            self._tell(proposal, outcome)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: Optuna's storage and the records are the state, and running the study again resumes it."""

    def restore(self, checkpoint_path: str) -> None:
        """Read nothing, see ``save``."""

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its TuneConfig into the experiment's folder, where a database's password has no place.
        return {}

    def _next_proposal(self) -> _Proposal | None:
        if self._orphans:
            return self._orphans.popleft()
        while self._num_proposed < self._config.num_trials:
            if self._grid is not None and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                point = next(self._grid, None)
                if point is None:
                    return None
                self._study.enqueue_trial(point, user_attrs={_GRID: json.dumps(point)})
            self._num_proposed += 1
            proposal = self._propose(self._study.ask(), {})
            if proposal is not None:
                return proposal
        return None

    def _propose(self, trial: optuna.Trial, intermediate: dict[int, float]) -> _Proposal | None:
        """The trial with its values, which for one taken up again are those it has; None, and FAIL, if they break a rule."""
        params = suggest(self._config.search_space, self._config.trial, trial)
        try:
            config = resolve(self._config.trial, params)
        except ConfigError as error:
            trial.set_user_attr(_INVALID, str(error))
            self._study.tell(trial, state=TrialState.FAIL)
            self._num_proposed -= 1
            self._num_invalid_in_a_row += 1
            if self._grid is None and self._num_invalid_in_a_row >= _MAX_INVALID:
                raise ConfigError(
                    f"a search space must hold valid configurations, but {_MAX_INVALID} proposals in a row were not, the last "
                    f"with {params!r} ({error}): narrow the ranges, or add a When"
                ) from error
            return None
        self._num_invalid_in_a_row = 0
        trial.set_user_attr("identity", config.identity)
        trial.set_user_attr("seed", config.seed)
        return _Proposal(trial, params, config, config.identity, intermediate)

    def _is_recorded(self, identity: str) -> bool:
        return identity in self._records and self._records[identity].status != "failed"

    def _is_told_from_records(self, proposal: _Proposal) -> bool:
        if not self._is_recorded(proposal.identity):
            return False
        record = self._records[proposal.identity]
        self._on_repeat(proposal.identity, proposal.trial.number, proposal.params)
        metrics = {objective.metric: getattr(record, objective.metric) for objective in self._config.objectives}
        if record.status == "finished":
            outcome = _finished(self._config.objectives, metrics)
        else:
            metric = self._config.objectives[0].metric
            epochs = record.regulation_epochs
            # The seconds of a trial that was cut short would look like a cheap trial.
            is_reported = len(metrics) == 1 and metric != "device_seconds" and metrics[metric] is not None and epochs > 0
            intermediate = {epochs: metrics[metric]} if is_reported else {}
            attributes = {"reason": record.reason or "pruned"}
            outcome = _Outcome(TrialState.PRUNED, intermediate=intermediate, attributes=attributes)
        self._tell(proposal, outcome)
        return True

    def _outcome(self, run: _Run, error: bool) -> _Outcome:
        if run.last is not None and run.last[STATUS] == "finished":
            values = {objective.metric: run.last.get(metric_key(objective.metric)) for objective in self._config.objectives}
            return dataclasses.replace(_finished(self._config.objectives, values), intermediate=run.intermediate)
        if run.last is not None:
            stage, step = run.last["diverged_stage"], run.last["diverged_step"]
            attributes = {"reason": str(Diverged(stage, step)), "diverged_stage": stage, "diverged_step": step}
            return _Outcome(TrialState.PRUNED, intermediate=run.intermediate, attributes=attributes)
        if error:
            reason = "broken on every attempt: the log has the error"
            return _Outcome(TrialState.FAIL, intermediate=run.intermediate, attributes={"reason": reason})
        reason = f"stopped by the scheduler {self._config.scheduler.name}"
        return _Outcome(TrialState.PRUNED, intermediate=run.intermediate, attributes={"reason": reason})

    def _tell(self, proposal: _Proposal, outcome: _Outcome) -> None:
        _report(proposal, outcome.intermediate)
        for key, value in outcome.attributes.items():
            proposal.trial.set_user_attr(key, value)
        self._study.tell(proposal.trial, outcome.values, state=outcome.state)


def _report(proposal: _Proposal, intermediate: Mapping[int, float]) -> None:
    # A trial that goes on from its checkpoint may report an epoch again; Optuna keeps the first and warns.
    for epoch in intermediate.keys() - proposal.intermediate.keys():
        proposal.trial.report(intermediate[epoch], step=epoch)
        proposal.intermediate[epoch] = intermediate[epoch]


def _finished(objectives: Sequence[Objective], metrics: Mapping[Any, float | None]) -> _Outcome:
    values = [metrics[objective.metric] for objective in objectives]
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if len(finite) < len(values):
        return _Outcome(TrialState.FAIL, attributes={"reason": f"finished, but an objective is not a finite number: {metrics}"})
    return _Outcome(TrialState.COMPLETE, values=finite)
