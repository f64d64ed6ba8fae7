"""Optimizers, learning rate schedules, precision and reproducibility: what both stages share.

A schedule is a function of the step that returns a factor of the peak learning rate.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from emoreg.config import OptimizerConfig, PretrainingConfig, RegulationConfig, TrialConfig
from emoreg.errors import Diverged
from emoreg.results.records import Stage
from emoreg.training.backbones import decay_groups

CHECK_EVERY = 50
"""Steps between two checks of the losses, each of which waits for the device."""
_ADAM_BETA2 = 0.999


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> Optimizer:
    """The optimizer of every trainable parameter of ``module``."""
    groups = decay_groups(module, config.weight_decay)
    match config.name:
        case "adamw":
            return AdamW(groups, lr=config.learning_rate, betas=(config.momentum, _ADAM_BETA2))
        case "sgd":
            return SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.momentum > 0)


def pretraining_schedule(step: int, num_steps: int, config: PretrainingConfig) -> float:
    """Linear warm-up, then 1, which knows nothing of the total length, or a half cosine to 0, which does."""
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / (warmup + 1)
    match config.lr_schedule:
        case "constant":
            return 1.0
        case "cosine":
            return _half_cosine(step - warmup, num_steps - warmup)


def length_dependence(config: PretrainingConfig) -> str | None:
    """Why a longer pre-training cannot continue a shorter one, or None if it can: found out from the schedule itself."""
    shortest = config.warmup_steps + 100
    for step in sorted({*range(0, shortest, max(1, shortest // 100)), shortest - 1}):
        for longer in (shortest + 1, 2 * shortest, 16 * shortest):
            short, long = (pretraining_schedule(step, num_steps, config) for num_steps in (shortest, longer))
            if short != long:
                return (
                    f"pretraining.lr_schedule={config.lr_schedule!r} depends on the total length (its factor at step {step} is "
                    f"{short:.6g} of {shortest} steps and {long:.6g} of {longer} steps), so lengths share no pre-training"
                )
    return None


def regulation_schedule(step: int, num_steps: int, config: RegulationConfig) -> float:
    """Linear warm-up, then a half cosine to 0, or constant with a linear end (warm-up-stable-decay)."""
    warmup = round(config.warmup_fraction * num_steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    match config.lr_schedule:
        case "cosine":
            return _half_cosine(step - warmup, num_steps - warmup)
        case "warmup_stable_decay":
            decay = max(1, round(config.decay_fraction * num_steps))
            return min(1.0, (num_steps - step) / decay)


def _half_cosine(step: int, num_steps: int) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / max(1, num_steps)))


def set_learning_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Give every group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def autocast(config: TrialConfig, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision, if ``uses_bf16``."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if uses_bf16(config, device) else nullcontext()


def uses_bf16(config: TrialConfig, device: torch.device) -> bool:
    """Whether a trial computes in bf16: ``auto`` does on a GPU that has it, unless deterministic."""
    if config.precision != "auto":
        return config.precision == "bf16"
    return not config.deterministic and device.type == "cuda" and torch.cuda.is_bf16_supported()


@contextmanager
def reproducible(deterministic: bool) -> Iterator[None]:
    """Within, torch uses deterministic algorithms and one CPU thread (the order of a sum depends on the number of threads)."""
    if not deterministic:
        yield
        return
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first use
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The global random streams that dropout draws from, on CPU and on the device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Take the global random streams up where ``rng_state`` left them."""
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


@dataclass(slots=True)
class EpochTotals:
    """Sums over an epoch, kept on the device so that a step never waits for it."""

    stage: Stage
    first_step: int
    losses: list[Tensor] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)

    def add(self, loss: Tensor, targets: Tensor, scores: Tensor) -> None:
        """Count one step.

        Args:
            loss: mean loss of the batch.
            targets: class indices, or anything of two dimensions, for which no accuracy is counted.
            scores: by class.
        """
        self.losses.append(loss.detach())
        self.sizes.append(len(targets))
        if targets.dim() == 1:
            self.correct.append((scores.argmax(dim=1) == targets).sum())

    def to_dict(self) -> dict[str, Any]:
        """The sums so far, for a checkpoint in mid-epoch. Waits for the device."""
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0)
        correct = torch.stack(self.correct).cpu() if self.correct else torch.empty(0, dtype=torch.int64)
        return {"losses": losses, "sizes": list(self.sizes), "correct": correct}

    def load_dict(self, saved: Mapping[str, Any], device: torch.device) -> None:
        """Take the sums up where ``to_dict`` left them."""
        self.losses = list(saved["losses"].to(device).unbind())
        self.sizes = list(saved["sizes"])
        self.correct = list(saved["correct"].to(device).unbind())

    def check_finite(self) -> None:
        """Raise Diverged, naming the step, if a loss is not finite. Waits for the device: call it now and then."""
        finite = torch.isfinite(torch.stack(self.losses))
        if not bool(finite.all()):
            raise Diverged(self.stage, self.first_step + int((~finite).nonzero()[0, 0]))

    @property
    def loss(self) -> float:
        """Mean loss over the images of the epoch."""
        sizes = torch.tensor(self.sizes, dtype=torch.float64)
        return float((torch.stack(self.losses).double().cpu() * sizes).sum() / sizes.sum())

    @property
    def accuracy(self) -> float | None:
        """Share of images classified correctly, or None if that was not counted for all of them."""
        if len(self.correct) < len(self.losses):
            return None
        return float(torch.stack(self.correct).sum()) / self.num_images

    @property
    def num_images(self) -> int:
        """Images seen."""
        return sum(self.sizes)
