from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from emoreg.cli.viewers import serve_dashboard, serve_tensorboard
from emoreg.errors import ConfigError, StorageError
from tests.helpers.written import made_up_config


def written(folder: Path, **values: object) -> str:
    config = made_up_config(**values)
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps({"config": dataclasses.asdict(config.without_password())}))
    return str(folder)


def test_where_there_is_no_study(tmp_path: Path) -> None:
    for serve in (serve_dashboard, serve_tensorboard):
        with pytest.raises(ConfigError, match=r"a study is a folder with study\.json"):
            serve(str(tmp_path), "127.0.0.1", 0)


def test_a_search_without_a_history(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"there is no optuna\.journal in .*: run the study again"):
        serve_dashboard(written(tmp_path), "127.0.0.1", 0)


def test_a_history_of_another_study(tmp_path: Path) -> None:
    place = written(tmp_path)
    (tmp_path / "optuna.journal").touch()
    with pytest.raises(StorageError, match="'made-up' cannot be read there"):
        serve_dashboard(place, "127.0.0.1", 0)


def test_a_database_that_is_not_there_is_not_begun(tmp_path: Path) -> None:
    place = written(tmp_path, optuna_storage=f"sqlite:///{tmp_path}/moved.db")
    with pytest.raises(StorageError, match=r"there is no such file: a relative path counts from the folder"):
        serve_dashboard(place, "127.0.0.1", 0)
    assert not (tmp_path / "moved.db").exists()


def test_a_database_that_does_not_answer_is_said_with_where_its_password_goes(tmp_path: Path) -> None:
    place = written(tmp_path, optuna_storage="postgresql://user:secret@127.0.0.1:1/name")
    with pytest.raises(StorageError, match="PGPASSWORD") as caught:
        serve_dashboard(place, "127.0.0.1", 0)
    assert "secret" not in str(caught.value)


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"203\.0\.113\.1:0 cannot be listened on"):
        serve_tensorboard(written(tmp_path), "203.0.113.1", 0)
