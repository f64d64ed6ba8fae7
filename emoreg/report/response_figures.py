"""Accuracy against balance and pre-training length: trials, a surrogate's mean and uncertainty, and where the optimum lies."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emoreg.formatting import counted
from emoreg.report.drawing import (
    ACCURACY,
    MOST_POINTS,
    OF_PANEL,
    PANEL,
    SCALE,
    UNDER_TITLES,
    Drawing,
    Figure,
    Material,
    axis_title,
    color_of,
    described,
    faded,
    set_axis,
    some_of,
    styled,
)
from emoreg.results.records import TrialRecord
from emoreg.results.study import Study
from emoreg.results.surrogate import FEWEST, Optimum, Parameter, Response, Surrogate, value_of

BALANCE, LENGTH = "regulation.balance", "pretraining.epochs"
_VAGUE = 0.5  # of a parameter's axis: an interval as wide as this tells nothing of where the optimum lies
_MOST_IN_PANEL = 500
_LINES = "Lines: mean of a Gaussian process, averaged over the trials' other parameters, with its 90 % band."
_NAMES = {BALANCE: "balance", LENGTH: "pre-training length"}


def _missing(material: Material, paths: Sequence[str], what: str) -> str | None:
    absent = [_NAMES[path] for path in paths if path not in material.study.search_space]
    if absent:
        return f"The {' and the '.join(absent)} {'was' if len(absent) == 1 else 'were'} not searched: no {what}."
    if not material.finished:
        return f"No trial of the search has finished: no {what}."
    if len(paths) > 1 and not any(all(map(found.has, paths)) for found in material.surrogates.values()):
        both = " and ".join(_NAMES[path] for path in paths)
        return f"No backbone has {FEWEST} finished trials that differ in {both}: no {what}."
    return None


def _trials(surrogate: Surrogate) -> str:
    """How many trials a surrogate is of."""
    fitted = f", fitted on {surrogate.num_fitted} at random" if surrogate.num_fitted < surrogate.num_trials else ""
    return f"n = {surrogate.num_trials:,}{fitted}"


def _located(name: str, parameter: Parameter, found: Optimum, response: Response) -> str:
    """What is known of where the optimum lies, in words."""
    x = response.points[:, 0]
    mean, half = (100 * float(np.interp(found.value, x, values)) for values in (response.mean, response.half_width))
    ends = parameter.encoded(np.array([found.low, found.high])).ravel()
    interval = f"90 % interval {found.low:.3g} to {found.high:.3g}"
    if ends[1] - ends[0] > _VAGUE:
        return f"{name}: the trials do not tell where ({interval})"
    low, high = parameter.range
    is_bound = parameter.path == BALANCE and found.value in (0.0, 1.0)
    edge = ", an end of what was searched: it may lie beyond" if found.value in (low, high) and not is_bound else ""
    return f"{name}: at {found.value:.3g} ({interval}{edge}), with {mean:.1f} ± {half:.1f} %"


def _add_curve(figure: go.Figure, response: Response, found: Optimum, name: str, color: str, **where: int) -> None:
    x, mean, half = response.points[:, 0], 100 * response.mean, 100 * response.half_width
    figure.add_scatter(
        x=np.concatenate([x, x[::-1]]),
        y=np.concatenate([mean + half, (mean - half)[::-1]]),
        fill="toself",
        fillcolor=faded(color, 0.18),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=name,
        **where,
    )
    figure.add_scatter(
        x=x, y=mean, mode="lines", name=name, legendgroup=name, line={"color": color, "width": 2.5},
        hovertemplate="%{x:.3g}: %{y:.1f} %<extra>mean</extra>", **where,
    )  # fmt: skip
    figure.add_scatter(
        x=[found.value],
        y=[float(np.interp(found.value, x, mean))],
        mode="markers",
        marker={"symbol": "diamond", "size": 12, "color": color, "line": {"color": "white", "width": 1.5}},
        error_x={
            "type": "data", "symmetric": False, "array": [found.high - found.value], "arrayminus": [found.value - found.low],
            "color": color, "thickness": 2, "width": 6,
        },
        legendgroup=name,
        showlegend=False,
        hovertemplate="optimum %{x:.3g}<extra></extra>",
        **where,
    )  # fmt: skip


def _add_points(
    figure: go.Figure, records: Sequence[TrialRecord], path: str, name: str, color: str, *, shown: bool, **where: int
) -> None:
    figure.add_scatter(
        x=[value_of(record, path) for record in records],
        y=[100 * (record.val_accuracy or 0.0) for record in records],
        mode="markers",
        name=name,
        legendgroup=name,
        showlegend=shown,
        marker={"color": color, "size": 5, "opacity": 0.5},
        hovertext=[described(record) for record in records],
        hovertemplate="%{hovertext}<extra></extra>",
        **where,
    )


def _draw_response(material: Material, path: str) -> Figure:
    study = material.study
    parameter = Parameter(path=path, distribution=study.search_space[path])
    plain = {row.backbone: row.accuracy for row in study.controls if row.control == "plain"}
    figure = go.Figure()
    says, without = [], []
    share = min(1.0, MOST_POINTS / material.num_finished)
    for backbone, records in material.finished.items():
        color = color_of(backbone, study.backbones)
        fitted = material.surrogates.get(backbone)
        has_curve = fitted is not None and fitted.has(path)
        _add_points(figure, some_of(records, max(1, round(share * len(records)))), path, backbone, color, shown=not has_curve)
        if fitted is not None and has_curve:
            response = fitted.response(path)
            found = response.optimum()[0]
            _add_curve(figure, response, found, backbone, color)
            says.append(_located(f"{backbone} ({_trials(fitted)})", parameter, found, response))
        else:
            without.append(backbone)
        if backbone in plain and parameter.is_number:
            low, high = parameter.range
            figure.add_scatter(
                x=[low, high], y=[100 * plain[backbone].mean] * 2, mode="lines", name=f"{backbone}, plain",
                line={"color": color, "width": 1.5, "dash": "dash"},
                hovertemplate=f"plain: {plain[backbone]} %<extra></extra>",
            )  # fmt: skip
    drawn = f", {share:.0%} of them drawn, at random" if share < 1 else ""
    caption = [f"{counted(material.num_finished, 'finished trial')} of the search{drawn}."]
    if says:
        caption.append(f"{_LINES} Where accuracy is highest: {'; '.join(says)}.")
    if without:
        caption.append(f"No curve for {' and '.join(without)}: it takes {FEWEST} finished trials that differ in this number.")
    if plain:
        means = ", ".join(f"{backbone} {found} % (n = {found.n})" for backbone, found in plain.items())
        caption.append(f"Dashed: mean of the plain control, {means}.")
    set_axis(figure, parameter, "x")
    figure.update_yaxes(title_text=ACCURACY)
    name, title = {
        BALANCE: ("accuracy-by-balance", "Accuracy against balance"),
        LENGTH: ("accuracy-by-pretraining", "Accuracy against pre-training length"),
    }[path]
    return Figure(name=name, title=title, caption=" ".join(caption), section="response", figure=styled(figure, showlegend=True))


def _draw_both(material: Material) -> Figure:
    study = material.study
    parameters = [Parameter(path=path, distribution=study.search_space[path]) for path in (BALANCE, LENGTH)]
    fitted = {name: found for name, found in material.surrogates.items() if found.has(BALANCE) and found.has(LENGTH)}
    gap = 0.2 / len(fitted)
    figure = make_subplots(len(fitted), 1, shared_xaxes=True, subplot_titles=list(fitted), vertical_spacing=gap)
    says = []
    for row, (backbone, surrogate) in enumerate(fitted.items(), 1):
        response = surrogate.response(BALANCE, LENGTH)
        xs, ys = (np.unique(column) for column in response.points.T)
        where = {"row": row, "col": 1}
        bar = figure.layout[f"yaxis{'' if row == 1 else row}"].domain
        figure.add_contour(
            x=xs,
            y=ys,
            z=100 * response.mean.reshape(len(xs), len(ys)).T,
            colorscale=SCALE,
            ncontours=14,
            line={"width": 0},
            colorbar={"thickness": 10, "len": bar[1] - bar[0], "y": (bar[0] + bar[1]) / 2, "ticksuffix": " %"},
            hovertemplate="b %{x:.2f}, %{y:.0f} epochs: %{z:.1f} %<extra></extra>",
            **where,
        )
        records = some_of(material.finished[backbone], _MOST_IN_PANEL)
        figure.add_scatter(
            x=[value_of(record, BALANCE) for record in records],
            y=[value_of(record, LENGTH) for record in records],
            mode="markers",
            marker={"size": 5, "color": "rgba(255,255,255,0.35)", "line": {"color": "white", "width": 1}},
            hovertext=[described(record) for record in records],
            hovertemplate="%{hovertext}<extra></extra>",
            **where,
        )
        optima = response.optimum()
        figure.add_scatter(
            x=[optima[0].value],
            y=[optima[1].value],
            mode="markers",
            marker={"symbol": "diamond", "size": 13, "color": "#D55E00", "line": {"color": "white", "width": 1.5}},
            hovertemplate="optimum %{x:.2f}, %{y:.0f} epochs<extra></extra>",
            **{
                f"error_{axis}": {
                    "type": "data", "symmetric": False, "array": [found.high - found.value],
                    "arrayminus": [found.value - found.low], "color": "#D55E00", "thickness": 2, "width": 5,
                }
                for axis, found in zip("xy", optima, strict=True)
            },
            **where,
        )  # fmt: skip
        says.append(
            f"{backbone} ({_trials(surrogate)}): b {optima[0].value:.2g} "
            f"({optima[0].low:.2g} to {optima[0].high:.2g}), "
            f"{optima[1].value:.0f} epochs ({optima[1].low:.0f} to {optima[1].high:.0f})"
        )
        set_axis(figure, parameters[0], "x", **where)
        set_axis(figure, parameters[1], "y", **where)
        if row < len(fitted):
            figure.update_xaxes(title_text=None, **where)
    without = [backbone for backbone in material.finished if backbone not in fitted]
    return Figure(
        name="accuracy-by-both",
        title="Accuracy against balance and pre-training length",
        caption="Mean of a Gaussian process on validation accuracy, averaged over the trials' other parameters. White: the "
        "trials. Diamond: where it is highest, with 90 % intervals. "
        + "; ".join(says)
        + "."
        + (f" Too few trials: {', '.join(without)}." if without else ""),
        section="response",
        figure=styled(figure, showlegend=False, height=max(420, 60 + PANEL * len(fitted)), margin=UNDER_TITLES),
    )


def compared_responses(studies: Sequence[Study], names: Sequence[str], path: str) -> Figure | None:
    """Accuracy against one parameter, a panel a backbone; None where no study has searched it and finished a trial.

    Args:
        studies: two or more.
        names: what they are called.
        path: ``BALANCE`` or ``LENGTH``.
    """
    materials = {
        name: Material(study=study)
        for name, study in zip(names, studies, strict=True)
        if path in study.search_space and Parameter(path=path, distribution=study.search_space[path]).is_number
    }
    backbones = list(dict.fromkeys(backbone for material in materials.values() for backbone in material.finished))
    if not backbones:
        return None
    figure = make_subplots(
        len(backbones), 1, shared_xaxes=True, subplot_titles=backbones, vertical_spacing=0.16 / len(backbones)
    )
    says: list[str] = []
    named: set[str] = set()
    for name, material in materials.items():
        parameter = Parameter(path=path, distribution=material.study.search_space[path])
        for backbone, records in material.finished.items():
            where = {"row": backbones.index(backbone) + 1, "col": 1}
            fitted = material.surrogates.get(backbone)
            has_curve = fitted is not None and fitted.has(path)
            _add_points(
                figure,
                some_of(records, _MOST_IN_PANEL),
                path,
                name,
                color_of(name, names),
                shown=not has_curve and name not in named,
                **where,
            )
            if fitted is not None and has_curve:
                response = fitted.response(path)
                found = response.optimum()[0]
                _add_curve(figure, response, found, name, color_of(name, names), **where)
                figure.data[-2].showlegend = name not in named
                says.append(_located(f"{name}, {backbone} ({_trials(fitted)})", parameter, found, response))
            named.add(name)
            set_axis(figure, parameter, "x", **where)
            figure.update_xaxes(title_text=axis_title(path) if where["row"] == len(backbones) else None, **where)
            figure.update_yaxes(title_text=OF_PANEL[ACCURACY], **where)
    what = _NAMES[path]
    return Figure(
        name=f"compared-{what.replace(' ', '-')}",
        title=f"Accuracy against {what}, by study",
        caption=f"Finished trials of the searches, at most {_MOST_IN_PANEL} a study and backbone. {_LINES} "
        f"Where accuracy is highest: {'; '.join(says) or 'too few trials'}.",
        section="response",
        figure=styled(figure, height=max(420, 90 + PANEL * len(backbones)), margin=UNDER_TITLES, showlegend=True),
    )


DRAWINGS = (
    Drawing(partial(_missing, paths=(BALANCE,), what="curve of accuracy against it"), partial(_draw_response, path=BALANCE)),
    Drawing(partial(_missing, paths=(LENGTH,), what="critical-period curve"), partial(_draw_response, path=LENGTH)),
    Drawing(partial(_missing, paths=(BALANCE, LENGTH), what="map of accuracy against both"), _draw_both),
)
