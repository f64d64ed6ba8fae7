from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from emoreg.errors import StorageError
from emoreg.storage.files import Files, scratch_folder
from emoreg.storage.locks import FileLocks, exclusive, study_lock
from emoreg.storage.permissions import check_writable

ANN, BEN, GROUP = 54321, 54322, 54320


@pytest.fixture
def lab() -> Iterator[Path]:
    """A folder that its group shares; pytest's own are its user's alone."""
    if os.geteuid() != 0:
        pytest.skip("only root can be several users")
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


@contextmanager
def user(number: int) -> Iterator[None]:
    """Within, this process is another user's, of the group, with the umask that most have."""
    groups, umask = os.getgroups(), os.umask(0o022)
    os.setgroups([GROUP])
    os.setegid(GROUP)
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
        os.umask(umask)


def use(lab: Path) -> None:
    """What a study does with a storage."""
    files = Files(str(lab / "study"))
    with study_lock(files):
        files.write("records/trials.parquet", b"1")
    locks = FileLocks.of(Files(str(lab / "experience")))
    assert locks.try_acquire("a")
    locks.release("a")
    with exclusive(lab / "imagesets" / "digits.lock"), scratch_folder(lab / "imagesets" / "preparing"):
        pass


def test_a_group_that_shares_a_folder_shares_what_is_made_in_it_whatever_the_umask(lab: Path) -> None:
    with user(ANN):
        use(lab)
    with user(BEN):
        use(lab)
    assert {path.stat().st_mode & 0o070 for path in lab.rglob("*") if path.is_dir()} == {0o070}
    assert {path.stat().st_mode & 0o070 for path in lab.rglob("*") if path.is_file()} == {0o060}


def test_a_lock_that_another_user_left_to_himself_is_a_lock_all_the_same(lab: Path) -> None:
    with user(ANN):
        use(lab)
    locks = [*lab.rglob("*.lock")]
    assert locks
    for lock in locks:
        lock.chmod(0o644)
    with user(BEN):
        use(lab)
    assert {lock.stat().st_uid for lock in locks} == {ANN}, "it is the same lock"


def test_what_another_user_keeps_to_himself_is_refused_by_name(lab: Path) -> None:
    with user(ANN):
        (lab / "records").mkdir()
    with user(BEN):
        check_writable(lab)
        check_writable(lab / "not there")
        with pytest.raises(StorageError, match=rf"Ask user {ANN} to run `chmod -R g\+rwX`.*records' .* user {BEN} cannot"):
            check_writable(lab / "records")


@pytest.mark.parametrize("mode", [0o755, 0o1777])  # a user's own folder; everybody's, as /tmp is
def test_nothing_is_shared_that_was_not(mode: int, lab: Path) -> None:
    lab.chmod(mode)
    os.chown(lab, ANN, GROUP)
    with user(ANN):
        use(lab)
    assert not [path for path in lab.rglob("*") if path.stat().st_mode & 0o022]
