"""One trial inside a Tune worker, which may have run others before: ``run_trial``, and what Tune is told of it."""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError

from emoreg.config.resolved import Source
from emoreg.config.trial import Precision
from emoreg.data import LoadImages
from emoreg.data.fetch import FetchedSets
from emoreg.data.prepare import Prepared
from emoreg.errors import ConfigError, Interrupted, UserError
from emoreg.results.outcome import EndReason, Outcome
from emoreg.results.records import EpochRecord, ProbeRecord
from emoreg.storage.experience import ExperienceStore
from emoreg.storage.files import Files
from emoreg.storage.locks import Fence
from emoreg.storage.permissions import make_folder, share
from emoreg.storage.retry import Patience
from emoreg.storage.working_copy import WorkingCopy, join, node_cache
from emoreg.tracking.tensorboard import TensorBoardReporter
from emoreg.training.context import TrialContext
from emoreg.training.devices import device_name
from emoreg.training.events import Confusion, Event, Experienced
from emoreg.training.trial import run_trial
from emoreg.tuning.coordination import SharedRunLocks, StopSignal
from emoreg.tuning.images import image_loader
from emoreg.tuning.queue import JOB, Job
from emoreg.tuning.tune_results import EVENT, TrialBroken, TrialEnded, TrialPlaced, TrialSaved, epoch_result, last_result
from emoreg.tuning.user_code import UserCode

LOG = "log.txt"
_LOG_TAIL_LINES = 20
_INFRASTRUCTURE = ("CUDA error", "CUDA out of memory", "cuDNN error", "CUDNN_STATUS", "CUBLAS_STATUS", "DefaultCPUAllocator")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where a study lies. Passwords may be in here: it travels in memory, by Ray's object store, and into no file.

    Attributes:
        storage: URI of the storage.
        token: the driver's: see ``Fence``.
        locks: who runs which shared pre-training, in which experience store.
    """

    storage: str
    token: str | None
    locks: SharedRunLocks


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerContext:
    """What every trial of a study is given.

    Attributes:
        places: reference to its ``Places``.
        study: name of the study.
        lengths: of pre-training that the study may ask for.
        share: whether trials share pre-training.
        offered: the image sets that each machine fetches from the storage; None where there is one machine, which has them.
        precisions: what precision "auto" means on a CPU, by backbone.
        compiled: what compile "auto" means, by backbone.
        checkpoint_seconds: between two checkpoints.
        metrics: registered metrics that objectives may name.
        stop_signal: set when the study, or one of its trials, is to stop.
        user_code: what the user has registered.
    """

    places: Any
    study: str
    lengths: frozenset[int]
    share: bool
    offered: Mapping[Source, Prepared] | None
    precisions: Mapping[str, Precision]
    compiled: Mapping[str, bool]
    checkpoint_seconds: float
    metrics: tuple[str, ...]
    stop_signal: StopSignal
    user_code: UserCode


def train(config: dict[str, Any], *, context: WorkerContext) -> None:
    """Run the job that the searcher has handed out.

    Raises:
        Exception: a fault of the machine, after which the trial may be begun again from its checkpoint. Every other end, a
            fault in code too, is reported and returns.
    """
    job: Job = config[JOB]
    try:
        with _session(job, context) as (trial_context, tensorboard):
            outcome = run_trial(job.trial, trial_context, tensorboard, ToTune(job))
        last: TrialEnded | TrialSaved = TrialEnded(outcome)
    except Interrupted:
        last = TrialSaved()
    except Exception as error:
        if isinstance(error.__context__, SystemExit):  # Tune had stopped the trial: it listens no more
            raise
        message = f"{type(error).__name__}: {error}"
        if is_infrastructure_error(error):
            tune.report({EVENT: TrialBroken(message, error.errno if isinstance(error, OSError) else None)})
            raise
        shown = str(error) if isinstance(error, UserError) else traceback.format_exc()
        last = TrialEnded(Outcome(end=EndReason.CODE_ERROR, message=message), log_tail=shown)
    tune.report(last_result(last, role=job.role, metrics=context.metrics))


@dataclass(frozen=True, slots=True)
class ToTune:
    """Tells Tune what happens in a trial. A ``Reporter``."""

    job: Job

    def report(self, event: Event) -> None:
        """Pass on what the driver records and schedulers compare."""
        if isinstance(event, EpochRecord):
            log.info("%s epoch %d: loss %.4g, %.1f s", event.stage, event.epoch, event.train_loss, event.seconds)
            num_epochs = self.job.trial.config.regulation.epochs
            tune.report(epoch_result(event, role=self.job.role, num_epochs=num_epochs))
        elif isinstance(event, Experienced | ProbeRecord | Confusion):
            tune.report({EVENT: event})


@contextmanager
def _session(job: Job, worker: WorkerContext) -> Iterator[tuple[TrialContext, TensorBoardReporter]]:
    """What a trial needs around it in a worker: its files brought and taken back, its log, its events, its device."""
    worker.user_code.restore()
    places: Places = ray.get(worker.places)
    identity = job.trial.identity
    own = (f"trials/{identity}", f"events/{identity}")
    device = given_device()
    tune.report({EVENT: TrialPlaced(ray.get_runtime_context().get_node_id(), device_name(device))})
    cpus = tune.get_context().get_trial_resources().required_resources.get("CPU", 1.0)
    torch.set_num_threads(max(1, int(cpus)))
    with closing(worker.stop_signal.watch(identity)) as should_stop, ExitStack() as after:
        patience = Patience(notify=log.warning, should_stop=should_stop)
        files = Files(join(places.storage, worker.study), patience=patience)
        copy = after.enter_context(WorkingCopy(files, check=Fence(files, places.token).check))
        copy.pull(*own)
        copy.remove(*(found.name for found in files.find(own[1]) if found.name.endswith(".end")))
        after.callback(copy.push, *own)
        folder = copy.folder / "trials" / identity
        with (
            _logged(folder / LOG),
            TensorBoardReporter(copy.folder, job.trial, job.params) as tensorboard,
        ):
            if should_stop():
                raise Interrupted("the study was asked to stop before this trial began")
            log.info("attempt %d on %s, process %d, %s", job.attempts, platform.node(), os.getpid(), device_name(device))
            yield (
                TrialContext(
                    load_images=_image_loader(places, worker.offered, patience),
                    store=ExperienceStore(
                        Files(places.locks.store, patience=patience),
                        locks=places.locks.open(patience),
                        user=worker.study,
                        keep=worker.lengths,
                        share=worker.share,
                    ),
                    folder=folder,
                    device=device,
                    precisions=worker.precisions,
                    compiled=worker.compiled,
                    evaluate_on="test" if job.role == "confirm" else "validation",
                    checkpoint_seconds=worker.checkpoint_seconds,
                    should_stop=should_stop,
                    on_checkpoint=partial(copy.push, *own),
                ),
                tensorboard,
            )


def _image_loader(places: Places, offered: Mapping[Source, Prepared] | None, patience: Patience) -> LoadImages:
    if offered is None:
        return image_loader(places.storage)
    files = Files(join(places.storage, "imagesets"), patience=patience)
    return FetchedSets(offered=offered, files=files, folder=node_cache() / "imagesets")


def given_device() -> torch.device:
    """A GPU where Ray gives the trial one, else the CPU.

    Raises:
        ConfigError: for a GPU that Ray gives away and torch does not see.
    """
    if not ray.get_gpu_ids():
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"Install a CUDA build of torch on {platform.node()}, or start that node with --num-gpus=0: Ray gives a GPU away "
            f"there and torch {torch.__version__} sees none; `emoreg doctor --address auto` shows all nodes"
        )
    return torch.device("cuda")


def is_infrastructure_error(error: Exception) -> bool:
    """Whether a fault is the machine's (memory, GPU, storage, another process), so that another attempt may do better."""
    from sqlalchemy.exc import OperationalError  # takes a while to import

    if isinstance(error, UserError):
        return False
    if isinstance(error, (OSError, MemoryError, RayError, OperationalError, torch.OutOfMemoryError, torch.AcceleratorError)):
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _INFRASTRUCTURE)


def log_tail(files: Files, identity: str) -> str | None:
    """The last lines of a trial's log; None if it never came so far."""
    try:
        text = files.read(f"trials/{identity}/{LOG}").to_pybytes().decode(errors="replace")
    except FileNotFoundError:
        return None
    return "\n".join(text.splitlines()[-_LOG_TAIL_LINES:])


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Append to the trial's log what is logged, how the trial breaks, and where a crash of native code happens."""
    make_folder(path.parent)
    with open(path, "a", buffering=1) as stream:
        share(path)
        handler = logging.StreamHandler(stream)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        root, ours = logging.getLogger(), logging.getLogger("emoreg")
        before = ours.level
        ours.setLevel(logging.INFO)
        root.addHandler(handler)
        faulthandler.enable(file=stream)
        try:
            yield
        except Interrupted:
            log.info("asked to stop, and saved")
            raise
        except Exception:
            log.exception("broken")
            raise
        finally:
            faulthandler.disable()
            root.removeHandler(handler)
            ours.setLevel(before)
