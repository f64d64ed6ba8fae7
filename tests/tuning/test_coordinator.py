from __future__ import annotations

import dataclasses
import pickle
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from emoreg.cli.trial import shared_locks
from emoreg.config import Float, StudyConfig
from emoreg.errors import StorageError
from emoreg.storage import locks
from emoreg.storage.files import Files
from emoreg.storage.locks import FileLocks
from emoreg.storage.retry import Patience
from emoreg.storage.working_copy import join
from emoreg.tuning import coordinator as module
from emoreg.tuning import postgres
from emoreg.tuning.coordination import SharedRunLocks
from emoreg.tuning.coordinator import Coordinator, PostgresCoordinator, coordinate
from emoreg.tuning.postgres import PostgresLocks
from emoreg.tuning.preflight import store_uri
from tests.helpers.postgres import PostgreSQL
from tests.helpers.waiting import PATIENCE


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_SETTLE_SECONDS", 0.1)
    monkeypatch.setattr(locks, "_CHECK_SECONDS", 0.0)


def config_in(storage: Path | str, **more: Any) -> StudyConfig:
    study = StudyConfig(name="tiny", storage=str(storage), search_space={"regulation.balance": Float(0.0, 1.0)})
    return dataclasses.replace(study, **more)


def test_alone_a_driver_has_all_it_asks_for(tmp_path: Path) -> None:
    coordinator = coordinate(config_in(tmp_path))
    assert type(coordinator) is Coordinator
    with coordinator:
        assert coordinator.copy.folder == tmp_path / "tiny"
        with coordinator.turn(), coordinator.turn():
            assert coordinator.claim("a")
            assert coordinator.claim("a")
        coordinator.release("a")
        assert not coordinator.others_changed()
        coordinator.check()
        with pytest.raises(StorageError, match="another process is running"), coordinate(config_in(tmp_path)):
            pass
    with coordinate(config_in(tmp_path)):
        pass


def test_beside_an_object_store_it_goes_on_from_what_is_there_until_another_has_it(bucket: str) -> None:
    files = Files(join(bucket, "tiny"))
    names = ("study.json", "records/trials.parquet", "optuna.journal")
    for name in (*names, "trials/a/log.txt"):
        files.write(name, b"before")
    with coordinate(config_in(bucket)) as coordinator:
        there = {path.relative_to(coordinator.copy.folder).as_posix() for path in coordinator.copy.folder.rglob("*.*")}
        assert there == {*names}
        (coordinator.copy.folder / "records" / "trials.parquet").write_bytes(b"mine")
        other = dataclasses.replace(locks._Holder.of_this_process(), host="elsewhere")
        other.write(files)
        files.write("records/trials.parquet", b"another's")
        for call in (coordinator.check, lambda: coordinator.copy.push("records")):
            with pytest.raises(StorageError, match="another driver has it now, on elsewhere"):
                call()
    assert files.read("records/trials.parquet").to_pybytes() == b"another's"
    assert locks._read(files) == other


def shared(config: StudyConfig, stack: ExitStack, number: int) -> list[Coordinator]:
    return [stack.enter_context(coordinate(config)) for _ in range(number)]


@pytest.fixture(scope="module")
def database(postgresql: PostgreSQL) -> str:
    """The URL of a database for all tests."""
    return postgresql.create("emoreg_coordinators")


@pytest.fixture(params=["folder", "s3"])
def config(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> StudyConfig:
    """A study of the test's own, that may have several drivers."""
    storage = tmp_path if request.param == "folder" else request.getfixturevalue("bucket")
    return config_in(storage, name=f"tiny{secrets.token_hex(4)}", optuna_storage=database)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_a_trial_has_one_driver(config: StudyConfig, stack: ExitStack) -> None:
    first, second = shared(config, stack, 2)
    assert isinstance(first, PostgresCoordinator)
    assert first.claim("a")
    assert first.claim("a")
    assert not second.claim("a")
    assert second.claim("b")
    first.release("a")
    assert second.claim("a")
    second.__exit__(None, None, None)
    assert first.claim("a"), "who has left has given all back"


def test_turns_do_not_overlap_and_lose_nothing(config: StudyConfig, stack: ExitStack) -> None:
    coordinators = shared(config, stack, 3)
    inside: list[int] = []
    most = 0

    def work(own: Coordinator, number: int) -> None:
        nonlocal most
        path = own.copy.folder / "records" / "rows"
        for _ in range(4):
            with own.turn(), own.turn():
                inside.append(number)
                most = max(most, len(inside))
                path.parent.mkdir(parents=True, exist_ok=True)
                before = path.read_text() if path.exists() else ""
                path.write_text(f"{before}{number}")
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(own, number)) for number, own in enumerate(coordinators)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    rows = Files(join(config.storage, config.name)).read("records/rows").to_pybytes().decode()
    assert sorted(rows) == sorted("012" * 4)
    with pytest.raises(ZeroDivisionError), coordinators[0].turn():
        _ = 1 / 0
    with coordinators[1].turn():
        pass


@pytest.mark.slow
def test_a_turn_that_is_not_ended_is_told_of_and_not_waited_for_without_end(config: StudyConfig, stack: ExitStack) -> None:
    (first,) = shared(config, stack, 1)
    said: list[str] = []
    with PostgresCoordinator(config, Patience(4.0, notify=said.append)) as second, first.turn():
        with pytest.raises(StorageError, match=r"Look for the driver that does not go on, .* another driver of study 'tiny"):
            second.turn().__enter__()
        (text,) = said
        assert "has its turn; waiting until " in text


@pytest.mark.slow
def test_a_driver_that_is_to_stop_still_has_its_turns(config: StudyConfig, stack: ExitStack) -> None:
    (first,) = shared(config, stack, 1)
    second = stack.enter_context(PostgresCoordinator(config, Patience(should_stop=lambda: True)))
    is_taken, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with first.turn():
            is_taken.set()
            may_end.wait(PATIENCE)

    holding = threading.Thread(target=hold)
    holding.start()
    is_taken.wait(PATIENCE)
    threading.Timer(2.0, may_end.set).start()
    with second.turn():
        assert may_end.is_set()
    holding.join()


def test_who_stood_still_within_its_turn_stores_nothing_more(
    config: StudyConfig, stack: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(PostgresLocks, "_beat", lambda self: None)
    first, second = shared(config, stack, 2)

    def stand_still() -> None:
        with first.turn():
            with second.turn():  # once the first one's has run out
                pass
            first.check()

    with pytest.raises(StorageError, match=r"Run the same command again: this driver .* stood still within its turn"):
        stand_still()
    with second.turn():
        pass


def test_others_are_looked_at_every_few_seconds(config: StudyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for seconds, is_time in ((600.0, False), (0.0, True)):
        monkeypatch.setattr(module, "_POLL_SECONDS", seconds)
        with coordinate(config) as coordinator:
            assert coordinator.others_changed() is is_time


def test_locks_of_shared_runs_travel_without_being_shown(config: StudyConfig, stack: ExitStack, tmp_path: Path) -> None:
    shared(config, stack, 1)  # which gives the database its table
    store = "s3://key:secret@bucket/store?region=x"
    described = SharedRunLocks(store=store, is_cluster=False, database=config.optuna_storage)
    assert "secret" not in repr(described)
    one, other = (pickle.loads(pickle.dumps(described)).open(Patience()) for _ in range(2))
    assert isinstance(one, PostgresLocks)
    assert one.try_acquire("a")
    assert not other.try_acquire("a")
    one.release("a")
    assert isinstance(SharedRunLocks(store=str(tmp_path), is_cluster=False).open(Patience()), FileLocks)


def test_emoreg_trial_shares_the_locks_of_a_study_s_drivers(config: StudyConfig) -> None:
    with coordinate(config) as coordinator:
        own = shared_locks(config, coordinator)
        drivers = SharedRunLocks(store=store_uri(config), is_cluster=False, database=config.optuna_storage).open(Patience())
        assert own is not None
        assert own.try_acquire("a")
        assert not drivers.try_acquire("a")
        own.release("a")


def test_emoreg_trial_of_a_study_with_one_driver_has_the_store_s_own_locks(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    with coordinate(config) as coordinator:
        assert shared_locks(config, coordinator) is None
