"""Accuracy against balance and pre-training length, with a surrogate's mean, and against the measured share of emotion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from emoreg.config import control_named
from emoreg.formatting import counted, of_one_seed
from emoreg.report import style
from emoreg.report.style import BALANCE, FEWEST_DRAWN, LENGTH, FigureContext, NotDrawn
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults
from emoreg.results.surrogate import FEWEST, FEWEST_FOR_OPTIMUM, Optimum, Parameter, Surrogate, value_of

_NAMES = {BALANCE: "balance", LENGTH: "pre-training length"}
_LACK = {BALANCE: "curve of accuracy against it", LENGTH: "critical-period curve"}
_VAGUE = 0.5  # of a parameter's axis: an interval as wide as this tells nothing of where the optimum lies
_MOST_IN_PANEL = 500
_LINES = "Lines: mean of a Gaussian process, averaged over the trials' other parameters, with its 90 % band."
_RED = "#D55E00"


def _checked(context: FigureContext, paths: Sequence[str], what: str) -> FigureContext:
    """What accuracy is drawn from against these parameters: the trials that have them."""
    absent = [_NAMES[path] for path in paths if path not in context.study.search_space]
    if absent:
        raise NotDrawn(f"The {' and the '.join(absent)} {'was' if len(absent) == 1 else 'were'} not searched: no {what}.")
    style.require_drawable(sum(map(len, context.finished.values())), what)
    having = _having(context, *paths)
    if not having.finished:
        raise NotDrawn(f"No finished trial has a balance setting: no {what}.")
    return having


def _having(context: FigureContext, *paths: str) -> FigureContext:
    return context.with_balance if BALANCE in paths else context


def _start_only(context: FigureContext, path: str) -> str:
    """That a balance which was learned is drawn by where it began, in a sentence."""
    is_learned = path == BALANCE and any(row.kind != "fixed" for rows in context.finished.values() for row in rows)
    return " The balance was learned: the axis has where it began." if is_learned else ""


def _trials(surrogate: Surrogate) -> str:
    """How many trials a surrogate is of."""
    fitted = f", fitted on {surrogate.num_fitted} at random" if surrogate.num_fitted < surrogate.num_trials else ""
    return f"n = {surrogate.num_trials:,}{fitted}"


def _located(parameter: Parameter, found: Optimum, mean: float, half: float) -> str:
    """What is known of where the optimum lies, in words, with the accuracy there."""
    ends = parameter.encoded(np.array([found.low, found.high])).ravel()
    interval = f"90 % interval {found.low:.3g} to {found.high:.3g}"
    if ends[1] - ends[0] > _VAGUE:
        return f"the trials do not tell where ({interval})"
    is_bound = parameter.path == BALANCE and found.value in (0.0, 1.0)
    edge = ", an end of what was searched: it may lie beyond" if found.value in parameter.range and not is_bound else ""
    return f"at {found.value:.3g} ({interval}{edge}), with {mean:.1f} ± {half:.1f} %"


def _add_response(
    figure: go.Figure,
    records: Sequence[TrialRecord],
    fitted: Surrogate | None,
    parameter: Parameter,
    color: str,
    *,
    is_named: bool = True,
    **trace: Any,
) -> str | None:
    """Add trials, and what a surrogate makes of them, to a figure; in words what is known of its optimum, if there is a curve.

    ``trace`` has the name for the legend, and the row and column of a panel.
    """
    has_curve = fitted is not None and fitted.has(parameter.path)
    x = [value_of(record, parameter.path) for record in records]
    group = {"legendgroup": trace["name"], **trace}
    point = {"color": color, "size": 5, "opacity": 0.5}
    y, is_shown = style.accuracies(records), is_named and not has_curve
    style.add_trials(figure, records, x, y, showlegend=is_shown, marker=point, **group)
    if fitted is None or not has_curve:
        return None
    response = fitted.response(parameter.path)
    along, mean, half = response.points[:, 0], 100 * response.mean, 100 * response.half_width
    style.add_band(figure, along, mean - half, mean + half, style.faded(color, 0.18), **group)
    line, curve = {"color": color, "width": 2.5}, "%{x:.3g}: %{y:.1f} %<extra>mean</extra>"
    figure.add_scatter(x=along, y=mean, mode="lines", showlegend=is_named, line=line, hovertemplate=curve, **group)
    if fitted.num_trials < FEWEST_FOR_OPTIMUM:
        return f"({_trials(fitted)}): cannot be told below {FEWEST_FOR_OPTIMUM} finished trials"
    (found,) = response.optimum()
    mean_there, half_there = (float(np.interp(found.value, along, values)) for values in (mean, half))
    figure.add_scatter(
        x=[found.value],
        y=[mean_there],
        mode="markers",
        marker={"symbol": "diamond", "size": 12, "color": color, "line": {"color": "white", "width": 1.5}},
        error_x=style.bars([found.value], [found.low], [found.high], color, 6),
        showlegend=False,
        hovertemplate="optimum %{x:.3g}<extra></extra>",
        **group,
    )
    return f"({_trials(fitted)}): {_located(parameter, found, mean_there, half_there)}"


def draw_response(context: FigureContext, path: str) -> tuple[go.Figure, str]:
    """Accuracy against one parameter: trials, and a curve for each backbone that has enough of them."""
    study, context = context.study, _checked(context, [path], _LACK[path])
    parameter, num_finished = context.parameter(path), sum(map(len, context.finished.values()))
    plain = {row.backbone: row.accuracy for row in study.controls if row.control == "plain"}
    figure = go.Figure()
    optima, without = [], []
    share = min(1.0, style.MOST_POINTS / num_finished)
    for backbone, records in context.finished.items():
        color, fitted = style.color_of(backbone, study.backbones), context.surrogates.get(backbone)
        drawn = style.some_of(records, max(1, round(share * len(records))))
        optimum = _add_response(figure, drawn, fitted, parameter, color, name=backbone)
        if optimum is None:
            without.append(backbone)
        else:
            optima.append(f"{backbone} {optimum}")
        if backbone in plain and parameter.is_number:
            if (half_width := plain[backbone].half_width) is not None:
                low, high = (100 * np.full(2, plain[backbone].mean + sign * half_width) for sign in (-1, 1))
                style.add_band(figure, np.array(parameter.range), low, high, style.faded(color, 0.08))
            figure.add_scatter(
                x=parameter.range,
                y=[100 * plain[backbone].mean] * 2,
                mode="lines",
                name=f"{backbone}, plain",
                line={"color": color, "width": 1.5, "dash": "dash"},
                hovertemplate=f"plain: {plain[backbone]} %<extra></extra>",
            )
    subset = f", {share:.0%} of them drawn, at random" if share < 1 else ""
    caption = [f"{counted(num_finished, 'finished trial')} of the search{subset}.{_start_only(context, path)}"]
    if optima:
        caption.append(f"{_LINES}{context.survivors_only} Where accuracy is highest: {'; '.join(optima)}.")
    if without:
        caption.append(f"No curve for {' and '.join(without)}: it takes {FEWEST} finished trials that differ in this number.")
    if plain:
        means = ", ".join(f"{backbone} {found} % (n = {found.n})" for backbone, found in plain.items())
        band = ", with its 95 % interval" if any(found.half_width is not None for found in plain.values()) else ""
        caption.append(
            f"Dashed: mean of the plain control{band}: {means}. The dots are trials of the search{of_one_seed(study.config)}."
        )
    style.set_axis(figure, parameter, "x")
    figure.update_yaxes(title_text=style.ACCURACY)
    return style.styled(figure, showlegend=True), " ".join(caption)


def draw_both(context: FigureContext) -> tuple[go.Figure, str]:
    """A map of accuracy against balance and pre-training length, a panel a backbone."""
    what = "map of accuracy against both"
    context = _checked(context, [BALANCE, LENGTH], what)
    fitted = {name: found for name, found in context.surrogates.items() if found.has(BALANCE) and found.has(LENGTH)}
    if not fitted:
        raise NotDrawn(f"No backbone has {FEWEST} finished trials that differ in balance and pre-training length: no {what}.")
    figure = style.panels(list(fitted))
    places = []
    for row, (backbone, surrogate) in enumerate(fitted.items(), 1):
        optimum = _add_map(figure, surrogate, context.finished[backbone], row)
        if optimum is None:
            places.append(f"{backbone} ({_trials(surrogate)}): cannot be told below {FEWEST_FOR_OPTIMUM} finished trials")
        else:
            balance, length = optimum
            places.append(
                f"{backbone} ({_trials(surrogate)}): b {balance.value:.2g} ({balance.low:.2g} to {balance.high:.2g}), "
                f"{length.value:.0f} epochs ({length.low:.0f} to {length.high:.0f})"
            )
        style.set_axis(figure, context.parameter(BALANCE), "x", row=row, col=1)
        style.set_axis(figure, context.parameter(LENGTH), "y", row=row, col=1)
        if row < len(fitted):
            figure.update_xaxes(title_text=None, row=row, col=1)
    without = [backbone for backbone in context.finished if backbone not in fitted]
    few = f" Too few trials: {', '.join(without)}." if without else ""
    caption = (
        "Mean of a Gaussian process on validation accuracy, averaged over the trials' other parameters. White: the trials. "
        f"Diamond: where it is highest, with 90 % intervals. {'; '.join(places)}.{few}{_start_only(context, BALANCE)}"
        f"{context.survivors_only}"
    )
    return style.styled(figure, showlegend=False), caption


def _add_map(
    figure: go.Figure, surrogate: Surrogate, records: Sequence[TrialRecord], row: int
) -> tuple[Optimum, Optimum] | None:
    """Add what a surrogate makes of balance and length to a panel; where the optimum lies, if the trials are enough to say."""
    response = surrogate.response(BALANCE, LENGTH)
    xs, ys = (np.unique(column) for column in response.points.T)
    where = {"row": row, "col": 1}
    low, high = figure.layout[f"yaxis{'' if row == 1 else row}"].domain
    figure.add_contour(
        x=xs,
        y=ys,
        z=100 * response.mean.reshape(len(xs), len(ys)).T,
        colorscale="Cividis",
        ncontours=14,
        line={"width": 0},
        colorbar={"thickness": 10, "len": high - low, "y": (low + high) / 2, "ticksuffix": " %"},
        hovertemplate="b %{x:.2f}, %{y:.0f} epochs: %{z:.1f} %<extra></extra>",
        **where,
    )
    drawn = style.some_of(records, _MOST_IN_PANEL)
    x, y = ([value_of(record, path) for record in drawn] for path in (BALANCE, LENGTH))
    white = {"size": 5, "color": "rgba(255,255,255,0.35)", "line": {"color": "white", "width": 1}}
    style.add_trials(figure, drawn, x, y, marker=white, **where)
    if surrogate.num_trials < FEWEST_FOR_OPTIMUM:
        return None
    balance, length = response.optimum()
    figure.add_scatter(
        x=[balance.value],
        y=[length.value],
        mode="markers",
        marker={"symbol": "diamond", "size": 13, "color": _RED, "line": {"color": "white", "width": 1.5}},
        error_x=style.bars([balance.value], [balance.low], [balance.high], _RED, 5),
        error_y=style.bars([length.value], [length.low], [length.high], _RED, 5),
        hovertemplate="optimum %{x:.2f}, %{y:.0f} epochs<extra></extra>",
        **where,
    )
    return balance, length


def _shares_of_emotion(study: StudyResults) -> Mapping[str, float]:
    """The share of emotion at the end of regulation, by trial."""
    rows = [row for row in study.probes if (row.probe, row.stage) == ("emotion_share", "regulation")]
    return {row.identity: row.value for row in sorted(rows, key=lambda row: row.epoch)}


def draw_by_share(context: FigureContext) -> tuple[go.Figure, str]:
    """Validation accuracy against the share of emotion: with experience, and without it, a panel a backbone."""
    study, shares = context.study, _shares_of_emotion(context.study)
    drawn: dict[str, dict[str, list[TrialRecord]]] = {backbone: {} for backbone in study.backbones}
    for record in study.trials:
        is_told = record.status == "finished" and record.val_accuracy is not None and record.identity in shares
        if is_told and record.control in ("regulated", "untrained"):
            drawn.setdefault(record.backbone, {}).setdefault(record.control, []).append(record)
    if not shares:
        raise NotDrawn("No trial measured it (`probes=('emotion_share',)`): no accuracy against the share of emotion.")
    drawn = {backbone: found for backbone, found in drawn.items() if len(found.get("regulated", ())) >= FEWEST_DRAWN}
    if not drawn:
        raise NotDrawn(f"Fewer than {FEWEST_DRAWN} finished trials measured it: no accuracy against the share of emotion.")
    figure, named, counts = style.panels(list(drawn)), set[str](), []
    for row, (backbone, found) in enumerate(drawn.items(), 1):
        for control, records in sorted(found.items(), reverse=True):
            style.add_trials(
                figure,
                records,
                [shares[record.identity] for record in records],
                style.accuracies(records),
                name=control_named(control).label,
                legendgroup=control,
                showlegend=control not in named,
                marker={
                    "color": style.GREY if control == "untrained" else style.color_of(backbone, study.backbones),
                    "symbol": "circle-open" if control == "untrained" else "circle",
                    "size": 8,
                },
                hover="<br>share of emotion %{x:.2f}",
                row=row,
                col=1,
            )
            named.add(control)
        figure.update_yaxes(title_text=style.OF_PANEL[style.ACCURACY], row=row, col=1)
        told = [f"{counted(len(records), 'trial')} {control}" for control, records in found.items()]
        counts.append(f"{backbone}: {', '.join(told)}")
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_xaxes(title_text="share of the emotional encoder in the response", row=len(drawn), col=1)
    caption = (
        f"{'; '.join(counts)}. The share is measured, not set: of what the response varies by over validation images. At one "
        "share, what trained encoders have above untrained ones is emotion’s part; the rest is that of two networks together."
    )
    if "untrained" not in named:
        caption += " No untrained trial measured it, so the two cannot be told apart here."
    return style.styled(figure, showlegend=True), caption


def compare_responses(studies: Mapping[str, StudyResults], path: str) -> tuple[go.Figure, str] | None:
    """Accuracy against one parameter, a panel a backbone; None where no study has searched it and finished a trial."""
    contexts = {
        name: _having(FigureContext(study=study), path)
        for name, study in studies.items()
        if path in study.search_space and Parameter(path=path, distribution=study.search_space[path]).is_number
    }
    backbones = list(dict.fromkeys(backbone for context in contexts.values() for backbone in context.finished))
    if not backbones:
        return None
    figure = style.panels(backbones)
    optima: list[str] = []
    named: set[str] = set()
    for name, context in contexts.items():
        parameter, color = context.parameter(path), style.color_of(name, [*studies])
        for backbone, records in context.finished.items():
            where = {"row": backbones.index(backbone) + 1, "col": 1}
            fitted, drawn = context.surrogates.get(backbone), style.some_of(records, _MOST_IN_PANEL)
            optimum = _add_response(figure, drawn, fitted, parameter, color, is_named=name not in named, name=name, **where)
            if optimum is not None:
                optima.append(f"{name}, {backbone} {optimum}")
            named.add(name)
            style.set_axis(figure, parameter, "x", **where)
            figure.update_xaxes(title_text=style.axis_title(path) if where["row"] == len(backbones) else None, **where)
            figure.update_yaxes(title_text=style.OF_PANEL[style.ACCURACY], **where)
    survivors = "".join(f"{name}:{context.survivors_only} " for name, context in contexts.items() if context.survivors_only)
    caption = (
        f"Finished trials of the searches, at most {_MOST_IN_PANEL} a study and backbone. {_LINES} {survivors}"
        f"Where accuracy is highest: {'; '.join(optima) or 'too few trials'}."
    )
    return style.styled(figure, showlegend=True), caption
