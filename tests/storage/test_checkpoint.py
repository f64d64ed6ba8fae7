from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from torch import nn

from emoreg.storage import checkpoint
from emoreg.storage.checkpoint import State, Writer
from emoreg.storage.files import Files
from tests.helpers.waiting import PATIENCE

STATE: dict[str, Any] = {"weights": torch.arange(6.0).reshape(2, 3), "step": 3, "name": "x", "nested": {"list": [1, 2.5, None]}}


def save(path: Path, state: State) -> None:
    checkpoint.save(Files(str(path.parent)), path.name, state)


def load(path: Path, **kwargs: Any) -> State | None:
    return checkpoint.load(Files(str(path.parent)), path.name, **kwargs)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "trial.ckpt"
    save(path, STATE)
    return path


def assert_set_aside(path: Path, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    content = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert load(path) is None
    assert reason in caplog.text
    assert not path.exists()
    assert path.with_name(f"{path.name}.bad").read_bytes() == content
    assert load(path) is None  # and now it is merely absent


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("where", ["folder", "store"])
def test_a_state_comes_back_as_it_was(in_place: bool, where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    files = Files(str(tmp_path) if where == "folder" else request.getfixturevalue("bucket"))
    checkpoint.save(files, "deep/trial.ckpt", STATE)
    state = checkpoint.load(files, "deep/trial.ckpt", in_place=in_place)
    assert state is not None
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {key: value for key, value in STATE.items() if key != "weights"}
    assert [found.name for found in files.find()] == ["deep/trial.ckpt"]


def test_the_trailer_is_in_nobody_s_way(saved: Path) -> None:
    assert torch.load(saved, weights_only=True).keys() == STATE.keys()


def test_what_is_absent_is_none(tmp_path: Path) -> None:
    assert load(tmp_path / "none.ckpt") is None


@pytest.mark.parametrize("broken", ["sync", "rename"])
def test_a_write_that_fails_leaves_the_old_state(saved: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"sync": (os, "fsync"), "rename": (os, "replace")}[broken], full)
    with pytest.raises(OSError, match="No space"):
        save(saved, {"step": 4})
    monkeypatch.undo()
    assert_is_the_old_state(saved)


def assert_is_the_old_state(path: Path) -> None:
    state = load(path)
    assert state is not None
    assert state["step"] == 3
    assert [path.name for path in path.parent.iterdir()] == ["trial.ckpt"]


FULL = """
import resource, signal, sys
from functools import partial
import torch
from emoreg.storage import checkpoint
from emoreg.storage.files import Files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
state = {"weights": torch.zeros(100_000), "step": 4}
folder, _, name = sys.argv[1].rpartition("/")
for way in ("save", "writer"):
    try:
        if way == "save":
            checkpoint.save(Files(folder), name, state)
        else:
            with checkpoint.Writer() as writer:
                writer.submit(partial(checkpoint.save, Files(folder), name), state)
    except OSError as error:
        print(f"{way}: {error.strerror}")
"""


def test_a_full_disk_is_said_by_its_own_error_and_leaves_the_old_state(saved: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", FULL, str(saved)], check=False, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "save: File too large\nwriter: File too large\n"  # a limit of the process stands in for the disk's
    assert_is_the_old_state(saved)


@pytest.mark.parametrize(
    ("kept", "reason"), [(0.0, "beginning is lost"), (0.05, "end is not ours"), (0.999, "end is not ours")]
)
def test_a_torn_file_is_set_aside(saved: Path, caplog: pytest.LogCaptureFixture, kept: float, reason: str) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * kept)])
    assert_set_aside(saved, reason, caplog)


def test_a_file_that_lost_its_middle_is_set_aside(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[:500] + content[600:])
    assert_set_aside(saved, "it is torn", caplog)


@pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_noticed(saved: Path, caplog: pytest.LogCaptureFixture, where: float) -> None:
    content = bytearray(saved.read_bytes())
    content[int(len(content) * where)] ^= 1
    saved.write_bytes(content)
    assert_set_aside(saved, "checksum", caplog)


def archive(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02}q\x00.", "another program"),
        (b"", "another program"),
        (archive({"step": 3}), "another program"),  # PyTorch's own: nobody knows whether it is whole
    ],
)
def test_a_foreign_file_is_set_aside(saved: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str) -> None:
    saved.write_bytes(content)
    assert_set_aside(saved, reason, caplog)


def with_trailer(body: bytes, version: int = 1) -> bytes:
    size, digest = len(body).to_bytes(8, "little"), xxhash.xxh3_128_digest(body)
    return body + b"emoreg checkpoint" + version.to_bytes(4, "little") + size + digest


def test_another_version_is_set_aside(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved.write_bytes(with_trailer(archive({"step": 3})))
    assert load(saved) == {"step": 3}  # the trailer is right but for its version
    saved.write_bytes(with_trailer(archive({"step": 3}), version=2))
    assert_set_aside(saved, "version 2", caplog)


def test_code_in_a_checkpoint_is_never_run(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    ran = saved.with_name("ran")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    body = archive({"step": Evil()})
    saved.write_bytes(with_trailer(body))
    assert_set_aside(saved, "does not load", caplog)
    saved.write_bytes(with_trailer(body))
    assert load(saved, in_place=True) is None
    assert not ran.exists()
    torch.load(io.BytesIO(body), weights_only=False)
    assert ran.exists()  # it would have run


# Writing in the background


class Gate:
    """A write that ends when it may."""

    def __init__(self) -> None:
        self.started, self.may_end = threading.Event(), threading.Event()
        self.written: list[State] = []

    def write(self, state: State) -> None:
        self.started.set()
        assert self.may_end.wait(PATIENCE)
        self.written.append({**state, "weights": state["weights"].clone()})


def test_what_is_written_is_what_was_handed_over_whatever_happens_to_it_then(tmp_path: Path) -> None:
    gate, weights = Gate(), torch.zeros(3)
    with Writer() as writer:
        writer.submit(gate.write, {"weights": weights, "nested": [{"step": 1}]})
        weights += 1  # before the write has ended, or even begun
        gate.may_end.set()
        writer.flush()
        assert gate.written[0]["weights"].tolist() == [0, 0, 0]
        assert gate.written[0]["nested"] == [{"step": 1}]
        writer.submit(partial(save, tmp_path / "a.ckpt"), {"weights": weights})
        writer.submit(partial(save, tmp_path / "a.ckpt"), {"weights": weights * 2})
    state = load(tmp_path / "a.ckpt")
    assert state is not None
    assert state["weights"].tolist() == [2, 2, 2]


def test_the_next_state_waits_for_the_last(tmp_path: Path) -> None:
    gate = Gate()
    with Writer() as writer:
        writer.submit(gate.write, {"weights": torch.tensor([1.0])})
        assert gate.started.wait(PATIENCE)
        second = threading.Thread(target=writer.submit, args=(gate.write, {"weights": torch.tensor([2.0])}))
        second.start()
        second.join(0.05)
        assert second.is_alive()  # else it would have written over the copy of the first
        gate.may_end.set()
        second.join(PATIENCE)
    assert [state["weights"].item() for state in gate.written] == [1.0, 2.0]


@pytest.mark.parametrize("surfaces", ["flush", "submit", "end"])
def test_an_error_of_a_write_is_raised_by_what_comes_next(tmp_path: Path, surfaces: str) -> None:
    (tmp_path / "file").write_text("no folder")
    writer = Writer()
    writer.submit(partial(save, tmp_path / "file" / "a.ckpt"), STATE)
    following = {
        "flush": writer.flush,
        "submit": lambda: writer.submit(partial(save, tmp_path / "b.ckpt"), STATE),
        "end": lambda: writer.__exit__(None, None, None),
    }
    with pytest.raises(OSError, match="file"):
        following[surfaces]()
    if surfaces != "end":
        with writer:  # said once, and no longer in the way
            writer.submit(partial(save, tmp_path / "a.ckpt"), STATE)
        assert load(tmp_path / "a.ckpt") is not None


def test_a_copy_loads_like_the_original(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 3, 5, 5)).sum().backward()
    optimizer.step()
    with Writer() as writer:
        writer.submit(
            partial(save, tmp_path / "a.ckpt"), {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "sizes": (1, 2)}
        )
    state = load(tmp_path / "a.ckpt")
    assert state is not None
    assert isinstance(state["net"], OrderedDict)
    assert state["net"]._metadata == net.state_dict()._metadata  # versions of the modules, which loading goes by
    assert state["sizes"] == (1, 2)
    assert all(torch.equal(value, state["net"][name]) for name, value in net.state_dict().items())
    other = torch.optim.AdamW(net.parameters())
    other.load_state_dict(state["optimizer"])
    assert torch.equal(other.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize("where", ["folder", "store"])
def test_a_state_of_another_place_is_set_aside(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    files = Files(str(tmp_path) if where == "folder" else request.getfixturevalue("bucket"))
    checkpoint.save(files, "a/4.ckpt", {"epoch": 3, "weights": torch.ones(2)})
    found = checkpoint.load(files, "a/4.ckpt", expected={"epoch": 3})
    assert found is not None
    assert found["weights"].tolist() == [1, 1]
    assert checkpoint.load(files, "a/4.ckpt", expected={"epoch": 4}) is None
    assert [item.name for item in files.find("a")] == ["a/4.ckpt.bad"]


def test_every_flipped_bit_and_every_cut_is_noticed(saved: Path) -> None:
    content = saved.read_bytes()
    for place in range(0, len(content), 11):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        for bad in (bytes(damaged), content[:place]):
            saved.write_bytes(bad)
            assert load(saved) is None
