"""A small number of seeded faults: a study ends as if undisturbed. ``python -m tests.faults`` tries many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.__main__ import main, row, run
from tests.faults.harness import FAULTS, Ground, Tally, total

SEED = 20261129
QUICK = ("flipped in",)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"), kills=1, flips=8)


def tried(ground: Ground, only: str) -> Iterator[Tally]:
    for name, tally in run(ground, SEED, only=only):
        print(row(name, tally))
        assert not tally.notes, (name, tally.notes)
        assert tally.is_clean, (name, tally)
        yield tally


@pytest.mark.slow
@pytest.mark.parametrize("only", QUICK)
def test_a_few_quick_faults_leave_a_study_as_it_is(only: str, ground: Ground) -> None:
    assert total(tried(ground, only)).tried >= ground.kills


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAULTS if not any(words in name for words in QUICK)])
def test_a_fault_leaves_a_study_as_it_is(name: str, ground: Ground) -> None:
    (tally,) = tried(ground, name)
    assert tally.tried or tally.answers, "it was not even left out"


def test_what_was_tried_becomes_a_row() -> None:
    first = Tally(tried=1200, lost=1, silence=2.0)
    first.answers["refused"] += 3
    second = Tally(tried=34, silence=4.04)
    assert row("a fault", total((first, second))) == "| a fault | 1,234 | 1 | 0 | 0 | 0 | 0 | 4.0 | refused 3 |"
    assert not first.is_clean
    assert second.is_clean


def test_a_fault_that_nobody_knows_is_tried_by_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(only="no such fault") == 0
    assert "| in all | 0 |" in capsys.readouterr().out
