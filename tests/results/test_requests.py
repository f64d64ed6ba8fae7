"""What people ask of a study, as files in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import emoreg
from emoreg.config import Choice, Float, StudyConfig, When
from emoreg.errors import ConfigError
from emoreg.results.requests import (
    ask_to_stop,
    asked_to_stop,
    check_enqueued,
    enqueue,
    enqueued,
    remove_stop,
)
from emoreg.results.status import read_status
from emoreg.results.tables import Records
from emoreg.storage.files import Files
from emoreg.tuning.verify import verify
from tests.helpers.studies import ended, tiny_study
from tests.helpers.written import made_up_config, write_study

SPACE = {
    "backbone": Choice(("test_resnet", "test_vit")),
    "regulation.balance": Float(0.1, 0.9),
    "drop_path": Float(0.0, 0.5, when=When("backbone", ("test_vit",))),
}


def config_of(folder: Path) -> StudyConfig:
    return tiny_study(search_space=SPACE, storage=str(folder.parent), name=folder.name)


def test_trials_wait_in_the_order_in_which_they_were_asked_for(tmp_path: Path) -> None:
    files, config = Files(str(tmp_path)), config_of(tmp_path)
    assert enqueued(files) == ()
    assert enqueue(files, config, {"regulation.balance": "0.3"}) == {"regulation.balance": 0.3}
    enqueue(files, config, {"regulation.balance": 0.2, "backbone": "test_vit", "drop_path": 0})
    assert [trial.params for trial in enqueued(files)] == [
        {"regulation.balance": 0.3},
        {"regulation.balance": 0.2, "backbone": "test_vit", "drop_path": 0.0},
    ]


def test_in_an_object_store(bucket: str) -> None:
    files = Files(bucket)
    enqueue(files, tiny_study(), {"regulation.balance": 0.3})
    (trial,) = enqueued(files)
    assert trial.params == {"regulation.balance": 0.3}
    ask_to_stop(files, tiny_study(), ["abc"], "a")
    assert asked_to_stop(files) == {"abc"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({}, r"^Choose a value, as in backbone=\.\.\.: "),
        ({"drop_path": 0.1}, "^Choose backbone too, one of test_vit: drop_path is searched only there"),
        ({"drop_path": 0.1, "backbone": "test_resnet"}, "^Drop drop_path, or choose another backbone"),
        ({"regulation.balance": 0.95}, r"^Choose a number in \[0.1, 0.9\]"),
    ],
)
def test_what_could_not_be_tried_is_refused(values: dict[str, emoreg.config.Value], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=told):
        enqueue(Files(str(tmp_path)), config_of(tmp_path), values)
    assert not [*tmp_path.iterdir()]


def test_values_that_break_a_rule_together_are_refused() -> None:
    space = {"deterministic": Choice((True, False)), "precision": Choice(("bf16", "float32"))}
    with pytest.raises(ConfigError, match="precision must not be mixed where deterministic=True"):
        check_enqueued(tiny_study(search_space=space), {"deterministic": "true", "precision": "bf16"})


def test_a_trial_that_has_run_is_not_enqueued_again(tmp_path: Path) -> None:
    config, files = tiny_study(), Files(str(tmp_path))
    params = {"regulation.balance": 0.3, "pretraining.epochs": 1}
    Records(tmp_path).add_trial(row := ended(params=params))
    with pytest.raises(ConfigError, match=f"^Choose other values: .* but {row.identity} was run with these"):
        enqueue(files, config, params)
    enqueue(files, config, {"regulation.balance": 0.3})
    Records(tmp_path).add_trial(ended(params=params, status="failed"))
    enqueue(files, config, params)


def test_a_confirmation_takes_no_trial_and_loses_none(tmp_path: Path) -> None:
    config = tiny_study(confirmed=(tiny_study().trial,))
    with pytest.raises(ConfigError, match=r"^Enqueue trials in the study itself"):
        enqueue(Files(str(tmp_path)), config, {"regulation.balance": 0.3})
    with pytest.raises(ConfigError, match=r"^Stop the whole confirmation"):
        ask_to_stop(Files(str(tmp_path)), config, ["abc"], "abc")


def test_a_trial_is_named_by_the_beginning_of_its_identity(tmp_path: Path) -> None:
    files, config = Files(str(tmp_path)), tiny_study()
    running = ["abc123", "abd456"]
    assert ask_to_stop(files, config, running, "abd") == "abd456"
    assert asked_to_stop(files) == {"abd456"}
    for wrong, there in (("ab", running), ("x", running), ("", running), ("", running[:1])):
        with pytest.raises(ConfigError, match=r"^Name a trial that runs now, of which there are abc123"):
            ask_to_stop(files, config, there, wrong)
    with pytest.raises(ConfigError, match="of which there are none"):
        ask_to_stop(files, config, [], "abc")
    remove_stop(files, "abd456")
    assert asked_to_stop(files) == frozenset()


def test_status_shows_what_waits_and_verify_what_is_damaged(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=2), num_seeds=0)
    study = emoreg.load_study(folder).enqueue({"regulation.balance": 0.25})
    assert read_status(study.place).enqueued == ({"regulation.balance": 0.25},)
    (request,) = (folder / "requests").iterdir()
    content = json.loads(request.read_text())
    request.write_text(json.dumps(content | {"params": {"regulation.balance": 0.75}}))
    assert read_status(study.place).enqueued == ()
    (found,) = [found for found in verify(study.place) if found.kind == "requests"]
    assert found.problem == "it does not match its digest: it is passed over"
