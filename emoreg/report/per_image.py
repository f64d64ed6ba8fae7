"""What single images and classes say: of confirmed configurations on the test set, else of the search's best on validation."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa

from emoreg.errors import StorageError
from emoreg.report import style
from emoreg.report.style import FigureContext, NotDrawn
from emoreg.report.tables import Cell, Row, Table, numbers, percent, texts
from emoreg.results.predictions import agreement, pictured_errors, pictured_right_by_one
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults

Kept = Mapping[str, pa.Table]
"""Predictions by trial."""

_MOST_CLASSES = 30
_NUM_PICTURES = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Images in a row, each a PNG as a data URI with its caption, and what they have in common."""

    title: str
    note: str
    tiles: Sequence[tuple[str, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subject:
    """Regulated trials of one configuration, and what they are compared with, on one split.

    Attributes:
        name: of the configuration.
        split: that they were evaluated on.
        regulated: one, or one a seed.
        plain: the plain backbone's, one a seed.
        what: which trials these are, in words.
    """

    name: str
    backbone: str
    split: str
    regulated: Sequence[TrialRecord]
    plain: Sequence[TrialRecord]
    what: str


def _subjects(study: StudyResults) -> Iterator[_Subject]:
    opening, records = study.opening, study.confirming.by_identity
    if opening is not None and opening.is_complete(records):
        for chosen in opening.chosen:
            by_control = {
                control: [
                    records[trial.identity]
                    for trial in opening.trials
                    if (trial.chosen, trial.control) == (chosen.identity, control)
                    and records[trial.identity].status == "finished"
                ]
                for control in ("regulated", "plain")
            }
            if by_control["regulated"]:
                yield _Subject(
                    name=chosen.name,
                    backbone=chosen.backbone,
                    split="test",
                    regulated=by_control["regulated"],
                    plain=by_control["plain"],
                    what="confirmed",
                )
        return
    plain = [row for row in study.trials if (row.role, row.control, row.status) == ("control", "plain", "finished")]
    for backbone, best in study.best.items():
        own = [row for row in plain if row.backbone == backbone]
        what = "the best of the search, selected on these very images"
        yield _Subject(name=backbone, backbone=backbone, split="validation", regulated=[best], plain=own, what=what)


def read_kept(study: StudyResults) -> tuple[Kept, list[str]]:
    """The predictions of the trials that are told of, as far as they are kept, and a sentence for each that is damaged."""
    kept, lost = {}, []
    for identity in dict.fromkeys(record.identity for subject in _subjects(study) for record in subject.regulated):
        try:
            predictions = study.predictions_of(identity)
        except StorageError as error:
            lost.append(f"{error}. Without it nothing is said of this trial's single images.")
        else:
            if predictions is not None:
                kept[identity] = predictions
    return kept, lost


def agreement_table(study: StudyResults, kept: Kept) -> Table | None:
    """How far the two encoders agree, each with its own head; None where no trial with both has kept its predictions."""
    rows: list[Row] = []
    for subject in _subjects(study):
        tables = [kept[record.identity] for record in subject.regulated if record.identity in kept]
        found = [agreed for table in tables if (agreed := agreement(table, subject.split))]
        if not found:
            continue
        shares = [
            [one.agree, one.both, one.only_plain, one.only_emotional, 1 - one.both - one.only_plain - one.only_emotional]
            for one in found
        ]
        cells = (Cell(percent(share), n=len(found)) for share in np.mean(shares, axis=0).tolist())
        rows.append((subject.name, subject.split, f"{found[0].num_images:,}", *cells))
    if not rows:
        return None
    titles = ("images", "same answer, %", "both right, %", "only plain, %", "only emotional, %", "neither, %")
    return Table(
        caption="How far the two encoders agree, each with its own head",
        columns=(*texts("configuration", "split"), *numbers(*titles)),
        groups=[("", rows)],
        note="Means over the n trials whose networks are kept: confirmed ones on the test set, else the best of the search. An "
        "encoder that was trained in a mixture need not do well alone: what it gets right says what it sees, not what it is "
        "worth.",
    )


def pictures(study: StudyResults, kept: Kept) -> Iterator[Pictures]:
    """The most confident errors, and what one encoder alone gets right: of one trial of each configuration."""
    for subject in _subjects(study):
        for record in [record for record in subject.regulated if record.identity in kept][:1]:
            table = kept[record.identity]
            if "picture" not in table.column_names:  # of an emoreg that kept none
                continue
            trial = f"{subject.name}, trial {record.identity}, seed {record.seed}, {subject.split} images"
            found = (
                ("The most confident errors", pictured_errors(table, subject.split), ""),
                ("Only the emotional encoder is right", pictured_right_by_one(table, subject.split, "emotional"), "emotional_"),
                ("Only the plain encoder is right", pictured_right_by_one(table, subject.split, "plain"), "plain_"),
            )
            for title, rows, prefix in found:
                if len(rows):
                    yield Pictures(title=title, note=f"{trial}.", tiles=[*_tiles(rows.slice(0, _NUM_PICTURES), prefix)])


def _tiles(rows: pa.Table, prefix: str) -> Iterator[tuple[str, str]]:
    for row in rows.to_pylist():
        confidence = 100 * row[f"{prefix}confidence"]
        taken_for = row["class_name"] if prefix else f"{row['class_name']}, taken for {row['predicted']}"
        source = f"data:image/png;base64,{base64.b64encode(row['picture']).decode()}"
        yield source, f"{taken_for} ({confidence:.0f} %)"


def draw_by_class(context: FigureContext) -> tuple[go.Figure, str]:
    """The share of each class's images that is recognised, regulated and plain, a panel a configuration."""
    study = context.study
    drawn = [(subject, shares) for subject in _subjects(study) if (shares := _recalls(study, subject.regulated, subject.split))]
    if not drawn:
        raise NotDrawn("No evaluation of a finished trial is recorded by class: no accuracy by class.")
    figure = style.panels([subject.name for subject, _ in drawn])
    heights, captions = [], []
    for panel, (subject, regulated) in enumerate(drawn, 1):
        plain = _recalls(study, subject.plain, subject.split)
        order = sorted(regulated, key=lambda name: abs(regulated[name] - plain.get(name, 0.0)))[-_MOST_CLASSES:]
        order.sort(key=lambda name: regulated[name] - plain.get(name, 0.0))
        heights.append(len(order))
        color = style.color_of(subject.backbone, study.backbones)
        for name, shares, look in (("plain", plain, style.GREY), ("regulated", regulated, color)):
            if shares:
                figure.add_scatter(
                    x=[shares[label] for label in order],
                    y=order,
                    mode="markers",
                    name=name,
                    showlegend=panel == 1,
                    marker={"color": look, "size": 10, "symbol": "circle" if name == "regulated" else "circle-open"},
                    hovertemplate=f"{name}, %{{y}}: %{{x:.1f}} %<extra></extra>",
                    row=panel,
                    col=1,
                )
        figure.update_yaxes(type="category", row=panel, col=1)
        n = "" if not plain else f", over plain of n = {len(subject.plain)}"
        cut = style.subset_of(len(order), len(regulated), "those that differ most" if plain else "those recognised most often")
        captions.append(
            f"{subject.name}: {len(order)} classes{cut}, {subject.split} images; regulated: "
            f"{subject.what}, n = {len(subject.regulated)}{n}."
        )
    figure.update_xaxes(title_text="images of the class that are recognised, %", row=len(drawn), col=1)
    height = 110 + sum(60 + 24 * count for count in heights)
    return style.styled(figure, height=height, showlegend=True), " ".join(captions) + " No verdict: see the gains."


def _recalls(study: StudyResults, trials: Iterable[TrialRecord], split: str) -> dict[str, float]:
    """Mean share of a class's images that the trials recognise, in percent, by class."""
    wanted = {trial.identity for trial in trials}
    shares: dict[str, list[float]] = {}
    for row in (row for home in study.with_confirmation for row in home.evaluations):
        if row.identity in wanted and row.split == split and row.num_images:
            shares.setdefault(row.class_name, []).append(100 * row.num_correct / row.num_images)
    return {name: float(np.mean(values)) for name, values in shares.items()}
