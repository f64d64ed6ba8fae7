"""Fixtures that several test modules share."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.postgres import PostgreSQL, postgresql_server
from tests.helpers.s3 import S3Server
from tests.helpers.s3 import s3_server as s3_server_process

if TYPE_CHECKING:
    from tests.integration.cluster import Cluster

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests share few cores with others


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """What a test registers, or a study file that it reads, is gone after it, and so is its module, to run anew."""
    from emoreg.config.registry import registries

    names = [(registry, set(registry.user_names())) for registry in registries()]
    yield
    for registry, before in names:
        for name in set(registry.user_names()) - before:
            registry._entries.pop(name, None)
            origin = registry._origins.pop(name, None)
            if getattr(origin, "__module__", "").startswith("studies."):
                sys.modules.pop(origin.__module__, None)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """For tests of what sets how many threads torch has."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage whose image sets are shared by all tests, each being prepared by the first that loads it."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "imagesets").mkdir()
    return folder


@pytest.fixture
def storage(prepared: Path, tmp_path: Path) -> Path:
    """A storage of the test's own, with the shared image sets and no experience."""
    folder = tmp_path / "storage"
    folder.mkdir()
    (folder / "imagesets").symlink_to(prepared / "imagesets")
    return folder


@pytest.fixture(scope="module")
def ray_local() -> Iterator[None]:
    """A Ray of two CPUs on this machine; Tune writes no files of its own loggers and takes results without the metric."""
    import ray

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        patch.setenv("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """A Ray cluster with a token: a head with a dashboard and a second node, a CPU each. Tests leave it as it was."""
    from tests.integration.cluster import cluster_of  # which imports Ray

    with cluster_of("", "", has_dashboard=True) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def object_store() -> Iterator[S3Server]:
    """A real S3 endpoint."""
    with s3_server_process() as server:
        yield server


@pytest.fixture
def s3_server(object_store: S3Server) -> str:
    """The address of a real S3 endpoint."""
    return object_store.address


@pytest.fixture
def bucket(object_store: S3Server) -> str:
    """The URI of an empty folder in S3."""
    return object_store.bucket()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A real PostgreSQL server."""
    with postgresql_server() as server:
        yield server


@pytest.fixture
def database(postgresql: PostgreSQL) -> str:
    """The URL of an empty database, with a password in it (which this server does not ask for)."""
    return postgresql.create(f"emoreg_{secrets.token_hex(4)}")
