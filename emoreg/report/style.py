"""What every figure of the report has in common: what it is, what it is drawn from, its look, the words of its axes."""

from __future__ import annotations

import functools
import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emoreg.config import Objective
from emoreg.config.trial import KINDS_WITHOUT_BALANCE
from emoreg.formatting import counted, format_params
from emoreg.results.analysis import objective_value, ranked
from emoreg.results.outcome import EndReason
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults
from emoreg.results.surrogate import FEWEST, Parameter, Surrogate

Section = Literal["answer", "response", "search", "training", "images", "cost", "comparison"]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, which the colour-blind tell apart, less yellow and black: those are lost on a light or a dark page."""
GREY = "#7f7f7f"
"""Text, axes and controls: seen on white and on black."""
LINE_SCALE = [[0.0, "#56B4E9"], [1.0, "#D55E00"]]
"""Of numbers as the colours of lines and points: seen on white and on black."""
PANEL = 260
"""Height of one of several panels, in pixels."""
BALANCE, LENGTH = "regulation.balance", "pretraining.epochs"
ACCURACY = "validation accuracy, %"
OF_PANEL = {ACCURACY: "validation<br>accuracy, %"}
"""Titles that are too long for the axis of a panel."""
FEWEST_DRAWN = 3
"""Finished trials of a search from which its figures are drawn: one or two points look like a course, and are none."""
MOST_POINTS = 2000
"""Points that are drawn one by one: a browser stays quick, and a printed page legible."""
_AXIS = {
    "gridcolor": "rgba(127,127,127,0.25)",
    "linecolor": GREY,
    "zeroline": False,
    "automargin": True,
    "ticks": "outside",
    "tickcolor": GREY,
    "ticklabelstandoff": 4,
    "title": {"standoff": 8},
}
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": GREY},
        "colorway": list(COLORS),
        "margin": {"l": 12, "r": 12, "t": 12, "b": 12},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "hoverlabel": {"align": "left"},
        "hovermode": "closest",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: of its file, e.g. ``accuracy-by-balance``.
        title: plain text.
        section: where it stands.
        caption: plain text: what is drawn, of how many, and what it says.
        figure: plotly's. ``layout.height`` is set where its panels or rows need more than the usual.
    """

    name: str
    title: str
    section: Section
    caption: str
    figure: go.Figure


class NotDrawn(Exception):
    """Why a figure cannot be drawn, in a sentence."""


def require_drawable(num_finished: int, what: str) -> None:
    """Refuse to draw from one or two points what a reader would take for a course.

    Raises:
        NotDrawn: for fewer than ``FEWEST_DRAWN`` finished trials.
    """
    if num_finished < FEWEST_DRAWN:
        found = (
            f"{counted(num_finished, 'trial')} of the search finished"
            if num_finished
            else "No trial of the search has finished"
        )
        raise NotDrawn(f"{found}: no {what}{f', which takes {FEWEST_DRAWN}' if num_finished else ''}.")


@dataclass(frozen=True, kw_only=True)
class FigureContext:
    """What figures are drawn from: a study, and what several of them need of it.

    Attributes:
        study: read back.
        without_kinds: trials whose balance is of these kinds are left out.
    """

    study: StudyResults
    without_kinds: tuple[str, ...] = ()

    @functools.cached_property
    def with_balance(self) -> FigureContext:
        """The same without the trials that have no balance setting, nor, beside fixed ones, those that learn theirs."""
        kinds = {record.kind for record in self.study.searched if record.status == "finished"}
        left_out = tuple(kinds - {"fixed"}) if "fixed" in kinds else KINDS_WITHOUT_BALANCE
        return FigureContext(study=self.study, without_kinds=left_out) if kinds & {*left_out} else self

    @property
    def survivors_only(self) -> str:
        """That finished trials are a scheduler's survivors, in a sentence; empty where none was stopped by one."""
        stopped = [row for row in self.study.searched if row.end_reason == EndReason.STOPPED_BY_SCHEDULER]
        if not stopped:
            return ""
        return (
            f" Survivors only: {counted(len(stopped), 'trial')} that the scheduler stopped early are not in it: where these "
            "were bad, it is too good."
        )

    @functools.cached_property
    def finished(self) -> dict[str, list[TrialRecord]]:
        """Finished trials of the search that have an accuracy, by backbone, in the study's order."""
        found: dict[str, list[TrialRecord]] = {backbone: [] for backbone in self.study.backbones}
        for record in self.study.searched:
            if record.kind in self.without_kinds:
                continue
            if record.status == "finished" and objective_value(record, Objective()) is not None:
                found.setdefault(record.backbone, []).append(record)
        return {backbone: records for backbone, records in found.items() if records}

    @functools.cached_property
    def ranked(self) -> list[TrialRecord]:
        """Finished trials of the search that have a value of the first objective, the best first."""
        return ranked(self.study.searched, self.study.objectives[0])

    def parameter(self, path: str) -> Parameter:
        """A parameter of the search space."""
        return Parameter(path=path, distribution=self.study.search_space[path])

    @functools.cached_property
    def surrogates(self) -> dict[str, Surrogate]:
        """One for each backbone that has trials enough."""
        space = {path: found for path, found in self.study.search_space.items() if path != "backbone"}
        return {backbone: Surrogate(rows, space) for backbone, rows in self.finished.items() if len(rows) >= FEWEST}


def panels(titles: Sequence[str]) -> go.Figure:
    """An empty figure with a panel for each title, one below the other, over the same horizontal axis."""
    num = len(titles)
    figure = make_subplots(num, 1, shared_xaxes=True, subplot_titles=titles, vertical_spacing=0.16 / num)
    return figure.update_layout(height=max(420, 90 + PANEL * num), margin={"l": 12, "r": 12, "t": 32, "b": 12})


def styled(figure: go.Figure, **layout: Any) -> go.Figure:
    """The figure with the report's look, and further settings of its layout."""
    return figure.update_layout(template=TEMPLATE, title=None, **layout)


def color_of(name: str, names: Sequence[str]) -> str:
    """The colour of a backbone or study among all of them."""
    return COLORS[list(names).index(name) % len(COLORS)] if name in names else GREY


def add_trials(figure: go.Figure, records: Sequence[TrialRecord], x: Iterable[Any], y: Iterable[Any], **trace: Any) -> None:
    """Add a point for each trial, which tells of it where the pointer rests."""
    hover = trace.pop("hover", "")
    figure.add_scatter(
        x=x,
        y=y,
        mode="markers",
        hovertext=[described(record) for record in records],
        hovertemplate=f"%{{hovertext}}{hover}<extra></extra>",
        **trace,
    )


def add_band(figure: go.Figure, x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str, **trace: Any) -> None:
    """Add an area between two lines, in a colour as ``rgba(...)``."""
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([high, low[::-1]]),
        fill="toself",
        fillcolor=color,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        **trace,
    )


def bars(middle: Sequence[float], low: Sequence[float], high: Sequence[float], color: str, width: int = 0) -> dict[str, Any]:
    """Error bars from ``low`` to ``high``."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [top - at for at, top in zip(middle, high, strict=True)],
        "arrayminus": [at - bottom for at, bottom in zip(middle, low, strict=True)],
        "color": color,
        "thickness": 2,
        "width": width,
    }


def faded(color: str, opacity: float) -> str:
    """A colour as ``rgba(...)``."""
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def described(record: TrialRecord) -> str:
    """A trial where the pointer rests on it."""
    accuracy = f"{100 * record.val_accuracy:.1f} %" if record.val_accuracy is not None else "no accuracy"
    return "<br>".join(
        html.escape(line) for line in (f"trial {record.identity}, {record.backbone}", accuracy, *format_params(record.sampled))
    )


def accuracies(records: Sequence[TrialRecord]) -> list[float]:
    """Validation accuracies in percent, of trials that have one."""
    return [100 * (record.val_accuracy or 0.0) for record in records]


def some_of(records: Sequence[TrialRecord], most: int = MOST_POINTS) -> list[TrialRecord]:
    """So many of the records at random, always the same, in their order; all where there are no more."""
    chosen = np.random.default_rng(0).permutation(len(records))[:most]
    return [records[index] for index in sorted(chosen)]


def subset_of(drawn: int, whole: int, which: str = "at random") -> str:
    """What a caption says where not all is drawn."""
    return f", of {whole:,}, {which}" if drawn < whole else ""


def metric_title(objective: Objective) -> str:
    """An objective as an axis names it."""
    known = {"val_accuracy": ACCURACY, "val_loss": "validation loss", "device_seconds": "device seconds"}
    return known.get(objective.metric, objective.metric)


def axis_value(record: TrialRecord, objective: Objective) -> float | None:
    """An objective of a trial in the unit of its axis; None where it is not a finite number."""
    value = objective_value(record, objective)
    return 100 * value if value is not None and objective.metric == "val_accuracy" else value


def axis_title(path: str) -> str:
    """A searched parameter as an axis names it."""
    return {BALANCE: "balance b, as configured", LENGTH: "pre-training, epochs"}.get(path, path)


def wrapped(path: str) -> str:
    """A path, or a title, on as many short lines as it has parts."""
    return html.escape(path).replace(".", ".<br>").replace(" ", "<br>", 1)


def set_epochs(figure: go.Figure, last: int) -> None:
    """Ticks for regulation epochs up to the last: each has one where they are few."""
    figure.update_xaxes(dtick=1 if last <= 12 else None)


def set_axis(figure: go.Figure, parameter: Parameter, direction: Literal["x", "y"], **where: int) -> None:
    """Title, scale and ticks for the values of a searched parameter; ``where``: row and column of a panel."""
    update = figure.update_xaxes if direction == "x" else figure.update_yaxes
    update(title_text=axis_title(parameter.path), **where)
    if not parameter.is_number:
        update(type="category", **where)
        return
    low, high = parameter.range
    ticks = parameter.grid(2)  # every value of a choice
    if len(ticks) == 2 and parameter.is_log:
        base = 2.0 if high / low < 2**9 else 10.0
        ticks = base ** np.arange(np.ceil(math.log(low, base)), np.floor(math.log(high, base)) + 1)
    update(type="log" if parameter.is_log else "linear", **where)
    if 3 <= len(ticks) <= 10:
        update(tickvals=ticks, ticktext=[f"{value:g}" for value in ticks], **where)
