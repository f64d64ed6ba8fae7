"""How the search went, and what it tells of each parameter. The report's only place that imports optuna."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from emoreg.config import Choice, Float, Objective, Value
from emoreg.formatting import counted, duration
from emoreg.report import style
from emoreg.report.style import FigureContext, NotDrawn
from emoreg.results.analysis import pareto_front
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults
from emoreg.results.surrogate import FEWEST_FOR_OPTIMUM, forest_r_squared

_MOST_LINES = 500
_MOST_FANOVA = 200  # its cost grows faster than the number of trials, and it is done for each permutation too
_NUM_TREES = 16  # 64, Optuna's default, give the same shares, and take four times as long
_NUM_PERMUTED = 19
"""Permutations of the results: a parameter that does not matter is above the largest of so many in 5 % of searches."""
_COLUMNS = 2


def history_of(study: StudyResults, records: Sequence[TrialRecord], seed: int | None = None) -> optuna.Study:
    """Optuna's study of finished trials under the first objective; accuracies in percent. With a seed they are permuted.

    Steps are left out of the distributions, and these reach as far as the trials do: a study's ranges may have been changed
    between two runs.
    """
    objective = study.objectives[0]
    distributions = _distributions(study, [record.sampled for record in records])
    rows, trials = _by_number(records), []
    values = np.array([style.axis_value(record, objective) for record in rows])
    if seed is not None:
        values = np.random.default_rng(seed).permutation(values)
    for record, value in zip(rows, values.tolist(), strict=True):
        own = {path: distributions[path] for path in record.sampled if path in distributions}
        params = {path: record.sampled[path] for path in own}
        trials.append(create_trial(value=value, params=params, distributions=own))
    with _quiet():
        history = optuna.create_study(direction="maximize" if objective.mode == "max" else "minimize")
        history.add_trials(trials)
    return history


def _distributions(study: StudyResults, params: Sequence[dict[str, Value]]) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for path, distribution in study.search_space.items():
        values = list(dict.fromkeys([*distribution.bounds(), *(values[path] for values in params if path in values)]))
        if isinstance(distribution, Choice):
            found[path] = CategoricalDistribution(values)
        elif isinstance(distribution, Float):
            found[path] = FloatDistribution(min(map(float, values)), max(map(float, values)), log=distribution.log)
        else:
            found[path] = IntDistribution(min(map(int, values)), max(map(int, values)), log=distribution.log)
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


def draw_history(context: FigureContext) -> tuple[go.Figure, str]:
    """Each trial in turn, and the best so far."""
    study, objective = context.study, context.study.objectives[0]
    finished, title = _by_number(context.ranked), style.metric_title(objective)
    style.require_drawable(len(finished), "history of it")
    x, y = [record.number for record in finished], np.array([style.axis_value(record, objective) for record in finished])
    so_far = np.maximum.accumulate(y) if objective.mode == "max" else np.minimum.accumulate(y)
    figure = go.Figure()
    style.add_trials(figure, finished, x, y, name="trial", marker={"color": style.GREY, "size": 5, "opacity": 0.6})
    line = {"color": style.COLORS[2], "width": 2.5, "shape": "hv"}
    figure.add_scatter(x=x, y=so_far, mode="lines", name="best so far", line=line)
    counts = Counter(record.status for record in study.searched)
    rest = ", ".join(f"{counts[status]:,} {status}" for status in ("pruned", "failed") if counts[status])
    best = context.ranked[0]
    caption = (
        f"{counted(counts['finished'], 'finished trial')} in the order in which the sampler proposed them"
        f"{f' ({rest}: not drawn)' if rest else ''}. The best, {style.axis_value(best, objective):.4g} ({title}), was number "
        f"{best.number}, {best.backbone}. It was selected, so it flatters."
    )
    return style.styled(figure, xaxis_title="trial, by Optuna's number", yaxis_title=title), caption


def draw_importances(context: FigureContext) -> tuple[go.Figure, str]:
    """How much each parameter that every trial has tells of the first objective, beside what it would tell of noise."""
    study, objective = context.study, context.study.objectives[0]
    by_backbone = Counter(record.backbone for record in context.ranked)
    enough = {backbone for backbone, number in by_backbone.items() if number >= FEWEST_FOR_OPTIMUM}
    finished = _by_number([record for record in context.ranked if record.backbone in enough])
    if not finished:
        raise NotDrawn(
            f"The importance of parameters cannot be told below {FEWEST_FOR_OPTIMUM} finished trials of a backbone, and there "
            f"are {', '.join(f'{number} of {name}' for name, number in by_backbone.items()) or 'none'}."
        )
    params = [record.sampled for record in finished]
    common = [path for path in study.search_space if all(path in values for values in params)]
    paths = [path for path in common if len({values[path] for values in params}) > 1]
    if not paths:
        raise NotDrawn("No parameter that every trial has was varied: no importances.")
    values = np.array([style.axis_value(record, objective) for record in finished])
    if len({*values.tolist()}) == 1:
        raise NotDrawn("All finished trials came to the same: no importances.")
    few = style.some_of(finished, _MOST_FANOVA)
    found = _shares(study, finished, few, paths)
    chance = _shares_by_chance(study, finished, few, paths)
    order = sorted(paths, key=lambda path: -found["fANOVA"][path])
    figure = go.Figure()
    for (name, shares), color in zip(found.items(), style.COLORS[2:4], strict=True):
        x, y = [100 * shares[path] for path in order], [style.wrapped(path) for path in order]
        figure.add_bar(y=y, x=x, orientation="h", name=name, marker_color=color, hovertemplate="%{y}: %{x:.0f} %")
        mark = {"symbol": "line-ns", "size": 18, "line": {"width": 2.5, "color": color}}
        x = [100 * chance[name][path] for path in order]
        figure.add_scatter(y=y, x=x, mode="markers", name=f"{name}, by chance", marker=mark)
    absent = [path for path in study.search_space if path not in paths]
    left_out = f" Left out, because not every trial has it or it never varied: {', '.join(absent)}." if absent else ""
    others = by_backbone.keys() - enough
    left_out += f" Too few trials: {', '.join(sorted(others))}." if others else ""
    explained = _explained(finished, paths, values)
    first = "; ".join(_first(name, shares, chance[name], explained) for name, shares in found.items())
    caption = f"{_method(finished, few, explained, objective)} {first}.{left_out}{context.survivors_only}"
    axes = {"xaxis_title": "importance, %", "xaxis_rangemode": "tozero", "yaxis_autorange": "reversed", "yaxis_ticks": ""}
    return style.styled(figure, barmode="group", height=max(260, 120 + 55 * len(order)), **axes), caption


def _method(finished: Sequence[TrialRecord], few: Sequence[TrialRecord], explained: float, objective: Objective) -> str:
    """What importances are, in sentences."""
    subset = f", of {len(few):,} of them at random" if len(few) < len(finished) else ""
    num_best = max(2, math.ceil(0.1 * len(finished)))
    return (
        f"Of {counted(len(finished), 'finished trial')}; of their {style.metric_title(objective).removesuffix(', %')} a forest "
        f"explains R² = {explained:.2f} for trials that it has not seen. fANOVA{subset}: the share of what a forest explains "
        "that a parameter explains by itself (Hutter et al. 2014). PED-ANOVA: how far the best tenth of the trials, "
        f"{num_best} or more with ties, differ from all in it (Watanabe et al. 2023). Each is scaled to add up to 100 %. "
        f"Strokes: the largest of {_NUM_PERMUTED} permutations of the results, passed in 5 % by what does not matter."
    )


def _shares(
    study: StudyResults, finished: Sequence[TrialRecord], few: Sequence[TrialRecord], paths: list[str], seed: int | None = None
) -> dict[str, dict[str, float]]:
    """The importances of parameters by method; with a seed, of results that are permuted."""
    with _quiet():
        every = history_of(study, finished, seed)
        some = every if len(few) == len(finished) else history_of(study, few, seed)
        return {
            "fANOVA": get_param_importances(
                some, evaluator=FanovaImportanceEvaluator(seed=0, n_trees=_NUM_TREES), params=paths
            ),
            "PED-ANOVA": get_param_importances(every, evaluator=PedAnovaImportanceEvaluator(), params=paths),
        }


def _shares_by_chance(
    study: StudyResults, finished: Sequence[TrialRecord], few: Sequence[TrialRecord], paths: list[str]
) -> dict[str, dict[str, float]]:
    """The largest importance of each parameter, by method, over permutations of the results."""
    drawn = [_shares(study, finished, few, paths, seed) for seed in range(_NUM_PERMUTED)]
    return {name: {path: max(found[name][path] for found in drawn) for path in paths} for name in drawn[0]}


def _first(name: str, shares: Mapping[str, float], chance: Mapping[str, float], explained: float) -> str:
    """What a method puts first, of the parameters that tell more than by chance."""
    above = [path for path in shares if shares[path] > chance[path] and explained > 0]
    return f"{name} puts {max(above, key=lambda path: shares[path])} first" if above else f"{name} tells nothing above chance"


def _explained(finished: Sequence[TrialRecord], paths: Sequence[str], values: np.ndarray) -> float:
    """R squared of a forest's predictions for trials that it has not seen; below 0, the mean is better."""
    inputs = []
    for path in paths:
        own = [record.sampled[path] for record in finished]
        is_number = all(isinstance(value, int | float) for value in own)
        inputs.append(np.array(own, dtype=float) if is_number else np.unique([*map(str, own)], return_inverse=True)[1])
    return forest_r_squared(np.stack(inputs, axis=1), values)


def draw_parallel_coordinates(context: FigureContext) -> tuple[go.Figure, str]:
    """A line for each trial, over an axis for each parameter."""
    study, best = context.study, context.ranked
    drawn = best[:_MOST_LINES]
    paths = _searched(study, drawn, "parallel coordinates")
    title = style.metric_title(study.objectives[0])
    figure = optuna.visualization.plot_parallel_coordinate(history_of(study, drawn), target_name=title)
    names = [style.wrapped(path) for path in (title, *sorted(paths))]  # Optuna's order
    assert len(figure.layout.xaxis.ticktext) == len(names)
    figure.update_xaxes(ticktext=names, ticks="", tickangle=0, ticklabeloverflow="allow")
    _move_labels_off_lines(figure)
    scale = {"colorscale": style.LINE_SCALE, "colorbar": {"thickness": 10, "title": None}}
    figure.update_traces(marker=scale, selector={"mode": "markers"})
    for line in figure.select_traces(selector={"mode": "lines"}):  # Optuna's blues are lost on a light page, or on a dark one
        line.line.color = sample_colorscale(style.LINE_SCALE, [line.y[0]])[0]
    caption = (
        f"A line for each of {counted(len(drawn), 'finished trial')}{style.subset_of(len(drawn), len(best), 'the best')}; its "
        f"colour is the {title.removesuffix(', %')}. None: the trial does not have that parameter."
    )
    return style.styled(figure, plot_bgcolor="rgba(0,0,0,0)", yaxis_range=(-0.12, 1.12), margin_l=48), caption


def _move_labels_off_lines(figure: go.Figure) -> None:
    """The ends of an axis above and below it; between them the names of choices alone, which are no numbers."""
    kept = []
    for label in figure.layout.annotations:
        is_end = label.y in (0.0, 1.0)
        if is_end or not re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", label.text):
            anchor = {"xanchor": "center", "xshift": 0, "yshift": 12 if label.y else -12} if is_end else {}
            kept.append(label.update(font={"color": style.GREY, "size": 12}, **anchor))
    figure.layout.annotations = kept


def draw_slices(context: FigureContext) -> tuple[go.Figure, str]:
    """Each parameter by itself, a panel each."""
    study, finished = context.study, _by_number(context.ranked)
    drawn = style.some_of(finished)
    paths = _searched(study, drawn, "slices")
    objective, title = study.objectives[0], style.metric_title(study.objectives[0])
    rows, columns = math.ceil(len(paths) / _COLUMNS), min(_COLUMNS, len(paths))
    figure = make_subplots(rows, columns, shared_yaxes=True, horizontal_spacing=0.1, vertical_spacing=0.3 / rows)
    for index, path in enumerate(paths):
        where = {"row": index // _COLUMNS + 1, "col": index % _COLUMNS + 1}
        own = [record for record in drawn if path in record.sampled]
        parameter = context.parameter(path)
        x = [record.sampled[path] if parameter.is_number else str(record.sampled[path]) for record in own]
        y = [style.axis_value(record, objective) for record in own]
        marker = {"color": [record.number for record in own], "colorscale": style.LINE_SCALE, "size": 5}
        style.add_trials(figure, own, x, y, marker=marker, showlegend=False, **where)
        style.set_axis(figure, parameter, "x", **where)
        figure.update_xaxes(title_text=style.wrapped(path), **where)
        figure.update_yaxes(title_text=style.OF_PANEL.get(title, title) if where["col"] == 1 else None, **where)
    caption = (
        f"{counted(len(drawn), 'finished trial')}{style.subset_of(len(drawn), len(finished))}; the redder, the later the "
        "sampler proposed it. Trials without a parameter are not in its panel."
    )
    return style.styled(figure, height=max(300, style.PANEL * rows)), caption


def draw_pareto_front(context: FigureContext) -> tuple[go.Figure, str]:
    """Accuracy against cost, with the trials that no other beats in both."""
    records = [record for found in context.finished.values() for record in found]
    style.require_drawable(len(records), "accuracy against cost")
    objectives = (Objective(), Objective(metric="device_seconds", mode="min"))
    front = sorted(pareto_front(records, objectives), key=lambda record: record.device_seconds)
    drawn = style.some_of(records)
    figure = go.Figure()
    x, line = [record.device_seconds for record in front], {"color": style.GREY, "shape": "hv", "width": 1.5}
    figure.add_scatter(x=x, y=style.accuracies(front), mode="lines", line=line, name="Pareto front", hoverinfo="skip")
    best = {record.identity for record in front}
    for backbone in context.finished:
        own = [*{record.identity: record for record in [*drawn, *front] if record.backbone == backbone}.values()]
        on_front = [record.identity in best for record in own]
        marker = {
            "color": style.color_of(backbone, context.study.backbones),
            "size": [10 if is_best else 5 for is_best in on_front],
            "opacity": [1.0 if is_best else 0.45 for is_best in on_front],
        }
        x, hover = [record.device_seconds for record in own], "<br>%{x:,.0f} s"
        style.add_trials(figure, own, x, style.accuracies(own), name=backbone, marker=marker, hover=hover)
    costs = [f"{100 * (record.val_accuracy or 0.0):.1f} % in {duration(record.device_seconds)}" for record in front]
    found = (
        f"one trial has both the highest accuracy and the lowest cost ({costs[0]})"
        if len(front) == 1
        else f"{counted(len(front), 'trial')} on the front, from {costs[0]} to {costs[-1]}"
    )
    subset = f", {len(drawn):,} at random and the front drawn" if len(drawn) < len(records) else ""
    caption = (
        f"{counted(len(records), 'finished trial')}{subset}: {found}. Device seconds are what a trial costs alone, its "
        "pre-training included, whoever paid for it. Large points: no other trial is better in one and not worse in the other."
    )
    titles = {"xaxis_title": "device seconds of the trial", "yaxis_title": style.ACCURACY}
    return style.styled(figure, legend_itemsizing="constant", **titles), caption


def _by_number(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    return sorted(records, key=lambda record: record.number or 0)


def _searched(study: StudyResults, records: Sequence[TrialRecord], what: str) -> list[str]:
    """Searched paths that at least one trial has."""
    style.require_drawable(len(records), what)
    params = [record.sampled for record in records]
    found = [path for path in study.search_space if any(path in values for values in params)]
    if not found:
        raise NotDrawn(f"No finished trial has a parameter of the search space: no {what}.")
    return found
