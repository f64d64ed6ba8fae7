"""Trained networks: a study of one trial, and a network that nobody has trained."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

from rich.console import Console

from emoreg.cli.trial import run_one
from emoreg.config import Float, TrialConfig
from emoreg.config.resolved import resolve_trial
from emoreg.results.records import TrialRecord
from emoreg.results.tables import Records
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join
from emoreg.training.model import create_emotional_net, create_regulation
from emoreg.training.network import NetworkConfig, exported_config, write_network
from tests.helpers.studies import tiny_study
from tests.helpers.trials import CPU, TINY
from tests.helpers.written import write_study_json


def write_untrained(folder: Path, trial: TrialConfig = TINY, **changes: Any) -> None:
    """Write the network of a trial as it is before regulation, of ten classes, to a folder."""
    trial = resolve_trial(trial).config
    emotional = create_emotional_net(trial, 3) if trial.regulation.needs_emotional else None
    settings: dict[str, Any] = {
        "trial": exported_config(trial, None),
        "identity": "0" * 12,
        "class_names": tuple(map(str, range(10))),
        "image_size": trial.image_size,
        "versions": {},
    }
    weights = create_regulation(trial, emotional, 10).state_dict()
    write_network(Files(str(folder)), NetworkConfig(**settings | changes), weights, "")


def trained_study(storage: Path, trial: TrialConfig = TINY, *, name: str = "tiny") -> tuple[Path, TrialRecord]:
    """The folder of a study with one trained trial, which its search has found, and the trial's record."""
    space = {"pretraining.optimizer.learning_rate": Float(1e-4, 1e-2)}  # which every trial has, a balance not
    config = tiny_study(storage=str(storage), trial=trial, name=name, search_space=space)
    folder = write_study_json(storage / config.name, config)
    assert run_one(config, "validation", CPU, Console(file=io.StringIO())) == 0
    (record,) = Records(folder).trials.values()
    record = dataclasses.replace(record, role="search", number=0)
    Records(folder).add_trial(record)
    return folder, record


def copy_to(place: str, folder: Path) -> str:
    """The URI of a study, copied from a folder of this machine to an object store."""
    there = Files(join(place, folder.name))
    for path in folder.rglob("*"):
        if path.is_file() and path.name != ".lock":
            there.write(path.relative_to(folder).as_posix(), path.read_bytes())
    return join(place, folder.name)
