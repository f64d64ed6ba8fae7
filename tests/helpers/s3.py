"""A real S3 endpoint: moto's server, in a process of its own."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class S3Server:
    """A server that listens on loopback.

    Attributes:
        address: HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def bucket(self) -> str:
        """The URI of an empty folder."""
        from pyarrow import fs

        s3 = fs.S3FileSystem(
            access_key="key", secret_key="secret", endpoint_override=self.address, scheme="http", allow_bucket_creation=True
        )
        s3.create_dir("emoreg")
        folder = f"emoreg/store{secrets.token_hex(4)}"
        return f"s3://key:secret@{folder}?endpoint_override={self.address}&scheme=http&region=us-east-1"


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server for the time of a block."""
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        said = ""
        while not (address := re.search(r"http://(127\.0\.0\.1:\d+)", said)):
            line = server.stderr.readline()
            assert line, said
            said += line
        rest = threading.Thread(target=server.stderr.read)  # a full pipe would hold it up
        rest.start()
        try:
            yield S3Server(address[1])
        finally:
            server.terminate()
            rest.join()
