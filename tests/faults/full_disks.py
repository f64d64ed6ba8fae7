"""Disks that become full, and read-only, under a study."""

from __future__ import annotations

import signal
from pathlib import Path
from random import Random

from tests.faults.harness import Ground, Tally, fault
from tests.faults.study import NAME
from tests.helpers.disks import need_mounts, read_only, small_disk

_AMPLE_MB = 250


@fault("a full disk")
def full_disk(ground: Ground, chance: Random) -> Tally:
    with small_disk(ground.new_folder("disk"), _AMPLE_MB) as disk, ground.study(str(disk.folder)) as study:
        driver = study.start()
        study.comes_to(chance.randrange(1, 6))
        disk.fill()
        code = study.ended(driver)
        _expect_words(study.tally, code, driver.output, "the disk is full")
        disk.grow(2 * _AMPLE_MB)
        return study.finish()


@fault("a disk that becomes read-only")
def read_only_disk(ground: Ground, chance: Random) -> Tally:
    need_mounts(ground.new_folder("disk"))
    with ground.study() as study:
        driver = study.start()
        records = Path(study.storage) / NAME / "records"
        study.comes_to(chance.randrange(1, 6))
        with read_only(records, driver.wait_for):
            code = study.ended(driver)
            _expect_words(study.tally, code, driver.output, "it is read-only")
        return study.finish()


def _expect_words(tally: Tally, code: int, output: str, words: str) -> None:
    tally.tried = 1
    if code not in (2, -signal.SIGKILL) or words not in output:
        tally.silent += 1
        tally.notes.append(f"exit {code} without the words {words!r}: {output}")
