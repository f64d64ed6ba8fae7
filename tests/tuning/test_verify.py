"""What of a study's stored files is whole, and what is not."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import pytest
import torch
from rich.console import Console

from emoreg.cli.look import print_verified
from emoreg.cli.trial import run_one
from emoreg.results.ledger import FOLDER
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join
from emoreg.tuning.images import prepare_image_sets
from emoreg.tuning.manifest import write_manifest
from emoreg.tuning.optuna_study import open_study
from emoreg.tuning.verify import verify
from tests.helpers.studies import tiny_study
from tests.helpers.trials import CPU
from tests.helpers.written import TEST_SPLIT, made_up_config, write_study

KINDS = {"study.json": 1, "Optuna's journal": 1, "records": 3, "checkpoints": 1, "predictions": 1, "image sets": 1}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one trial, in a storage of its own. Whoever damages a file of it mends it again."""
    storage = tmp_path_factory.mktemp("verified") / "runs"
    config = tiny_study(storage=str(storage))
    before = torch.get_num_threads()
    assert run_one(config, "validation", CPU, Console(file=io.StringIO())) == 0
    torch.set_num_threads(before)
    folder = storage / config.name
    write_manifest(config, folder, prepare_image_sets(config))
    open_study(config, folder)
    return folder


def test_every_stored_file_is_found_whole_or_named(study: Path, bucket: str) -> None:
    found = list(verify(str(study)))
    assert [item for item in found if item.problem] == []
    counts = Counter(item.kind for item in found)
    assert counts.pop("experiences") >= 3, "a snapshot, who made it, who used it"
    assert counts == KINDS
    for item in found:
        outside = item.name.startswith(("experience/", "imagesets/"))
        path = (study.parent if outside else study) / item.name
        whole = path.read_bytes()
        path.write_bytes(whole[:-5])
        assert [(other.name, bool(other.problem)) for other in verify(str(study)) if other.problem] == [(item.name, True)]
        path.write_bytes(whole)

    there = Files(bucket)
    for path in study.parent.rglob("*"):
        if path.is_file():
            there.write(path.relative_to(study.parent).as_posix(), path.read_bytes())
    assert list(verify(join(bucket, study.name))) == found


def test_what_is_damaged_is_the_exit_code(study: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    assert print_verified(str(study), console) == 0
    (checkpoint,) = study.glob("trials/*/trial.ckpt")
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(b"torn")
    assert print_verified(str(study), console) == 1
    checkpoint.write_bytes(content)
    assert isinstance(console.file, io.StringIO)
    whole, damaged, counts = console.file.getvalue().splitlines()
    assert whole.endswith(", 0 files damaged")
    assert "trial.ckpt: it is another program's file" in damaged
    assert counts.endswith(", 1 file damaged")


def test_the_ledger_of_a_confirmation_s_openings_is_read_too(tmp_path: Path) -> None:
    confirmed = f"{write_study(tmp_path, made_up_config(num_trials=2), num_seeds=3)}.confirm"
    name = f"{FOLDER}/{TEST_SPLIT}"
    assert [item.problem for item in verify(confirmed) if item.name == name] == [None]
    (entry,) = (tmp_path / name).iterdir()
    entry.write_bytes(entry.read_bytes()[:-5])
    (problem,) = [item.problem for item in verify(confirmed) if item.name == name]
    assert problem is not None
    assert entry.name in problem
