from __future__ import annotations

import hashlib
import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from emoreg import checkpoint

STATE: dict[str, Any] = {"weights": torch.arange(6.0).reshape(2, 3), "step": 3, "name": "x", "nested": {"list": [1, 2.5, None]}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "deep" / "trial.ckpt"
    checkpoint.save(path, STATE)
    return path


def assert_set_aside(path: Path, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    content = path.read_bytes()
    with caplog.at_level(logging.WARNING):
        assert checkpoint.load(path) is None
    assert reason in caplog.text
    assert not path.exists()
    assert path.with_name(f"{path.name}.bad").read_bytes() == content
    assert checkpoint.load(path) is None  # and now it is merely absent


def test_a_state_comes_back_as_it_was(saved: Path) -> None:
    state = checkpoint.load(saved)
    assert state is not None
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {key: value for key, value in STATE.items() if key != "weights"}
    assert [path.name for path in saved.parent.iterdir()] == ["trial.ckpt"]


def test_what_is_absent_is_none(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path / "none.ckpt") is None


@pytest.mark.parametrize("broken", ["write", "sync", "rename"])
def test_a_write_that_fails_leaves_the_old_state(saved: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    where = {"write": (json, "dumps"), "sync": (os, "fsync"), "rename": (os, "replace")}
    monkeypatch.setattr(*where[broken], full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(saved, {"step": 4})
    monkeypatch.undo()
    state = checkpoint.load(saved)
    assert state is not None
    assert state["step"] == 3
    assert [path.name for path in saved.parent.iterdir()] == ["trial.ckpt"]


@pytest.mark.parametrize("kept", [0.0, 0.05, 0.5, 0.999])
def test_a_torn_file_is_set_aside(saved: Path, caplog: pytest.LogCaptureFixture, kept: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * kept)])
    assert_set_aside(saved, "torn" if kept > 0.1 else "", caplog)


def test_a_flipped_bit_is_noticed(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = bytearray(saved.read_bytes())
    content[len(content) // 2] ^= 1
    saved.write_bytes(content)
    assert_set_aside(saved, "checksum", caplog)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80\x02}q\x00.", "no header"),
        (b'"a string"\n', "another program"),
        (b'{"format": "theirs"}\n', "another program"),
        (b"\xff\xfe\n\n", "no header"),
    ],
)
def test_a_foreign_file_is_set_aside(saved: Path, caplog: pytest.LogCaptureFixture, content: bytes, reason: str) -> None:
    saved.write_bytes(content)
    assert_set_aside(saved, reason, caplog)


def with_header(body: bytes, version: int = 1) -> bytes:
    digest = hashlib.sha256(body).hexdigest()
    header = {"format": "emoreg checkpoint", "version": version, "sha256": digest, "bytes": len(body)}
    return json.dumps(header).encode() + b"\n" + body


def test_another_version_is_set_aside(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = saved.read_bytes().split(b"\n", 1)[1]
    saved.write_bytes(with_header(body))
    assert checkpoint.load(saved) is not None  # the header is right but for its version
    saved.write_bytes(with_header(body, version=2))
    assert_set_aside(saved, "version 2", caplog)


def test_code_in_a_checkpoint_is_never_run(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    ran = saved.with_name("ran")

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (ran,))

    buffer = io.BytesIO()
    torch.save({"step": Evil()}, buffer)
    saved.write_bytes(with_header(buffer.getvalue()))
    assert_set_aside(saved, "does not load", caplog)
    assert not ran.exists()
    torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert ran.exists()  # it would have run
