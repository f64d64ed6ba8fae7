"""The state of a training loop, and when it is saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from emoreg.errors import Diverged, Interrupted
from emoreg.results.outcome import OomState
from emoreg.results.records import Stage
from emoreg.storage.checkpoint import State, Writer
from emoreg.training.history import History
from emoreg.training.oom import MicroBatches
from emoreg.training.optim import rng_state, set_rng_state


@dataclass(kw_only=True, slots=True)
class LoopState:
    """Where a stage's loop stands: with what is in here, it goes on as if it had never stopped.

    ``epoch`` and ``step`` count what is done of the stage; losses, sizes and hits are of the steps of the epoch in progress,
    kept on the device so that a step never waits for it, and ``seconds`` is what these took.
    """

    stage: Stage
    network: nn.Module
    device: torch.device
    optimizer: Optimizer
    batches: torch.Generator
    micro_batches: MicroBatches
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    losses: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    hits: list[Tensor] = field(default_factory=list)
    _epoch_batches: Tensor = field(init=False)  # all that the epoch in progress draws of its batches follows from this

    def __post_init__(self) -> None:
        self._epoch_batches = self.batches.get_state()

    @property
    def step_in_epoch(self) -> int:
        """Steps done of the epoch in progress."""
        return len(self.losses)

    @property
    def train_loss(self) -> float:
        """Mean loss over the images of the epoch so far."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        return float((torch.stack(self.losses).double().cpu() * sizes).sum() / sizes.sum())

    @property
    def train_accuracy(self) -> float | None:
        """Share of images classified correctly; None for real-valued or mixed targets."""
        return float(torch.stack(self.hits).sum()) / sum(self.sizes) if len(self.hits) == len(self.losses) else None

    def add_step(self, loss: Tensor, targets: Tensor, scores: Tensor) -> None:
        """Count a step with its mean loss; accuracy is counted if targets are class indices."""
        self.step += 1
        self.losses.append(loss.detach())
        self.sizes.append(len(targets))
        if targets.dim() == 1:
            self.hits.append((scores.argmax(dim=1) == targets).sum())

    def check_finite(self) -> None:
        """Raise Diverged, naming the step, if a loss is not finite. Waits for the device: call it now and then."""
        finite = torch.isfinite(torch.stack(self.losses))
        if not bool(finite.all()):
            raise Diverged(self.stage, self.step - self.step_in_epoch + int((~finite).nonzero()[0, 0]))

    def end_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.seconds, self.losses, self.sizes, self.hits = self.epoch + 1, 0.0, [], [], []
        self._epoch_batches = self.batches.get_state()

    def to_dict(self) -> State:
        """What a file holds of it. Waits for the device; the network's and the optimizer's tensors are the living ones."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "batches": self._epoch_batches,
            "rng": rng_state(self.device),
            "oom": asdict(self.micro_batches.state),
            "epoch": self.epoch,
            "step": self.step,
            "step_in_epoch": self.step_in_epoch,
            "seconds": self.seconds,
            "losses": torch.stack(self.losses).tolist() if self.losses else [],
            "sizes": list(self.sizes),
            "hits": torch.stack(self.hits).tolist() if self.hits else [],
        }

    def to_final_dict(self) -> State:
        """What a file holds of it once all epochs are done: the network, and what it took to fit in memory."""
        return {"network": self.network.state_dict(), "oom": asdict(self.micro_batches.state), "epoch": self.epoch}

    def load_dict(self, saved: Mapping[str, Any]) -> None:
        """Take up what ``to_dict`` made."""
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self._epoch_batches = saved["batches"].cpu()
        self.batches.set_state(self._epoch_batches)
        set_rng_state(saved["rng"], self.device)
        self.micro_batches = MicroBatches(self.network, OomState(**saved["oom"]))
        self.epoch, self.step, self.seconds = saved["epoch"], saved["step"], saved["seconds"]
        self.losses = list(torch.tensor(saved["losses"], device=self.device).unbind())
        self.sizes = list(saved["sizes"])
        self.hits = list(torch.tensor(saved["hits"], dtype=torch.int64, device=self.device).unbind())


@dataclass(kw_only=True)
class Checkpointer:
    """Saves the state of a loop in the background: after epochs that count, as often as asked, and before a stop.

    As a context it waits for the last write when it ends.

    Attributes:
        latest: the state to go on from; None to begin.
        history: is saved with each state, and tells the epochs.
        keeps: whether the state after so many whole epochs counts, and is saved whatever the time.
        write: writes a state, in the background; with whether it counts.
        seconds: least time between two others.
        should_stop: whether the trial is to stop.
        is_shared: whether other trials go on from its states. An epoch is then told once a state that has it is written: were
            this trial lost before that, another one would train the epoch again, and tell it.
        last_epoch: after which it has nothing left to stop, and only its network is saved; None for a loop that others may
            continue.
    """

    latest: State | None
    history: History
    keeps: Callable[[int], bool]
    write: Callable[[State, bool], None]
    seconds: float
    should_stop: Callable[[], bool]
    is_shared: bool = False
    last_epoch: int | None = None
    _saved: float = field(init=False)
    _writer: Writer = field(init=False)
    _num_written: int = field(init=False, default=0)  # epochs of the history in the newest state that is written

    def should_save(self) -> bool:
        """Whether the loop should save after this step: time has passed, or the trial is asked to stop."""
        return self.should_stop() or time.monotonic() - self._saved >= self.seconds

    def save(self, state: LoopState) -> None:
        """Save after an epoch that counts, and after whatever step if ``should_save``. The loop may go on at once.

        Raises:
            Interrupted: the trial is asked to stop, and the state is safe.
        """
        is_whole = state.step_in_epoch == 0
        is_kept = is_whole and self.keeps(state.epoch)
        if not (is_kept or self.should_save()):
            return
        is_final = is_whole and state.epoch == self.last_epoch
        saved = {**(state.to_final_dict() if is_final else state.to_dict()), "history": self.history.to_rows()}

        def write(copied: State) -> None:
            self.write(copied, is_kept)
            self._num_written = len(copied["history"])

        self._writer.submit(write, saved)
        self._saved = time.monotonic()
        if self.should_stop() and not is_final:
            self._writer.flush()
            raise Interrupted("the trial was asked to stop, and all that it did is saved: run it again to go on")

    def report(self) -> None:
        """Tell the epochs that may be told by now; the others are told when the loop ends, by itself or as it diverges."""
        self.history.report_epochs(self._num_written if self.is_shared else None)

    def __enter__(self) -> Checkpointer:
        self._saved = time.monotonic()
        self._writer = Writer()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._writer.__exit__(kind, error, trace)
        if kind is None or issubclass(kind, Diverged):
            self.history.report_epochs()
