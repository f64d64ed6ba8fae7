"""The study in TensorBoard: how it goes on, its controls, and its response curves, in runs ``study/...`` beside its trials'.

Each run but ``run-N`` is one file, written anew from the records: after whatever kill, whoever writes last writes it right. A
file is never overwritten, since TensorBoard would not see it: a new one takes its place.
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.tensorboard import SummaryWriter

from emoreg.config import StudyConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.errors import StorageError
from emoreg.results.analysis import Tally, objective_value, waiting_share
from emoreg.results.plan import read_openings
from emoreg.results.records import EpochRecord, TrialRecord
from emoreg.results.tables import read_table
from emoreg.storage.files import Files
from emoreg.storage.working_copy import WorkingCopy
from emoreg.tracking.observer import RunStatus, StudyObserver
from emoreg.tracking.pictures import response_figures
from emoreg.tracking.tensorboard import open_run

RUN = "study"
"""Folder of the study's runs: no identity is called so."""
_SECONDS = 60.0

log = logging.getLogger(__name__)


class StudyTensorBoard(StudyObserver):
    """Writes the study's runs every minute in which a trial ended, and at the end, in a thread of its own."""

    def __init__(self, copy: WorkingCopy, config: StudyConfig) -> None:
        self._copy, self._config = copy, config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="the study in TensorBoard")
        self._writing: Future[None] | None = None
        self._is_new, self._next = True, time.monotonic() + _SECONDS
        self._gpus: dict[str, float] = {}

    def on_run_start(self, status: RunStatus) -> None:
        """Begin ``run-N``: how busy this run of the study keeps slots and GPUs, by the number of trials that have ended."""
        self._status = status
        self._busy = open_run(self._copy.folder / "events" / RUN / f"run-{status.run.run}")

    def on_epoch(self, trial: ResolvedTrial, row: EpochRecord) -> None:
        """Note how busy the trial's GPU is."""
        if row.gpu_utilisation is not None:
            self._gpus[trial.identity] = row.gpu_utilisation

    def on_end(self, trial: ResolvedTrial, record: TrialRecord) -> None:
        """Write how busy slots and GPUs are."""
        self._write_busy(self._status.num_running)
        if self._gpus:
            self._busy.add_scalar("study/gpu_utilisation", fmean(self._gpus.values()), len(_ended(self._status.trials)))
        self._busy.flush()
        self._is_new = True
        self._gpus.pop(trial.identity, None)

    def on_tick(self, status: RunStatus) -> None:
        """Write the study where there is more to show."""
        self._status = status
        if self._is_new and time.monotonic() > self._next and (self._writing is None or self._writing.done()):
            self._write(status, draw=True)

    def on_run_end(self, status: RunStatus) -> None:
        """Write the study as it is now; its curves only where there is time to draw them."""
        self._write(status, draw=status.run.ending != "interrupted")
        self._status = status
        self._write_busy(0)
        self._thread.shutdown()
        self._busy.close()

    def _write_busy(self, running: int) -> None:
        run, step = self._status.run, len(_ended(self._status.trials))
        self._busy.add_scalar("study/trials_running", running, step)
        self._busy.add_scalar("study/slots_in_use", min(1.0, running / max(1, run.slots)), step)
        self._busy.add_scalar("study/waiting_share", waiting_share([run]), step)

    def _write(self, status: RunStatus, *, draw: bool) -> None:
        self._is_new, self._next = False, time.monotonic() + _SECONDS
        self._writing = self._thread.submit(write_study, self._copy, self._config, dict(status.trials), draw=draw)
        self._writing.add_done_callback(_log_error)


def write_study(copy: WorkingCopy, config: StudyConfig, trials: Mapping[str, TrialRecord], *, draw: bool) -> None:
    """Write the study's runs in place of the former ones, and response curves where they are to be drawn, and can be."""
    ended, objective = _ended(trials), config.objectives[0]
    compared = _compared(copy.folder, ended)
    with _rewriting(copy, RUN) as writer:
        writer.add_custom_scalars(_layout(sorted({title for title, _, _ in compared}), objective.metric))
        counts = Counter(finished=0, pruned=0, failed=0)
        tally = Tally[TrialRecord](objective, {identity for _, _, identity in compared})
        for step, row in enumerate(ended, start=1):
            tally.add(row)
            counts[row.status] += 1
            for status, count in counts.items():
                writer.add_scalar(f"study/trials_{status}", count, step)
            if tally.best is not None:
                writer.add_scalar(f"study/best_{objective.metric}", objective_value(tally.best, objective), step)
    finished = [row.identity for row in ended if row.status == "finished"]
    for control, curve in _control_curves(copy.folder, finished, compared).items():
        with _rewriting(copy, f"{RUN}/{control}") as writer:
            for (title, number), accuracies in sorted(curve.items()):
                writer.add_scalar(f"controls/{title}", fmean(accuracies), number)
    if draw and find_spec("matplotlib") is not None:
        with _rewriting(copy, f"{RUN}/response") as writer:
            for path, figure in response_figures(config, ended):
                writer.add_figure(f"response/{path}", figure, len(ended))


@contextmanager
def _rewriting(copy: WorkingCopy, run: str) -> Iterator[SummaryWriter]:
    """A writer of a run's only file, which takes the place of the former one."""
    folder = copy.folder / "events" / run
    former = [path.relative_to(copy.folder).as_posix() for path in folder.glob("events.out.tfevents.*")]
    with open_run(folder, purge_step=0) as writer:
        yield writer
    copy.remove(*former)


def _ended(trials: Mapping[str, TrialRecord]) -> list[TrialRecord]:
    """Trials of the study in the order of their ends: `emoreg trial` may have left others."""
    return sorted((row for row in trials.values() if row.role != "trial"), key=lambda row: row.ended)


def _compared(folder: Path, trials: Iterable[TrialRecord]) -> list[tuple[str, str, str]]:
    """Chart, control and identity of trials beside the search: a chart a backbone, or a configuration that is confirmed."""
    compared = [(row.backbone, row.control, row.identity) for row in trials if row.role == "control"]
    for opening in read_openings(Files(str(folder)))[-1:]:
        names = {chosen.identity: chosen.name for chosen in opening.chosen}
        compared += [(names[planned.chosen], planned.control, planned.identity) for planned in opening.trials]
    return compared


def _control_curves(
    folder: Path, finished: Iterable[str], compared: Iterable[tuple[str, str, str]]
) -> dict[str, dict[tuple[str, int], list[float]]]:
    """Validation accuracies by control, which is a run for a colour of its own, by chart and by epoch."""
    path = folder / "records" / "epochs.parquet"
    curves: dict[str, dict[tuple[str, int], list[float]]] = {}
    if not path.exists():
        return curves
    wanted = (pc.field("stage") == "regulation") & pc.field("identity").isin(pa.array(finished, pa.string()))
    wanted &= pc.field("val_accuracy").is_valid()  # a confirmation holds nothing out
    by_identity: dict[str, list[tuple[int, float]]] = {}
    for row in read_table(path, str(path), ["identity", "stage", "epoch", "val_accuracy"]).filter(wanted).to_pylist():
        by_identity.setdefault(row["identity"], []).append((row["epoch"], row["val_accuracy"]))
    for title, control, identity in compared:
        for epoch, accuracy in by_identity.get(identity, ()):
            curves.setdefault(control, {}).setdefault((title, epoch), []).append(accuracy)
    return curves


def _layout(titles: Iterable[str], metric: str) -> dict[str, dict[str, list[str | list[str]]]]:
    """The page Custom Scalars: which tags share a chart."""
    by_epoch = {title: [f"^controls/{re.escape(title)}$"] for title in titles}
    slots = ["study/slots_in_use", "study/gpu_utilisation", "study/waiting_share"]
    by_end = {"best so far": [f"study/best_{metric}"], "trials": ["study/trials_"], "slots": slots}
    pages = {"Regulation and its controls: mean validation accuracy by epoch": by_epoch, "The study by trials ended": by_end}
    return {page: {title: ["Multiline", tags] for title, tags in charts.items()} for page, charts in pages.items()}


def _log_error(writing: Future[None]) -> None:
    """Tell of a failed write, which is no reason to end a study: in a line, unless it is our own fault."""
    error = writing.exception()
    if error is not None:
        is_of_storage = isinstance(error, OSError | StorageError)
        log.warning("the study could not be written for TensorBoard: %s", error, exc_info=None if is_of_storage else error)
