"""The report's page: one HTML file that asks nothing of a network, with plotly.js, styles and figures inside."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

import emoreg
from emoreg.config import CONTROLS
from emoreg.report import account, answer, per_image, reproduce, what_was_run
from emoreg.report.figures import compare_studies, draw_figures
from emoreg.report.style import Figure, Section
from emoreg.report.tables import listed, moment
from emoreg.results.across import across_line
from emoreg.results.ladder import LADDER
from emoreg.results.records import utc_now
from emoreg.results.study import StudyResults

Block = tuple[str, Any]
"""What a section is made of: how it is set (a macro of the template), and its content."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One study in a report, with the figures that its records allow, and a sentence for each that they do not."""

    study: StudyResults
    label: str
    figures: Sequence[Figure]
    missing: Sequence[str]

    @property
    def question(self) -> str:
        """What the study is, in a sentence."""
        study = self.study
        tasks = sorted({row.task for row in study.all_trials}) or [study.config.trial.task.name]
        stimuli = sorted({row.stimuli for row in study.all_trials if row.control == "regulated"})
        return (
            f"Does experience with affective images ({listed(stimuli or [study.config.trial.stimuli.name])}), balanced against "
            f"a plain encoder, help {listed(study.backbones)} on {listed(tasks)}?"
        )

    @property
    def notes(self) -> list[str]:
        """What stands between the records and a conclusion."""
        return answer.notes(self.study)

    def sections(self, price_per_hour: float | None) -> Iterator[tuple[str, str, str, list[Block]]]:
        """Name, title, title in the table of contents and blocks of each section that has any."""
        study = self.study
        gains, chosen, controls = answer.gains_table(study), answer.chosen_table(study), answer.controls_table(study)
        verdicts: list[Block] = [("verdict", verdict) for verdict in answer.verdicts_of(study)]
        paper = ("table", answer.paper_table({self.label: study}))
        tables: list[Block] = [("table", table) for table in (gains, answer.mechanism_table(study), chosen, controls)]
        commands: list[Block] = [("command", command) for command in reproduce.commands(study)]
        replays: list[Block] = [("table", table) for table in reproduce.replay_tables(study)]
        search = [("text", account.search_line(study)), ("table", account.best_table(study))]
        kept, lost = per_image.read_kept(study)
        images: list[Block] = [*self._drawn("images"), ("table", per_image.agreement_table(study, kept))]
        images += [("pictures", pictures) for pictures in per_image.pictures(study, kept)]
        cost = [("table", account.cost_table(study, price_per_hour)), ("text", account.sharing_line(study))]
        cost.append(("text", account.waiting_line(study, price_per_hour)))
        origin = [("facts", account.provenance(study)), ("table", account.runs_table(study))]
        run = [("facts", what_was_run.facts(study)), ("table", account.images_table(study))]
        run.append(("table", what_was_run.configuration(study)))
        for name, title, short, blocks in (
            ("run", "What was run", "Run", run),
            ("answer", "The answer", "Answer", [*verdicts, paper, *self._drawn("answer"), *tables]),
            ("response", "Response to what was searched", "Response", self._drawn("response")),
            ("search", "The search", "Search", [*search, ("table", account.space_table(study)), *self._drawn("search")]),
            ("training", "Training", "Training", self._drawn("training")),
            ("images", "Image by image", "Images", images),
            ("cost", "Cost", "Cost", [*cost, *self._drawn("cost")]),
            ("provenance", "Provenance", "Provenance", origin),
            ("reproduce", "How to reproduce each number", "Reproduce", [*commands, *replays]),
            ("missing", "What is missing, and why", "Missing", [("points", [*self.missing, *lost])]),
        ):
            there = [(kind, content) for kind, content in blocks if content]
            if there:
                yield name, title, short, there

    def _drawn(self, section: Section) -> list[Block]:
        return [("figure", figure) for figure in self.figures if figure.section == section]


def make_page(
    studies: Sequence[StudyResults], price_per_hour: float | None, on_figures: Callable[[int], None]
) -> tuple[str, dict[str, Figure]]:
    """The page of the studies, with all of its figures by the names of their images.

    ``on_figures`` is told how many studies have theirs.
    """
    names = Counter(study.name for study in studies)
    parts = []
    for index, study in enumerate(studies):
        on_figures(index)
        drawn, missing = draw_figures(study)
        label = study.name if names[study.name] == 1 else f"{study.name} ({study.place})"
        parts.append(Part(study=study, label=label, figures=drawn, missing=missing))
    compared = compare_studies({part.label: part.study for part in parts}) if len(parts) > 1 else []
    on_figures(len(studies))
    return _render(parts, compared, price_per_hour), _by_image(parts, compared)


def _by_image(parts: Sequence[Part], compared: Sequence[Figure]) -> dict[str, Figure]:
    """Every figure by the name of its images: of several studies, each study's begin with its number."""
    named = {figure.name: figure for figure in compared}
    for index, part in enumerate(parts, 1):
        prefix = "" if len(parts) == 1 else f"{index}-{part.study.name}-"
        named |= {f"{prefix}{figure.name}": figure for figure in part.figures}
    return named


@functools.cache
def _templates() -> jinja2.Environment:
    """What a page is filled into; cached, because it is compiled when it is first read."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("emoreg.report", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"as_json": _as_json, "prose": _prose}
    return environment


def _render(parts: Sequence[Part], compared: Sequence[Figure], price_per_hour: float | None) -> str:
    named = {part.label: part.study for part in parts}
    comparison: list[Block] = (
        [
            ("text", across_line([*named.values()])),
            ("table", answer.verdicts_table(named)),
            ("table", answer.across_table(named)),
            ("table", answer.paper_table(named)),
        ]
        if len(parts) > 1
        else []
    )
    comparison += [("figure", figure) for figure in compared]
    page = _templates().get_template("page.html.jinja")
    return page.render(
        parts=parts,
        sections=[[*part.sections(price_per_hour)] for part in parts],
        comparison=[(kind, content) for kind, content in comparison if content],
        ladder=LADDER,
        controls=[control for control in CONTROLS.values() if control.name != "regulated"],
        version=emoreg.__version__,
        written=moment(utc_now()),
        plotlyjs=Markup(get_plotlyjs()),
    )


def _as_json(figure: Figure) -> Markup:
    """For a script element, which would end at ``</`` inside of a text."""
    return Markup(figure.figure.to_json().replace("<", "\\u003c"))


def _prose(text: str) -> Markup:
    """Sentences as the command line prints them, set for a page: commands as code, and no line ends inside of "n = 10"."""
    commands = re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\b([np]) = ", "\\1\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}", commands))
