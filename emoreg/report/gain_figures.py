"""What regulation gains over its controls, and accuracies of several studies: estimates with their intervals, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go

from emoreg.report.style import GREY, Figure, FigureContext, FigureSpec, NotDrawn, bars, color_of, styled, wrapped
from emoreg.results.analysis import Estimate, estimate
from emoreg.results.study import StudyResults

_AXIS = "gain of regulation, points"
_SHAPES = ("circle", "square", "diamond", "triangle-up", "star")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Dot:
    """An estimate with its interval, in a row of a forest plot: shares. Without an interval its ends are the mean.

    The shape tells the rank of the configuration; filled is what is shown, or confirmed.
    """

    row: str
    mean: float
    low: float
    high: float
    rank: int = 1
    is_filled: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gains:
    """What regulation gains over its controls in a study: a dot a control by the name of the configuration, each of n seeds."""

    is_confirmed: bool
    by_configuration: Mapping[str, Sequence[_Dot]]
    backbones: Mapping[str, str]
    seeds: tuple[int, ...]

    @property
    def caption(self) -> str:
        """What they are."""
        fewest, most = min(self.seeds), max(self.seeds)
        n = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        if self.is_confirmed:
            return (
                f"Regulation minus each control, paired over {n} fresh seeds on the test set, with the bootstrap's 95 % "
                "interval. Filled: shown by the permutation test, by Holm's method over all comparisons."
            )
        interval = "95 % confidence by Student's t" if most > 1 else "One seed tells nothing about chance"
        return (
            f"Regulation as configured minus each control, paired over {n} seed{'' if n == '1' else 's'} on validation: there "
            f"is no complete confirmation, so nothing is claimed. {interval}."
        )


def _gains(study: StudyResults) -> _Gains | None:
    """The gains on the test set or, before a confirmation is complete, on validation; None where there are none."""
    dots: dict[str, list[_Dot]] = {}
    backbones: dict[str, str] = {}
    seeds = []
    for row in study.confirmed:
        if (found := row.comparison) is not None:
            mean, over = found.difference, f"over {row.control}"
            low, high = (mean if end is None else end for end in (found.low, found.high))
            is_shown = found.is_better or found.is_worse
            dot = _Dot(row=over, mean=mean, low=low, high=high, rank=row.chosen.rank, is_filled=is_shown)
            dots.setdefault(row.chosen.name, []).append(dot)
            backbones[row.chosen.name] = row.chosen.backbone
            seeds.append(found.n)
    is_confirmed = bool(dots)
    for control in () if is_confirmed else study.controls:
        if control.gain is not None:
            dots.setdefault(control.backbone, []).append(_estimated(f"over {control.control}", control.gain))
            backbones[control.backbone] = control.backbone
            seeds.append(control.gain.n)
    if not dots:
        return None
    return _Gains(is_confirmed=is_confirmed, by_configuration=dots, backbones=backbones, seeds=tuple(seeds))


def _estimated(row: str, found: Estimate, *, is_filled: bool = False) -> _Dot:
    half = found.half_width or 0.0
    return _Dot(row=row, mean=found.mean, low=found.mean - half, high=found.mean + half, is_filled=is_filled)


def _forest(series: Mapping[str, Sequence[_Dot]], colors: Mapping[str, str], axis: str) -> go.Figure:
    """Dots with intervals: a row for each title, the series beside each other within it."""
    rows = list(dict.fromkeys(dot.row for dots in series.values() for dot in dots))
    figure = go.Figure()
    for index, (name, dots) in enumerate(series.items()):
        offset = 0.6 * ((index + 0.5) / len(series) - 0.5)
        low, mean, high = [100 * d.low for d in dots], [100 * d.mean for d in dots], [100 * d.high for d in dots]
        shapes = [_SHAPES[(dot.rank - 1) % len(_SHAPES)] + ("" if dot.is_filled else "-open") for dot in dots]
        figure.add_scatter(
            x=mean,
            y=[rows.index(dot.row) + offset for dot in dots],
            mode="markers",
            name=name,
            marker={"color": colors[name], "size": 9, "symbol": shapes, "line": {"width": 2, "color": colors[name]}},
            error_x=bars(mean, low, high, colors[name]),
            hovertext=[dot.row for dot in dots],
            hovertemplate="%{hovertext}: %{x:.1f}<extra>%{fullData.name}</extra>",
        )
    figure.update_yaxes(range=[len(rows) - 0.4, -0.6], tickvals=list(range(len(rows))), ticktext=rows, ticks="", showgrid=False)
    tall = max(22 * len(series), 20 * max(row.count("<br>") + 1 for row in rows))
    return styled(figure, xaxis_title=axis, height=max(260, 130 + (tall + 8) * len(rows)), showlegend=True)


def _zero_line(figure: go.Figure) -> go.Figure:
    return figure.add_vline(x=0, line={"color": GREY, "width": 1.5})


def _draw_gains(context: FigureContext) -> tuple[go.Figure, str]:
    study, found = context.study, _gains(context.study)
    if found is None:
        raise NotDrawn("No control has finished on a seed that regulation has finished too: nothing to compare it with.")
    colors = {name: color_of(backbone, study.backbones) for name, backbone in found.backbones.items()}
    caption = found.caption
    if found.is_confirmed:  # the picture may stand alone, so it tells the decisions, but not their reasons, which it shows
        caption += f" {'; '.join(f'{verdict.subject}{verdict.decision}' for verdict in study.verdicts.values())}."
    return _zero_line(_forest(found.by_configuration, colors, _AXIS)), caption


GAINS = FigureSpec("gains", "What regulation gains over its controls", "answer", _draw_gains)


def compared_gains(studies: Mapping[str, StudyResults]) -> Figure | None:
    """The gains of several studies; None where there are none."""
    found = {name: gains for name, study in studies.items() if (gains := _gains(study)) is not None}
    if not found:
        return None
    series: dict[str, list[_Dot]] = {name: [] for name in studies}
    for name, gains in found.items():
        for configuration, dots in gains.by_configuration.items():
            series[name] += [replace(dot, row=f"{wrapped(configuration)}<br>{dot.row}") for dot in dots]
    captions = []
    for kind in (True, False):
        own = {name: gains for name, gains in found.items() if gains.is_confirmed == kind}
        if own:
            seeds = tuple(n for gains in own.values() for n in gains.seeds)
            captions.append(f"{', '.join(own)}: {replace(next(iter(own.values())), seeds=seeds).caption}")
    return Figure(
        name="compared-gains",
        title="What regulation gains, by study",
        section="answer",
        caption=" ".join(captions),
        figure=_zero_line(_forest(series, _colors(studies), _AXIS)),
    )


def compared_accuracies(studies: Mapping[str, StudyResults]) -> Figure | None:
    """The accuracies of several studies, of the search and confirmed; None where there are none."""
    series: dict[str, list[_Dot]] = {}
    colors: dict[str, str] = {}
    counts = []
    for name, study in studies.items():
        best = [study.best[backbone] for backbone in study.backbones if backbone in study.best]
        confirmed = [row for row in study.confirmed if row.control == "regulated" and row.chosen.rank == 1]
        counts += [f"{name}, {row.chosen.backbone}: n = {row.accuracy.n}" for row in confirmed]
        for kind, dots in {
            "best of the search": [
                _estimated(wrapped(row.backbone), estimate([row.val_accuracy])) for row in best if row.val_accuracy is not None
            ],
            "confirmed": [_estimated(wrapped(row.chosen.backbone), row.accuracy, is_filled=True) for row in confirmed],
        }.items():
            if dots:
                series[f"{name}, {kind}"] = dots
                colors[f"{name}, {kind}"] = _colors(studies)[name]
    if not series:
        return None
    return Figure(
        name="compared-accuracies",
        title="Accuracy by study and backbone",
        section="answer",
        caption="Open: the best trial of the search on validation (n = 1), selected, so it flatters. Filled: the same "
        "configuration on fresh seeds and the test set, with 95 % confidence (Student's t), where it was confirmed"
        + (f" ({'; '.join(counts)})." if counts else "."),
        figure=_forest(series, colors, "accuracy, %"),
    )


def _colors(studies: Mapping[str, Any]) -> dict[str, str]:
    return {name: color_of(name, [*studies]) for name in studies}
