"""What regulation gains over its controls, and accuracies of several studies: estimates with their intervals, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import plotly.graph_objects as go

from emoreg.report.style import GREY, FigureContext, NotDrawn, bars, color_of, styled, wrapped
from emoreg.results.statistics import Estimate, estimate
from emoreg.results.study import StudyResults

_AXIS = "gain of regulation, points"
_SHAPES = ("circle", "square", "diamond", "triangle-up", "star")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Dot:
    """An estimate over n seeds with its interval, in a row of a forest plot: shares. Without an interval its ends are the mean.

    The shape tells the rank of the configuration; filled is what is shown, or confirmed. Each seed's own is a small dot.
    """

    series: str
    color: str
    row: str
    n: int
    mean: float
    low: float
    high: float
    rank: int = 1
    is_filled: bool = False
    by_seed: Mapping[int, float] = field(default_factory=dict)


def _estimated(found: Estimate, *, series: str, color: str, row: str, is_filled: bool = False) -> _Dot:
    mean, half = found.mean, found.half_width or 0.0
    ends = (mean - half, mean + half)
    return _Dot(series=series, color=color, row=row, n=found.n, mean=mean, low=ends[0], high=ends[1], is_filled=is_filled)


def _confirmed_gains(study: StudyResults) -> list[_Dot]:
    """The gains on the test set, which there are once a confirmation is complete."""
    return [
        _Dot(
            series=row.chosen.name,
            color=color_of(row.chosen.backbone, study.backbones),
            row=f"over {row.rival}",
            n=found.n,
            mean=found.mean,
            low=found.mean if found.interval is None else found.interval.low,
            high=found.mean if found.interval is None else found.interval.high,
            rank=row.chosen.rank,
            is_filled=row.control in study.verdicts[row.chosen.identity].beaten,
            by_seed=found.by_seed,
        )
        for row in study.confirmed
        if (found := row.comparison) is not None
    ]


def _gains_on_validation(study: StudyResults) -> list[_Dot]:
    return [
        _estimated(row.gain, series=row.backbone, color=color_of(row.backbone, study.backbones), row=f"over {row.control}")
        for row in study.controls
        if row.gain is not None
    ]


def _caption(dots: Sequence[_Dot], *, are_confirmed: bool) -> str:
    """What gains are."""
    fewest, most = min(dot.n for dot in dots), max(dot.n for dot in dots)
    n = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    if are_confirmed:
        return (
            f"Regulation minus each control, paired over {n} seeds on the test set, with 95 % intervals (Student's t) that "
            "hold together; small dots: each seed. Filled: controls of the rungs that hold."
        )
    interval = "95 % confidence by Student's t" if most > 1 else "One seed tells nothing about chance"
    return (
        f"Regulation as configured minus each control, paired over {n} seed{'' if n == '1' else 's'} on validation: there "
        f"is no complete confirmation, so nothing is claimed. {interval}."
    )


def _forest(dots: Sequence[_Dot], axis: str) -> go.Figure:
    """Dots with intervals: a row for each title, the series beside each other within it."""
    rows = list(dict.fromkeys(dot.row for dot in dots))
    series = list(dict.fromkeys(dot.series for dot in dots))
    figure = go.Figure()
    for index, name in enumerate(series):
        own = [dot for dot in dots if dot.series == name]
        offset, color = 0.6 * ((index + 0.5) / len(series) - 0.5), own[0].color
        low, mean, high = [100 * d.low for d in own], [100 * d.mean for d in own], [100 * d.high for d in own]
        shapes = [_SHAPES[(dot.rank - 1) % len(_SHAPES)] + ("" if dot.is_filled else "-open") for dot in own]
        figure.add_scatter(
            x=mean,
            y=[rows.index(dot.row) + offset for dot in own],
            mode="markers",
            name=name,
            marker={"color": color, "size": 9, "symbol": shapes, "line": {"width": 2, "color": color}},
            error_x=bars(mean, low, high, color),
            hovertext=[dot.row for dot in own],
            hovertemplate="%{hovertext}: %{x:.1f}<extra>%{fullData.name}</extra>",
        )
        seeds = [(rows.index(dot.row) + offset, seed, gain) for dot in own for seed, gain in dot.by_seed.items()]
        if seeds:
            figure.add_scatter(
                x=[100 * gain for _, _, gain in seeds],
                y=[place for place, _, _ in seeds],
                mode="markers",
                name=f"{name}, seeds",
                marker={"color": color, "size": 4, "opacity": 0.5},
                hovertext=[f"seed {seed}" for _, seed, _ in seeds],
                hovertemplate="%{hovertext}: %{x:.1f}<extra>%{fullData.name}</extra>",
                showlegend=False,
            )
    figure.update_yaxes(range=[len(rows) - 0.4, -0.6], tickvals=list(range(len(rows))), ticktext=rows, ticks="", showgrid=False)
    tall = max(22 * len(series), 20 * max(row.count("<br>") + 1 for row in rows))
    return styled(figure, xaxis_title=axis, height=max(260, 130 + (tall + 8) * len(rows)), showlegend=True)


def _zero_line(figure: go.Figure) -> go.Figure:
    return figure.add_vline(x=0, line={"color": GREY, "width": 1.5})


def draw_gains(context: FigureContext) -> tuple[go.Figure, str]:
    """What regulation gains on the test set or, before a confirmation is complete, on validation."""
    study, confirmed = context.study, _confirmed_gains(context.study)
    dots = confirmed or _gains_on_validation(study)
    if not dots:
        raise NotDrawn("No control has finished on a seed that regulation has finished too: nothing to compare it with.")
    caption = _caption(dots, are_confirmed=bool(confirmed))
    if confirmed:  # the picture may stand alone, so it tells the decisions, but not their reasons, which it shows
        caption += f" {'; '.join(f'{verdict.subject}{verdict.claim}' for verdict in study.verdicts.values())}."
    return _zero_line(_forest(dots, _AXIS)), caption


def compare_gains(studies: Mapping[str, StudyResults]) -> tuple[go.Figure, str] | None:
    """The gains of several studies; None where there are none."""
    confirmed = {name: dots for name, study in studies.items() if (dots := _confirmed_gains(study))}
    others = {name: dots for name, study in studies.items() if name not in confirmed and (dots := _gains_on_validation(study))}
    dots = [
        replace(dot, series=name, color=color_of(name, [*studies]), row=f"{wrapped(dot.series)}<br>{dot.row}")
        for name in studies
        for dot in (confirmed | others).get(name, ())
    ]
    if not dots:
        return None
    captions = [
        f"{', '.join(found)}: {_caption([dot for dots in found.values() for dot in dots], are_confirmed=found is confirmed)}"
        for found in (confirmed, others)
        if found
    ]
    return _zero_line(_forest(dots, _AXIS)), " ".join(captions)


def compare_accuracies(studies: Mapping[str, StudyResults]) -> tuple[go.Figure, str] | None:
    """The accuracies of several studies, of the search and confirmed; None where there are none."""
    dots: list[_Dot] = []
    counts = []
    for name, study in studies.items():
        color = color_of(name, [*studies])
        for row in (study.best[backbone] for backbone in study.backbones if backbone in study.best):
            if row.val_accuracy is not None:
                series, found = f"{name}, best of the search", estimate([row.val_accuracy])
                dots.append(_estimated(found, series=series, color=color, row=wrapped(row.backbone)))
        for shown in study.confirmed:
            if shown.control == "regulated" and shown.chosen.rank == 1:
                series, backbone = f"{name}, confirmed", shown.chosen.backbone
                dots.append(_estimated(shown.accuracy, series=series, color=color, row=wrapped(backbone), is_filled=True))
                counts.append(f"{name}, {backbone}: n = {shown.accuracy.n}")
    if not dots:
        return None
    caption = (
        "Open: the best trial of the search on validation (n = 1), selected, so it flatters. Filled: the same configuration on "
        "fresh seeds and the test set, with 95 % confidence (Student's t), where it was confirmed"
        + (f" ({'; '.join(counts)})." if counts else ".")
    )
    return _forest(dots, "accuracy, %"), caption
