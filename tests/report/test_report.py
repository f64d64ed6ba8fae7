"""What a report's page says of whole studies, of poor ones and of broken ones, from their records alone."""

from __future__ import annotations

import dataclasses
import errno
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

from emoreg.errors import ConfigError, StorageError
from emoreg.formatting import p_cell
from emoreg.report import ReportWarning, default_folder, figures, images, write_report
from emoreg.report.account import cost_table, provenance
from emoreg.report.answer import gains_table, notes, paper_table, verdicts_of
from emoreg.report.reproduce import replay_command
from emoreg.report.tables import Cell, Table
from emoreg.results.confirmation import UNTUNED
from emoreg.results.ledger import FOLDER, Ledger
from emoreg.results.statistics import estimate
from emoreg.results.study import StudyResults, load_results
from emoreg.results.tables import write_table
from emoreg.storage.files import Files
from tests.helpers.browser import needs_chromium
from tests.helpers.written import TEST_SPLIT, changed_json, made_up_config, write_study

Row = dict[str, Any]
SMALL = made_up_config(num_trials=8)
"""Too few trials for the figures that take seconds to make."""

BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "ray", "torchvision", "timm"):
            raise ModuleNotFoundError(f"{name} must not be imported", name=name)

sys.meta_path.insert(0, Blocked())
from emoreg.report import write_report
write_report([sys.argv[1]], output=sys.argv[2], images=False)
"""


def report(*places: Path | str, output: Path | None = None, price_per_hour: float | None = None) -> Path:
    """The page of a report without images."""
    return write_report(places, output=output, price_per_hour=price_per_hour, images=False)


def cells(table: Table) -> list[list[Cell]]:
    """The rows of a table, whichever group they are in."""
    return [row for _, rows in table.bodies() for row in rows]


def text_of(page: Path) -> str:
    """What a reader sees: without scripts, styles and tags, and with every space alike."""
    content = re.sub(r"<(script|style)\b.*?</\1>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", content)).split()).replace(" :", ":").replace(" .", ".")


@pytest.fixture(scope="module")
def with_confirmation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a study and its confirmation, of which tests have copies."""
    return write_study(tmp_path_factory.mktemp("runs"), SMALL).parent


@pytest.fixture(scope="module")
def without_confirmation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a study that has no confirmation, of which tests have copies."""
    return write_study(tmp_path_factory.mktemp("runs"), SMALL, num_seeds=0).parent


@pytest.fixture
def confirmed(with_confirmation: Path, tmp_path: Path) -> Path:
    """A study that the test may change; its confirmation lies beside it, and its storage is the test's folder."""
    return shutil.copytree(with_confirmation, tmp_path, dirs_exist_ok=True) / SMALL.name


@pytest.fixture
def searched(without_confirmation: Path, tmp_path: Path) -> Path:
    """A study without a confirmation that the test may change; its storage is the test's folder."""
    return shutil.copytree(without_confirmation, tmp_path, dirs_exist_ok=True) / SMALL.name


@pytest.fixture(scope="module")
def study(with_confirmation: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its confirmation, as several tests look at it."""
    return shutil.copytree(with_confirmation, tmp_path_factory.mktemp("reported") / "runs") / SMALL.name


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words that no figure has a part in: figures take most of the time that a page needs."""
    monkeypatch.setattr(figures, "FIGURES", {})


@pytest.fixture(scope="module")
def page(study: Path) -> Path:
    return report(study, price_per_hour=3600.0)


def test_the_answer_comes_first_in_the_words_of_the_verdict(page: Path, study: Path) -> None:
    text = text_of(page)
    for verdict in load_results(study).verdicts.values():
        assert verdict.decision == "helps"
        assert verdict.sentence in text
        assert text.index(verdict.sentence) < text.index("Test accuracy, %")


def test_the_table_has_the_shape_of_the_papers(study: Path) -> None:
    loaded = load_results(study)
    table = paper_table({"made-up": loaded})
    assert table is not None
    assert table.above == [("digits", 2)]
    assert [title for title, _ in table.columns] == ["method", "test_resnet", "test_vit"]
    methods = {row[0].text: row[1:] for row in cells(table)}
    assert list(methods) == [
        "regulation",
        "plain",
        "compute_matched",
        "ensemble",
        "emotional",
        "untrained",
        "shuffled",
        "neutral",
    ]
    assert [cell.is_best for cell in methods["regulation"]] == [True, True]
    assert sum(cell.is_best for cells in methods.values() for cell in cells) == 2
    assert loaded.confirmation is not None
    plain = [
        row.test_accuracy
        for row in loaded.confirmation.trials
        if (row.backbone, row.control) == ("test_vit", "plain") and row.test_accuracy is not None
    ]
    assert methods["plain"][1].text == str(estimate(plain))
    assert {cell.n for cells in methods.values() for cell in cells} == {10}


def test_every_gain_carries_its_interval_its_p_and_its_n(study: Path) -> None:
    loaded = load_results(study)
    table = gains_table(loaded)
    assert table is not None
    compared = [row.comparison for row in loaded.confirmed if row.comparison is not None]
    rows = cells(table)
    assert len(rows) == len(compared) == 14
    for row, comparison in zip(rows, compared, strict=True):
        assert row[2].text == f"{100 * comparison.mean:+.1f}"
        assert comparison.interval is not None
        assert row[3].text.startswith(f"{100 * comparison.interval.low:+.1f} to ")
        assert row[4].text == p_cell(comparison.p_better)
        assert row[6].text.startswith("100.0 [")
        assert row[-1].text == "10"


def test_a_gain_says_which_rung_it_decides(study: Path) -> None:
    table = gains_table(load_results(study))
    assert table is not None
    rungs = {row[0].text: row[1].text for row in cells(table)}
    assert rungs == {
        "plain": "1 of 5",
        "compute_matched": "2 of 5",
        "ensemble": "2 of 5",
        "emotional": "exploratory",
        "untrained": "3 of 5",
        "shuffled": "4 of 5",
        "neutral": "5 of 5",
    }


def test_costs_add_up_to_what_the_records_hold(study: Path) -> None:
    loaded = load_results(study)
    assert loaded.confirmation is not None
    trials = [*loaded.trials, *loaded.confirmation.trials]
    table = cost_table(loaded, 3600.0)
    everything = [cell.text.replace(",", "") for cell in cells(table)[-1]]
    seconds = sum(row.pretraining_seconds + row.regulation_seconds for row in trials)
    pruned = sum(row.pretraining_seconds + row.regulation_seconds for row in trials if row.status == "pruned")
    assert everything[:2] == ["all", str(len(trials))]
    assert float(everything[4]) == pytest.approx(seconds, abs=1)
    assert float(everything[5]) == pytest.approx(pruned, abs=1)
    assert float(everything[8]) == pytest.approx(seconds, abs=0.01)  # 3600 an hour: 1 a second


def test_half_a_gpu_costs_half(searched: Path, tmp_path: Path) -> None:
    whole = cost_table(load_results(searched), 3600.0)
    resources = dataclasses.replace(SMALL.resources, gpus_per_trial=0.5)
    half = cost_table(
        load_results(write_study(tmp_path, dataclasses.replace(SMALL, name="half", resources=resources), num_seeds=0)), 3600.0
    )
    price = [float(cells(table)[-1][-1].text.replace(",", "")) for table in (whole, half)]
    assert price[1] == pytest.approx(price[0] / 2, abs=0.01)


@pytest.mark.usefixtures("without_figures")
def test_no_money_without_a_price(study: Path, tmp_path: Path) -> None:
    report(study, output=tmp_path)
    assert "money" not in text_of(tmp_path / "index.html").lower()


def test_provenance_and_how_to_reproduce(page: Path, study: Path) -> None:
    text = text_of(page)
    for words in (
        "0123456789abcdef0123456789abcdef01234567",
        "torch 2.13.0",
        "ab" * 32,
        "CPU (204 trials)",
        "confirmation 1000 to 1009",
        "(begun 2 times)",
        "emoreg run studies.made_up --num-trials 40",
        f"emoreg report {study}",
        "reconstruction",
    ):
        assert words in text
    loaded = load_results(study)
    assert loaded.confirmation is not None
    for row in (*loaded.best.values(), *loaded.confirmation.trials):
        assert f"emoreg trial studies.made_up --storage runs --name made-up --replay {row.identity}" in text


def test_a_replay_names_the_file_the_storage_and_the_name_that_the_study_was_run_with(searched: Path) -> None:
    study = load_results(searched)
    run = dataclasses.replace(study.runs[0], command="emoreg run mine.py --num-trials 3", storage="/my runs", study="again")
    study = dataclasses.replace(study, runs=(run,))
    assert replay_command(study, "abc") == "emoreg trial mine.py --storage '/my runs' --name again --replay abc"
    study = dataclasses.replace(study, runs=(dataclasses.replace(run, command=None),))
    assert replay_command(study, "abc") == "emoreg trial STUDY --storage '/my runs' --name again --replay abc"
    assert replay_command(dataclasses.replace(study, runs=()), "abc") == "emoreg trial STUDY --replay abc"


def test_the_page_may_ask_for_nothing_and_names_no_address_to_load_from(page: Path) -> None:
    content = page.read_text()
    assert "default-src 'none'" in content
    without_scripts = re.sub(r"<script>.*?</script>", "", content, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", without_scripts)


def test_what_records_say_cannot_become_a_part_of_the_page(searched: Path) -> None:
    evil = "</script><script>document.title = 'taken'</script>"
    change(searched, "trials", lambda rows: [row | {"status": "failed", "message": evil, "backbone": evil} for row in rows])
    report(searched)
    content = (searched / "report" / "index.html").read_text()
    assert "<script>document.title" not in content
    assert html.escape(evil, quote=False).partition("document")[0] in content


def test_it_needs_neither_torch_nor_ray(study: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", BLOCKED, str(study), str(tmp_path)], check=True)
    assert f"test_vit ({UNTUNED}): helps" in text_of(tmp_path / "index.html")


def test_without_the_extra_it_says_how_to_install_it(study: Path, tmp_path: Path) -> None:
    code = BLOCKED.replace('"torch", "ray"', '"plotly", "ray"')
    done = subprocess.run([sys.executable, "-c", code, str(study), str(tmp_path)], capture_output=True, text=True, check=False)
    assert "ConfigError: Install the report extra: pip install 'emoreg[report]'" in done.stderr


def test_two_studies_are_compared(study: Path, tmp_path: Path) -> None:
    other = write_study(tmp_path, dataclasses.replace(SMALL, name="other"), helps=0.0)
    told: list[tuple[str, int, int]] = []
    page = write_report([study, other], images=False, on_progress=lambda *step: told.append(step))
    assert page.parent == study.parent / "made-up+other.report", "a folder of its own: each study's report stays"
    text = text_of(page)
    assert text.index("Verdicts by study") < text.index("The answer")
    assert "made-up: digits other: digits" in text  # over the columns of the one table that has both
    assert f"test_vit ({UNTUNED}): no effect as large as 0.5 points" in text
    assert "Together, 2 of 4 ladders in 2 studies hold a rung, corrected for all of them." in text
    assert "What regulation gains, over all studies" in text
    assert told == [("Making figures", 0, 2), ("Making figures", 1, 2), ("Making figures", 2, 2)]


def test_a_report_of_many_studies_has_a_folder_of_a_name_that_file_systems_take(study: Path) -> None:
    read = load_results(study)

    def named(name: str) -> StudyResults:
        config = dataclasses.replace(read.config, name=name)
        return dataclasses.replace(read, written=dataclasses.replace(read.written, config=config))

    many = [named(f"table-{number:030d}") for number in range(8)]
    folder = default_folder(many)
    assert re.fullmatch(rf"table-{0:030d}\+7-more-[0-9a-f]{{6}}\.report", folder.name)
    assert folder.parent == study.parent
    assert default_folder(many[:7]).name != default_folder([*many[:6], many[7]]).name


@pytest.mark.usefixtures("without_figures")
def test_studies_of_one_name_are_told_apart(study: Path, searched: Path, tmp_path: Path) -> None:
    text = text_of(report(study, searched, output=tmp_path / "both"))
    assert f"made-up ({study})" in text
    assert f"made-up ({searched})" in text


def test_a_study_is_named_once(study: Path) -> None:
    with pytest.raises(ConfigError, match=f"Name each study once in a report: '{study}' is named 2 times"):
        report(study, f"{study}/")


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_drawn(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("emoreg.report.figures.draw_figures", lambda _: pytest.fail("drawn"))
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "report", Path("/proc/report")):
        with pytest.raises(StorageError, match=f"Name another folder with --output: .* but '{folder}' is none"):
            report(study, output=folder)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.usefixtures("without_figures")
def test_a_disk_that_fills_up_is_told_and_the_former_page_stays(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = report(study, output=tmp_path).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match=r"is none \(No space left on device\)"):
        report(study, output=tmp_path)
    assert (tmp_path / "index.html").read_bytes() == former
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_before_a_confirmation_nothing_is_claimed(searched: Path) -> None:
    report(searched)
    text = text_of(searched / "report" / "index.html")
    assert "cannot be told: no confirmation yet. The accuracies below were selected on validation and flatter." in text
    assert "emoreg confirm studies.made_up --num-trials 40 gives the answer" in text
    assert "helps: +" not in text
    assert "Regulation as configured, beside its controls, on validation" in text


def test_a_study_without_a_finished_trial(searched: Path) -> None:
    change(searched, "trials", lambda rows: [row | {"status": "failed", "message": "its worker died"} for row in rows])
    report(searched)
    text = text_of(searched / "report" / "index.html")
    assert "No trial has finished: nothing can be concluded of any configuration, only of what the study cost." in text
    assert "44 of 44 trials failed" in text
    assert "cannot be told" in text


def test_a_study_whose_trials_are_yet_to_end(searched: Path) -> None:
    for path in (searched / "records").iterdir():
        path.unlink()
    report(searched)
    assert "No trial has finished" in text_of(searched / "report" / "index.html")


@pytest.mark.usefixtures("without_figures")
def test_a_single_seed_shows_nothing_however_large_the_gain(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=SMALL.num_trials, control_seeds=(0,)), num_seeds=1)
    report(folder)
    text = text_of(folder / "report" / "index.html")
    assert "test_resnet: cannot be told (n = 1): a verdict takes 3 seeds or more" in text
    assert "The confirmation has 1 seed, which cannot tell: there is neither an interval nor a verdict below 3." in text
    assert "The controls on validation have run on a single seed" in text


@pytest.mark.usefixtures("without_figures")
def test_missing_controls_are_named(confirmed: Path, tmp_path: Path) -> None:

    def is_lost(row: Row) -> bool:
        return (row["control"], row["backbone"]) == ("shuffled", "test_vit")

    change(confirmed, "trials", lambda rows: [row for row in rows if not is_lost(row)])
    failed = {"status": "failed", "message": "its worker died", "test_accuracy": None}
    change(tmp_path / "made-up.confirm", "trials", lambda rows: [row | failed if is_lost(row) else row for row in rows])
    report(confirmed)
    text = text_of(confirmed / "report" / "index.html")
    assert "better than experience without meaning: not tried: shuffled; shuffled failed on 10 of 10 seeds" in text
    assert f"test_resnet ({UNTUNED}): helps" in text
    assert "Controls without a finished trial: shuffled of test_vit." in text
    assert (
        "10 of 160 trials of the confirmation failed and count nowhere; emoreg confirm studies.made_up --seeds 10 runs" in text
    )
    assert "runs them again: shuffled of test_vit (10)." in text
    assert "no verdict given" not in text


def test_an_interrupted_confirmation_claims_nothing(confirmed: Path, tmp_path: Path) -> None:
    change(tmp_path / "made-up.confirm", "trials", lambda rows: [row for row in rows if row["seed"] != 1009])
    text = text_of(report(confirmed))
    assert "test_resnet: cannot be told yet: 144 of 160 planned trials have ended" in text
    assert "16 of 160 trials of the confirmation have not ended: emoreg confirm studies.made_up --seeds 10 runs" in text
    assert "p (t)" not in text, "what may not be concluded from is not tested"
    assert "Test accuracy, %" not in text, "nor shown"
    assert "helps:" not in text


def test_an_interrupted_confirmation_is_not_taken_for_a_smaller_one(confirmed: Path, tmp_path: Path) -> None:
    change(tmp_path / "made-up.confirm", "trials", lambda rows: [row for row in rows if row["seed"] == 1000])
    said = " ".join(notes(load_results(confirmed)))
    assert "144 of 160 trials of the confirmation have not ended" in said
    assert "single seed" not in said
    assert "cannot tell" not in said


def test_regulation_that_diverged_is_no_seed_to_leave_out(confirmed: Path, tmp_path: Path) -> None:
    diverged = {"status": "pruned", "message": "the loss of regulation is not finite at step 3", "test_accuracy": None}

    def change_rows(rows: list[Row]) -> list[Row]:
        found = ("test_vit", "regulated", 1003)
        return [row | diverged if (row["backbone"], row["control"], row["seed"]) == found else row for row in rows]

    change(tmp_path / "made-up.confirm", "trials", change_rows)
    study = load_results(confirmed)
    assert [verdict.decision for verdict in verdicts_of(study)] == ["helps", "cannot be told"]
    assert "regulation diverged on 1 of 10 seeds, which cannot be left out" in verdicts_of(study)[1].sentence
    (note,) = [note for note in notes(study) if "diverged" in note]
    assert note.endswith("diverged, for their loss was not finite, and are not run again: regulation of test_vit (1).")


def test_the_test_set_opened_beside_the_plan_is_told(searched: Path) -> None:
    assert not [note for note in notes(load_results(searched)) if "test set" in note]
    first = load_results(searched).searched[0].identity
    change(searched, "trials", lambda rows: [row | {"test_accuracy": 0.9} if row["identity"] == first else row for row in rows])
    (note,) = [note for note in notes(load_results(searched)) if "test set" in note]
    assert note.startswith(f"The test set was opened outside of a confirmation's plan too, by {first} (20")


def test_provenance_is_that_of_search_and_confirmation(confirmed: Path, tmp_path: Path) -> None:
    with changed_json(tmp_path / "made-up.confirm" / "study.json") as content:
        content["versions"]["torch"], content["git_commit"], content["fingerprints"][0][-1] = "9.9.9", "f" * 40, "99" * 32
        content["code"] = {"control mine": "77" * 32}
    found = dict(provenance(load_results(confirmed)))
    assert "torch 2.13.0 / 9.9.9," in found["Versions"]
    assert "ray 2.60.0," in found["Versions"]
    assert found["Commit of emoreg"].endswith(f" / {'f' * 40}")
    assert found["Fingerprint of digits at 32 pixels"] == f"{'ab' * 32} / {'99' * 32}"
    assert found["Fingerprint of openmoji at 32 pixels"] == "cd" * 32
    assert found["Fingerprint of control mine"] == "77" * 32


def test_a_study_without_any_control(searched: Path) -> None:
    change(searched, "trials", lambda rows: [row for row in rows if row["role"] != "control"])
    assert any("No control has finished" in note for note in notes(load_results(searched)))
    report(searched)


@pytest.mark.parametrize(
    ("name", "lost"), [("epochs", "learning curves and balances"), ("runs", "waiting, restarts and versions")]
)
def test_a_truncated_file_beside_whole_trials(confirmed: Path, name: str, lost: str) -> None:
    truncate(confirmed / "records" / f"{name}.parquet")
    report(confirmed)
    text = text_of(confirmed / "report" / "index.html")
    assert f"Without it nothing is known of {lost}" in text
    assert "accuracies and verdicts stand" in text
    assert f"test_vit ({UNTUNED}): helps" in text


def test_truncated_trials_leave_nothing_to_conclude(searched: Path) -> None:
    (searched / "report").mkdir()
    (searched / "report" / "index.html").write_text("the former one")
    truncate(searched / "records" / "trials.parquet")
    with pytest.raises(StorageError, match="records must be Parquet"):
        report(searched)
    assert (searched / "report" / "index.html").read_text() == "the former one"


@pytest.mark.usefixtures("without_figures")
def test_a_second_opening_is_told(confirmed: Path, tmp_path: Path) -> None:
    with changed_json(tmp_path / "made-up.confirm" / "plan.json") as content:
        content["openings"].insert(0, content["openings"][0] | {"opened": "2025-12-31T10:00:00.000+00:00"})
    report(confirmed)
    text = text_of(confirmed / "report" / "index.html")
    assert "The test set was opened 2 times (2025-12-31, " in text
    assert "test_vit (exploratory: this confirmation opened the test set 2 times; controls at" in text
    assert "it may have been chosen knowing an earlier one's answer" in text


@pytest.mark.usefixtures("without_figures")
def test_a_test_set_that_was_opened_before_makes_a_verdict_exploratory(confirmed: Path, tmp_path: Path) -> None:
    Ledger(str(tmp_path), TEST_SPLIT).add(
        study="old-name", opened="2025-12-31T10:00", command="emoreg confirm mine", configurations=("x",), plan="theirs"
    )
    why = "the test set had been opened by old-name on 2025-12-31 (emoreg confirm mine)"
    text = text_of(report(confirmed))
    assert f"test_vit (exploratory: {why}; {UNTUNED}): helps" in text
    assert f"What is shown is exploratory: {why}." in text


@pytest.mark.usefixtures("without_figures")
def test_without_its_ledger_a_verdict_is_exploratory(confirmed: Path, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / FOLDER)
    assert "test_vit (exploratory: the ledger of the test set lacks this opening, so" in text_of(report(confirmed))


def test_nothing_is_concluded_where_the_plan_of_an_opened_test_set_is_missing(confirmed: Path, tmp_path: Path) -> None:
    (tmp_path / "made-up.confirm" / "plan.json").unlink()
    text = text_of(report(confirmed))
    assert "though its trials have opened the test set: nothing says what was fixed before, so nothing is concluded." in text
    assert "cannot be told: what the confirmation fixed before it opened the test set is missing." in text
    assert ": helps" not in text


def test_a_confirmation_by_itself_reports_what_it_found(confirmed: Path) -> None:
    folder = confirmed.with_name("made-up.confirm")
    assert [verdict.decision for verdict in verdicts_of(load_results(folder))] == ["helps", "helps"]
    report(folder)


@needs_chromium
@pytest.mark.slow
def test_figures_become_images_and_those_of_a_former_report_go(tmp_path: Path) -> None:
    folder = write_study(tmp_path, made_up_config(num_trials=5, controls=()), num_seeds=0)
    figures = folder / "report" / "figures"
    drawn_by(figures, '["former.png"]')
    write_report([folder])
    drawn = json.loads((figures / "drawn.json").read_text())
    assert {path.name for path in figures.iterdir()} == {*drawn, "drawn.json", "mine.png"}
    assert len(drawn) >= 6
    for name in drawn:
        content = (figures / name).read_bytes()
        assert content.startswith(b"\x89PNG" if name.endswith(".png") else b"<svg")


@pytest.mark.usefixtures("without_figures")
def test_a_report_without_images_leaves_none_of_a_former_one(searched: Path) -> None:
    drawn_by(searched / "report" / "figures", '["former.png"]')
    report(searched)
    assert {path.name for path in (searched / "report" / "figures").iterdir()} == {"drawn.json", "mine.png"}


@needs_chromium
@pytest.mark.slow
def test_where_nobody_knows_what_a_former_report_has_drawn_all_of_it_stays(tmp_path: Path) -> None:
    drawn_by(tmp_path, "[")  # cut off by somebody
    images.draw_images({}, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"drawn.json", "mine.png", "former.png"}
    assert (tmp_path / "drawn.json").read_text() == "[]"


def drawn_by(figures: Path, former: str) -> None:
    figures.mkdir(parents=True, exist_ok=True)
    (figures / "drawn.json").write_text(former)
    for name in ("former.png", "mine.png"):
        (figures / name).write_text("")


@pytest.mark.slow
def test_without_a_browser_the_page_is_written_all_the_same(searched: Path, tmp_path: Path) -> None:
    code = "import sys; from emoreg.report import write_report; print(write_report([sys.argv[1]]))"
    environment = {
        "PATH": "/nowhere",
        "HOME": str(tmp_path),
        "BROWSER_PATH": "/nowhere/chrome",
        "PYTHONPATH": ":".join(sys.path),
    }
    done = subprocess.run(
        [sys.executable, "-c", code, str(searched)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout == f"{searched / 'report' / 'index.html'}\n"
    assert "Install Chrome or Chromium for PNG and SVG, which are left out: `plotly_get_chrome`" in done.stderr
    assert (searched / "report" / "index.html").exists()


def test_a_browser_that_hangs_is_ended_and_the_page_is_written_all_the_same(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/process\nexec sleep 1000\n")
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    clock = SimpleNamespace(monotonic=lambda: 100.0 * (tmp_path / "process").exists())  # once the browser runs
    monkeypatch.setattr(images, "time", clock)
    with pytest.warns(ReportWarning, match=r"or give --no-images: .* drew nothing for 60 seconds, and was ended"):
        page = write_report([searched])
    assert "Regulation" in page.read_text()
    status = Path("/proc") / (tmp_path / "process").read_text().strip() / "status"
    assert not status.exists() or "State:\tZ" in status.read_text(), "the browser runs on"


def change(folder: Path, name: str, changed: Callable[[list[Row]], list[Row]]) -> None:
    """Write a table of a study's records anew, from its rows as dicts."""
    path = folder / "records" / f"{name}.parquet"
    table = pq.read_table(path)
    write_table(path, table.from_pylist(changed(table.to_pylist()), schema=table.schema))


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.usefixtures("without_figures")
def test_a_study_in_an_object_store(searched: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(bucket)
    for path in searched.rglob("*.*"):
        if path.is_file():
            files.write(path.relative_to(searched).as_posix(), path.read_bytes())
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    page = report(bucket)
    assert page == Path("report/made-up/index.html")
    assert "secret" not in page.read_text()
