"""``emoreg tensorboard`` and ``emoreg dashboard``: a study in a browser, on this machine alone by default."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from emoreg.cli.options import WrittenCommand, reading
from emoreg.config import StudyConfig
from emoreg.errors import ConfigError, StorageError
from emoreg.results.written import read_written
from emoreg.storage.files import Files
from emoreg.storage.retry import Patience
from emoreg.storage.working_copy import WorkingCopy
from emoreg.study_file import find_study

FOLLOW_SECONDS = 60.0
"""How often an object store is asked for what came since."""


@dataclass(frozen=True, kw_only=True)
class _Viewer(WrittenCommand):
    """A program that shows a study."""

    host: str = "127.0.0.1"
    """Address to listen on: this machine alone, unless you say otherwise."""
    port: int
    """Port to listen on; 0 takes a free one."""

    def _serve(self, shown: str, command: Callable[[StudyConfig, Path], list[str]], note: str) -> int:
        """Run a command on a file or folder of the study until Ctrl-C; the exit code."""
        with reading():
            files = Files(find_study(self.study, self.storage), patience=Patience())
            config = read_written(files).config
        with WorkingCopy(files) as copy, tempfile.TemporaryFile() as output:
            sizes: dict[str, int] = {}
            _follow(copy, shown, sizes)
            program, *arguments = command(config, copy.folder)
            path = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
            if path is None:
                raise ConfigError(f"Install {program}, which shows this: pip install -e '.[cluster]'")
            port = self._free_port()
            url = f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{port}/"
            copied = "This is a copy, which follows the study every minute.\n" if copy.is_remote else ""
            print(f"study {config.name!r}: {url}\n{note.format(url=url)}\n{copied}Ctrl-C ends it.", flush=True)
            started = [path, *arguments, "--host", self.host, "--port", str(port)]
            with subprocess.Popen(started, stdout=output, stderr=subprocess.STDOUT) as process:
                try:
                    while process.poll() is None:
                        with suppress(subprocess.TimeoutExpired):
                            process.wait(FOLLOW_SECONDS)
                        _follow(copy, shown, sizes)
                except KeyboardInterrupt:
                    return 0
                finally:
                    process.terminate()
            output.seek(0)
            print(output.read().decode(errors="replace"), end="", file=sys.stderr)
            return process.returncode

    def _free_port(self) -> int:
        try:
            family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
            with socket.create_server((self.host, self.port), family=family) as free:
                return int(free.getsockname()[1])
        except OSError as error:
            raise ConfigError(
                f"Give --host an address of this machine and --port a free port, or 0 for any: {self.host}:{self.port} cannot "
                f"be listened on ({error.strerror or error})"
            ) from error


@dataclass(frozen=True, kw_only=True)
class TensorBoard(_Viewer):
    """Look at a study's trials in TensorBoard, also while it runs, until Ctrl-C."""

    port: int = 6006

    def __call__(self) -> int:
        """Serve; the exit code."""
        # Of more than 40 runs TensorBoard shows none until some are ticked.
        note = "The study as a whole: {url}#custom_scalars&regexInput=%5Estudy&_smoothingWeight=0"
        return self._serve("events", _tensorboard, note)


@dataclass(frozen=True, kw_only=True)
class Dashboard(_Viewer):
    """Look at a study's search in optuna-dashboard, also while it runs, until Ctrl-C."""

    port: int = 8080

    def __call__(self) -> int:
        """Serve; the exit code."""
        return self._serve("optuna.journal", _dashboard, "What you change there is changed in the study's history.")


def _tensorboard(config: StudyConfig, folder: Path) -> list[str]:
    return ["tensorboard", f"--logdir={folder / 'events'}", f"--window_title={config.name}", "--reload_interval=5"]


def _dashboard(config: StudyConfig, folder: Path) -> list[str]:
    """With the path of the history, or its URL, in which ``study.json`` has no password."""
    if config.optuna_storage is None:
        journal = folder / "optuna.journal"
        if not journal.is_file():
            raise StorageError(
                f"Run {config.name!r} again, which writes its history from the records: it has no optuna.journal"
            )
        return ["optuna-dashboard", str(journal.resolve())]
    import sqlalchemy

    from emoreg.tuning.postgres import address_of, reason_of, without_password

    address = address_of(re.sub(r":\*\*\*(?=@)|(?<=[?&])\w+=\*\*\*&?", "", config.optuna_storage))
    shown = without_password(address)
    if address.get_backend_name() == "sqlite" and not Path(address.database or "").is_file():
        raise StorageError(f"Go to the folder where {config.name!r} was run: its history is in {shown}, which is not there")
    try:
        sqlalchemy.create_engine(address, poolclass=sqlalchemy.NullPool).connect().close()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError) as error:
        raise StorageError(
            f"Start the database of the study's history, and give its password by PGPASSWORD or ~/.pgpass: {shown} must "
            f"answer, but does not ({reason_of(error, address)})"
        ) from error
    return ["optuna-dashboard", str(address)]


def _follow(copy: WorkingCopy, name: str, sizes: dict[str, int]) -> None:
    """Bring what an object store has of a file or folder; ``sizes`` knows what was brought before.

    What was appended is appended to the copy: readers of journals and events go on in the files that they have open.
    """
    for found in [*copy.files.find(deep=False), *copy.files.find("events")] if copy.is_remote else ():
        size, path = sizes.get(found.name, 0), copy.folder / found.name
        if found.name.startswith(name) and found.size != size:
            with suppress(FileNotFoundError):  # gone meanwhile
                content = copy.files.read(found.name).to_pybytes()
                is_longer = size > 0 and content.startswith(path.read_bytes()[:size])
                path.parent.mkdir(parents=True, exist_ok=True)
                with open(path, "ab" if is_longer else "wb") as stream:
                    stream.write(content[size:] if is_longer else content)
                sizes[found.name] = len(content)
