"""TensorBoard, write-only: `tensorboard --logdir STORAGE/STUDY/events` shows a study while it runs and afterwards.

A trial is one run, ``events/<identity>/``; every attempt at it writes an event file of its own there, and ``finish`` one more
(``*.end``) with how it ended. The study's columns for the HParams page lie in ``events/`` itself; how it goes on is a run of
its own (``study_board``).

How a trial that is taken up again stays one line: within a run, TensorBoard's data server lets every value of a tag replace
those that it read before at the same or a later step. TensorBoard's own Python reader (where no data server is installed) does
so as well, but only in files without a version, and only for a step below the last one read; hence ``EventFile``. Stages
thus never erase each other, although both count their epochs from 1, as a purge of the whole run would.

How a trial ended, on the HParams page: status Success is finished, Failure failed; Unknown is pruned or still running, which
the metric ``trial/outcome`` tells apart. It and the text ``trial/status`` hold emoreg's own status.
"""

from __future__ import annotations

import dataclasses
import io
import math
import os
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, assert_never, cast

from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont
from tensorboard.compat.proto.event_pb2 import Event as EventProto
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.scalar.summary_v2 import scalar_pb
from tensorboard.plugins.text.summary_v2 import text_pb
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from emoreg.config import Choice, StudyConfig, TrialConfig, Value, read_path
from emoreg.results.records import EpochRecord, Status, TrialRecord
from emoreg.training.events import BalanceSample, Confusion, Event, Experienced, ImagesSample

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

_OUTCOME: Mapping[Status, tuple[int, float]] = {
    "finished": (api_pb2.STATUS_SUCCESS, 1.0),
    "pruned": (api_pb2.STATUS_UNKNOWN, 0.0),
    "failed": (api_pb2.STATUS_FAILURE, -1.0),
}

_SCALARS = (
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "learning_rate",
    "images_per_second",
    "measured_balance",
)

_LAST_STEP = 2**63 - 1


class EventFile:
    """A file of TensorBoard records, on disk after each write: a killed worker loses no epoch that it reported."""

    def __init__(self, path: Path, mode: str = "xb") -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._records = RecordWriter(open(path, mode))  # noqa: SIM115  close() closes it

    def write(self, step: int, *summaries: Any) -> None:
        """Write the values of ``summaries`` at ``step``; they replace what the run has of their tags from ``step`` on."""
        # TensorBoard's Python reader looks for values to replace only after it has read a later step: an empty one.
        self._add(EventProto(step=_LAST_STEP, summary=Summary()))
        self._add(EventProto(step=step, summary=Summary(value=[value for summary in summaries for value in summary.value])))
        self._records.flush()

    def _add(self, event: Any) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        """End the file."""
        self._records.close()


class TensorBoardReporter:
    """Writes one trial's events; a ``Reporter`` and a context manager.

    Scalars have the step epoch and the names ``pretraining/train_loss``, ``regulation/val_accuracy``, and so on for each
    column of ``EpochRecord`` that there is. A value that is not finite is written as it is, and TensorBoard marks it, except
    in ``METRICS``: there it is left out. Images and text that belong to one trial stand in groups after the curves.
    """

    def __init__(self, folder: Path, config: TrialConfig, params: Mapping[str, Value]) -> None:
        """Begin, or take up again, the run of a trial.

        Args:
            folder: the study's folder.
            config: the trial.
            params: its sampled values by path; empty for controls.
        """
        run = _run(folder, config.identity)
        attempts, ends = _files(run)
        self._file = EventFile(run / f"events.out.tfevents.{len(attempts) + 1:04d}")
        for path in ends:  # it runs again, so it has not ended
            path.unlink(missing_ok=True)
        applied = config.applied()
        self._dynamic = applied.regulation.kind == "dynamic"
        self._epoch = 0
        self._file.write(0, _start(config.identity, {path: read_path(applied, path) for path in COMPARED} | dict(params)))

    def report(self, event: Event) -> None:
        """Write one event."""
        match event:
            case EpochRecord():
                self._epoch = event.epoch
                names = (*_SCALARS, "measured_balance_std") if self._dynamic else _SCALARS
                values = {f"{event.stage}/{name}": getattr(event, name) for name in names}
                self._file.write(event.epoch, *(scalar_pb(tag, value) for tag, value in values.items() if _shown(tag, value)))
            case BalanceSample():
                balance = event.balance.detach().float().cpu()
                self._file.write(event.epoch, histogram_pb("regulation/balance_by_image", balance[balance.isfinite()].numpy()))
            case ImagesSample():
                self._file.write(0, image_pb(f"samples/{event.stage}", contact_sheet(event.images, event.captions)))
            case Confusion():
                picture = confusion_matrix(event.counts, event.class_names)
                self._file.write(self._epoch, image_pb(f"trial/confusion_{event.split}", picture))
            case Experienced():
                pass
            case _:
                assert_never(event)

    def close(self) -> None:
        """End the file. The trial counts as running until ``finish``."""
        self._file.close()

    def __enter__(self) -> TensorBoardReporter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def finish(folder: Path, record: TrialRecord) -> None:
    """Write how a trial ended into its run, from any process; again, if need be, in place of what was written before.

    Args:
        folder: the study's folder.
        record: the trial's row. A trial that never began to report gets its run here.
    """
    run = _run(folder, record.identity)
    attempts, ends = _files(run)
    status, outcome = _OUTCOME[record.status]
    end = SessionEndInfo(status=status, end_time_secs=datetime.fromisoformat(record.ended).timestamp())
    compared = {path: getattr(record, column) for path, column in COMPARED.items()}
    path = run / f"events.out.tfevents.{len(attempts):04d}.end"
    _write_whole(
        path,
        _start(record.identity, compared | record.sampled, datetime.fromisoformat(record.started)),
        _hparams(metadata.SESSION_END_INFO_TAG, session_end_info=end),
        scalar_pb("trial/device_seconds", record.device_seconds),
        scalar_pb("trial/outcome", outcome),
        text_pb("trial/status", record.status if record.reason is None else f"{record.status}: {record.reason}"),
    )
    for old in ends:
        if old != path:
            old.unlink()


def write_experiment(folder: Path, study: StudyConfig) -> None:
    """Write the columns of the study's HParams page: its parameters, control and those searched first, and its metrics.

    Args:
        folder: the study's folder. What was written there before is replaced.
        study: the study.
    """
    experiment = api_pb2.Experiment(
        description=f"emoreg study {study.name}",
        time_created_secs=time.time(),
        hparam_infos=_hparam_infos(study),
        metric_infos=[
            api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag), display_name=title) for tag, title in METRICS.items()
        ],
    )
    path = folder / "events" / "events.out.tfevents.experiment"
    _write_whole(path, _hparams(metadata.EXPERIMENT_TAG, experiment=experiment))


def _write_whole(path: Path, *summaries: Any) -> None:
    """Write or replace a file at once, so that a kill leaves the old one or the new one."""
    temporary = path.with_name(f".{os.getpid()}.tmp")  # no name that TensorBoard would read
    file = EventFile(temporary, "wb")
    file.write(0, *summaries)
    file.close()
    os.replace(temporary, path)


def _run(folder: Path, identity: str) -> Path:
    return folder / "events" / identity


def _shown(tag: str, value: float | None) -> bool:
    # The plots of the HParams page break on a metric that is not finite.
    return value is not None and (math.isfinite(value) or tag not in METRICS)


def _files(run: Path) -> tuple[list[Path], list[Path]]:
    """The files of a run's attempts, and those of its ends. Numbers order them, since clocks of nodes may differ."""
    paths = list(run.glob("events.out.tfevents.*"))
    return [path for path in paths if path.suffix != ".end"], [path for path in paths if path.suffix == ".end"]


def _hparams(tag: str, **content: Any) -> Any:
    plugin_data = metadata.create_summary_metadata(HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=plugin_data, tensor=metadata.NULL_TENSOR)])


def _start(identity: str, values: Mapping[str, Value], started: datetime | None = None) -> Any:
    return hparams_pb(values, trial_id=identity, start_time_secs=None if started is None else started.timestamp())


def _hparam_infos(study: StudyConfig) -> list[Any]:
    """One column a path. TensorBoard shows those marked as differing first, and each half in alphabetical order."""
    controls = [dataclasses.replace(study.trial, control=control).applied() for control in ("regulated", *study.controls)]
    infos = []
    for path in dict.fromkeys((*study.search_space, *COMPARED)):
        distribution = study.search_space.get(path)
        values: list[Value] = [] if distribution is None else list(distribution.bounds())
        if path == "seed":
            values += study.control_seeds
        if path in COMPARED and (path != "backbone" or distribution is None):
            values += [read_path(config, path) for config in controls]
        values = sorted(set(values))
        info = api_pb2.HParamInfo(name=path, differs=path in study.search_space or path == "control")
        if isinstance(values[0], bool):
            info.type = api_pb2.DATA_TYPE_BOOL
        elif isinstance(values[0], str):
            info.type = api_pb2.DATA_TYPE_STRING
        else:
            info.type = api_pb2.DATA_TYPE_FLOAT64
        if info.type == api_pb2.DATA_TYPE_FLOAT64 and not isinstance(distribution, Choice):
            info.domain_interval.min_value, info.domain_interval.max_value = values[0], values[-1]
        else:
            info.domain_discrete.extend(values)
        infos.append(info)
    return infos


def image_pb(tag: str, picture: Image.Image) -> Any:
    """A picture as a value of a run."""
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    image = Summary.Image(width=picture.width, height=picture.height, colorspace=3, encoded_image_string=stream.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def contact_sheet(images: UInt8[Tensor, "N 3 H W"], captions: tuple[str, ...]) -> Image.Image:
    """A grid of N images with their captions below, small ones enlarged without smoothing so that pixels can be read."""
    height, width = images.shape[2:]
    scale = max(1, 72 // max(height, width))
    tile_width, tile_height = max(width * scale, 64), height * scale + 16
    columns = max(1, round(math.sqrt(len(images) * tile_height / tile_width)))
    rows = math.ceil(len(images) / columns)
    gap = 8
    sheet = Image.new("RGB", (columns * (tile_width + gap) + gap, rows * (tile_height + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), _font(10)
    for index, (pixels, caption) in enumerate(zip(images.permute(0, 2, 3, 1).cpu().numpy(), captions, strict=True)):
        left, top = gap + index % columns * (tile_width + gap), gap + index // columns * (tile_height + gap)
        tile = Image.fromarray(pixels).resize((width * scale, height * scale), Image.Resampling.NEAREST)
        sheet.paste(tile, (left, top))
        draw.text((left, top + height * scale + 2), _shortened(caption, font, tile_width), "black", font)
    return sheet


def confusion_matrix(counts: Int[Tensor, "C C"], class_names: tuple[str, ...]) -> Image.Image:
    """Counts by true class (rows) and predicted class (columns), each cell as dark as its share of its row.

    The picture is at most about 1,800 pixels wide: names fit up to 160 classes; counts do for fewer, the smaller they are.
    """
    counts = counts.cpu()
    num_classes = len(class_names)
    font = _font(10)
    count_width = font.getlength(str(int(counts.max()))) + 4
    # A card of TensorBoard is some 340 pixels wide and drops pixels of wider pictures: cells are no larger than they must be.
    cell = max(1, min(math.ceil(max(26, count_width)), 1600 // num_classes))
    named, counted = cell >= 10, cell >= count_width
    names = [_shortened(name, font, 110) for name in class_names] if named else []
    margin = 32 + max((math.ceil(font.getlength(name)) for name in names), default=0)
    side = margin + num_classes * cell + 10
    sheet = Image.new("RGB", (side, side), "white")
    draw, title = ImageDraw.Draw(sheet), _font(12)
    draw.text((margin, 4), "predicted class", "black", title)
    _draw_upright(sheet, (4, margin), "true class", title)
    shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).tolist()
    for row, line in enumerate(counts.tolist()):
        top = margin + row * cell
        if named:
            draw.text((margin - 6, top + cell / 2), names[row], "black", font, anchor="rm")
            _draw_upright(sheet, (top + (cell - 13) // 2, margin - 6), names[row], font, above=True)
        for column, count in enumerate(line):
            left, share = margin + column * cell, shares[row][column]
            shade = (round(255 - 247 * share), round(255 - 207 * share), round(255 - 148 * share))
            outline = "#dddddd" if named else None
            draw.rectangle((left, top, left + cell, top + cell), shade, outline)
            if counted and count:
                ink = "white" if share > 0.5 else "black"
                draw.text((left + cell / 2, top + cell / 2), str(count), ink, font, anchor="mm")
    return sheet


def _font(size: int) -> FreeTypeFont:
    """Pillow's own font, in every installation the same."""
    return cast("FreeTypeFont", ImageFont.load_default(size))


def _draw_upright(sheet: Image.Image, place: tuple[int, int], text: str, font: FreeTypeFont, *, above: bool = False) -> None:
    """Draw text that reads upwards, with its left top corner at ``place``, or its left bottom corner where ``above``."""
    size = (math.ceil(font.getlength(text)), math.ceil(font.size * 1.3))
    strip = Image.new("RGB", size, "white")
    ImageDraw.Draw(strip).text((0, 0), text, "black", font)
    strip = strip.transpose(Image.Transpose.ROTATE_90)
    left, top = place
    sheet.paste(strip, (left, top - strip.height if above else top))


def _shortened(text: str, font: FreeTypeFont, width: float) -> str:
    """``text``, cut so that it is no wider than ``width`` pixels."""
    if font.getlength(text) <= width:
        return text
    return next(cut for end in range(len(text), -1, -1) if font.getlength(cut := f"{text[:end]}…") <= width or end == 0)
