"""The figures of a report, in reading order."""

from __future__ import annotations

from collections.abc import Sequence

from emoreg.report import gain_figures, response_figures, search_figures, training_figures
from emoreg.report.style import Figure, FigureContext, FigureSpec, NotDrawn, labels
from emoreg.results.study import StudyResults

FIGURES: tuple[FigureSpec, ...] = (
    gain_figures.GAINS,
    response_figures.BY_BALANCE,
    response_figures.BY_LENGTH,
    response_figures.BY_BOTH,
    search_figures.HISTORY,
    search_figures.IMPORTANCES,
    search_figures.PARALLEL_COORDINATES,
    search_figures.SLICES,
    search_figures.PARETO_FRONT,
    training_figures.LEARNING_CURVES,
    training_figures.BALANCES,
    training_figures.COSTS,
)


def draw_figures(study: StudyResults) -> tuple[list[Figure], list[str]]:
    """Every figure that the study's records allow, and a sentence for each that they do not, with the reason."""
    context = FigureContext(study=study)
    drawn, missing = [], []
    for spec in FIGURES:
        try:
            drawn.append(spec.figure(context))
        except NotDrawn as reason:
            missing.append(str(reason))
    return drawn, missing


def compare_studies(studies: Sequence[StudyResults]) -> list[Figure]:
    """Two or more studies side by side."""
    named = dict(zip(labels(studies), studies, strict=True))
    drawn = [gain_figures.compared_gains(named), gain_figures.compared_accuracies(named)]
    drawn += [response_figures.compared_responses(named, path) for path in (response_figures.BALANCE, response_figures.LENGTH)]
    return [figure for figure in drawn if figure is not None]
