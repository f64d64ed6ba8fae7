"""What a user registers in a file travels to a process that has neither the file nor its folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from emoreg.config.registry import CONTROLS
from emoreg.config.resolved import resolve_trial
from emoreg.errors import ConfigError
from emoreg.study_file import read_study_file
from emoreg.tuning.user_code import UserCode, code_fingerprints

HELPER = "def doubled(number):\n    return 2 * number\n"
STUDY = """
import dataclasses
import emoreg
from my_helper_of_user_code import doubled

@emoreg.control("seeded twice", description="the seed is fixed")
def seeded(trial):
    return dataclasses.replace(trial, drop_path=doubled(0.1))

def study():
    return emoreg.Study(
        "mine", trial=emoreg.TrialConfig(backbone="test_vit"), num_trials=NUM_TRIALS,
        search_space={"regulation.balance": emoreg.Float(0.0, 1.0)}, controls=("seeded twice",),
    )
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_helper_of_user_code.py").write_text(HELPER)
    (tmp_path / "mine.py").write_text(STUDY.replace("NUM_TRIALS", "1"))
    return tmp_path


@pytest.mark.slow
def test_a_registered_entry_works_in_a_process_that_has_not_its_file(folder: Path) -> None:
    config = read_study_file(str(folder / "mine.py")).config
    assert "seeded twice" in CONTROLS.user_names()
    (folder / "code").write_bytes(UserCode.collect().pickled)
    for path in folder.glob("*.py"):
        path.unlink()
    script = (
        "import sys; from emoreg.tuning.user_code import UserCode; from emoreg.config import TrialConfig;"
        "from emoreg.config.resolved import resolve_trial;"
        "UserCode(open(sys.argv[1], 'rb').read(), '.').restore();"
        "print(resolve_trial(TrialConfig(backbone='test_vit', control='seeded twice')).config.drop_path)"
    )
    there = subprocess.run([sys.executable, "-c", script, str(folder / "code")], capture_output=True, text=True, check=False)
    assert there.stdout == "0.2\n", there.stderr
    (control,) = [trial for trial in config.control_trials() if trial.control == "seeded twice"]
    assert resolve_trial(control).config.drop_path == 0.2


def test_code_counts_by_what_it_says_and_the_study_around_it_does_not(folder: Path) -> None:
    def fingerprints() -> dict[str, str]:
        return code_fingerprints(read_study_file(str(folder / "mine.py")).config)

    first = fingerprints()
    assert first.keys() == {"control seeded twice"}
    (folder / "mine.py").write_text("# a comment\n" + STUDY.replace("NUM_TRIALS", "99"))
    assert fingerprints() == first
    (folder / "mine.py").write_text(STUDY.replace("NUM_TRIALS", "1").replace("0.1", "0.2"))
    assert fingerprints() != first


def test_what_cannot_travel_is_refused_by_name(folder: Path) -> None:
    text = "import threading\nLOCK = threading.Lock()\n" + STUDY.replace(
        "    return dataclasses", "    with LOCK:\n        return dataclasses"
    )
    (folder / "mine.py").write_text(text.replace("NUM_TRIALS", "1"))
    read_study_file(str(folder / "mine.py"))
    with pytest.raises(ConfigError, match=r"Make what cannot be pickled .* the code of control 'seeded twice' must travel"):
        UserCode.collect()


def test_a_worker_works_where_the_study_was_begun(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """So that relative paths of images and weights lead where they were typed."""
    began, worker = tmp_path / "began", tmp_path / "worker"
    began.mkdir()
    worker.mkdir()
    monkeypatch.chdir(began)
    code = UserCode.collect()
    monkeypatch.chdir(worker)
    code.restore()
    assert Path.cwd() == began
    monkeypatch.chdir(worker)
    began.rmdir()  # as on a machine that does not have it
    code.restore()
    assert Path.cwd() == worker
