"""The network of a trial of a study, written where anybody can load it."""

from __future__ import annotations

import json
from pathlib import Path

from emoreg.config import TrialConfig, from_json
from emoreg.errors import ConfigError
from emoreg.results.export import find_trial, model_card
from emoreg.results.predictions import read_predictions
from emoreg.results.records import TrialRecord
from emoreg.results.study import StudyResults
from emoreg.storage import checkpoint
from emoreg.storage.checkpoint import CHECKPOINT
from emoreg.storage.files import Files
from emoreg.storage.working_copy import join
from emoreg.training.network import ExportedNetwork, NetworkConfig, check_onnx, exported_config, write_network


def export_network(study: StudyResults, storage: str, to: str | Path, trial: str, *, onnx: bool = False) -> TrialRecord:
    """Write a trial's network, its configuration and its model card to a folder, or a URI.

    Args:
        study: read back.
        storage: where it and its confirmation lie.
        to: where to. What was exported there before is replaced.
        trial: "best" of the search, "confirmed", or an identity.
        onnx: whether it is written in ONNX too.

    Returns:
        The trial's record.

    Raises:
        ConfigError: where there is no such trial, its network was not kept, or its backbone is not registered here as it was.
        OSError: where a storage does not answer, or cannot be written.
    """
    if onnx:
        check_onnx()
    home, record = find_trial(study, trial)
    files = Files(join(storage, home.name))
    state = checkpoint.load(files, f"trials/{record.identity}/{CHECKPOINT}") if record.status == "finished" else None
    if state is None or "class_names" not in state:
        raise ConfigError(
            f"Export another trial (`best`, `confirmed`), or run it again in a study with resources.keep_networks='all': its "
            f"network must have been kept, but that of trial {record.identity} ({record.control}, {record.status}) was not"
        )
    config = from_json(TrialConfig, json.loads(record.config))
    written = NetworkConfig(
        trial=exported_config(config, record.precision),
        identity=record.identity,
        class_names=tuple(state["class_names"]),
        image_size=config.image_size,
        measured_balance=record.measured_balance,
        backbone_code=home.written.code.get(f"backbone {config.backbone}"),
        versions=home.written.versions,
    )
    ExportedNetwork(written, state["network"])  # what cannot be loaded is not written
    write_network(
        Files(str(to)),
        written,
        state["network"],
        model_card(study, home, record, read_predictions(files, identity=record.identity)),
        onnx=onnx,
    )
    return record
