"""Accuracy against what emotion has to do with the response, as the probe ``emotion_share`` measures it."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from emoreg.config import control_named
from emoreg.formatting import counted
from emoreg.report import style
from emoreg.report.style import FigureContext, NotDrawn
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults

_FEWEST = 3


def _shares(study: StudyResults) -> Mapping[str, float]:
    """The share of emotion at the end of regulation, by trial."""
    rows = [row for row in study.probes if (row.probe, row.stage) == ("emotion_share", "regulation")]
    return {row.identity: row.value for row in sorted(rows, key=lambda row: row.epoch)}


def draw_by_share(context: FigureContext) -> tuple[go.Figure, str]:
    """Validation accuracy against the share of emotion: with experience, and without it, a panel a backbone."""
    study, shares = context.study, _shares(context.study)
    drawn: dict[str, dict[str, list[TrialRecord]]] = {backbone: {} for backbone in study.backbones}
    for record in study.trials:
        is_told = record.status == "finished" and record.val_accuracy is not None and record.identity in shares
        if is_told and record.control in ("regulated", "untrained"):
            drawn.setdefault(record.backbone, {}).setdefault(record.control, []).append(record)
    if not shares:
        raise NotDrawn("No trial measured it (`probes=('emotion_share',)`): no accuracy against the share of emotion.")
    drawn = {backbone: found for backbone, found in drawn.items() if len(found.get("regulated", ())) >= _FEWEST}
    if not drawn:
        raise NotDrawn(f"Fewer than {_FEWEST} finished trials measured it: no accuracy against the share of emotion.")
    figure, named, counts = style.panels(list(drawn)), set[str](), []
    for row, (backbone, found) in enumerate(drawn.items(), 1):
        for control, records in sorted(found.items(), reverse=True):
            style.add_trials(
                figure,
                records,
                [shares[record.identity] for record in records],
                style.accuracies(records),
                name=control_named(control).label,
                legendgroup=control,
                showlegend=control not in named,
                marker={
                    "color": style.GREY if control == "untrained" else style.color_of(backbone, study.backbones),
                    "symbol": "circle-open" if control == "untrained" else "circle",
                    "size": 8,
                },
                hover="<br>share of emotion %{x:.2f}",
                row=row,
                col=1,
            )
            named.add(control)
        figure.update_yaxes(title_text=style.OF_PANEL[style.ACCURACY], row=row, col=1)
        told = [f"{counted(len(records), 'trial')} {control}" for control, records in found.items()]
        counts.append(f"{backbone}: {', '.join(told)}")
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_xaxes(title_text="share of the emotional encoder in the response", row=len(drawn), col=1)
    caption = (
        f"{'; '.join(counts)}. The share is measured, not set: of what the response varies by over validation images. At one "
        "share, what trained encoders have above untrained ones is emotion’s part; the rest is that of two networks together."
    )
    if "untrained" not in named:
        caption += " No untrained trial measured it, so the two cannot be told apart here."
    return style.styled(figure, showlegend=True), caption
