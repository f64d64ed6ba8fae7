from __future__ import annotations

import socket
from pathlib import Path

import pytest

from emoreg.cli.serve import Dashboard, TensorBoard
from emoreg.errors import ConfigError, StorageError
from tests.helpers.written import made_up_config, write_study


def written(folder: Path, **values: object) -> str:
    return str(write_study(folder, made_up_config(num_trials=0, controls=(), **values), num_seeds=0))


@pytest.mark.parametrize("viewer", [TensorBoard, Dashboard])
def test_where_there_is_no_study(viewer: type[TensorBoard | Dashboard], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        viewer(study=str(tmp_path), port=0)()


def test_a_search_without_a_history(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"Run 'made-up' again, .* it has no optuna\.journal"):
        Dashboard(study=written(tmp_path), port=0)()


def test_a_database_that_is_not_there_is_not_begun(tmp_path: Path) -> None:
    place = written(tmp_path, optuna_storage=f"sqlite:///{tmp_path}/moved.db")
    with pytest.raises(StorageError, match=r"Go to the folder where 'made-up' was run"):
        Dashboard(study=place, port=0)()
    assert not (tmp_path / "moved.db").exists()


def test_a_database_that_does_not_answer_is_said_with_where_its_password_goes(tmp_path: Path) -> None:
    place = written(tmp_path, optuna_storage="postgresql://user:secret@127.0.0.1:1/name")
    with pytest.raises(StorageError, match="PGPASSWORD") as caught:
        Dashboard(study=place, port=0)()
    assert "secret" not in str(caught.value)


def test_an_address_of_another_machine(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"203\.0\.113\.1:0 cannot be listened on"):
        TensorBoard(study=written(tmp_path), host="203.0.113.1", port=0)()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port} cannot be listened on"):
            TensorBoard(study=written(tmp_path), port=port)()


def test_a_program_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = written(tmp_path)
    (Path(place) / "optuna.journal").touch()
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="Install optuna-dashboard"):
        Dashboard(study=place, port=0)()
