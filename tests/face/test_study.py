"""``emoreg.Study`` without Ray: configured, read back, reported, shown."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_type_hints

import pytest

import emoreg
from emoreg.config import to_json
from emoreg.errors import ConfigError, Interrupted, StudyAborted
from emoreg.results.records import utc_now
from emoreg.results.requests import asked_to_stop, enqueued
from emoreg.results.status import Live, RunningTrial, live_name
from emoreg.results.tables import Records
from emoreg.storage.files import Files
from emoreg.storage.sealed import seal
from emoreg.study import StudySettings, imported_file
from emoreg.tuning.study import RunEnd
from tests.helpers.studies import ended, tiny_study
from tests.helpers.written import begin_run, driven, made_up_config, write_study

SPACE = {"regulation.balance": emoreg.Float(0.05, 0.95)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("runs"), made_up_config(num_trials=10), num_seeds=10)


def test_it_takes_every_setting_of_a_study() -> None:
    fields = {item.name for item in dataclasses.fields(emoreg.StudyConfig)}
    assert get_type_hints(StudySettings).keys() == fields - {"name"}
    study = emoreg.Study("mine", search_space=SPACE, num_trials=7, control_seeds=(1, 2))
    assert study.config == emoreg.StudyConfig(name="mine", search_space=SPACE, num_trials=7, control_seeds=(1, 2))
    assert emoreg.Study.from_config(study.config).config == study.config
    with pytest.raises(ConfigError, match="num_trials must be 0 or more"):
        emoreg.Study("mine", search_space=SPACE, num_trials=-1)
    with pytest.raises(TypeError, match="num_trails"):
        emoreg.Study("mine", search_space=SPACE, num_trails=3)  # type: ignore[call-arg]


def test_a_study_that_has_not_run_says_so(tmp_path: Path) -> None:
    study = emoreg.Study("mine", search_space=SPACE, storage=str(tmp_path))
    assert repr(study) == f"Study('mine', 20 trials over regulation.balance, in {tmp_path}/mine: not run yet)"
    for read in (lambda: study.best, lambda: study.trials, study.trials_frame, study.status, study.report):
        with pytest.raises(ConfigError, match=r"Name the folder or URI of a study that was run|Run"):
            read()
    assert not list(tmp_path.iterdir())


def test_it_is_read_back_where_it_lies(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = emoreg.load_study(written)
    assert isinstance(study, emoreg.Study)
    assert (study.name, Path(study.place)) == ("made-up", written)
    assert study.config == dataclasses.replace(made_up_config(num_trials=10), storage=str(written.parent))
    monkeypatch.chdir(written.parent)
    for reference in ("made-up", "made-up/", "./made-up", f"file://{written}"):
        assert emoreg.load_study(reference).trials == study.trials
    monkeypatch.chdir("/")
    assert study.best["test_resnet"].val_accuracy == max(
        row.val_accuracy or 0.0 for row in study.trials if row.number is not None and row.backbone == "test_resnet"
    )
    assert {row.identity for row in study.epochs} == {row.identity for row in study.trials}
    assert len(study.runs) == 1
    assert {row.control for row in study.controls} == set(study.config.controls)
    assert {verdict.decision.name for verdict in study.verdicts.values()} == {"HELPS"}
    assert len(study.trials_frame()) == len(study.trials)
    assert "params.regulation.balance" in study.trials_frame()
    assert len(study.epochs_frame()) == len(study.epochs)
    assert study.status().state == "ended"


def test_it_shows_how_it_stands(written: Path) -> None:
    study = emoreg.load_study(written)
    best = max(study.best.values(), key=lambda row: row.val_accuracy or 0.0)
    over = "backbone, regulation.balance, pretraining.epochs"
    assert repr(study).startswith(f"Study('made-up', 10 trials over {over}, in {written}: ended, ")
    assert f"best validation accuracy {100 * best.val_accuracy:.1f} % ({best.backbone}, regulation.balance " in repr(study)
    assert study._repr_html_().startswith("<b>Study made-up</b>: 10 trials over backbone")
    assert "<br>best validation accuracy " in study._repr_html_()
    far = emoreg.Study("mine", search_space=SPACE, storage="s3://bucket/nobody")
    assert repr(far).endswith("in s3://bucket/nobody/mine: call status() to see how it stands)"), "nobody is asked for a repr"


def test_a_renamed_folder_is_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=1), num_seeds=0)
    moved = folder.rename(tmp_path / "other")
    with pytest.raises(ConfigError, match="Rename the folder to 'made-up'"):
        emoreg.load_study(moved)


def test_what_was_read_is_read_again_after_refresh(tmp_path: Path) -> None:
    study = emoreg.load_study(write_study(tmp_path, made_up_config(num_trials=1), num_seeds=0))
    before = study.trials
    write_study(tmp_path, made_up_config(num_trials=3), num_seeds=0)
    assert study.trials is before
    assert len(study.refresh().trials) == len(before) + 2


def test_the_report_is_written_and_its_path_returned(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emoreg.report.figures.FIGURES", {})  # which take most of its time
    path = emoreg.load_study(written).report(tmp_path / "out", images=False, price_per_hour=2.0)
    assert path == tmp_path / "out" / "index.html"
    assert "made-up" in path.read_text()


def test_how_a_run_ended_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was interrupted or aborted raises; what failed without ending the study does not."""
    config = dataclasses.replace(tiny_study(), storage=str(tmp_path))
    folder = write_study(tmp_path, config, num_seeds=0)
    ends: list[RunEnd] = []
    monkeypatch.setattr("emoreg.tuning.study.run_study", lambda *_, **__: ends[-1])
    monkeypatch.setattr("emoreg.tuning.preflight.check_study", lambda *_, **__: None)
    study = emoreg.load_study(folder)
    ends.append(RunEnd.COMPLETED)
    assert study.run() is study
    ends.append(RunEnd.INTERRUPTED)
    with pytest.raises(Interrupted, match="Run study 'tiny' again to go on"):
        study.run()
    last = max(Records(folder).runs.values(), key=lambda run: run.run)
    Records(folder).add_run(dataclasses.replace(last, ending="interrupted", stop_reason="before Slurm ends job 7"))
    told = r"^Run study 'tiny' again to go on: it stopped before Slurm ends job 7; \d+ of \d+ trials have ended, and"
    with pytest.raises(Interrupted, match=told):
        study.run()
    failed = dataclasses.replace(ended(status="failed", message="its code"), log_tail="Traceback: KeyError: 'x'")
    Records(folder).add_trial(failed)
    ends.append(RunEnd.ABORTED)
    with pytest.raises(StudyAborted, match=r"(?s)Mend the fault .* broke 3 trials \(resources.max_failures\).*KeyError: 'x'"):
        study.run()


def test_a_trial_is_enqueued_before_the_study_has_run_and_not_while_its_file_is_imported(tmp_path: Path) -> None:
    study = emoreg.Study("mine", search_space=SPACE, storage=str(tmp_path))
    assert study.enqueue({"regulation.balance": 0.3}) is study
    assert [trial.params for trial in enqueued(Files(study.place))] == [{"regulation.balance": 0.3}]
    with pytest.raises(ConfigError, match=r"regulation.balance must be a value that is searched, but it is 2"):
        study.enqueue({"regulation.balance": 2})
    token = imported_file.set("mine.py")
    try:
        with pytest.raises(ConfigError, match=r"^Put study.enqueue\(\) under"):
            study.enqueue({"regulation.balance": 0.4})
    finally:
        imported_file.reset(token)


def test_a_trial_of_the_search_that_runs_is_stopped_and_no_other(written: Path) -> None:
    study = emoreg.load_study(written)
    (searched, control), run = [row.identity for row in study.trials[:2]], begin_run(written)
    running = [
        RunningTrial(identity=identity, role=role, control="regulated", backbone="test_vit")
        for identity, role in ((searched, "search"), (control, "control"))
    ]
    live = Live(time=utc_now(), slots=2, waiting=0, running=tuple(running))
    (written / live_name(run.run)).write_bytes(seal(to_json(live)))
    with driven(written):
        assert study.stop_trial(searched[:6]) == searched
        with pytest.raises(ConfigError, match=f"^Name a trial that runs now, of which there are {searched}: "):
            study.stop_trial(control)
    assert asked_to_stop(Files(str(written))) == {searched}
    with pytest.raises(ConfigError, match="of which there are none"):
        study.stop_trial(searched)
