"""Other people's dashboards on a study, also while it runs: optuna-dashboard on its search, TensorBoard on its events.

Both only look. Of a study in an object store they look at a copy, which follows it every few seconds.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import wsgiref.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import sqlalchemy
from sqlalchemy.exc import SQLAlchemyError

from emoreg.errors import ConfigError, StorageError
from emoreg.results.written import read_written
from emoreg.storage.files import Files, without_credentials
from emoreg.storage.working_copy import scratch
from emoreg.tuning.postgres import address_of, reason_of

_FOLLOW_SECONDS = 5.0
_RELOAD_SECONDS = 5
_WHOLE = "#custom_scalars&regexInput=%5Estudy&_smoothingWeight=0"
"""The page of ``study_board``'s charts, with its runs alone: of more than 40 TensorBoard shows none until some are ticked."""

_App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

log = logging.getLogger(__name__)


def serve_dashboard(place: str, host: str, port: int) -> int:
    """Serve optuna-dashboard on a study's search until Ctrl-C.

    Args:
        place: folder or URI of the study.
        host: address to listen on.
        port: to listen on; 0 takes a free one.

    Raises:
        ConfigError: where optuna-dashboard is not installed, or cannot listen there.
        StorageError: where the search's history cannot be read.
    """
    try:
        from optuna_dashboard import wsgi
    except ImportError as error:
        raise ConfigError(
            "`emoreg dashboard` needs optuna-dashboard, but it is not installed: pip install -e '.[cluster]'"
        ) from error
    files = Files(place)
    config, _ = read_written(files)
    with _followed(files, "optuna.journal") as folder:
        url = config.optuna_storage
        app = wsgi(_journal(folder, files) if url is None else _database(url))
        study = _find(app, config.name)
        try:
            server = make_server(host, port, _read_only(app), _Server, _Quiet)
        except OSError as error:
            raise _cannot_listen(host, port, error) from error
        with server:
            _say(config.name, f"http://{_in_url(host)}:{server.server_port}/dashboard/studies/{study}")
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                return 0
    return 0


def serve_tensorboard(place: str, host: str, port: int) -> int:
    """Serve TensorBoard on a study's events until Ctrl-C.

    Args:
        place: folder or URI of the study.
        host: address to listen on.
        port: to listen on; 0 takes a free one.

    Raises:
        ConfigError: where it cannot listen there.
    """
    files = Files(place)
    config, _ = read_written(files)
    try:  # TensorBoard would end this process, with less to say
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    from tensorboard.program import TensorBoard

    with _followed(files, "events") as folder:
        board = TensorBoard()
        board.configure(
            logdir=str(folder / "events"),
            host=host,
            port=port,
            reload_interval=_RELOAD_SECONDS,
            window_title=config.name,
        )
        address = board.launch()
        _say(config.name, address, f"the study as a whole: {address}{_WHOLE}")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            return 0
    return 0


def _say(study: str, address: str, *more: str) -> None:
    print(f"study {study!r}: {address}", *more, "Ctrl-C ends it.", sep="\n", flush=True)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    reason = error.strerror or error
    return ConfigError(
        f"--host and --port must be an address of this machine and a free port, but {host}:{port} cannot be listened on "
        f"({reason}): give another, or --port 0 for a free one"
    )


@contextmanager
def _followed(files: Files, name: str) -> Iterator[Path]:
    """A folder that holds a file or folder of the study: the study's own, or a copy that follows it for the time of a block."""
    if files.folder is not None:
        yield files.folder
        return
    has_ended = threading.Event()

    def follow(folder: Path) -> None:
        while not has_ended.wait(_FOLLOW_SECONDS):
            try:
                _copy(files, name, folder)
            except OSError as error:
                log.warning("%s does not answer, and is asked again: %s", files.uri, without_credentials(str(error)))

    with scratch() as folder:
        _copy(files, name, folder)
        follower = threading.Thread(target=follow, args=(folder,), name="follows an object store")
        follower.start()
        try:
            yield folder
        finally:
            has_ended.set()
            follower.join()


def _copy(files: Files, name: str, folder: Path) -> None:
    """Bring what has changed.

    What was appended is appended here: readers of journals and events go on where they were, in the file that they have open.
    """
    there = {found.name: found.size for found in files.find(name)}
    if files.exists(name):
        there[name] = -1
    for item, size in there.items():
        path = folder / item
        old = path.read_bytes() if path.exists() else b""
        if path.exists() and len(old) == size:
            continue
        try:
            new = files.read(item).to_pybytes()
        except FileNotFoundError:  # gone since
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        is_longer = new.startswith(old)
        with open(path, "ab" if is_longer else "wb") as stream:
            stream.write(new[len(old) :] if is_longer else new)
    for path in (folder / name).rglob("*"):
        if path.is_file() and path.relative_to(folder).as_posix() not in there:
            path.unlink()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each request."""


def _read_only(app: _App) -> _App:
    """optuna-dashboard would delete studies and rename them, of a search that may be running."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return app(environ, start_response)
        status = HTTPStatus.FORBIDDEN
        start_response(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [json.dumps({"reason": "emoreg shows a study's search, and lets nobody change it here."}).encode()]

    return answer


def _find(app: _App, name: str) -> int:
    """The number that optuna-dashboard gives the study."""
    environ: dict[str, Any] = {"PATH_INFO": "/api/studies"}
    wsgiref.util.setup_testing_defaults(environ)
    content = json.loads(b"".join(app(environ, lambda status, headers, error=None: None)))
    for summary in content.get("study_summaries", ()):
        if summary["study_name"] == name:
            return int(summary["study_id"])
    reason = content.get("reason", "it holds no study of this name")
    raise StorageError(
        f"a study's search must be in Optuna's history, but {name!r} cannot be read there ({reason}): run the study again, "
        "which mends its history from the records"
    )


def _journal(folder: Path, files: Files) -> str:
    path = folder / "optuna.journal"
    if not path.is_file():
        raise StorageError(
            f"a study's search must be in Optuna's history, but there is no optuna.journal in {files.uri!r}: run the study "
            "again, which begins it anew from the records"
        )
    return str(path.resolve())


def _database(written: str) -> str:
    """The URL of a database that answers, of one as ``study.json`` has it: without its password."""
    address = address_of(re.sub(r":\*\*\*(?=@)|(?<=[?&])\w+=\*\*\*&?", "", written))
    shown = address.render_as_string(hide_password=True)
    hint = "check that the server runs; study.json keeps no password: give PostgreSQL's by PGPASSWORD or ~/.pgpass"
    if address.get_backend_name() == "sqlite":
        hint = "a relative path counts from the folder where the study was run: go there"
        if not Path(address.database or "").is_file():
            raise StorageError(f"the study's history is in {shown}, but there is no such file: {hint}")
    engine = sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool)
    try:
        engine.connect().close()
    except (SQLAlchemyError, ImportError) as error:
        raise StorageError(
            f"the study's history is in {shown}, which must answer, but does not ({reason_of(error, address)}): {hint}"
        ) from error
    return address.render_as_string(hide_password=False)
