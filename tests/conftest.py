"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests share few cores with others

# The shapes in the signatures of these modules are checked whenever a test calls them.
install_import_hook(
    [
        "emoreg.backbones",
        "emoreg.imagesets.augmentation",
        "emoreg.imagesets.batches",
        "emoreg.imagesets.imageset",
        "emoreg.imagesets.splits",
        "emoreg.optimization",
        "emoreg.pretrain",
        "emoreg.regulate",
        "emoreg.regulation",
    ],
    "beartype.beartype",
)


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
