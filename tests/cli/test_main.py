"""The command line as a user meets it: help, overrides, bad input, and the commands on tiny studies."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import subprocess
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import emoreg
from emoreg.cli.commands import Show
from emoreg.cli.main import main
from emoreg.config import StudyConfig, leaves, replace_paths
from emoreg.storage.files import Files
from emoreg.study_file import read_study_file
from emoreg.tuning.adapters import resolved_trial
from emoreg.tuning.coordinator import coordinate
from emoreg.tuning.images import image_loader, prepare_image_sets
from emoreg.tuning.manifest import write_manifest
from tests.helpers.networks import trained_study
from tests.helpers.studies import study_file
from tests.helpers.trials import TINY
from tests.helpers.waiting import PATIENCE

ROOT = Path(__file__).parents[2]
Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working directory, a page of 80 columns, and no Ray: what starts it fails."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("emoreg.tuning.study.ray_session", None)
    monkeypatch.setattr("emoreg.tuning.private_ray.private_ray", lambda *settings, **named: nullcontext())


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return study_file(tmp_path)


def emoreg_(capsys: Output, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def words(text: str) -> str:
    """Without boxes and line breaks."""
    return " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())


# The way to a study


def test_three_frames_in_two_files_lie_between_the_command_and_the_engine(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    ways = []

    def note(*_: object, **named: object) -> None:
        own = f"{ROOT / 'emoreg'}{os.sep}"
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(own)]
        ways.append([(Path(frame.filename).name, frame.name) for frame in frames])
        raise KeyboardInterrupt

    monkeypatch.setattr("emoreg.tuning.study.run_study", note)
    assert emoreg_(capsys, "run", tiny)[0] == 130
    # With `run_study`, then `train`, `run_trial`, `fit` and `_step` in a worker: eight frames in six files.
    assert ways == [[("main.py", "main"), ("main.py", "__call__"), ("study.py", "run")]]


# Help


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_the_overview(arguments: tuple[str, ...], capsys: Output) -> None:
    code, out, _ = emoreg_(capsys, *arguments)
    assert code == 0
    for command in ("run", "show", "trial", "data", "doctor"):
        assert f"  emoreg {command}" in out
    assert "studies.quickstart\n" in out
    assert max(map(len, out.splitlines())) <= 82


def test_the_version(capsys: Output) -> None:
    assert emoreg_(capsys, "--version") == (0, f"emoreg {emoreg.__version__}\n", "")


def paths() -> set[str]:
    of_the_file = {"search_space", "resources_by_backbone", "confirmed"}
    return {path for path, _ in leaves(read_study_file("studies.quickstart").config)} - of_the_file


@pytest.mark.parametrize("command", ["run", "confirm", "trial", "show", "submit"])
def test_help_explains_every_setting(command: str, capsys: Output) -> None:
    code, out, _ = emoreg_(capsys, command, "studies.quickstart", "--help")
    assert code == 0
    # With a box around it or without; a switch has a second name, which may stand in a second line.
    option = r"^[│ ] ?(--[a-z][\w.-]*).*\n(?:[│ ] ?--[\w.]+\.no-.*\n)?((?:[│ ] {5}.*\n)*)"
    options = dict(re.findall(option, out, re.MULTILINE))
    skipped = {"objectives", "trial.relabelled"}  # shown as objectives:0 and so on; an image set that the file has not
    for path in paths() - skipped:
        assert f"--{path.replace('_', '-')}" in options, path
    for name, text in options.items():
        assert words(re.sub(r"\(default: .*", "", text, flags=re.DOTALL)), f"{name} says nothing of itself"
    assert "tyro" not in out
    assert "config" not in out.split("trial options")[0].replace("configured", "").replace("configuration", "")
    assert all(len(line) <= 80 for line in out.splitlines())


def test_help_shows_the_values_of_the_study(capsys: Output) -> None:
    _, out, _ = emoreg_(capsys, "run", "studies.quickstart", "--help")
    assert "(default: quickstart)" in words(out)
    assert re.search(r"--trial\.regulation\.epochs INT Passes over the task's training split\. \(default: 9\)", words(out))


@pytest.mark.parametrize(("command", "said"), [("doctor", "--storage STR"), ("data", "{list,prepare,show} [NAME]")])
def test_help_of_the_other_commands(command: str, said: str, capsys: Output) -> None:
    code, out, _ = emoreg_(capsys, command, "--help")
    assert code == 0
    assert said in out


# Bad input: (arguments after `run STUDY --storage ...`, what the message must say)


@pytest.fixture
def one_class(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        (tmp_path / "sad" / split / "sad").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "sad" / split / "sad" / "1.png")
    return tmp_path / "sad"


BAD_OVERRIDES = [
    ("--trial.backbone resnt18", "must be a timm model, .*'resnt18': did you mean .*resnet18"),
    ("--trial.regulation.balance 1.5", r"Choose a number .*: regulation\.balance must lie in \[0, 1\], but it is 1\.5"),
    ("--trial.drop-path=1", r"Choose a number .*: drop_path must lie in \[0, 1\), but it is 1\.0"),
    ("--num-trials -1", "Give 0 or more: num_trials must be 0 or more, but it is -1"),
    ("--trial.image-size 4", r"Take 32, which suits CIFAR, .*: image_size must lie in \[8, 512\], but it is 4"),
    ("--name a/b", "Rename the study: name must be .* but it is 'a/b'"),
    ("--trial.regulation.kind learnable --trial.regulation.balance 0", "Use kind=.*strictly between 0 and 1.* but it is 0.0"),
    ("--trial.regulation.epohcs 5", r"Unrecognized options: --trial\.regulation\.epohcs, 5 .*--trial\.regulation\.epochs INT"),
    ("--trial.regulation.epochs five", r"--trial\.regulation\.epochs: invalid literal for int.* 'five' .*epochs INT Passes"),
    ("--sampler.name tpx", r"invalid choice 'tpx' for argument '--sampler\.name'\. Expected one of \('tpe'"),
    ("--control-seeds 0 0", r"Drop doubles: control_seeds must differ, but it is \(0, 0\)"),
    ("--trial.task.name cifra10", "image set 'cifra10' .* the nearest are .*cifar10"),
    (
        "--trial.task.name folder --trial.task.path nowhere",
        "trial.task: Correct the path of 'folder': 'nowhere' does not exist",
    ),
    ("--trial.task.name fer2013", "trial.task: Give 'fer2013' a path to a folder with fer2013.csv"),
    ("--trial.task.num-images 5000", r"Choose another num_images.* must lie between 10 .*but it is 5000"),
    ("--trial.stimuli.name folder --trial.stimuli.path sad", r"trial\.stimuli: .* two classes or more .*\['sad'\]"),
    (
        "--storage ftp://host/runs",
        "[Nn]ame a folder as storage, or a URI that pyarrow can open .*'ftp://host/runs' cannot be used",
    ),
    ("--storage file/runs", "[Mm]end the permissions of the storage, or name another: .* 'file/runs' is not .*Not a directory"),
    ("--controls neutral", "Name one, .*: the neutral control needs the image set `neutral`, but it is None"),
    *(
        [
            (
                "--resources.gpus-per-trial 1",
                "Set resources.gpus_per_trial to 0 .* asks for 1 GPUs, but torch .* sees none here",
            ),
        ]
        if not torch.cuda.is_available()
        else []
    ),
]


@pytest.mark.usefixtures("one_class")
@pytest.mark.parametrize(("overrides", "message"), BAD_OVERRIDES, ids=[overrides for overrides, _ in BAD_OVERRIDES])
def test_a_bad_setting_is_one_message_and_code_2(
    overrides: str, message: str, tiny: str, storage: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "file").touch()
    code, _, err = emoreg_(capsys, "run", tiny, "--storage", str(storage), *overrides.split())
    assert code == 2
    assert re.search(message, words(err)), err
    for noise in ("Traceback", "tyro", "dummy", "Error parsing config"):
        assert noise not in err


BAD_COMMANDS = [
    (
        "runn tiny_cli_study.py",
        "See `emoreg --help`: a command must be one of run, confirm, trial, show, enqueue, experience, doctor, data, submit, "
        "status, report, export, dashboard, tensorboard, logs, stop, but it is 'runn'",
    ),
    ("run", "Missing from emoreg run: STUDY"),
    (
        "run --num-trials 3 tiny_cli_study.py",
        "Put the options behind STUDY, .* right after `emoreg run`, but there is '--num-trials'",
    ),
    ("run nowhere.py", "Correct the path: .* no file 'nowhere.py'"),
    ("run studies.quikstart", r"no module 'studies\.quikstart'"),
    ("run syntax.py", r"Correct the study 'syntax\.py', which is not valid Python: .* at .*syntax\.py:1"),
    ("show nothing.py", r"Define `study` in 'nothing\.py', an emoreg\.Study or a function that returns one"),
    ("show empty.py", r"[Gg]ive at least one path"),
    ("run tiny_cli_study.py extra", "Unrecognized options: extra"),
    ("data prepare", "Name an image set: emoreg data prepare needs the NAME of one"),
    ("data show openmojo", "image set 'openmojo' .* the nearest are openmoji"),
    ("data shw", "invalid choice 'shw'"),
    ("data prepare digits --storage file/runs", "[Mm]end the permissions of the storage"),
    ("doctor --storge x", "Unrecognized options: --storge, x"),
    *([("trial tiny_cli_study.py --device cuda", "Use --device cpu, or see")] if not torch.cuda.is_available() else []),
]


@pytest.mark.parametrize(("command", "message"), BAD_COMMANDS, ids=[command for command, _ in BAD_COMMANDS])
def test_a_bad_command_is_one_message_and_code_2(command: str, message: str, tiny: str, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "syntax.py").write_text("def study(:\n")
    (tmp_path / "nothing.py").write_text("")
    (tmp_path / "empty.py").write_text("import emoreg\nstudy = emoreg.Study('empty')\n")
    code, _, err = emoreg_(capsys, *command.split())
    assert code == 2
    assert re.search(message, words(err)), err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


def stored(tiny: str, storage: Path) -> StudyConfig:
    return dataclasses.replace(read_study_file(tiny).config, storage=str(storage))


def test_a_study_that_another_driver_runs_is_refused(tiny: str, storage: Path, capsys: Output) -> None:
    with coordinate(stored(tiny, storage)):
        for command in ("run", "trial"):
            code, _, err = emoreg_(capsys, command, tiny, "--storage", str(storage))
            assert code == 2
            assert "--name" in err


def test_a_changed_study_of_the_same_name_is_refused(tiny: str, storage: Path, capsys: Output) -> None:
    study = stored(tiny, storage)
    with coordinate(study) as coordinator:
        write_manifest(study, coordinator.copy.folder, prepare_image_sets(study))
    code, _, err = emoreg_(capsys, "run", tiny, "--storage", str(storage), "--trial.regulation.epochs", "3")
    assert code == 2
    assert "trial.regulation.epochs: 2 -> 3" in err
    assert "--name" in err


def test_debug_shows_the_traceback(tiny: str, capsys: Output) -> None:
    code, _, err = emoreg_(capsys, "run", tiny, "--num-trials", "-1", "--debug")
    assert code == 2
    assert "Traceback" in err
    assert "ConfigError: Give 0 or more: num_trials" in err


def test_what_the_system_refuses_is_no_traceback(tiny: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "runs/tiny/study.json")

    monkeypatch.setattr(Show, "__call__", fail)
    code, _, err = emoreg_(capsys, "show", tiny)
    assert code == 2
    assert err.startswith("emoreg: Mend what the system refuses and run the same command again: [Errno 5] Input/output error")
    assert "runs/tiny/study.json" in err


def test_an_interrupt_is_no_traceback(tiny: str, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Show, "__call__", interrupt)
    assert emoreg_(capsys, "show", tiny) == (130, "", "emoreg: interrupted\n")


@pytest.mark.parametrize(
    "command",
    ["--trial.regulation.balance 1.5", "--storage ftp://host"],
)
@pytest.mark.slow
def test_bad_input_in_a_process_of_its_own_never_reaches_ray(command: str) -> None:
    script = "import sys; sys.modules['ray'] = None; from emoreg.cli.main import main; main(sys.argv[1:])"
    done = process(script, "run", "studies.quickstart", *command.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("emoreg: ")
    assert done.stderr.count("\n") == 1


def process(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# Overrides and the search space


def show(capsys: Output, tiny: str, storage: Path, *overrides: str) -> tuple[dict[str, str], dict[str, str], str]:
    """Settings, search space, and all that was said."""
    code, out, err = emoreg_(capsys, "show", tiny, "--storage", str(storage), *overrides)
    assert (code, err) == (0, "")
    settings, space = out.split("Search space")
    return (*(dict(re.findall(r"^([\w.]+) {2,}(.*\S)", part, re.MULTILINE)) for part in (settings, space)), out)


def test_show_and_a_dry_run_tell_what_would_run_and_run_nothing(tiny: str, storage: Path, capsys: Output) -> None:
    settings, space, shown = show(capsys, tiny, storage)
    assert settings["trial.regulation.balance"] == "0.5 (searched)"
    assert space["regulation.balance"] == "real in [0.1, 0.9]"
    assert "3 of the search + 2 controls" in shown
    assert not (storage / "tiny").exists()
    code, out, _ = emoreg_(capsys, "run", tiny, "--storage", str(storage), "--dry-run")
    assert code == 0
    measured = re.compile("(?m)^(cost|disk|measured) .*(\n  .*)*")
    assert measured.sub("", out) == measured.sub("", shown)
    assert not (storage / "tiny").exists()


@pytest.mark.parametrize(
    ("overrides", "values", "also_gone"),
    [
        # Behind an equals sign, the value that it has anyway; a choice; a switch that is turned off.
        (
            "--trial.regulation.balance=0.5 --trial.pretraining.epochs 1 --trial.regulation.no-freeze-emotional",
            {"regulation.balance": 0.5, "pretraining.epochs": 1, "regulation.freeze_emotional": False},
            set(),
        ),
        # Behind a space; a switch that is turned on, as Python writes it; a choice, with what only SGD would have had.
        (
            "--trial.regulation.balance 0.25 --trial.regulation.freeze_emotional --trial.pretraining.optimizer.name adamw",
            {"regulation.balance": 0.25, "regulation.freeze_emotional": True, "pretraining.optimizer.name": "adamw"},
            {"pretraining.optimizer.momentum"},
        ),
    ],
)
def test_a_searched_path_that_is_set_leaves_the_search_space(
    overrides: str, values: dict[str, object], also_gone: set[str], tiny: str, storage: Path, capsys: Output
) -> None:
    settings, space, out = show(capsys, tiny, storage, *overrides.split())
    for path, value in values.items():
        assert f"{path} is {value!r}, by the command line: it leaves the search space\n" in out
        assert settings[f"trial.{path}"] == str(value)
    for gone in also_gone:
        assert f"{gone} leaves the search space with it\n" in out
    assert read_study_file(tiny).config.search_space.keys() - space.keys() == values.keys() | also_gone


def test_what_is_set_is_not_held_against_the_range_that_it_replaces(tmp_path: Path, storage: Path, capsys: Output) -> None:
    path = tmp_path / "wide.py"
    path.write_text(
        "from emoreg import *\nfrom tests.helpers.studies import tiny_study\nstudy = Study.from_config(tiny_study("
        "search_space={'regulation.balance': Float(0.0, 1.0), 'regulation.epochs': Int(1, 3), 'drop_path': Float(0.0, 0.1)}))\n"
    )
    overrides = "--trial.regulation.kind learnable --trial.regulation.balance 0.5 --scheduler.name asha"
    _, space, _ = show(capsys, str(path), storage, *overrides.split(), "--trial.regulation.epochs", "2")
    assert {"regulation.balance", "regulation.epochs"}.isdisjoint(space)
    code, _, err = emoreg_(capsys, "show", str(path), *overrides.split())
    assert code == 2
    assert "'none' where regulation.epochs is searched" in err


def test_a_trial_may_set_everything_that_is_searched(tmp_path: Path, storage: Path, capsys: Output) -> None:
    path = tmp_path / "one.py"
    path.write_text(
        "from emoreg import *\nfrom tests.helpers.studies import tiny_study\n"
        "study = Study.from_config(tiny_study(search_space={'drop_path': Float(0.0, 0.5)}))\n"
    )
    code, out, _ = emoreg_(capsys, "trial", str(path), "--storage", str(storage), "--trial.drop-path", "0.1")
    assert code == 0
    assert "validation accuracy" in out


def test_a_path_that_is_not_searched_is_only_set(tiny: str, storage: Path, capsys: Output) -> None:
    settings, space, out = show(capsys, tiny, storage, "--trial.drop-path=0.1", "--trial.seed", "4", "--num-trials", "9")
    assert (settings["trial.drop_path"], settings["trial.seed"], settings["num_trials"]) == ("0.1", "4", "9")
    assert space.keys() >= read_study_file(tiny).config.search_space.keys()
    assert "leaves the search space" not in out


def test_a_search_of_which_everything_is_set_is_refused(tmp_path: Path, capsys: Output) -> None:
    path = tmp_path / "one.py"
    path.write_text("import emoreg\nstudy = emoreg.Study('one', search_space={'drop_path': emoreg.Float(0.0, 0.5)})\n")
    code, _, err = emoreg_(capsys, "run", str(path), "--trial.drop-path", "0.1")
    assert code == 2
    assert "search_space must not be empty" in err
    assert "`emoreg trial` runs one trial" in err


# The commands


@pytest.mark.soak
@pytest.mark.slow
def test_a_trial_and_then_the_study(tiny: str, storage: Path) -> None:
    """In processes of their own: the trial never imports Ray; the study adopts it, is quiet, and ends with right counts."""
    overrides = (tiny, "--storage", str(storage), "--name", "both")
    script = "import sys; from emoreg.cli.main import main\ntry: main(sys.argv[1:])\nfinally: print('ray' in sys.modules)"
    alone = process(script, "trial", *overrides, "--evaluate", "test")
    assert (alone.returncode, alone.stderr) == (0, "")
    assert alone.stdout.endswith("False\n")
    # A grid of two points, of which one is the trial as configured: it is told from its record.
    grid = (
        *("--trial.regulation.balance", "0.5", "--trial.regulation.no-freeze-emotional"),
        *("--trial.pretraining.optimizer.name", "adamw", "--sampler.name", "grid", "--num-trials", "5"),
        *("--resources.max-concurrent", "1"),
    )
    done = process("import sys; from emoreg.cli.main import main; main(sys.argv[1:])", "run", *overrides, *grid)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 trials: 3 finished, 2 of them now, in " in done.stdout
    rows = {row["identity"]: row for row in pq.read_table(storage / "both" / "records" / "trials.parquet").to_pylist()}
    as_configured = resolved_trial(read_study_file(tiny).config.trial, image_loader(str(storage))).identity
    assert rows[as_configured]["role"] == "control"
    assert rows[as_configured]["test_accuracy"] is not None, "it was not run again"
    lines = done.stdout.splitlines()
    first = next(index for index, line in enumerate(lines) if "beside its controls" in line)
    assert [line.split()[1] for line in lines[first + 4 : first + 6]] == ["regulation", "plain"]


def test_a_plain_trial_does_not_open_the_test_split(tiny: str, storage: Path, capsys: Output) -> None:
    code, out, _ = emoreg_(capsys, "trial", tiny, "--storage", str(storage), "--trial.control", "plain")
    assert code == 0
    assert "control plain" in out
    (row,) = pq.read_table(storage / "tiny" / "records" / "trials.parquet").to_pylist()
    assert (row["role"], row["control"], row["test_accuracy"]) == ("trial", "plain", None)


def test_doctor(storage: Path, tmp_path: Path, capsys: Output) -> None:
    code, out, _ = emoreg_(capsys, "doctor", "--storage", str(storage))
    assert code == 0
    assert "Nothing here would stop a study." in out
    (tmp_path / "file").touch()
    code, out, _ = emoreg_(capsys, "doctor", "--storage", "file/runs")
    assert code == 1
    assert "1 of these would stop a study." in out


def test_data(storage: Path, tmp_path: Path, capsys: Output) -> None:
    code, out, _ = emoreg_(capsys, "data", "list")
    assert code == 0
    assert 'pip install -e ".[quickstart]"' in out, "brackets are not taken for markup"
    assert "digits (task): 1,797 real handwritten digits" in out
    assert max(map(len, out.splitlines())) <= 80
    options = ("digits", "--image-size", "16", "--storage", str(storage))
    code, out, _ = emoreg_(capsys, "data", "prepare", *options)
    assert code == 0
    assert re.match(r"digits: \d+ training and \d+ test images of 16 px, fingerprint [0-9a-f]{12}\n", out)
    code, out, _ = emoreg_(capsys, "data", "show", *options)
    assert code == 0
    assert "contact sheet: digits.png" in out
    with Image.open(tmp_path / "digits.png") as sheet:
        assert sheet.width > 100


@pytest.mark.parametrize("command", ["status", "report", "dashboard", "tensorboard"])
def test_a_storage_that_cannot_be_read_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Files, name: str) -> None:
        raise OSError(f"no answer from s3://key:secret@bucket of {name}")

    (tmp_path / "study.json").touch()
    monkeypatch.setattr(Files, "read", fail)
    with pytest.raises(SystemExit) as end:
        main([command, str(tmp_path)])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "Check the storage's address" in said
    assert "(no answer from s3://key:***@bucket of study.json)" in said


def test_a_trained_network_is_exported_and_loaded(capsys: Output, tmp_path: Path, prepared: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "imagesets").symlink_to(prepared / "imagesets")
    folder, record = trained_study(tmp_path / "runs", replace_paths(TINY, {"regulation.epochs": 1}))
    code, out, _ = emoreg_(capsys, "export", "tiny", "--to", "model")
    assert code == 0
    assert out.splitlines() == [
        f"exported: trial {record.identity}, test_resnet, seed 0, validation accuracy {100 * (record.val_accuracy or 0):.1f} %",
        "to:       model",
        "use:      emoreg.load_network('model')",
    ]
    assert emoreg.load_network("model").config.identity == record.identity
    assert emoreg_(capsys, "export", str(folder), "--to", "again", "--trial", record.identity[:5])[0] == 0
    for options, message in (
        (["--best", "--confirmed"], "Give one of --trial, --best and --confirmed: one network is exported"),
        (["--confirmed"], "Confirm the study first"),
        (["--trial", "0123"], "'0123' must name one trial of the study or its confirmation, but it names none"),
    ):
        code, _, err = emoreg_(capsys, "export", "tiny", "--to", "other", *options)
        assert code == 2
        assert message in err
    assert not Path("other").exists()
