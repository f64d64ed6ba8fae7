"""A TCP proxy before a server on this machine, which a test can close: as when the network to it is down."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


class Gate:
    """Passes on what comes to a port of its own, while it is open, as it is at first. A context manager.

    Attributes:
        address: where it listens, or would.
        first_held: when something first waited for an answer in the last ``frozen`` block, by ``time.monotonic``; None where
            nothing has.
    """

    def __init__(self, server: str, answer: Callable[[bytes], bytes] = lambda content: content) -> None:
        """Stand before ``server``, HOST:PORT.

        ``answer`` is given each piece of what the server answers, and gives what is passed on in its place; nothing cuts it.
        """
        self.first_held: float | None = None
        self._flows = threading.Event()
        self._flows.set()
        self._answer = answer
        host, _, port = server.rpartition(":")
        self._server = host, int(port)
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._here = self._listener.getsockname()
        self.address = "{}:{}".format(*self._here)
        self._listen()

    def close(self) -> None:
        """Refuse what comes, and cut what is open."""
        with self._lock:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            for end in self._ends:
                with suppress(OSError):  # its other side was faster
                    end.shutdown(socket.SHUT_RDWR)

    def open(self) -> None:
        """Let everything through again."""
        self._listener = socket.create_server(self._here)
        self._listen()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within, take connections and what comes by them, and pass nothing on."""
        self.first_held = None
        self._flows.clear()
        try:
            yield
        finally:
            self._flows.set()

    def __enter__(self) -> Gate:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _listen(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._server)
                with self._lock:
                    self._ends |= {client, server}
                for source, target, change in ((client, server, bytes), (server, client, self._answer)):
                    threading.Thread(target=self._pass_on, args=(source, target, change), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, change: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while (content := source.recv(2**16)) and (content := change(content)):
                if not self._flows.is_set():
                    self.first_held = self.first_held or time.monotonic()
                    self._flows.wait()
                target.sendall(content)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            if source in self._ends and target in self._ends:  # the first of the two directions
                self._ends -= {source}
            else:
                self._ends -= {target, source}
                source.close()
                target.close()
