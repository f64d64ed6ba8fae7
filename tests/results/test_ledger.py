"""Every opening of a test split is kept, for all studies of a storage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from emoreg.errors import StorageError
from emoreg.results.ledger import FOLDER, Entry, Ledger, earlier
from emoreg.results.plan import Chosen, Opening
from emoreg.storage.files import Files
from emoreg.storage.sealed import digest, seal, unseal
from emoreg.storage.working_copy import join

TEST_SPLIT = "7e57" * 8
CHOSEN = Chosen(identity="abc", backbone="test_resnet", rank=1, val_accuracy=0.5, params={})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path), TEST_SPLIT)


def opened(ledger: Ledger, study: str, day: int, *, configuration: str = "abc", plan: str | None = None) -> None:
    ledger.add(
        study=study,
        opened=f"2026-11-{day:02}T10:00:00.000+00:00",
        command=f"emoreg confirm {study}",
        configurations=(configuration,),
        plan=plan,
    )


def files_of(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / FOLDER / TEST_SPLIT).iterdir())


def test_openings_are_kept_in_their_order(ledger: Ledger, tmp_path: Path) -> None:
    assert ledger.entries() == []
    for day, study in enumerate(("mine", "other", "third"), 1):
        opened(ledger, study, day)
    entries = Ledger(str(tmp_path), TEST_SPLIT).entries()
    assert [(entry.study, entry.opened[:10]) for entry in entries] == [
        ("mine", "2026-11-01"),
        ("other", "2026-11-02"),
        ("third", "2026-11-03"),
    ]
    assert str(entries[0]) == "mine on 2026-11-01 (emoreg confirm mine)"
    assert [path.name[:6] for path in files_of(tmp_path)] == ["000001", "000002", "000003"]


def test_an_opening_is_written_down_once(ledger: Ledger) -> None:
    for _ in range(2):  # a confirmation that goes on
        opened(ledger, "mine", 1, plan="p")
    opened(ledger, "mine", 2, plan="another")
    assert [entry.plan for entry in ledger.entries()] == ["p", "another"]


def test_an_object_store_keeps_them_too(bucket: str) -> None:
    ledger = Ledger(bucket, TEST_SPLIT)
    for day in (1, 2):
        opened(ledger, f"study{day}", day)
    assert [entry.study for entry in ledger.entries()] == ["study1", "study2"]
    assert len(Files(join(bucket, FOLDER)).find()) == 2


def test_another_test_split_has_its_own(ledger: Ledger, tmp_path: Path) -> None:
    opened(ledger, "mine", 1)
    assert Ledger(str(tmp_path), "ab" * 16).entries() == []


def test_one_that_was_taken_out_is_missed(ledger: Ledger, tmp_path: Path) -> None:
    for day in (1, 2, 3):
        opened(ledger, f"study{day}", day)
    for taken in (0, 1):
        content = files_of(tmp_path)[taken].read_bytes()
        path = files_of(tmp_path)[taken]
        path.unlink()
        with pytest.raises(
            StorageError, match=r"Restore .* from a copy: .* but the opening before 00000\d-\w+\.json is missing"
        ):
            ledger.entries()
        with pytest.raises(StorageError, match="is missing"):
            opened(ledger, "more", 4)
        path.write_bytes(content)
    assert len(ledger.entries()) == 3


def test_one_that_was_changed_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    opened(ledger, "mine", 1)
    (path,) = files_of(tmp_path)
    content = unseal(path.read_bytes()) | {"study": "another"}
    path.write_bytes(seal(content))
    with pytest.raises(StorageError, match="holds another opening than its name says"):
        ledger.entries()
    path.write_bytes(b"{}")
    with pytest.raises(StorageError, match="cannot be read"):
        ledger.entries()


def test_two_openings_of_the_same_moment_follow_the_same_one(ledger: Ledger, tmp_path: Path) -> None:
    opened(ledger, "first", 1)
    opened(ledger, "left", 2)
    left = ledger.entries()[-1]
    right = dataclasses.asdict(dataclasses.replace(left, study="right")) | {"configurations": ["abc"]}
    (tmp_path / FOLDER / TEST_SPLIT / f"000002-{digest(right)}.json").write_bytes(seal(right))
    opened(ledger, "third", 3)
    assert {entry.study for entry in ledger.entries()} == {"first", "left", "right", "third"}


def entry(study: str, day: int, *, configuration: str = "other", plan: str | None = "theirs") -> Entry:
    return Entry(study=study, opened=f"2026-11-{day:02}T10", command=None, configurations=(configuration,), plan=plan)


OPENING = Opening(
    opened="2026-11-20T10", chosen=(CHOSEN,), trials=(), searched_until="2026-11-10T10", test_splits=(TEST_SPLIT,)
)


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        (entry("other", 5), True),
        (entry("other", 15), False),
        (entry("other", 15, configuration="abc"), True),
        (entry("other", 25, configuration="abc"), False),
        (entry("mine", 15, plan=None), True),
        (entry("mine", 20, plan="its own"), False),
    ],
    ids=[
        "another study's, while this one searched",
        "another study's, after this one had chosen",
        "of the same configuration under another name",
        "a later one",
        "a trial's of this study",
        "its own",
    ],
)
def test_what_the_choice_may_have_known_counts(found: Entry, counts: bool) -> None:
    assert earlier([found], OPENING, "mine") == [found] * counts
