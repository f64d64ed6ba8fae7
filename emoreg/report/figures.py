"""The figures of a report, from a study's records: gains, response curves, the search, training and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emoreg.config import CONTROLS
from emoreg.formatting import control_name, counted, duration
from emoreg.report import response_figures, search_figures
from emoreg.report.drawing import (
    ACCURACY,
    GREY,
    OF_PANEL,
    PANEL,
    UNDER_TITLES,
    Drawing,
    Figure,
    Material,
    color_of,
    described,
    faded,
    is_number,
    labels,
    metric_value,
    styled,
    subset_of,
    wrapped,
)
from emoreg.report.response_figures import BALANCE, LENGTH
from emoreg.results.analysis import experience_ledger
from emoreg.results.records import EpochRecord, TrialRecord
from emoreg.results.study import Study

__all__ = ["Figure", "comparison", "figures_of", "missing_of"]

_LEARNED = ("learnable", "random_learnable", "dynamic")
_MOST_LINES = 50
_EVERY = 12  # epochs up to which each has its tick
_GAIN = "gain of regulation, points"
_SHAPES = ("circle", "square", "diamond", "triangle-up", "star")
_DASHES = {
    "plain": "dash", "compute_matched": "longdash", "emotional": "dot", "untrained": "dashdot", "shuffled": "longdashdot",
    "neutral": "5px,2px",
}  # fmt: skip


def figures_of(study: Study) -> list[Figure]:
    """Every figure that the study's records allow, in reading order."""
    material = Material(study=study)
    return [drawing.draw(material) for drawing in _DRAWINGS if drawing.missing(material) is None]


def missing_of(study: Study) -> list[str]:
    """A sentence for each figure that cannot be drawn, with the reason."""
    material = Material(study=study)
    return [reason for drawing in _DRAWINGS if (reason := drawing.missing(material)) is not None]


def comparison(studies: Sequence[Study]) -> list[Figure]:
    """Two or more studies side by side."""
    names = labels(studies)
    drawn = [_compared_gains(studies, names), _compared_accuracies(studies, names)]
    drawn += [response_figures.compared_responses(studies, names, path) for path in (BALANCE, LENGTH)]
    return [figure for figure in drawn if figure is not None]


# --- answer ---


@dataclass(frozen=True, kw_only=True, slots=True)
class _Dot:
    """An estimate with its interval, in a row of a forest plot. ``rank``: of the configuration, which the shape tells."""

    row: str
    mean: float
    rank: int = 1
    low: float | None = None
    high: float | None = None
    is_filled: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gain:
    """Regulation minus a control, in points; ``what`` is the configuration, by its backbone and its rank there."""

    backbone: str
    rank: int
    what: str
    control: str
    mean: float
    low: float | None
    high: float | None
    is_shown: bool
    n: int

    def dot(self, row: str) -> _Dot:
        """It, in a row."""
        return _Dot(row=row, rank=self.rank, mean=self.mean, low=self.low, high=self.high, is_filled=self.is_shown)


def _gains(study: Study) -> tuple[list[_Gain], bool]:
    """The gains, and whether they are a confirmation's."""
    confirmed = [
        _Gain(
            backbone=row.chosen.backbone,
            rank=row.chosen.rank,
            what=row.chosen.name,
            control=row.control,
            mean=100 * found.difference,
            low=None if found.low is None else 100 * found.low,
            high=None if found.high is None else 100 * found.high,
            is_shown=found.is_better or found.is_worse,
            n=found.n,
        )
        for row in study.confirmed
        if (found := row.comparison) is not None
    ]
    if confirmed:
        return confirmed, True
    on_validation = [
        _Gain(
            backbone=row.backbone,
            rank=1,
            what=row.backbone,
            control=row.control,
            mean=100 * gain.mean,
            low=None if gain.half_width is None else 100 * (gain.mean - gain.half_width),
            high=None if gain.half_width is None else 100 * (gain.mean + gain.half_width),
            is_shown=False,
            n=gain.n,
        )
        for row in study.controls
        if (gain := row.gain) is not None
    ]
    return on_validation, False


def _forest(series: Mapping[str, Sequence[_Dot]], colors: Mapping[str, str], axis: str) -> go.Figure:
    """Dots with intervals: a row for each label, the series beside each other within it."""
    rows = list(dict.fromkeys(dot.row for dots in series.values() for dot in dots))
    figure = go.Figure()
    for index, (name, dots) in enumerate(series.items()):
        offset = 0.6 * ((index + 0.5) / len(series) - 0.5)
        color = colors[name]
        figure.add_scatter(
            x=[dot.mean for dot in dots],
            y=[rows.index(dot.row) + offset for dot in dots],
            mode="markers",
            name=name,
            marker={
                "color": color,
                "size": 9,
                "symbol": [_SHAPES[(dot.rank - 1) % len(_SHAPES)] + ("" if dot.is_filled else "-open") for dot in dots],
                "line": {"width": 2, "color": color},
            },
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [0.0 if dot.high is None else dot.high - dot.mean for dot in dots],
                "arrayminus": [0.0 if dot.low is None else dot.mean - dot.low for dot in dots],
                "color": color,
                "thickness": 2,
                "width": 0,
            },
            hovertext=[dot.row for dot in dots],
            hovertemplate="%{hovertext}: %{x:.1f}<extra>%{fullData.name}</extra>",
        )
    figure.update_yaxes(range=[len(rows) - 0.4, -0.6], tickvals=list(range(len(rows))), ticktext=rows, ticks="", showgrid=False)
    tall = max(22 * len(series), 20 * max(row.count("<br>") + 1 for row in rows))
    return styled(figure, xaxis_title=axis, height=max(260, 130 + (tall + 8) * len(rows)), showlegend=True)


def _zero_line(figure: go.Figure) -> go.Figure:
    return figure.add_vline(x=0, line={"color": GREY, "width": 1.5})


def _what_gains_are(gains: Sequence[_Gain], is_confirmed: bool) -> str:
    seeds = sorted({gain.n for gain in gains})
    n = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    if is_confirmed:
        return (
            f"Regulation minus each control, paired over {n} fresh seeds on the test split, with the bootstrap's 95 % "
            "interval. Filled: shown by the permutation test, by Holm's method over all comparisons."
        )
    bars = "95 % confidence by Student's t" if seeds[-1] > 1 else "One seed tells nothing about chance"
    return (
        f"Regulation as configured minus each control, paired over {n} seed{'' if n == '1' else 's'} on validation: there is "
        f"no whole confirmation, so nothing is claimed. {bars}."
    )


def _draw_gains(material: Material) -> Figure:
    study = material.study
    gains, is_confirmed = _gains(study)
    series: dict[str, list[_Dot]] = {}
    for gain in gains:
        series.setdefault(gain.what, []).append(gain.dot(f"over {gain.control}"))
    colors = {gain.what: color_of(gain.backbone, study.backbones) for gain in gains}
    # The picture may stand alone, so it says the verdicts, but not their reasons, which it shows.
    says = [f"{verdict.sentence.partition(verdict.says)[0]}{verdict.says}" for verdict in study.verdicts.values()]
    return Figure(
        name="gains",
        title="What regulation gains over its controls",
        caption=_what_gains_are(gains, is_confirmed) + (f" {'; '.join(says)}." if is_confirmed else ""),
        section="answer",
        figure=_zero_line(_forest(series, colors, _GAIN)),
    )


def _no_gains(material: Material) -> str | None:
    if _gains(material.study)[0]:
        return None
    return "No control has finished on a seed that regulation has finished too: nothing to compare it with."


# --- training ---


def _curve(rows: Sequence[EpochRecord]) -> dict[int, float]:
    """Validation accuracy in percent by regulation epoch."""
    return {
        row.epoch: 100 * row.val_accuracy
        for row in rows
        if row.stage == "regulation" and row.val_accuracy is not None and is_number(row.val_accuracy)
    }


def _mean_curve(study: Study, records: Sequence[TrialRecord]) -> dict[int, float]:
    curves = [curve for record in records if (curve := _curve(study.epochs_of(record.identity)))]
    epochs = sorted(set[int]().union(*curves))
    return {epoch: float(np.mean([curve[epoch] for curve in curves if epoch in curve])) for epoch in epochs}


def _learning_curves(study: Study) -> dict[str, dict[str, dict[int, float]]]:
    """By backbone, then by what: the best of the search, regulation as configured, and each control."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for backbone, record in study.best.items():
        found.setdefault(backbone, {})["best of the search"] = _curve(study.epochs_of(record.identity))
    groups: dict[tuple[str, str], list[TrialRecord]] = {}
    for record in study.trials:
        if record.role == "control" and record.status == "finished":
            groups.setdefault((record.backbone, record.control), []).append(record)
    for backbone in dict.fromkeys([*study.backbones, *(key[0] for key in groups)]):
        for control in CONTROLS:
            if (backbone, control) in groups:
                found.setdefault(backbone, {})[control_name(control)] = _mean_curve(study, groups[backbone, control])
    with_epochs = {
        backbone: {what: curve for what, curve in found[backbone].items() if curve}
        for backbone in dict.fromkeys([*study.backbones, *found])
        if backbone in found
    }
    return {backbone: curves for backbone, curves in with_epochs.items() if curves}


def _draw_learning_curves(material: Material) -> Figure:
    study = material.study
    by_backbone = _learning_curves(study)
    figure = make_subplots(
        len(by_backbone), 1, shared_xaxes=True, subplot_titles=list(by_backbone), vertical_spacing=0.16 / len(by_backbone)
    )
    named: set[str] = set()
    for row, (backbone, curves) in enumerate(by_backbone.items(), 1):
        for what, curve in reversed(curves.items()):
            regulated = what not in _DASHES
            color = color_of(backbone, study.backbones) if regulated else GREY
            figure.add_scatter(
                x=list(curve),
                y=list(curve.values()),
                mode="lines+markers" if len(curve) == 1 else "lines",
                name=what,
                legendgroup=what,
                showlegend=what not in named,
                line={"color": color, "width": 3 if what == "best of the search" else 1.8, "dash": _DASHES.get(what, "solid")},
                hovertemplate=f"{what}, epoch %{{x}}: %{{y:.1f}} %<extra></extra>",
                row=row,
                col=1,
            )
            named.add(what)
        figure.update_yaxes(title_text=OF_PANEL[ACCURACY], row=row, col=1)
    last = max(epoch for curves in by_backbone.values() for curve in curves.values() for epoch in curve)
    figure.update_xaxes(dtick=1 if last <= _EVERY else None)
    figure.update_xaxes(title_text="regulation epoch", row=len(by_backbone), col=1)
    best = [f"{study.best[backbone].identity} ({backbone})" for backbone in by_backbone if backbone in study.best]
    seeds = sorted({row.accuracy.n for row in study.controls})
    caption = []
    if best:
        caption.append(f"Thick: the best trial of the search, selected: {', '.join(best)}.")
    if seeds:
        n = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        caption.append(f"Thin: regulation as configured; grey: its controls; means of n = {n}.")
    return Figure(
        name="learning-curves",
        title="Learning curves",
        caption=" ".join(caption),
        section="training",
        figure=styled(
            figure,
            legend_traceorder="reversed",
            height=max(420, 110 + PANEL * len(by_backbone)),
            margin=UNDER_TITLES,
        ),
    )


def _no_learning_curves(material: Material) -> str | None:
    return None if _learning_curves(material.study) else "No epochs of a finished trial are recorded: no learning curves."


def _learned(study: Study) -> list[TrialRecord]:
    """Finished trials whose balance was learned and whose epochs are known, the best first."""
    objective = study.objectives[0]
    sign = 1 if objective.mode == "min" else -1
    found = [
        record
        for record in study.trials
        if record.status == "finished" and record.control == "regulated" and record.kind in _LEARNED
        if metric_value(record, objective) is not None and study.epochs_of(record.identity)
    ]
    return sorted(found, key=lambda record: sign * (metric_value(record, objective) or 0.0))


def _draw_balances(material: Material) -> Figure:
    study = material.study
    learned = _learned(study)
    drawn = learned[:_MOST_LINES]
    figure = go.Figure()
    says = []
    for backbone in dict.fromkeys([*study.backbones, *(record.backbone for record in drawn)]):
        own = [record for record in drawn if record.backbone == backbone]
        if not own:
            continue
        color = color_of(backbone, study.backbones)
        for record in reversed(own):
            rows = [
                row
                for row in study.epochs_of(record.identity)
                if row.stage == "regulation" and row.measured_balance is not None
            ]
            x, y = [row.epoch for row in rows], [row.measured_balance or 0.0 for row in rows]
            is_best = record is own[0]
            spread = [row.measured_balance_std or 0.0 for row in rows]
            if is_best and any(spread):
                figure.add_scatter(
                    x=[*x, *reversed(x)],
                    y=[b + s for b, s in zip(y, spread, strict=True)] + [b - s for b, s in zip(y, spread, strict=True)][::-1],
                    fill="toself", fillcolor=faded(color, 0.2), line={"width": 0}, mode="lines", hoverinfo="skip",
                    showlegend=False,
                )  # fmt: skip
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                name=f"{backbone}, best",
                showlegend=is_best,
                line={"color": color, "width": 3 if is_best else 1},
                opacity=1.0 if is_best else 0.35,
                hovertext=[described(record)] * len(x),
                hovertemplate="%{hovertext}<br>epoch %{x}: b = %{y:.3f}<extra></extra>",
            )
            if is_best and y:
                says.append(f"{backbone}'s best from {record.balance:.2f} to {y[-1]:.2f}")
    figure.update_yaxes(title_text="balance b", range=[-0.02, 1.02])
    last = max(record.regulation_epochs for record in drawn)
    figure.update_xaxes(title_text="regulation epoch", dtick=1 if last <= _EVERY else None)
    band = " Band: a standard deviation over validation images." if any(record.kind == "dynamic" for record in drawn) else ""
    return Figure(
        name="balance-over-epochs",
        title="How the learned balance moved",
        caption=f"Mean balance on the validation split in {counted(len(drawn), 'finished trial')}"
        f"{subset_of(len(drawn), len(learned), 'the best')}; {', '.join(says)}.{band}",
        section="training",
        figure=styled(figure, showlegend=True),
    )


def _no_balances(material: Material) -> str | None:
    if _learned(material.study):
        return None
    return "No finished trial with a learned balance has its epochs recorded: no balance over the epochs."


# --- cost ---

_UNITS = (("hours", 3600.0, 7200.0), ("minutes", 60.0, 600.0), ("seconds", 1.0, 0.0))


def costs(study: Study) -> dict[str, dict[str, float]]:
    """Seconds by what they went into, then by backbone; the empty backbone is a slot without a trial."""
    spent: dict[str, dict[str, float]] = {}

    def add(what: str, backbone: str, seconds: float) -> None:
        by_backbone = spent.setdefault(what, {})
        by_backbone[backbone] = by_backbone.get(backbone, 0.0) + seconds

    for record in study.trials:
        add("pre-training, paid", record.backbone, record.pretraining_seconds)
        add(f"regulation, {record.status}", record.backbone, record.regulation_seconds)
        add("waiting", record.backbone, record.waiting_seconds)
        add("pre-training, saved", record.backbone, experience_ledger([record]).reused)
    by_empty = sum(run.waiting_slot_seconds for run in study.runs) - sum(spent.get("waiting", {}).values())
    if by_empty > 0:
        add("waiting", "", by_empty)
    order = (
        "pre-training, paid",
        *(f"regulation, {status}" for status in ("finished", "pruned", "failed")),
        "waiting",
        "pre-training, saved",
    )
    return {what: spent[what] for what in order if sum(spent.get(what, {}).values()) > 0}


def _draw_costs(material: Material) -> Figure:
    study = material.study
    spent = costs(study)
    total = {what: sum(by_backbone.values()) for what, by_backbone in spent.items()}
    unit, size, _ = next(found for found in _UNITS if max(total.values()) >= found[2])
    figure = go.Figure()
    for backbone in dict.fromkeys([*study.backbones, *(name for found in spent.values() for name in found if name), ""]):
        seconds = [found.get(backbone, 0.0) for found in spent.values()]
        if any(seconds):
            figure.add_bar(
                y=[f"{what}<br>{duration(total[what])}" for what in spent],
                x=[value / size for value in seconds],
                orientation="h",
                name=backbone or "empty slots",
                marker_color=color_of(backbone, study.backbones),
                marker_pattern_shape=["/" if what in ("waiting", "pre-training, saved") else "" for what in spent],
                hovertemplate="%{x:,.1f} " + unit + "<extra>%{fullData.name}</extra>",
            )
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    used = sum(seconds for what, seconds in total.items() if what not in ("waiting", "pre-training, saved"))
    ledger = experience_ledger(study.trials)
    caption = [f"Device time of {counted(len(study.trials), 'trial')}, controls included: {duration(used)}."]
    if ledger.reused:
        caption.append(f"Sharing saved {duration(ledger.reused)} more, {ledger.saved:.0%} of all pre-training.")
    caption.append("Hatched: no device time, but waiting for another trial's pre-training, and what was not paid again.")
    if study.confirmation is not None:
        theirs = sum(record.pretraining_seconds + record.regulation_seconds for record in study.confirmation.trials)
        caption.append(f"The confirmation took {duration(theirs)} beside it.")
    return Figure(
        name="cost",
        title="Where the time went",
        caption=" ".join(caption),
        section="cost",
        figure=styled(
            figure, barmode="stack", xaxis_title=f"device {unit}", legend_traceorder="normal", height=130 + 50 * len(spent)
        ),
    )


def _no_costs(material: Material) -> str | None:
    is_paid = material.study.trials and costs(material.study)  # without trials there is but the waiting of their runs
    return None if is_paid else "No trial has taken time: no costs."


# --- several studies ---


def _compared_gains(studies: Sequence[Study], names: Sequence[str]) -> Figure | None:
    found = {name: _gains(study) for name, study in zip(names, studies, strict=True)}
    series = {
        name: [gain.dot(f"{wrapped(gain.what)}<br>over {gain.control}") for gain in gains] for name, (gains, _) in found.items()
    }
    if not any(series.values()):
        return None
    caption = []
    for kind in (True, False):
        own = {name: gains for name, (gains, is_confirmed) in found.items() if gains and is_confirmed == kind}
        if own:
            every = [gain for gains in own.values() for gain in gains]
            caption.append(f"{', '.join(own)}: {_what_gains_are(every, kind)}")
    colors = {name: color_of(name, names) for name in names}
    return Figure(
        name="compared-gains",
        title="What regulation gains, by study",
        caption=" ".join(caption),
        section="answer",
        figure=_zero_line(_forest(series, colors, _GAIN)),
    )


def _compared_accuracies(studies: Sequence[Study], names: Sequence[str]) -> Figure | None:
    series: dict[str, list[_Dot]] = {}
    colors = {}
    counts: list[str] = []
    for name, study in zip(names, studies, strict=True):
        best = [
            _Dot(row=wrapped(backbone), mean=100 * accuracy)
            for backbone in study.backbones
            if backbone in study.best and (accuracy := study.best[backbone].val_accuracy) is not None
        ]
        confirmed = []
        for row in study.confirmed:
            if row.control == "regulated" and row.chosen.rank == 1:
                mean, half = 100 * row.accuracy.mean, row.accuracy.half_width
                low, high = (None, None) if half is None else (mean - 100 * half, mean + 100 * half)
                confirmed.append(_Dot(row=wrapped(row.chosen.backbone), mean=mean, low=low, high=high, is_filled=True))
                counts.append(f"{name}, {row.chosen.backbone}: n = {row.accuracy.n}")
        for kind, dots in (("best of the search", best), ("confirmed", confirmed)):
            if dots:
                series[f"{name}, {kind}"] = dots
                colors[f"{name}, {kind}"] = color_of(name, names)
    if not series:
        return None
    return Figure(
        name="compared-accuracies",
        title="Accuracy by study and backbone",
        caption="Open: the best trial of the search on validation (n = 1), selected, so it flatters. Filled: the same "
        "configuration on fresh seeds and the test split, with 95 % confidence (Student's t), where it was confirmed"
        + (f" ({'; '.join(counts)})." if counts else "."),
        section="answer",
        figure=_forest(series, colors, "accuracy, %"),
    )


_DRAWINGS = (
    Drawing(_no_gains, _draw_gains),
    *response_figures.DRAWINGS,
    *search_figures.DRAWINGS,
    Drawing(_no_learning_curves, _draw_learning_curves),
    Drawing(_no_balances, _draw_balances),
    Drawing(_no_costs, _draw_costs),
)
