"""The study as runs of TensorBoard of its own, ``events/study/``: how it goes on, its response curves, and its controls.

Scalars of the run ``study`` have the number of trials that have ended as their step. Regulation and each control are a run
each, ``study/regulation`` and so on, so that they have a colour each: ``controls/BACKBONE`` by epoch of regulation, a chart a
backbone, or a configuration that is confirmed, on the page Custom Scalars. A driver that takes the study up writes files of
its own, and the curves anew from the records: ``tensorboard``'s header says how its values replace those of a driver that was
killed.
"""

from __future__ import annotations

import io
import logging
import math
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.util import tensor_util

from emoreg.config import Choice, Distribution, StudyConfig
from emoreg.formatting import control_name
from emoreg.results.analysis import better, waiting_share
from emoreg.results.confirmation import Look, read_looks
from emoreg.results.records import Records, Status, TrialRecord
from emoreg.tracking.tensorboard import EventFile, image_pb

RUN = "study"
"""Name of the run, and folder of the controls' runs: no identity is called so."""
_CURVES = {"regulation.balance": "balance", "pretraining.epochs": "pretraining_epochs"}
"""What accuracy is drawn against: path in the search space, column in the records."""
_DRAW_SECONDS = 60.0
_GROWTH = 1.1
"""By how much the finished trials have grown when curves are drawn again: pictures stay few in a long study."""
_FEWEST = 2
"""Finished trials below which nothing is drawn."""
_MOST_FITTED = 100
"""Trials of a backbone that its curve is fitted to: of more, so many at random. The driver has other work."""
_STATUSES: tuple[Status, ...] = ("finished", "pruned", "failed")
_INCHES = (3.4, 2.6)
"""Of a picture, of 100 pixels: a card of TensorBoard is some 340 pixels wide and drops pixels of wider pictures."""
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito's, for every kind of eye

log = logging.getLogger(__name__)


class StudyBoard:
    """Writes the study's own run while it goes on. For one thread; curves are fitted and drawn in another."""

    def __init__(self, folder: Path, config: StudyConfig, records: Records, run: int) -> None:
        """Begin the runs' next files, with what the records hold.

        Args:
            folder: the study's.
            config: the study.
            records: of the study, read anew at each call.
            run: of the study, from 1.
        """
        self._config, self._records = config, records
        self._groups = _groups(config, read_looks(folder))
        self._beside = set().union(*self._groups.values())
        self._file = _begin(folder / "events" / RUN, run)
        self._files = {
            control: _begin(folder / "events" / RUN / control_name(control), run)
            for control in dict.fromkeys(control for _, control in self._groups)
        }
        self._file.write(0, _layout_pb(config, [title for title, _ in self._groups]))
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="response curves")
        self._drawing: Future[dict[str, Image.Image]] | None = None
        self._next_drawing = time.monotonic()
        self._num_drawn = 0
        self._num_ended = 0
        self._catch_up()

    def ended(self, record: TrialRecord, *, running: int, slots: int, gpu_utilisation: float | None) -> None:
        """A trial ended, and has its record.

        Args:
            record: the trial's.
            running: trials that have a worker now.
            slots: trials that can run at once.
            gpu_utilisation: of the running trials, in [0, 1]; None on CPUs.
        """
        rows = self._counted()
        best: TrialRecord | None = None
        for row in rows:
            best = self._better(row, best)
        values = self._standing(Counter(row.status for row in rows), best) | {
            "study/trials_running": running,
            "study/slots_in_use": min(1.0, running / slots) if slots else None,
            "study/gpu_utilisation": gpu_utilisation,
            "study/waiting_share": waiting_share(self._records.runs.values()),
        }
        self._write(len(rows), values)
        for group, identities in self._groups.items():
            if record.identity in identities and record.status == "finished":
                self._write_control(*group)

    def tick(self) -> None:
        """Time passed: curves are written when they are drawn, and drawn again when there is more to show."""
        if self._drawing is not None:
            if self._drawing.done():
                self._write_curves(self._drawing)
                self._drawing = None
        elif time.monotonic() >= self._next_drawing:
            self._draw()

    def end(self, *, draw: bool) -> None:
        """End the files, with the curves as they are now where there is time to ``draw`` them."""
        if draw:
            self._num_drawn = 0
            self._draw()
            if self._drawing is not None:
                self._write_curves(self._drawing)
        self._painter.shutdown(wait=False, cancel_futures=True)
        self._catch_up()  # with what other drivers ended
        for file in (self._file, *self._files.values()):
            file.close()

    def _draw(self) -> None:
        finished = self._finished()
        if len(finished) >= max(_FEWEST, _GROWTH * self._num_drawn):
            self._next_drawing = time.monotonic() + _DRAW_SECONDS
            self._num_drawn = len(finished)
            self._drawing = self._painter.submit(draw_curves, self._config, finished)

    def _write_curves(self, drawing: Future[dict[str, Image.Image]]) -> None:
        """Write the curves, once they are drawn."""
        error = drawing.exception()
        if error is not None:  # pictures are no reason to end a study
            log.warning("the response curves could not be drawn", exc_info=error)
            return
        self._file.write(len(self._counted()), *(image_pb(tag, picture) for tag, picture in drawing.result().items()))

    def _counted(self) -> list[TrialRecord]:
        """Trials of the study that have ended: `emoreg trial` may have left others."""
        return [row for row in self._records.trials.values() if row.role == "search" or row.identity in self._beside]

    def _finished(self) -> list[TrialRecord]:
        rows = self._records.trials.values()
        return [row for row in rows if row.number is not None and row.status == "finished" and row.val_accuracy is not None]

    def _better(self, row: TrialRecord, best: TrialRecord | None) -> TrialRecord | None:
        if row.number is None or row.status != "finished":
            return best
        return row if best is None or better(row, best, self._config.objectives[0]) else best

    def _standing(self, counts: Mapping[Status, int], best: TrialRecord | None) -> dict[str, float | None]:
        metric = self._config.objectives[0].metric
        values: dict[str, float | None] = {f"study/trials_{status}": counts.get(status, 0) for status in _STATUSES}
        return values | {f"study/best_{metric}": None if best is None else getattr(best, metric)}

    def _write(self, step: int, values: Mapping[str, float | None]) -> None:
        self._num_ended = step
        self._file.write(step, *(scalar_pb(tag, float(value)) for tag, value in values.items() if value is not None))

    def _catch_up(self) -> None:
        """Write how the study stood after each trial that ended since the last one that was told, and the controls' curves."""
        counts: Counter[Status] = Counter()
        best: TrialRecord | None = None
        for step, row in enumerate(sorted(self._counted(), key=lambda row: row.ended), start=1):
            counts[row.status] += 1
            best = self._better(row, best)
            if step > self._num_ended:
                self._write(step, self._standing(counts, best))
        for group in self._groups:
            self._write_control(*group)

    def _write_control(self, title: str, control: str) -> None:
        """Write a control's curve: the mean over its trials that finished."""
        trials = self._records.trials
        identities = {
            identity
            for identity in self._groups[title, control]
            if identity in trials and trials[identity].status == "finished"
        }
        by_epoch: dict[int, list[float]] = {}
        for epoch in self._records.epochs.values():
            if epoch.identity in identities and epoch.stage == "regulation" and epoch.val_accuracy is not None:
                by_epoch.setdefault(epoch.epoch, []).append(epoch.val_accuracy)
        for number in sorted(by_epoch):
            mean = math.fsum(by_epoch[number]) / len(by_epoch[number])
            self._files[control].write(number, scalar_pb(_tag(title), mean))


def _groups(config: StudyConfig, looks: Sequence[Look]) -> dict[tuple[str, str], set[str]]:
    """Trials beside the search, by the title of their chart and what they are.

    A chart is a backbone's, or that of a configuration which is confirmed.
    """
    found = [(trial.backbone, trial.control, trial.identity) for trial in config.control_trials()]
    if looks:
        names = {chosen.identity: chosen.name for chosen in looks[-1].chosen}
        found += [(names[trial.chosen], trial.control, trial.identity) for trial in looks[-1].trials]
    groups: dict[tuple[str, str], set[str]] = {}
    for title, control, identity in found:
        groups.setdefault((title, control), set()).add(identity)
    return groups


def _begin(folder: Path, run: int) -> EventFile:
    path = folder / f"events.out.tfevents.{run:04d}"
    while path.exists():  # of a study whose records were moved away
        run += 1
        path = path.with_name(f"events.out.tfevents.{run:04d}")
    return EventFile(path)


def _tag(title: str) -> str:
    return f"controls/{title}"


def _layout_pb(config: StudyConfig, titles: Iterable[str]) -> Any:
    """The page Custom Scalars: which tags share a chart."""

    def chart(title: str, *tags: str) -> Any:
        return layout_pb2.Chart(
            title=title, multiline=layout_pb2.MultilineChartContent(tag=[f"^{re.escape(tag)}$" for tag in tags])
        )

    categories = [
        layout_pb2.Category(
            title="Regulation and its controls: mean validation accuracy by epoch",
            chart=[chart(title, _tag(title)) for title in dict.fromkeys(titles)],
        ),
        layout_pb2.Category(
            title="The study by trials ended",
            chart=[
                chart("best so far", f"study/best_{config.objectives[0].metric}"),
                chart("trials", *(f"study/trials_{name}" for name in (*_STATUSES, "running"))),
                chart("slots", "study/slots_in_use", "study/gpu_utilisation", "study/waiting_share"),
            ],
        ),
    ]
    content = layout_pb2.Layout(category=categories).SerializeToString()
    tensor = tensor_util.make_tensor_proto(content, dtype="string")
    value = Summary.Value(tag=metadata.CONFIG_SUMMARY_TAG, metadata=metadata.create_summary_metadata(), tensor=tensor)
    return Summary(value=[value])


def draw_curves(config: StudyConfig, records: Sequence[TrialRecord]) -> dict[str, Image.Image]:
    """Validation accuracy of finished trials of the search against each of balance and pre-training length, by backbone.

    Returns:
        By tag, for those that were searched: points, with the surrogate's mean and its 90 % band where there are enough.
    """
    from emoreg.results.surrogate import FEWEST, Surrogate  # with all that draws the report: not in every driver's start

    pictures = {}
    searched = [path for path in _CURVES if path in config.search_space]
    by_backbone = {name: [row for row in records if row.backbone == name] for name in config.backbones()}
    space = {path: distribution for path, distribution in config.search_space.items() if path != "backbone"}
    surrogates = {
        name: Surrogate(random.Random(0).sample(rows, min(len(rows), _MOST_FITTED)), space)
        for name, rows in by_backbone.items()
        if len(rows) >= FEWEST
    }
    for path in searched:
        column = _CURVES[path]
        figure = Figure(figsize=_INCHES, dpi=100, layout="constrained")
        axes = figure.add_subplot()
        for index, (name, rows) in enumerate(by_backbone.items()):
            color = _COLORS[index % len(_COLORS)]
            axes.scatter(
                [getattr(row, column) for row in rows],
                [100 * (row.val_accuracy or 0.0) for row in rows],
                4,
                color,
                alpha=0.5,
                label=name,
            )
            surrogate = surrogates.get(name)
            if surrogate is not None and surrogate.has(path):
                response = surrogate.response(path)
                along, mean, half = response.points[:, 0], 100 * response.mean, 100 * response.half_width
                axes.plot(along, mean, color=color, linewidth=1)
                axes.fill_between(along, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
        if _is_log(config.search_space[path]):
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_xlabel(path, fontsize=7)
        axes.set_ylabel("validation accuracy, %", fontsize=7)
        most = max(map(len, by_backbone.values()), default=0)
        fitted = f" of {_MOST_FITTED} a backbone" if most > _MOST_FITTED else ""
        axes.set_title(f"{len(records)} finished trials" + (f"; mean and 90 % band{fitted}" if surrogates else ""), fontsize=7)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
        stream = io.BytesIO()
        figure.savefig(stream, format="png")
        pictures[f"response/{column}"] = Image.open(stream).convert("RGB")
    return pictures


def _is_log(distribution: Distribution) -> bool:
    return not isinstance(distribution, Choice) and distribution.log
