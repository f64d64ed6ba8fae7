"""One trial inside a Tune worker, which may have run others before: ``run_trial``, and what Tune is told of it."""

from __future__ import annotations

import dataclasses
import faulthandler
import logging
import os
import platform
import traceback
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError
from sqlalchemy.exc import OperationalError

from emoreg.config import TrialConfig
from emoreg.config.resolved import Source
from emoreg.data import LoadImages, load
from emoreg.data.fetch import FetchedSets
from emoreg.data.prepare import Prepared
from emoreg.errors import ConfigError, Diverged, Interrupted, UserError
from emoreg.results.records import EpochRecord, Role
from emoreg.storage.files import Files
from emoreg.storage.locks import Leases
from emoreg.storage.working_copy import PATIENCE_SECONDS, WorkingCopy, join, node_cache
from emoreg.tracking import tensorboard
from emoreg.training.devices import device_name
from emoreg.training.events import Event, Experienced, Reporters
from emoreg.training.experience import ExperienceStore
from emoreg.training.trial import run_trial
from emoreg.tuning.coordination import ActorLeases, StopSign
from emoreg.tuning.messages import EXPERIENCED, FAULT, epoch_result, last_result, unfinished_result
from emoreg.tuning.postgres import DatabaseLeases
from emoreg.tuning.preflight import image_storage

LOG = "log.txt"
_LOG_TAIL_LINES = 20
_OF_THE_MACHINE = ("CUDA error", "CUDA out of memory", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "DefaultCPUAllocator")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where a study lies. Passwords may be in here: it travels in memory, by Ray's object store, and into no file.

    Attributes:
        storage: URI of the storage.
        store: URI of the experience store.
        database: where the study's drivers meet, if it may have several.
        is_cluster: whether trials may run on several machines.
    """

    storage: str
    store: str
    database: str | None
    is_cluster: bool

    def trunk_leases(self) -> Leases | None:
        """Who trains which trunk, among all trials that may; None for what an ``ExperienceStore`` does by itself."""
        if self.database is not None:
            return DatabaseLeases(self.database, f"experience {Files(self.store).place}")
        return ActorLeases(self.store) if self.is_cluster else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Workplace:
    """What every trial of a study is given.

    Attributes:
        places: reference to its ``Places``.
        study: name of the study.
        lengths: of pre-training that the study may ask for.
        share: whether trials share pre-training.
        offered: the image sets that each machine fetches from the storage; None where there is one machine, which has them.
        checkpoint_seconds: between two checkpoints.
        stop_sign: raised when the study is to stop.
    """

    places: Any
    study: str
    lengths: frozenset[int]
    share: bool
    offered: Mapping[Source, Prepared] | None
    checkpoint_seconds: float
    stop_sign: StopSign


def train(assignment: dict[str, Any], *, workplace: Workplace) -> None:
    """Run the trial that the searcher has assigned.

    Raises:
        Exception: a fault of the machine, after which the trial may be begun again from its checkpoint. Every other ending,
            a fault in code too, is reported and returns.
    """
    try:
        last = _run(assignment, workplace)
    except Exception as error:
        if isinstance(error.__context__, SystemExit):  # Tune had stopped the trial: it listens no more
            raise
        if is_of_the_machine(error):  # Tune tells its callbacks that a trial broke, but not of what
            tune.report({FAULT: _short(error), "errno": error.errno if isinstance(error, OSError) else None})
            raise
        said = str(error) if isinstance(error, UserError) else traceback.format_exc()
        last = {**unfinished_result("broken"), FAULT: _short(error), "traceback": said, "device": "unknown"}
    tune.report(last)


def _run(assignment: dict[str, Any], workplace: Workplace) -> dict[str, Any]:
    """The trial's last result."""
    config: TrialConfig = assignment["trial"]
    own = f"trials/{config.identity}"
    places: Places = ray.get(workplace.places)
    files = Files(join(places.storage, workplace.study), patience_seconds=PATIENCE_SECONDS)
    with WorkingCopy(files) as copy:
        copy.pull(own, f"events/{config.identity}")
        try:
            return _run_in(copy, assignment, workplace, places)
        finally:
            copy.push(own, f"events/{config.identity}")


def _run_in(copy: WorkingCopy, assignment: dict[str, Any], workplace: Workplace, places: Places) -> dict[str, Any]:
    config: TrialConfig = assignment["trial"]
    role: Role = assignment["role"]
    folder = copy.folder / "trials" / config.identity
    device = _device()
    on_device = {"device": device_name(device)}
    cpus = tune.get_context().get_trial_resources().required_resources.get("CPU", 1.0)
    torch.set_num_threads(max(1, int(cpus)))
    store = ExperienceStore(
        places.store,
        leases=places.trunk_leases(),
        user=workplace.study,
        keep=workplace.lengths,
        share=workplace.share,
        patience_seconds=PATIENCE_SECONDS,
    )
    if workplace.offered is None:
        load_images: LoadImages = partial(load, storage=image_storage(places.storage))
    else:
        offered = Files(join(places.storage, "imagesets"), patience_seconds=PATIENCE_SECONDS)
        load_images = FetchedSets(offered=workplace.offered, files=offered, folder=node_cache() / "imagesets")
    history: list[EpochRecord] = []

    class ToTune:
        def report(self, event: Event) -> None:
            if isinstance(event, EpochRecord):
                history.append(event)
                log.info("%s epoch %d: loss %.4g, %.1f s", event.stage, event.epoch, event.train_loss, event.seconds)
                tune.report({**epoch_result(event, role=role, num_epochs=config.regulation.epochs), **on_device})
            elif isinstance(event, Experienced):
                tune.report({EXPERIENCED: dataclasses.asdict(event)})

    with (
        _logged(folder / LOG),
        closing(workplace.stop_sign.watch()) as is_stopped,
        tensorboard.TensorBoardReporter(copy.folder, config, assignment["params"]) as board,
    ):
        if is_stopped():  # before it began
            return {**unfinished_result("interrupted"), **on_device}
        log.info("attempt %d on %s, process %d, %s", assignment["attempt"], platform.node(), os.getpid(), on_device["device"])
        try:
            result = run_trial(
                config,
                Reporters(board, ToTune()),
                load_images=load_images,
                store=store,
                folder=folder,
                device=device,
                evaluate_on="test" if role == "confirm" else "validation",
                checkpoint_seconds=workplace.checkpoint_seconds,
                interrupted=is_stopped,
                on_checkpoint=partial(copy.push, f"trials/{config.identity}", f"events/{config.identity}"),
            )
        except Diverged as diverged:
            log.warning("%s", diverged)
            last = last_result(
                role=role,
                epochs=sum(row.stage == "regulation" for row in history),
                accuracy=None,
                loss=None,
                device_seconds=sum(row.seconds for row in history),
                diverged=diverged,
            )
            return {**last, "reason": str(diverged), **on_device}
        except Interrupted:
            log.info("asked to stop, and saved")
            return {**unfinished_result("interrupted"), **on_device}
        except Exception:  # whatever it is, the trial's own log tells it, and Tune gets it as it was
            log.exception("broken")
            raise
    last = last_result(
        role=role,
        epochs=config.regulation.epochs,
        accuracy=result.val_accuracy,
        loss=result.val_loss,
        device_seconds=result.experience_seconds + result.regulation_seconds,
    )
    return {**last, "result": dataclasses.asdict(result), **on_device}


def _device() -> torch.device:
    """A GPU where Ray gives the trial one, else the CPU.

    Raises:
        ConfigError: for a GPU that Ray gives away and torch does not see.
    """
    if not ray.get_gpu_ids():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"Ray's GPUs must be there, but on {platform.node()} it gives one away and torch {torch.__version__} sees none: "
            "install a CUDA build of torch, or start that node with --num-gpus=0; `emoreg doctor --address auto` shows all"
        )
    return torch.device("cuda")


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def is_of_the_machine(error: Exception) -> bool:
    """Whether a fault is the machine's (memory, GPU, storage, another process), so that another attempt may do better."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, (OSError, MemoryError, RayError, OperationalError, torch.OutOfMemoryError, torch.AcceleratorError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _OF_THE_MACHINE)


def log_tail(files: Files, identity: str) -> str | None:
    """The last lines of a trial's log, or None where it never came so far."""
    try:
        text = files.read(f"trials/{identity}/{LOG}").to_pybytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:])


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Append what is logged, and where a crash of native code happens, to the trial's log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", buffering=1) as stream:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root, ours = logging.getLogger(), logging.getLogger("emoreg")
        before = ours.level
        ours.setLevel(logging.INFO)
        root.addHandler(handler)
        faulthandler.enable(file=stream)
        try:
            yield
        finally:
            faulthandler.disable()
            root.removeHandler(handler)
            ours.setLevel(before)
