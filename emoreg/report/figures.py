"""The figures of a report, in reading order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import plotly.graph_objects as go

from emoreg.report import gain_figures, per_image, response_figures, search_figures, training_figures
from emoreg.report.style import BALANCE, LENGTH, Figure, FigureContext, NotDrawn, Section
from emoreg.results.study import StudyResults

Draw = Callable[[FigureContext], tuple[go.Figure, str]]
"""Draws a figure and gives its caption; raises ``NotDrawn`` where it cannot."""

Compare = Callable[[Mapping[str, StudyResults]], tuple[go.Figure, str] | None]
"""Draws a figure of studies, by what each is called, and gives its caption; None where they have nothing to draw."""

_BY_BALANCE, _BY_LENGTH = (partial(response_figures.draw_response, path=path) for path in (BALANCE, LENGTH))
FIGURES: dict[Section, dict[tuple[str, str], Draw]] = {
    "answer": {("gains", "What regulation gains over its controls"): gain_figures.draw_gains},
    "response": {
        ("accuracy-by-balance", "Accuracy against balance"): _BY_BALANCE,
        ("accuracy-by-pretraining", "Accuracy against pre-training length"): _BY_LENGTH,
        ("accuracy-by-both", "Accuracy against balance and pre-training length"): response_figures.draw_both,
        ("accuracy-by-share", "Accuracy against the share of emotion"): response_figures.draw_by_share,
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
COMPARISONS: dict[tuple[str, str], Compare] = {
    ("compared-gains", "What regulation gains, by study"): gain_figures.compare_gains,
    ("compared-accuracies", "Accuracy by study and backbone"): gain_figures.compare_accuracies,
    ("compared-balance", "Accuracy against balance, by study"): partial(response_figures.compare_responses, path=BALANCE),
    ("compared-pre-training-length", "Accuracy against pre-training length, by study"): partial(
        response_figures.compare_responses, path=LENGTH
    ),
}
"""What draws each figure of several studies, by name and title."""


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


def compare_studies(studies: Mapping[str, StudyResults]) -> list[Figure]:
    """Two or more studies side by side, by what each is called."""
    return [
        Figure(name=name, title=title, section="comparison", caption=drawn[1], figure=drawn[0])
        for (name, title), compare in COMPARISONS.items()
        if (drawn := compare(studies)) is not None
    ]
