"""TensorBoard, write-only: `tensorboard --logdir STORAGE/STUDY/events` shows a study while it runs and afterwards.

A trial is one run, ``events/<identity>/``: a file for each attempt, and one with how it ended. The study's columns of the
HParams page lie in ``events/`` itself; how the study goes on is in runs of its own (``study_tensorboard``).

A trial that is taken up again stays one line. It first reports every epoch that an earlier attempt had saved, and TensorBoard
lets each value of a tag replace those that it read before at the same or a later step: stages never erase each other, although
both count their epochs from 1. TensorBoard's Python reader, which it uses where it has no data server for the platform, goes by
``purge_step`` instead: there, histograms begin anew with the attempt.

How a trial ended, on the HParams page: status Success is finished, Failure failed; Unknown is pruned or still running, which
the metric ``trial/outcome`` tells apart. It and the text ``trial/status`` hold emoreg's own status.
"""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from torch.utils.tensorboard import SummaryWriter

from emoreg.config import Choice, StudyConfig, Value, read_path
from emoreg.config.resolved import ResolvedTrial, resolve_trial
from emoreg.results.records import EpochRecord, ProbeRecord, TrialRecord
from emoreg.storage.permissions import make_folder
from emoreg.tracking.pictures import confusion_matrix, sample_sheet
from emoreg.training.events import BalanceSample, Confusion, Event, Experienced, ImagesSample
from emoreg.training.metrics import stage_of_metric

COMPARED: Mapping[str, str] = {
    "backbone": "backbone",
    "control": "control",
    "regulation.balance": "balance",
    "pretraining.epochs": "pretraining_epochs",
    "seed": "seed",
    "regulation.kind": "kind",
    "regulation.form": "form",
}
"""What trials are always compared by, beside the sampled parameters: path in the configuration, column in the records."""

METRICS: Mapping[str, str] = {
    "regulation/val_accuracy": "validation accuracy",
    "trial/outcome": "outcome (1 finished, 0 pruned, -1 failed)",
    "regulation/val_loss": "validation loss",
    "trial/device_seconds": "device seconds",
    "regulation/measured_balance": "final balance",
}
"""Metrics of the HParams page by tag, with their titles. The last value counts, so a running trial shows its latest."""

_OUTCOME = {
    "finished": (api_pb2.STATUS_SUCCESS, 1.0),
    "pruned": (api_pb2.STATUS_UNKNOWN, 0.0),
    "failed": (api_pb2.STATUS_FAILURE, -1.0),
}
_NAMES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate", "images_per_second", "measured_balance")
_END = "events.out.tfevents.end"


def open_run(folder: Path, **options: Any) -> SummaryWriter:
    """TensorBoard's writer of a run, whose folder is the group's too where the storage is."""
    make_folder(folder)
    return SummaryWriter(str(folder), **options)


class TensorBoardReporter(ExitStack):
    """Writes one trial's events, on disk as soon as they are reported: a ``Reporter``, for the time of a ``with`` block.

    Scalars have the step epoch and the names ``pretraining/train_loss``, ``regulation/val_accuracy``, and so on for each
    column of ``EpochRecord`` that there is, registered metrics included. A value that is not finite is written as it is, and
    TensorBoard marks it, except in metrics of the HParams page, which it would break. The trial counts as running until
    ``finish``.
    """

    def __init__(self, folder: Path, trial: ResolvedTrial, params: Mapping[str, Value]) -> None:
        """Begin, or take up again, the run of a trial in its study's folder; ``params`` are what was sampled, by path."""
        super().__init__()
        run = folder / "events" / trial.identity
        (run / _END).unlink(missing_ok=True)  # it runs again, so it has not ended
        self._names = (*_NAMES, "measured_balance_std") if trial.config.regulation.kind == "dynamic" else _NAMES
        self._epoch = 0
        self._writer = self.enter_context(open_run(run, purge_step=1))
        values = {path: read_path(trial.config, path) for path in COMPARED}
        values["regulation.balance"] = trial.config.regulation.balance_setting
        _add(self._writer, hparams_pb(_there(values) | dict(params), trial_id=trial.identity))
        self._writer.flush()

    def report(self, event: Event) -> None:
        """Write one event."""
        match event:
            case EpochRecord():
                self._epoch, columns, metrics = event.epoch, dataclasses.asdict(event), json.loads(event.metrics)
                for name, value in {**{name: columns[name] for name in self._names}, **metrics}.items():
                    tag = f"{event.stage}/{name}"
                    if value is not None and (math.isfinite(value) or (tag not in METRICS and name not in metrics)):
                        self._writer.add_scalar(tag, value, event.epoch)
            case ProbeRecord():
                self._writer.add_scalar(f"probes/{event.stage}/{event.probe}/{event.name}", event.value, event.epoch)
            case BalanceSample():
                balance = event.balance.detach().float().cpu()
                if len(finite := balance[balance.isfinite()]):
                    self._writer.add_histogram("regulation/balance_by_image", finite, event.epoch, bins=30)
            case ImagesSample():
                sheet = np.asarray(sample_sheet(event.images, event.captions))
                self._writer.add_image(f"samples/{event.stage}", sheet, 0, dataformats="HWC")
            case Confusion():
                picture = np.asarray(confusion_matrix(event.counts, event.class_names))
                self._writer.add_image(f"trial/confusion_{event.split}", picture, self._epoch, dataformats="HWC")
            case Experienced():
                pass
            case _:
                assert_never(event)
        self._writer.flush()


def finish(folder: Path, record: TrialRecord) -> None:
    """Write how a trial ended into its run, from any process; again, if need be, in place of what was written before.

    The run is in the study's folder. A trial that never began to report gets it here.
    """
    columns, (status, outcome) = dataclasses.asdict(record), _OUTCOME[record.status]
    values = _there({path: columns[column] for path, column in COMPARED.items()}) | record.sampled
    started, ended = (datetime.fromisoformat(text).timestamp() for text in (record.started, record.ended))
    end = SessionEndInfo(status=status, end_time_secs=ended)
    with _whole(folder / "events" / record.identity / _END) as writer:
        _add(writer, hparams_pb(values, trial_id=record.identity, start_time_secs=started))
        _add(writer, _hparams(metadata.SESSION_END_INFO_TAG, session_end_info=end))
        writer.add_scalar("trial/device_seconds", record.device_seconds, 0)
        writer.add_scalar("trial/outcome", outcome, 0)
        writer.add_text("trial/status", record.status if record.message is None else f"{record.status}: {record.message}", 0)


def write_experiment(folder: Path, study: StudyConfig) -> None:
    """Write the columns of the study's HParams page: its parameters, control and those searched first, and its metrics.

    What was written in the study's folder before is replaced.
    """
    metrics = {**METRICS, **{f"{stage_of_metric(name)}/val_{name}": name for name in study.trial.metrics}}
    experiment = api_pb2.Experiment(
        description=f"emoreg study {study.name}",
        time_created_secs=time.time(),
        hparam_infos=_columns(study),
        metric_infos=[api_pb2.MetricInfo(name={"tag": tag}, display_name=title) for tag, title in metrics.items()],
    )
    with _whole(folder / "events" / "events.out.tfevents.experiment") as writer:
        _add(writer, _hparams(metadata.EXPERIMENT_TAG, experiment=experiment))


@contextmanager
def _whole(path: Path) -> Iterator[SummaryWriter]:
    """A writer whose file is ``path``, in place of the former one, once the block has ended well."""
    token = f".{secrets.token_hex(4)}"
    with open_run(path.parent, filename_suffix=token) as writer:
        yield writer
    (written,) = path.parent.glob(f"*{token}")
    written.replace(path)


def _add(writer: SummaryWriter, summary: Any) -> None:
    file_writer: Any = writer.file_writer  # torch's annotations know of none
    file_writer.add_summary(summary)


def _there(values: Mapping[str, Value | None]) -> dict[str, Value]:
    """The values without those that a trial does not have."""
    return {path: value for path, value in values.items() if value is not None}


def _hparams(tag: str, **content: Any) -> Any:
    plugin_data = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=plugin_data, tensor=metadata.NULL_TENSOR)])


def _columns(study: StudyConfig) -> list[Any]:
    """One column a path. TensorBoard shows those marked as differing first, and each half in alphabetical order."""
    controls = [resolve_trial(dataclasses.replace(study.trial, control=name)).config for name in ("regulated", *study.controls)]
    types = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
    infos = []
    for path in dict.fromkeys((*study.search_space, *COMPARED)):
        distribution = study.search_space.get(path)
        values: set[Any] = set() if distribution is None else set(distribution.bounds())
        if path == "seed":
            values |= set(study.control_seeds)
        if path in COMPARED and (path != "backbone" or distribution is None):
            values |= {read_path(config, path) for config in controls}
        info = api_pb2.HParamInfo(name=path, differs=path in study.search_space or path == "control")
        info.type = types.get(type(next(iter(values))), api_pb2.DATA_TYPE_FLOAT64)
        if info.type == api_pb2.DATA_TYPE_FLOAT64 and not isinstance(distribution, Choice):
            info.domain_interval.min_value, info.domain_interval.max_value = min(values), max(values)
        else:
            info.domain_discrete.extend(sorted(values))
        infos.append(info)
    return infos
