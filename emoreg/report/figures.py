"""The figures of a report, in reading order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import plotly.graph_objects as go

from emoreg.report import emotion_figures, gain_figures, per_image, response_figures, search_figures, training_figures
from emoreg.report.style import BALANCE, LENGTH, Figure, FigureContext, NotDrawn, Section, labels
from emoreg.results.study import StudyResults

Draw = Callable[[FigureContext], tuple[go.Figure, str]]
"""Draws a figure and gives its caption; raises ``NotDrawn`` where it cannot."""

_BY_BALANCE, _BY_LENGTH = (partial(response_figures.draw_response, path=path) for path in (BALANCE, LENGTH))
FIGURES: dict[Section, dict[tuple[str, str], Draw]] = {
    "answer": {("gains", "What regulation gains over its controls"): gain_figures.draw_gains},
    "response": {
        ("accuracy-by-balance", "Accuracy against balance"): _BY_BALANCE,
        ("accuracy-by-pretraining", "Accuracy against pre-training length"): _BY_LENGTH,
        ("accuracy-by-both", "Accuracy against balance and pre-training length"): response_figures.draw_both,
        ("accuracy-by-share", "Accuracy against the share of emotion"): emotion_figures.draw_by_share,
    },
    "search": {
        ("optimization-history", "How the search went on"): search_figures.draw_history,
        ("importances", "Which parameters matter"): search_figures.draw_importances,
        ("parallel-coordinates", "What good trials have in common"): search_figures.draw_parallel_coordinates,
        ("slices", "Each parameter by itself"): search_figures.draw_slices,
        ("pareto-front", "Accuracy against cost"): search_figures.draw_pareto_front,
    },
    "training": {
        ("learning-curves", "Learning curves"): training_figures.draw_learning_curves,
        ("balance-over-epochs", "How the learned balance moved"): training_figures.draw_balances,
    },
    "images": {("accuracy-by-class", "Accuracy by class"): per_image.draw_by_class},
    "cost": {("cost", "Where the time went"): training_figures.draw_costs},
}
"""What draws each figure, by section, name and title."""


def draw_figures(study: StudyResults) -> tuple[list[Figure], list[str]]:
    """Every figure that the study's records allow, and a sentence for each that they do not, with the reason."""
    context = FigureContext(study=study)
    drawn, missing = [], []
    for section, figures in FIGURES.items():
        for (name, title), draw in figures.items():
            try:
                figure, caption = draw(context)
            except NotDrawn as reason:
                missing.append(str(reason))
            else:
                drawn.append(Figure(name=name, title=title, section=section, caption=caption, figure=figure))
    return drawn, missing


def compare_studies(studies: Sequence[StudyResults]) -> list[Figure]:
    """Two or more studies side by side."""
    named = dict(zip(labels(studies), studies, strict=True))
    drawn = [gain_figures.compared_gains(named), gain_figures.compared_accuracies(named)]
    drawn += [response_figures.compared_responses(named, path) for path in (BALANCE, LENGTH)]
    return [figure for figure in drawn if figure is not None]
