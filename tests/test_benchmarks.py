"""Benchmarks are run by hand: here each is imported, its options are read, and as much of it runs as takes no Ray."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import pkgutil
import re
import runpy
from pathlib import Path
from types import ModuleType

import pytest
import tyro

import emoreg
from emoreg.data import load, parts
from emoreg.tuning.preflight import check_study
from tests import benchmarks
from tests.helpers.written import made_up_config, write_study
from tests.integration.test_faults import Recovery

NAMES = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__))  # not scripts/, which is no package
RESULTS = Path(benchmarks.__path__[0]) / "RESULTS.md"
STUDIES = {
    "cluster_scaling": {"num_nodes": 1, "num_trials": 2, "seconds": 0.0},
    "experience_sharing": {"shared_runs": 2, "slots": 2, "share": True, "images": 40},
    "many_trials": {"at_once": 1, "epochs": 2},
    "overhead": {"num_trials": 2},
    "asha": {"scheduler": "asha", "num_trials": 2},
    "packing": {"cpus": 1, "num_trials": 2},
}


def benchmark(name: str) -> ModuleType:
    return importlib.import_module(f"{benchmarks.__name__}.{name}")


def cells(row: str) -> list[str]:
    """The cells of a row of a table."""
    assert row.startswith("| ")
    return [cell.strip() for cell in row.strip("|").split("|")]


@pytest.mark.parametrize("name", [name for name in NAMES if name != "common"])
def test_every_benchmark_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = benchmark(name)
    assert f"python -m {script.__name__}" in (script.__doc__ or "")
    with pytest.raises(SystemExit) as ended:
        tyro.cli(script.main, args=["--help"])
    assert ended.value.code == 0
    help_text = capsys.readouterr().out
    for option in re.findall(r"--[a-z-]+", script.__doc__ or ""):
        assert option in help_text


def test_the_results_name_benchmarks_and_options_that_are_there() -> None:
    lines = re.findall(r"python -m tests\.benchmarks\.(\w+)(.*)", RESULTS.read_text())
    assert {name for name, _ in lines} == {*NAMES} - {"common"}
    for name, options in lines:
        only_parsed = functools.wraps(benchmark(name).main)(lambda **settings: None)
        tyro.cli(only_parsed, args=options.split())


@pytest.mark.parametrize("name", STUDIES)
def test_a_benchmark_s_study_can_run(name: str, storage: Path) -> None:
    study = benchmark(name).study(str(storage), **STUDIES[name])
    check_study(study.config)
    if "idle" in study.config.trial.probes:
        outcome = emoreg.run_trial(study.config.trial, storage=str(storage), device="cpu")
        assert outcome.end.value == "completed"
        assert len([*(storage / "begun").iterdir()]) == 1, "its probe has not run"


def test_what_studies_left_becomes_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = emoreg.load_study(write_study(tmp_path, made_up_config(num_trials=8, controls=()), num_seeds=0))
    assert cells(benchmark("cluster_scaling").row(ran, 2, 60.0))[0] == "2"  # a made-up trial begins every 60 s
    assert cells(benchmark("cluster_scaling").row(ran, 1, 60.0)) == ["1", "0.017", "0.017", "1.00"]
    sharing = benchmark("experience_sharing")
    assert cells(sharing.waiting_row(ran.results, 2, 1)) == ["2", "1", "4.5 %"]
    sharing.print_savings([ran.results], [ran.results], shared_runs=4)
    table = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in table] == ["", "sharing off", "sharing on", "", "pre-training", "wall time"]
    assert table[1][1:] == table[2][1:]
    assert table[4][1] == table[5][1] == "1.00"


def test_a_driver_s_results_are_counted() -> None:
    counter = benchmark("many_trials").Counter()
    counter.on_epoch(), counter.on_epoch(), counter.on_end()
    at_once, before, most, results, _, _ = cells(counter.row(2))
    assert (at_once, results) == ("2", "3")
    assert 0 < int(before) <= int(most)


def test_a_recovery_becomes_a_row() -> None:
    recovery = benchmark("recovery")
    rounds = [Recovery(fault="a fault", detected=1.0, recovered=3.0 + more, trials=recovery.NUM_TRIALS) for more in (0, 2)]
    row = cells(recovery.row("a fault", [dataclasses.asdict(found) for found in rounds]))
    assert row == ["a fault", "1.0 (1.0 to 1.0)", "", "3.0 (2.0 to 4.0)", "exact in 2 of 2"]
    assert recovery.FAULTS.is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize(
    ("name", "settings", "num_columns", "num_rows"),
    [
        ("trial_cost", {"epochs": 1}, 3, 3),
        ("store_cost", {"backbone": "test_resnet"}, 3, 5),
        ("reporting", {"epochs": 1, "num_images": 80}, 2, 3),
    ],
)
def test_a_small_run_prints_a_table(
    name: str, settings: dict[str, object], num_columns: int, num_rows: int, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {} if name == "store_cost" else {"storage": str(storage)}
    benchmark(name).main(rounds=1, **settings, **own)
    _heading, *rows = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == num_rows
    assert {len(row) for row in rows} == {num_columns}


def test_a_small_run_of_many_records_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("many_records").main(num_trials=8, rounds=1, commands=("status --json",))
    _heading, (command, seconds, mib) = [cells(line) for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert command == "`emoreg status --json`"
    assert float(seconds) > 0
    assert int(mib) > 0


@pytest.mark.slow
def test_both_sides_of_a_whole_study_read_the_same_files(storage: Path) -> None:
    script = benchmark("study")
    sets = script.embedded(storage)
    plain = runpy.run_path(str(script.PLAIN_STUDY))
    images, labels = plain["read"](sets[1].files[0], plain["NUM_TRAIN"] + plain["NUM_VALIDATION"])
    assert len(images) == len(labels) == 1000
    file = storage / "ours.py"
    file.write_text(script.study_text(*sets))
    config = runpy.run_path(str(file))["study"].config
    load_set = functools.partial(load, image_size=config.trial.image_size, storage=storage)
    assert len(parts(load_set(config.trial.stimuli), config.trial.stimuli)[0]) == plain["NUM_STIMULI"]
    train, held_out = parts(load_set(config.trial.task), config.trial.task)
    assert len(train) == plain["NUM_TRAIN"]
    assert len(held_out) == pytest.approx(plain["NUM_VALIDATION"], abs=5)  # of each class alike
    assert config.trial.regulation.epochs == plain["EPOCHS"]


def test_the_epochs_and_the_best_of_two_schedulers_become_a_table(tmp_path: Path) -> None:
    script = benchmark("asha")
    epochs, best = script.result(
        emoreg.load_study(write_study(tmp_path, made_up_config(num_trials=8, controls=()), num_seeds=0))
    )
    assert epochs > 0
    assert 0 < best <= 1
    _heading, fifo, asha = [
        cells(line) for line in script.table({"none": [(90, 0.5)], "asha": [(30, 0.49)]}).splitlines() if line.startswith("| ")
    ]
    assert (fifo, asha) == (["none", "90", "50.0"], ["asha", "30", "49.0"])
    assert script.table({"none": [(90, 0.5)], "asha": [(30, 0.49)]}).endswith(
        "asha points=-1.00 goal=-0.3\nasha ratio=3.00 goal=3"
    )


def test_first_steps_become_a_table_and_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    script = benchmark("first_step")
    taken = {"the first trial": [60.0], "in one process": [1.0], "in a new process": [5.0], "not compiled": [0.5]}
    found = script.table(taken)
    rows = [cells(line) for line in found.splitlines() if line.startswith("| ")][1:]
    assert [row[2] for row in rows] == ["1.0", "60.0", "12.0", "120.0"]
    assert found.endswith("first_step ratio=1.20 goal=1")
    script.steps("test_resnet", 4, "float32", "off", 2)
    assert len(json.loads(capsys.readouterr().out)) == 2


@pytest.mark.usefixtures("torch_threads")
def test_a_small_run_of_steps_prints_its_ratio(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("step").main(backbones=("test_resnet",), batches=1, batch_size=4, rounds=1, threads=1)
    *_, last = lines = capsys.readouterr().out.splitlines()
    _heading, row = [cells(line) for line in lines if line.startswith("| ")]
    assert row[3] in ("float32", "bf16")
    assert re.fullmatch(r"step ratio=\d+\.\d\d goal=1", last)


@pytest.mark.usefixtures("torch_threads")
def test_networks_that_are_stacked_train_as_they_do_alone(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"backbones": ("test_resnet",), "precisions": ("float32",)}
    benchmark("stacked").main(num_networks=2, batch_size=4, rounds=1, **settings)
    *_, last = lines = capsys.readouterr().out.splitlines()
    _heading, row = [cells(line) for line in lines if line.startswith("| ")]
    assert row[:2] == ["test_resnet", "float32"]
    assert re.fullmatch(r"stacked ratio=\d+\.\d\d goal=1.3", last)


def test_precisions_are_equivalent_where_the_interval_lies_within_the_margin() -> None:
    sentence = benchmark("precision").sentence
    assert "+0.00 points (95 % interval -0.48 to +0.48, 20 pairs), equivalent within 1 points" in sentence(
        [-1.0, 1.0] * 10, 1.0
    )
    assert "not shown to be equivalent within 0.3 points" in sentence([-1.0, 1.0] * 10, 0.3)
    assert "not shown to be equivalent" in sentence([1.9, 2.1] * 10, 1.0)
