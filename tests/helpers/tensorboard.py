"""Event files as TensorBoard's own Python reader has them, and TensorBoard itself, asked over HTTP."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.util import tensor_util

from tests.helpers.waiting import PATIENCE


def read(run: Path) -> EventAccumulator:
    """A run, from all its files."""
    accumulator = EventAccumulator(str(run), tensor_size_guidance={})
    accumulator.Reload()
    return accumulator


def series(run: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values of a scalar."""
    return [(event.step, float(tensor_util.make_ndarray(event.tensor_proto).item())) for event in read(run).Tensors(tag)]


def session_start(run: Path) -> Any:
    """What a trial's run says of it on the HParams page."""
    content = read(run).PluginTagToContent(metadata.PLUGIN_NAME)
    return metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])


def session_end(run: Path) -> Any:
    """How a trial's run says there that it ended; None where it does not."""
    content = read(run).PluginTagToContent(metadata.PLUGIN_NAME).get(metadata.SESSION_END_INFO_TAG)
    return None if content is None else metadata.parse_session_end_info_plugin_data(content)


@contextmanager
def seconds_apart() -> Iterator[None]:
    """Let a second pass between any two looks at the clock: event files are read in the order of the seconds in their names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", map(float, itertools.count(1_800_000_000)).__next__)
        yield


class Server:
    """A TensorBoard that runs."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, **query: str) -> bytes:
        """What it answers."""
        with self._opener.open(f"{self.address}/{path}?{urllib.parse.urlencode(query)}", timeout=PATIENCE) as answer:
            return bytes(answer.read())

    def json(self, path: str, **query: str) -> Any:
        """What it answers, parsed."""
        return json.loads(self.get(path, **query))

    def post(self, path: str, body: Any) -> Any:
        """What it answers to a body."""
        request = urllib.request.Request(
            f"{self.address}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with self._opener.open(request, timeout=PATIENCE) as answer:
            return json.loads(answer.read())

    def scalars(self, run: str, tag: str) -> list[tuple[int, float]]:
        """Steps and values of a scalar."""
        return [(step, value) for _, step, value in self.json("data/plugin/scalars/scalars", run=run, tag=tag)]

    def session_groups(self) -> dict[str, Any]:
        """The rows of the HParams page by run."""
        statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
        body = {"experimentName": "", "allowedStatuses": statuses, "colParams": [], "startIndex": 0, "sliceSize": 100}
        groups = self.post("data/plugin/hparams/session_groups", body).get("sessionGroups", [])
        return {group["name"]: group for group in groups}


def metrics_of(group: Any) -> dict[str, Any]:
    """The metrics of a row of the HParams page."""
    return {value["name"]["tag"]: value["value"] for value in group["metricValues"]}


@contextmanager
def tensorboard(logdir: Path, *options: str) -> Iterator[Server]:
    """TensorBoard on a free port of the loopback. It answers while it still reads."""
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", "0", *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stderr is not None
        printed = ""
        for line in process.stderr:
            printed += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                break
        else:
            pytest.fail(f"TensorBoard did not start: {printed}")
        yield Server(found[0])
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)
