"""How trials trained, how a learned balance moved, and where the time went."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from emoreg.config import control_named, in_order
from emoreg.formatting import counted, duration, of_one_seed
from emoreg.report import style
from emoreg.report.style import FigureContext, NotDrawn
from emoreg.results.analysis import device_time, objective_value
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults

_BEST = "best of the search"
_LEARNED = ("learnable", "random_learnable", "dynamic")
_MOST_LINES = 50
_UNITS = (("hours", 3600.0, 7200.0), ("minutes", 60.0, 600.0), ("seconds", 1.0, 0.0))

Curve = dict[int, float]
"""Validation accuracy in percent by regulation epoch."""


def _mean_curve(study: StudyResults, records: Sequence[TrialRecord]) -> Curve:
    by_epoch: dict[int, list[float]] = {}
    for record in records:
        for row in study.epochs_of(record.identity):
            if row.stage == "regulation" and row.val_accuracy is not None and math.isfinite(row.val_accuracy):
                by_epoch.setdefault(row.epoch, []).append(100 * row.val_accuracy)
    return {epoch: float(np.mean(values)) for epoch, values in sorted(by_epoch.items())}


def _learning_curves(study: StudyResults) -> dict[str, dict[str, Curve]]:
    """By backbone, then by what: the best of the search, and each control by its name, regulation among them."""
    groups: dict[str, dict[str, list[TrialRecord]]] = {backbone: {} for backbone in study.backbones}
    for backbone, record in study.best.items():
        groups.setdefault(backbone, {})[_BEST] = [record]
    for record in study.trials:
        if record.role == "control" and record.status == "finished":
            groups.setdefault(record.backbone, {}).setdefault(record.control, []).append(record)
    curves = {
        backbone: {
            what: curve
            for what in [_BEST, *in_order(name for name in found if name != _BEST)]
            if what in found and (curve := _mean_curve(study, found[what]))
        }
        for backbone, found in groups.items()
    }
    return {backbone: found for backbone, found in curves.items() if found}


def draw_learning_curves(context: FigureContext) -> tuple[go.Figure, str]:
    """Validation accuracy over the epochs: of the best, of regulation and of its controls, a panel a backbone."""
    study, by_backbone = context.study, _learning_curves(context.study)
    if not by_backbone:
        raise NotDrawn("No epochs of a finished trial are recorded: no learning curves.")
    figure = style.panels(list(by_backbone))
    named: set[str] = set()
    for row, (backbone, curves) in enumerate(by_backbone.items(), 1):
        for what, curve in reversed(curves.items()):
            control = control_named("regulated" if what == _BEST else what)
            name = _BEST if what == _BEST else control.label
            color = style.color_of(backbone, study.backbones) if control.name == "regulated" else style.GREY
            figure.add_scatter(
                x=list(curve),
                y=list(curve.values()),
                mode="lines+markers" if len(curve) == 1 else "lines",
                name=name,
                legendgroup=name,
                showlegend=name not in named,
                line={"color": color, "width": 3 if what == _BEST else 1.8, "dash": control.dash},
                hovertemplate=f"{name}, epoch %{{x}}: %{{y:.1f}} %<extra></extra>",
                row=row,
                col=1,
            )
            named.add(name)
        figure.update_yaxes(title_text=style.OF_PANEL[style.ACCURACY], row=row, col=1)
    style.set_epochs(figure, max(epoch for curves in by_backbone.values() for curve in curves.values() for epoch in curve))
    figure.update_xaxes(title_text="regulation epoch", row=len(by_backbone), col=1)
    best = [f"{study.best[backbone].identity} ({backbone})" for backbone in by_backbone if backbone in study.best]
    seeds = sorted({row.accuracy.n for row in study.controls})
    caption = [f"Thick: the best trial of the search, selected{of_one_seed(study.config)}: {', '.join(best)}."] if best else []
    if seeds:
        n = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        caption.append(f"Thin: regulation as configured; grey: its controls; means of n = {n}.")
    return style.styled(figure, legend_traceorder="reversed"), " ".join(caption)


def _learned(study: StudyResults) -> list[TrialRecord]:
    """Finished trials of the search whose balance was learned and whose epochs are known, the best first."""
    objective = study.objectives[0]
    values = {
        record.identity: value
        for record in study.searched
        if record.status == "finished" and record.kind in _LEARNED
        if (value := objective_value(record, objective)) is not None and study.epochs_of(record.identity)
    }
    order = sorted(values, key=lambda identity: values[identity], reverse=objective.mode == "max")
    return [study.by_identity[identity] for identity in order]


def draw_balances(context: FigureContext) -> tuple[go.Figure, str]:
    """How the balance moved over the epochs where it was learned."""
    study, learned = context.study, _learned(context.study)
    if not learned:
        raise NotDrawn("No finished trial with a learned balance has its epochs recorded: no balance over the epochs.")
    drawn = learned[:_MOST_LINES]
    figure = go.Figure()
    moves = []
    for backbone in dict.fromkeys([*study.backbones, *(record.backbone for record in drawn)]):
        own = [record for record in drawn if record.backbone == backbone]
        color = style.color_of(backbone, study.backbones)
        for record in reversed(own):
            rows = [row for row in study.epochs_of(record.identity) if row.measured_balance is not None]
            x, y = np.array([row.epoch for row in rows]), np.array([row.measured_balance for row in rows])
            is_best = record is own[0]
            is_best_of_all = backbone in study.best and record.identity == study.best[backbone].identity
            spread = np.array([row.measured_balance_std or 0.0 for row in rows])
            if is_best and spread.any():
                style.add_band(figure, x, y - spread, y + spread, style.faded(color, 0.2))
            figure.add_scatter(
                x=x,
                y=y,
                mode="lines",
                name=f"{backbone}, {_BEST if is_best_of_all else 'best of those that learned it'}",
                showlegend=is_best,
                line={"color": color, "width": 3 if is_best else 1},
                opacity=1.0 if is_best else 0.35,
                hovertext=[style.described(record)] * len(x),
                hovertemplate="%{hovertext}<br>epoch %{x}: b = %{y:.3f}<extra></extra>",
            )
            if is_best and rows:
                start = "a random balance" if record.balance is None else f"{record.balance:.2f}"
                what = _BEST if is_best_of_all else "the best of these (the best of the search did not learn its own)"
                moves.append(f"{backbone}'s {what} from {start} to {y[-1]:.2f}")
    figure.update_yaxes(title_text="balance b", range=[-0.02, 1.02])
    figure.update_xaxes(title_text="regulation epoch")
    style.set_epochs(figure, max(record.regulation_epochs for record in drawn))
    band = " Band: a standard deviation over validation images." if any(record.kind == "dynamic" for record in drawn) else ""
    subset = style.subset_of(len(drawn), len(learned), "the best")
    trials = f"{counted(len(drawn), 'finished trial')}{subset}; {', '.join(moves)}"
    return style.styled(figure, showlegend=True), f"Mean balance on the validation split in {trials}.{band}"


def costs(study: StudyResults) -> dict[str, dict[str, float]]:
    """Seconds by what they went into, then by backbone; the empty backbone is a slot without a trial."""
    paid, waiting, saved = "pre-training, paid", "waiting", "pre-training, saved"
    order = (paid, *(f"regulation, {status}" for status in ("finished", "pruned", "failed")), waiting, saved)
    spent: dict[str, dict[str, float]] = {what: defaultdict(float) for what in order}
    for record in study.trials:
        spent[paid][record.backbone] += record.pretraining_seconds
        spent[f"regulation, {record.status}"][record.backbone] += record.regulation_seconds
        spent[waiting][record.backbone] += record.waiting_seconds
        spent[saved][record.backbone] += device_time([record]).reused
    by_empty = sum(run.waiting_slot_seconds for run in study.runs) - sum(spent[waiting].values())
    if by_empty > 0:
        spent[waiting][""] = by_empty
    return {what: found for what, found in spent.items() if sum(found.values()) > 0}


def draw_costs(context: FigureContext) -> tuple[go.Figure, str]:
    """Where the time went, by what and by backbone."""
    study, spent = context.study, costs(context.study)
    if not study.trials or not spent:  # without trials there is but the waiting of their runs
        raise NotDrawn("No trial has taken time: no costs.")
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
                marker_color=style.color_of(backbone, study.backbones),
                marker_pattern_shape=["/" if what in ("waiting", "pre-training, saved") else "" for what in spent],
                hovertemplate="%{x:,.1f} " + unit + "<extra>%{fullData.name}</extra>",
            )
    figure.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    used = device_time(study.trials)
    caption = [f"Device time of {counted(len(study.trials), 'trial')}, controls included: {duration(used.total)}."]
    if used.reused:
        caption.append(f"Sharing saved {duration(used.reused)} more, {used.saved:.0%} of all pre-training.")
    caption.append("Hatched: no device time, but waiting for another trial's pre-training, and what was not paid again.")
    if study.confirmation is not None:
        caption.append(f"The confirmation took {duration(device_time(study.confirmation.trials).total)} beside it.")
    layout = {"barmode": "stack", "xaxis_title": f"device {unit}", "legend_traceorder": "normal"}
    return style.styled(figure, height=130 + 50 * len(spent), **layout), " ".join(caption)
