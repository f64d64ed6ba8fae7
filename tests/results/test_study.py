from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from emoreg.config import Choice, Distribution, Float, Int, Objective, StudyConfig, Value, When, from_json
from emoreg.errors import ConfigError, StorageError
from emoreg.results.ledger import FOLDER
from emoreg.results.records import ProbeRecord
from emoreg.results.study import load_results
from tests.helpers.waiting import PATIENCE
from tests.helpers.written import changed_json, made_up_config, write_study


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study with a confirmation, for reading."""
    return write_study(tmp_path_factory.mktemp("written"))


@pytest.fixture
def own(written: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return shutil.copytree(written.parent, tmp_path, dirs_exist_ok=True) / written.name


def test_a_study_is_typed(written: Path) -> None:
    study = load_results(written)
    config = made_up_config()
    assert (study.name, study.place, study.problems) == ("made-up", str(written), ())
    assert study.written.fingerprints[0] == ("digits", None, None, 32, "ab" * 32)
    assert study.search_space == dict(config.search_space)
    assert study.objectives == (Objective(),)
    assert study.backbones == ("test_resnet", "test_vit")
    assert [row.number for row in study.searched] == list(range(40))
    assert [row.ended for row in study.trials] == sorted(row.ended for row in study.trials)
    assert {row.role for row in study.trials} == {"search", "control"}
    best = study.best
    assert set(best) == {"test_resnet", "test_vit"}
    finished = [row for row in study.searched if row.status == "finished" and row.backbone == "test_vit"]
    assert best["test_vit"].val_accuracy == max(row.val_accuracy or 0.0 for row in finished)
    assert {(row.backbone, row.control) for row in study.controls} >= {("test_vit", "regulated"), ("test_resnet", "plain")}
    assert [run.command for run in study.runs] == ["emoreg run studies.made_up --num-trials 40"]
    one = study.searched[0]
    assert [(row.stage, row.epoch) for row in study.epochs_of(one.identity)][-1] == ("regulation", one.regulation_epochs)
    assert study.epochs_of("nobody's") == []


def test_what_opened_the_test_split_beside_a_plan_is_found(written: Path) -> None:
    study = load_results(written)
    outside = dataclasses.replace(study.searched[0], test_accuracy=0.5)
    assert dataclasses.replace(study, trials=(outside, *study.trials)).unplanned_openings == [outside]


def test_a_confirmation_is_found_beside_its_study(written: Path) -> None:
    study = load_results(f"{written}/")
    assert study.openings == ()
    assert study.confirmation is not None
    assert study.confirmation.name == "made-up.confirm"
    assert study.confirmation.confirmation is None
    [opening] = study.confirmation.openings
    assert opening.seeds == tuple(range(1000, 1010))
    assert {row.control for row in study.confirmed} >= {"regulated", "plain", "untrained", "shuffled"}
    assert [verdict.decision for verdict in study.verdicts.values()] == ["helps", "helps"]
    alone = load_results(written.with_name("made-up.confirm"))
    assert alone.confirmed == study.confirmed
    assert alone.verdicts == study.verdicts


@pytest.mark.parametrize(
    ("num_former", "why"),
    [
        (5, "the seeds were extended from 5 to 10 once their answer could be"),
        (10, "this confirmation opened the test set 2 times"),
    ],
)
def test_more_seeds_of_the_same_plan_are_told_from_another_plan(own: Path, num_former: int, why: str) -> None:
    with changed_json(own.with_name("made-up.confirm") / "plan.json") as content:
        (opening,) = content["openings"]
        trials = [trial for trial in opening["trials"] if trial["seed"] < 1000 + num_former]
        content["openings"].insert(0, opening | {"opened": "2025-12-31T10:00:00.000+00:00", "trials": trials})
    study = load_results(own)
    assert study.exploratory.startswith(why)
    assert all(verdict.is_exploratory for verdict in study.verdicts.values())


def test_without_a_confirmation_nothing_is_confirmed(own: Path) -> None:
    shutil.rmtree(own.with_name("made-up.confirm"))
    study = load_results(own)
    assert (study.confirmation, study.confirmed, study.verdicts) == (None, [], {})


def test_tables_for_pandas(written: Path) -> None:
    study = load_results(written)
    trials, epochs, runs = study.trials_frame(), study.epochs_frame(), study.runs_frame()
    assert (len(trials), len(epochs), len(runs)) == (len(study.trials), len(study.epochs), 1)
    searched = trials[trials.role == "search"].sort_values("number")
    for path in study.search_space:
        chosen = [json.loads(row.params)[path] for row in study.searched]
        assert searched[f"params.{path}"].tolist() == chosen
    assert trials.loc[trials.role == "control", "params.regulation.balance"].isna().all()
    curve = epochs[(epochs.identity == study.searched[0].identity) & (epochs.stage == "regulation")]
    assert curve.val_accuracy.is_monotonic_increasing
    assert runs.ending.tolist() == ["completed"]


def test_a_study_without_trials_has_empty_tables(own: Path) -> None:
    shutil.rmtree(own.with_name("made-up.confirm"))
    shutil.rmtree(own / "records")
    study = load_results(own)
    assert (study.trials, study.best, study.controls, study.problems) == ((), {}, [], ())
    assert "params.regulation.balance" in study.trials_frame().columns
    assert "train_loss" in study.epochs_frame().columns


def test_registered_metrics_and_probes_are_columns_and_rows(written: Path) -> None:
    study = load_results(written)
    assert study.probes == ()
    assert list(study.probes_frame().columns) == ["identity", "stage", "epoch", "probe", "name", "value"]
    first, *others = study.trials
    row = ProbeRecord(identity=first.identity, stage="regulation", epoch=1, probe="knn", name="accuracy", value=0.5)
    study = dataclasses.replace(
        study,
        trials=(dataclasses.replace(first, metrics='{"val_f1": 0.25}'), *others),
        epochs=tuple(dataclasses.replace(epoch, metrics='{"val_f1": 0.125}') for epoch in study.epochs),
        probes=(row,),
    )
    assert study.trials_frame().val_f1.tolist()[0] == 0.25
    assert study.trials_frame().val_f1.isna().sum() == len(others)
    assert set(study.epochs_frame().val_f1) == {0.125}
    assert study.probes_frame().value.tolist() == [0.5]


def test_a_uri_is_as_good_as_a_folder(written: Path) -> None:
    by_uri, by_path = load_results(f"file://{written}"), load_results(written)
    assert by_uri.trials == by_path.trials
    assert by_uri.confirmed == by_path.confirmed


def test_a_study_in_an_object_store_is_found_with_its_confirmation(written: Path, bucket: str) -> None:
    s3, folder = fs.FileSystem.from_uri(bucket)
    for name in (written.name, f"{written.name}.confirm", FOLDER):
        fs.copy_files(str(written.parent / name), f"{folder}/{name}", fs.LocalFileSystem(), s3)
    place, question, query = bucket.partition("?")
    study = load_results(f"{place}/{written.name}{question}{query}")
    assert study.trials == load_results(written).trials
    assert study.verdicts == load_results(written).verdicts
    assert not any(verdict.is_exploratory for verdict in study.verdicts.values())


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_where_no_study_is_there_is_none_to_load(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"'{tmp_path}/{name}' has no study.json"):
        load_results(tmp_path / name)


# What others wrote, and what is broken


@pytest.mark.parametrize("version", [b"3", b"99", b""])
def test_records_of_another_emoreg_are_refused(version: bytes, own: Path) -> None:
    path = own / "records" / "trials.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({"emoreg.schema_version": version}), path)
    with pytest.raises(StorageError, match="records must have schema version 1, but these have"):
        load_results(own)


def cut(path: Path, left: int = 500) -> None:
    """Leave only the beginning of a file."""
    path.write_bytes(path.read_bytes()[:left])


@pytest.mark.parametrize("left", [0, 500])
@pytest.mark.parametrize(
    ("table", "lost"),
    [("epochs", "learning curves and balances over epochs"), ("runs", "waiting, restarts and versions by run")],
)
def test_trials_are_enough_and_what_is_lost_is_said(table: str, lost: str, left: int, own: Path) -> None:
    whole = load_results(own)
    cut(own / "records" / f"{table}.parquet", left)
    study = load_results(own)
    [said] = study.problems
    assert f"records/{table}.parquet of '{own}'" in said
    assert f"Without it nothing is known of {lost}; accuracies and verdicts stand." in said
    assert getattr(study, table) == ()
    assert study.trials == whole.trials
    assert study.verdicts == whole.verdicts


def test_without_its_trials_nothing_is_said_of_a_study(own: Path) -> None:
    cut(own / "records" / "trials.parquet")
    with pytest.raises(StorageError, match=r"records/trials\.parquet of .* cannot be read"):
        load_results(own)


@pytest.mark.parametrize("content", ["", '{"config": {"na', "{}", '{"config": {}}', '{"config": []}', "[]", "null"])
def test_a_study_file_that_emoreg_did_not_write_is_refused(content: str, own: Path) -> None:
    (own / "study.json").write_text(content)
    with pytest.raises(StorageError, match=r"Read '.*made-up' with the emoreg that wrote it"):
        load_results(own)


@pytest.mark.parametrize("name", ["plan.json", "records/trials.parquet"])
def test_a_confirmation_that_cannot_be_read_leaves_no_claim(name: str, own: Path) -> None:
    cut(own.with_name("made-up.confirm") / name)
    study = load_results(own)
    assert (study.confirmation, study.verdicts) == (None, {})
    (problem,) = study.problems
    assert re.match(r"The confirmation of .*made-up cannot be read, so nothing is claimed from it: ", problem)


def test_a_table_that_is_gone_is_said(own: Path) -> None:
    (own / "records" / "epochs.parquet").unlink()
    (problem,) = load_results(own).problems
    assert problem.startswith(f"There is no records/epochs.parquet of '{own}'. Without it nothing is known of learning curves")


# The search space


def _ordered(low: Any, high: Any) -> tuple[Any, Any]:
    return (low, high) if low <= high else (high, low)


def _numbers(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.builds(_ordered, numbers, numbers)


_PATHS = {  # where anything above 0 is a setting
    Float: ("regulation.optimizer.weight_decay", "pretraining.optimizer.learning_rate", "regulation.optimizer.learning_rate"),
    Int: ("pretraining.epochs", "regulation.batch_size", "pretraining.warmup_steps"),
    Choice: ("backbone", "regulation.kind", "regulation.augmentation.flip"),
}
_CHOICES: dict[str, st.SearchStrategy[Value]] = {
    "backbone": st.text(min_size=1, max_size=5),
    "regulation.kind": st.sampled_from(("fixed", "learnable", "random")),
    "regulation.augmentation.flip": st.booleans(),
}


def _floats(when: When | None) -> st.SearchStrategy[Distribution]:
    ranges = _numbers(st.floats(1e-6, 1e6) | st.integers(1, 10**6))
    steps = st.none() | st.floats(1e-3, 10.0) | st.integers(1, 10)
    return st.one_of(
        st.builds(lambda ends, log: Float(*ends, log=log, when=when), ranges, st.booleans()),
        st.builds(lambda ends, step: Float(*ends, step=step, when=when), ranges, steps),
    )


def _ints(when: When | None) -> st.SearchStrategy[Distribution]:
    ranges = _numbers(st.integers(1, 10**6))
    return st.one_of(
        st.builds(lambda ends, log: Int(*ends, log=log, when=when), ranges, st.booleans()),
        st.builds(lambda ends, step: Int(*ends, step=step, when=when), ranges, st.integers(1, 100)),
    )


@st.composite
def search_spaces(draw: st.DrawFn) -> dict[str, Distribution]:
    """Distributions of every kind, some of them only where an earlier one has a value."""
    space: dict[str, Distribution] = {}
    some: st.SearchStrategy[Value] = st.one_of(st.text(max_size=3), st.booleans(), st.integers(), st.floats(-9, 9))
    paths: list[str] = draw(
        st.lists(st.sampled_from([path for own in _PATHS.values() for path in own]), min_size=1, unique=True)
    )
    for path in paths:
        when = None
        is_conditional: bool = draw(st.booleans())
        if space and is_conditional:
            values = draw(st.lists(some, min_size=1, max_size=3))
            when = When(draw(st.sampled_from(list(space))), tuple(values))
        if path in _PATHS[Float]:
            space[path] = draw(_floats(when))
        elif path in _PATHS[Int]:
            space[path] = draw(_ints(when))
        else:
            space[path] = Choice(tuple(draw(st.lists(_CHOICES[path], min_size=1, max_size=3, unique=True))), when=when)
    return space


@settings(max_examples=40, deadline=None)
@given(search_spaces())
def test_a_search_space_is_read_back_as_it_was(space: dict[str, Distribution]) -> None:
    config = StudyConfig(search_space=space)
    read = from_json(StudyConfig, json.loads(json.dumps(dataclasses.asdict(config)))).search_space
    assert read == space
    assert list(read) == list(space), "in its order"
    assert list(map(type, read.values())) == list(map(type, space.values()))
    assert [list(map(type, found.bounds())) for found in read.values()] == [
        list(map(type, distribution.bounds())) for distribution in space.values()
    ]


# Where no torch is


_READ = """\
import sys
from importlib.abc import MetaPathFinder

class Absent(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "ray"):
            raise ImportError(f"{name} is not wanted here")

sys.meta_path.insert(0, Absent())
from emoreg.results.ledger import FOLDER
from emoreg.results.study import load_results
study = load_results(sys.argv[1])
print(len(study.trials_frame()), len(study.epochs_frame()), len(study.runs_frame()), len(study.search_space))
print(len(study.best), len(study.controls), *(verdict.decision for verdict in study.verdicts.values()), sep=", ")
"""


def test_it_is_read_without_torch_and_ray(written: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(written)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    study = load_results(written)
    numbers, answers = done.stdout.splitlines()
    assert numbers.split() == [str(number) for number in (len(study.trials), len(study.epochs), len(study.runs), 3)]
    assert answers == f"2, {len(study.controls)}, helps, helps"
