"""Accuracy against the measured share of emotion: see ``test_figures`` for the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from emoreg.report.response_figures import draw_by_share
from emoreg.report.style import FigureContext, NotDrawn
from emoreg.results.records import ProbeRecord
from emoreg.results.study import load_results
from tests.helpers.written import made_up_config, write_rows, write_study


def share(identity: str, epoch: int, value: float, stage: str = "regulation") -> ProbeRecord:
    return ProbeRecord(identity=identity, stage=stage, epoch=epoch, probe="emotion_share", name="share", value=value)


def test_trials_with_and_without_experience_stand_side_by_side_at_their_last_share(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=12), num_seeds=0)
    study = load_results(folder)
    rows = [
        row
        for number, trial in enumerate(study.trials)
        for row in (share(trial.identity, 2, number / 100), share(trial.identity, 1, 0.99))
    ]
    with pytest.raises(NotDrawn, match="No trial measured it"):
        draw_by_share(FigureContext(study=load_results(folder)))
    write_rows(folder, "probes", ProbeRecord, rows)
    study = load_results(folder)
    figure, caption = draw_by_share(FigureContext(study=study))
    place = {trial.identity: number / 100 for number, trial in enumerate(study.trials)}
    for trace, (backbone, control) in zip(
        figure.data, [(name, control) for name in study.backbones for control in ("untrained", "regulated")], strict=True
    ):
        own = [t for t in study.trials if (t.backbone, t.control, t.status) == (backbone, control, "finished")]
        assert list(trace.x) == [place[trial.identity] for trial in own]
        assert list(trace.y) == [pytest.approx(100 * (trial.val_accuracy or 0)) for trial in own]
    assert "what trained encoders have above untrained ones is emotion’s part" in caption
    write_rows(folder, "probes", ProbeRecord, rows[:2])
    with pytest.raises(NotDrawn, match="Fewer than 3 finished trials"):
        draw_by_share(FigureContext(study=load_results(folder)))
