"""The report's page: one HTML file that asks nothing of a network, with plotly.js, styles and figures inside."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jinja2
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

import emoreg
from emoreg.report import account, answer, reproduce
from emoreg.report.cells import Table, listed
from emoreg.report.drawing import Figure
from emoreg.report.figures import missing_of
from emoreg.results.records import utc_now
from emoreg.results.study import Study

_SECTIONS = {
    "answer": "The answer",
    "response": "Response to what was searched",
    "search": "The search",
    "training": "Training",
    "cost": "Cost",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One study in a report.

    Attributes:
        label: what it is called there.
    """

    study: Study
    label: str
    figures: tuple[Figure, ...]


def render(parts: Sequence[Part], compared: Sequence[Figure], price_per_hour: float | None) -> str:
    """The page.

    Args:
        parts: the studies.
        compared: figures of all of them, where there are several.
        price_per_hour: what an hour of the device costs.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("emoreg.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"as_json": _as_json, "prose": _prose}
    named = [(part.label, part.study) for part in parts]
    return environment.get_template("page.html.jinja").render(
        parts=parts,
        compared=compared,
        paper_table=answer.paper_table(named) if len(parts) > 1 else None,
        verdicts_table=answer.verdicts_table(named) if len(parts) > 1 else None,
        price_per_hour=price_per_hour,
        sections=_SECTIONS,
        missing_of=missing_of,
        answer=answer,
        account=account,
        reproduce=reproduce,
        summary=_summary,
        there=_there,
        version=emoreg.__version__,
        written=utc_now()[:16].replace("T", " "),
        plotlyjs=Markup(get_plotlyjs()),
    )


def _summary(study: Study) -> str:
    """What the study is, in a sentence."""
    trials = [*study.trials, *(study.confirmation.trials if study.confirmation is not None else ())]
    tasks = sorted({row.task for row in trials}) or [study.config.trial.task.name]
    stimuli = sorted({row.stimuli for row in trials if row.control == "regulated"})
    stimuli = stimuli or [study.config.trial.stimuli.name]
    return (
        f"Does experience with affective images ({listed(stimuli)}), balanced against a plain encoder, help "
        f"{listed(study.backbones)} on {listed(tasks)}?"
    )


def _there(found: Iterable[Table | None]) -> list[Table]:
    return [table for table in found if table is not None]


def _as_json(figure: Figure) -> Markup:
    """For a script element, which would end at ``</`` inside of a text."""
    return Markup(figure.figure.to_json().replace("<", "\\u003c"))


def _prose(text: str) -> Markup:
    """Sentences as the command line prints them, set for a page: commands as code, and no line ends inside of "n = 10"."""
    commands = re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\b([np]) = ", "\\1\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}", commands))
