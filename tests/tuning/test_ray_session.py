from __future__ import annotations

import os
import socket

import pytest
import ray

from emoreg.errors import ConfigError
from emoreg.tuning.private_ray import environment
from emoreg.tuning.ray_session import ray_session


def test_variables_are_set_for_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMOREG_OLD", "before")
    monkeypatch.delenv("EMOREG_NEW", raising=False)
    with environment({"EMOREG_OLD": "within", "EMOREG_NEW": "within"}):
        assert (os.environ["EMOREG_OLD"], os.environ["EMOREG_NEW"]) == ("within", "within")
    assert os.environ["EMOREG_OLD"] == "before"
    assert "EMOREG_NEW" not in os.environ


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://127.0.0.1:8265", r"From outside a cluster, use `emoreg submit`: --address must be HOST:PORT"),
        ("ray://127.0.0.1:10001", r"From outside a cluster, use `emoreg submit`"),
        ("127.0.0.1:1", r"or leave --address out: .*'127\.0\.0\.1:1' does not answer \(.*refused\)"),
        ("nonsense", r"'nonsense' does not answer"),
        ("host:99999", r"'host:99999' does not answer"),
    ],
)
def test_an_address_of_no_cluster_is_refused_at_once(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message), ray_session(address, {}):
        pass


def test_another_server_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emoreg.tuning.ray_session.ANSWER_SECONDS", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ConfigError, match=rf"{address}' does not answer \(no Ray is there\)"), ray_session(address, {}):
            pass


def test_a_process_that_uses_a_ray_already_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ConfigError, match=r"Call ray\.shutdown\(\) first"), ray_session(None, {}):
        pass
