"""The search as Optuna draws it, its history made anew from the records. The report's only place that imports optuna."""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from emoreg.config import Choice, Float, Objective, Value
from emoreg.formatting import counted, duration
from emoreg.report.drawing import (
    ACCURACY,
    COLORS,
    GREY,
    LINE_SCALE,
    OF_PANEL,
    PANEL,
    Drawing,
    Figure,
    Material,
    color_of,
    described,
    metric_title,
    metric_value,
    set_axis,
    some_of,
    styled,
    subset_of,
    wrapped,
)
from emoreg.results.analysis import better, pareto_front
from emoreg.results.records import TrialRecord
from emoreg.results.study import Study
from emoreg.results.surrogate import Parameter

_MOST_LINES = 500
_MOST_FANOVA = 500  # its cost grows faster than the number of trials, and 2,000 give the same shares
FEWEST_FOR_IMPORTANCE = 5
"""Finished trials below which a parameter's importance is anything."""
_STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
_COLUMNS = 2


def history_of(study: Study, records: Sequence[TrialRecord]) -> optuna.Study:
    """Optuna's study of these trials under the first objective, with Optuna's own numbers; accuracies in percent.

    A finished trial without a finite objective is FAIL, as it was in the search. Steps are left out of the distributions, and
    these reach as far as the trials do: a study's ranges may have been changed between two runs.
    """
    objective = study.objectives[0]
    params: dict[int, dict[str, Value]] = {record.number: record.sampled for record in records if record.number is not None}
    distributions = _distributions(study, list(params.values()))
    trials: dict[int, FrozenTrial] = {}
    for record in records:
        if record.number is None:
            continue
        state, value = _STATES[record.status], metric_value(record, objective)
        if state == TrialState.COMPLETE and value is None:
            state = TrialState.FAIL
        steps = study.epochs_of(record.identity) if state == TrialState.PRUNED else []
        known = {path: found for path, found in params[record.number].items() if path in distributions}
        trials[record.number] = create_trial(
            state=state,
            value=value if state == TrialState.COMPLETE else None,
            params=known,
            distributions={path: distributions[path] for path in known},
            intermediate_values={row.epoch: 100 * row.val_accuracy for row in steps if row.val_accuracy is not None},
        )
    # Optuna numbers what is added: a number without a record, a proposal that another trial stood for, is kept free.
    absent = create_trial(state=TrialState.FAIL)
    with _quiet():
        history = optuna.create_study(direction="maximize" if objective.mode == "max" else "minimize")
        history.add_trials(trials.get(number, absent) for number in range(max(trials, default=-1) + 1))
    return history


def _distributions(study: Study, params: Sequence[dict[str, Value]]) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for path, distribution in study.search_space.items():
        values = list(dict.fromkeys([*distribution.bounds(), *(values[path] for values in params if path in values)]))
        if isinstance(distribution, Choice):
            found[path] = CategoricalDistribution(values)
            continue
        low, high = min(map(float, values)), max(map(float, values))
        if isinstance(distribution, Float):
            found[path] = FloatDistribution(low, high, log=distribution.log)
        else:
            found[path] = IntDistribution(int(low), int(high), log=distribution.log)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Within, Optuna neither warns that a part of it is experimental nor tells of the studies that it makes."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _optimization_history(material: Material) -> Figure:
    study = material.study
    objective = study.objectives[0]
    title = metric_title(objective)
    figure = optuna.visualization.plot_optimization_history(history_of(study, study.searched), target_name=title)
    figure.update_traces(marker={"color": GREY, "size": 5, "opacity": 0.6}, selector={"mode": "markers"})
    figure.update_traces(line={"color": COLORS[2], "width": 2.5, "shape": "hv"}, selector={"mode": "lines"})
    figure.for_each_trace(lambda trace: trace.update(name="trial" if trace.mode == "markers" else "best so far"))
    best = functools.reduce(lambda one, other: other if better(other, one, objective) else one, _finished(study))
    counts = Counter(record.status for record in study.searched)
    rest = ", ".join(f"{counts[status]:,} {status}" for status in ("pruned", "failed") if counts[status])
    return Figure(
        name="optimization-history",
        title="How the search went on",
        caption=f"{counted(counts['finished'], 'finished trial')} in the order in which the sampler proposed them"
        f"{f' ({rest}: not drawn)' if rest else ''}. The best, {metric_value(best, objective):.4g} ({title}), was number "
        f"{best.number}, {best.backbone}. It was selected, so it flatters.",
        section="search",
        figure=styled(figure, xaxis_title="trial, by Optuna's number", yaxis_title=title),
    )


def _importances(material: Material) -> Figure:
    study = material.study
    finished = _finished(study)
    paths = _common(study, finished)
    few = some_of(finished, _MOST_FANOVA)
    with _quiet():
        history = history_of(study, finished)
        found = {
            "fANOVA": get_param_importances(
                history if len(few) == len(finished) else history_of(study, few),
                evaluator=FanovaImportanceEvaluator(seed=0),
                params=paths,
            ),
            "PED-ANOVA": get_param_importances(history, evaluator=PedAnovaImportanceEvaluator(), params=paths),
        }
    order = sorted(paths, key=lambda path: -found["fANOVA"][path])
    figure = go.Figure(
        [
            go.Bar(
                y=[wrapped(path) for path in order],
                x=[100 * shares[path] for path in order],
                orientation="h",
                name=name,
                marker_color=color,
                hovertemplate="%{y}: %{x:.0f} %",
            )
            for (name, shares), color in zip(found.items(), COLORS[2:4], strict=True)
        ]
    )
    absent = [path for path in study.search_space if path not in paths]
    left_out = f" Left out, because not every trial has it or it never varied: {', '.join(absent)}." if absent else ""
    subset = f", of {len(few):,} of them at random" if len(few) < len(finished) else ""
    num_best = max(2, math.ceil(0.1 * len(finished)))
    says = "; ".join(f"{name} puts {max(shares, key=lambda path: shares[path])} first" for name, shares in found.items())
    return Figure(
        name="importances",
        title="Which parameters matter",
        caption=f"Of {counted(len(finished), 'finished trial')}. fANOVA{subset}: the share of the variance of "
        f"{metric_title(study.objectives[0]).removesuffix(', %')} over the whole space that a parameter explains by itself "
        f"(Hutter et al. 2014). PED-ANOVA: how far the best tenth of the trials, {num_best} or more with ties, differ from all "
        "in it (Watanabe et al. 2023). Each is scaled to add up to 100 %. "
        f"{says}.{left_out}",
        section="search",
        figure=styled(
            figure,
            xaxis_title="importance, %",
            xaxis_rangemode="tozero",
            barmode="group",
            yaxis_autorange="reversed",
            yaxis_ticks="",
            height=max(260, 120 + 55 * len(order)),
        ),
    )


def _parallel_coordinates(material: Material) -> Figure:
    study = material.study
    objective = study.objectives[0]
    finished = _finished(study)
    best = sorted(finished, key=lambda record: metric_value(record, objective) or 0.0, reverse=objective.mode == "max")
    drawn = best[:_MOST_LINES]
    title = metric_title(objective)
    figure = optuna.visualization.plot_parallel_coordinate(history_of(study, drawn), target_name=title)
    axes = figure.layout.xaxis.ticktext
    paths = [title, *sorted(_searched(study, drawn))]  # Optuna's order
    assert len(axes) == len(paths)
    figure.update_xaxes(ticktext=[wrapped(path) for path in paths], ticks="", tickangle=0, ticklabeloverflow="allow")
    _move_labels_off_lines(figure)
    scale = {"colorscale": LINE_SCALE, "colorbar": {"thickness": 10, "title": None}}
    figure.update_traces(marker=scale, selector={"mode": "markers"})
    for line in figure.select_traces(selector={"mode": "lines"}):  # Optuna's blues are lost on a light page, or on a dark one
        line.line.color = sample_colorscale(LINE_SCALE, [line.y[0]])[0]
    return Figure(
        name="parallel-coordinates",
        title="What good trials have in common",
        caption=f"A line for each of {counted(len(drawn), 'finished trial')}"
        f"{subset_of(len(drawn), len(finished), 'the best')}; its colour is the {title.removesuffix(', %')}. "
        "None: the trial does not have that parameter.",
        section="search",
        figure=styled(figure, plot_bgcolor="rgba(0,0,0,0)", yaxis_range=(-0.12, 1.12), margin_l=48),
    )


def _move_labels_off_lines(figure: go.Figure) -> None:
    """The ends of an axis above and below it; between them the names of choices alone."""
    kept = []
    for label in figure.layout.annotations:
        is_end = label.y in (0.0, 1.0)
        if is_end or not _is_float(label.text):
            anchor = {"xanchor": "center", "xshift": 0, "yshift": 12 if label.y else -12} if is_end else {}
            kept.append(label.update(font={"color": GREY, "size": 12}, **anchor))
    figure.layout.annotations = kept


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _slices(material: Material) -> Figure:
    study = material.study
    finished = _finished(study)
    drawn = some_of(finished)
    history = history_of(study, drawn)
    paths = _searched(study, drawn)
    rows = math.ceil(len(paths) / _COLUMNS)
    title = metric_title(study.objectives[0])
    columns = min(_COLUMNS, len(paths))
    figure = make_subplots(rows, columns, shared_yaxes=True, horizontal_spacing=0.1, vertical_spacing=0.3 / rows)
    for index, path in enumerate(paths):
        row, column = index // _COLUMNS + 1, index % _COLUMNS + 1
        part = optuna.visualization.plot_slice(history, params=[path], target_name=title)
        for trace in part.data:
            figure.add_trace(trace, row=row, col=column)
        parameter = Parameter(path=path, distribution=study.search_space[path])
        set_axis(figure, parameter, "x", row=row, col=column)
        quoted = {repr(value): str(value) for value in parameter.distribution.bounds() if isinstance(value, str)}
        figure.update_xaxes(title_text=wrapped(path), labelalias=quoted, row=row, col=column)
        figure.update_yaxes(title_text=OF_PANEL.get(title, title) if column == 1 else None, row=row, col=column)
    figure.update_traces(marker={"colorscale": LINE_SCALE, "size": 5, "line": {"width": 0}, "showscale": False})
    return Figure(
        name="slices",
        title="Each parameter by itself",
        caption=f"{counted(len(drawn), 'finished trial')}{subset_of(len(drawn), len(finished))}; the redder, "
        "the later the sampler proposed it. Trials without a parameter are not in its panel.",
        section="search",
        figure=styled(figure, height=max(300, PANEL * rows)),
    )


def _pareto_front(material: Material) -> Figure:
    records = [record for found in material.finished.values() for record in found]
    front = _front(records)
    drawn = some_of(records)
    figure = go.Figure(
        go.Scatter(
            x=[record.device_seconds for record in front],
            y=[100 * (record.val_accuracy or 0.0) for record in front],
            mode="lines",
            line={"color": GREY, "shape": "hv", "width": 1.5},
            name="Pareto front",
            hoverinfo="skip",
        )
    )
    best = {record.identity for record in front}
    for backbone in material.finished:
        own = [record for record in [*drawn, *front] if record.backbone == backbone]
        own = list({record.identity: record for record in own}.values())
        on_front = [record.identity in best for record in own]
        figure.add_scatter(
            x=[record.device_seconds for record in own],
            y=[100 * (record.val_accuracy or 0.0) for record in own],
            mode="markers",
            name=backbone,
            marker={
                "color": color_of(backbone, material.study.backbones),
                "size": [10 if is_best else 5 for is_best in on_front],
                "opacity": [1.0 if is_best else 0.45 for is_best in on_front],
            },
            hovertext=[described(record) for record in own],
            hovertemplate="%{hovertext}<br>%{x:,.0f} s<extra></extra>",
        )
    cheap, dear = front[0], front[-1]
    says = (
        f"one trial has both the highest accuracy and the lowest cost ({_costs(dear)})"
        if len(front) == 1
        else f"{counted(len(front), 'trial')} on the front, from {_costs(cheap)} to {_costs(dear)}"
    )
    subset = f", {len(drawn):,} at random and the front drawn" if len(drawn) < len(records) else ""
    return Figure(
        name="pareto-front",
        title="Accuracy against cost",
        caption=f"{counted(len(records), 'finished trial')}{subset}: {says}. Device seconds are what a trial costs alone, its "
        "pre-training included, whoever paid for it. Large points: no other trial is better in one and not worse in the other.",
        section="search",
        figure=styled(figure, xaxis_title="device seconds of the trial", yaxis_title=ACCURACY, legend_itemsizing="constant"),
    )


def _front(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """The cheapest first."""
    objectives = (Objective(), Objective(metric="device_seconds", mode="min"))
    return sorted(pareto_front(records, objectives), key=lambda record: record.device_seconds)


def _costs(record: TrialRecord) -> str:
    return f"{100 * (record.val_accuracy or 0.0):.1f} % in {duration(record.device_seconds)}"


def _finished(study: Study) -> list[TrialRecord]:
    """The finished trials of the search that have the first objective."""
    objective = study.objectives[0]
    return [record for record in study.searched if record.status == "finished" and metric_value(record, objective) is not None]


def _searched(study: Study, records: Sequence[TrialRecord]) -> list[str]:
    """Searched paths that at least one trial has."""
    params = [record.sampled for record in records]
    return [path for path in study.search_space if any(path in values for values in params)]


def _common(study: Study, finished: Sequence[TrialRecord]) -> list[str]:
    """Paths that every trial has, and that varied."""
    params = [record.sampled for record in finished]
    return [
        path
        for path in study.search_space
        if all(path in values for values in params) and len({values[path] for values in params}) > 1
    ]


def _no_history(material: Material) -> str | None:
    return None if _finished(material.study) else "No trial of the search has finished: no history of it."


def _no_params(what: str, material: Material) -> str | None:
    if not _searched(material.study, _finished(material.study)):
        return f"No finished trial has a parameter of the search space: no {what}."
    return None


def _no_importances(material: Material) -> str | None:
    finished = _finished(material.study)
    if len(finished) < FEWEST_FOR_IMPORTANCE:
        return (
            f"The importance of parameters needs {FEWEST_FOR_IMPORTANCE} finished trials of the search, and there "
            f"{'is' if len(finished) == 1 else 'are'} {len(finished)}."
        )
    if not _common(material.study, finished):
        return "No parameter that every trial has was varied: no importances."
    if len({metric_value(record, material.study.objectives[0]) for record in finished}) == 1:
        return "All finished trials came to the same: no importances."
    return None


def _no_front(material: Material) -> str | None:
    return None if material.finished else "No trial of the search has finished with an accuracy: no accuracy against cost."


DRAWINGS = (
    Drawing(_no_history, _optimization_history),
    Drawing(_no_importances, _importances),
    Drawing(partial(_no_params, "parallel coordinates"), _parallel_coordinates),
    Drawing(partial(_no_params, "slices"), _slices),
    Drawing(_no_front, _pareto_front),
)
