"""Optimizers, precision and reproducibility: what both stages share."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from emoreg.config import OptimizerConfig, TrialConfig
from emoreg.config.trial import Precision
from emoreg.training.backbones import decay_groups

_ADAM_BETA2 = 0.999


def build_optimizer(
    module: nn.Module,
    config: OptimizerConfig,
    learning_rates: Mapping[nn.Parameter, float] | None = None,
    *,
    fused: bool = False,
) -> Optimizer:
    """The optimizer of every trainable parameter of ``module``. Each of its groups knows its peak learning rate as ``peak``.

    ``learning_rates`` are the peaks of parameters that have others than ``config`` says. With ``fused`` an update is one
    kernel, which is faster, and rounds otherwise than the operations one by one.
    """
    groups: list[dict[str, Any]] = []
    for group in decay_groups(module, config.weight_decay):
        by_peak: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_peak.setdefault((learning_rates or {}).get(parameter, config.learning_rate), []).append(parameter)
        groups += [{**group, "params": parameters, "peak": peak} for peak, parameters in by_peak.items()]
    lr, momentum = config.learning_rate, config.momentum
    match config.name:
        case "adamw":
            return _eager(AdamW)(groups, lr=lr, betas=(momentum, _ADAM_BETA2), fused=fused or None)
        case "sgd":
            return _eager(SGD)(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, fused=fused or None)


@functools.cache
def _eager(kind: type[Optimizer]) -> Callable[..., Optimizer]:
    """An optimizer's class without what torch wraps around its methods for torch.compile, whose import takes long."""
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


def autocast(config: TrialConfig, device: torch.device) -> AbstractContextManager[object]:
    """Mixed precision, if ``uses_bf16``."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if uses_bf16(config, device) else nullcontext()


def uses_bf16(config: TrialConfig, device: torch.device) -> bool:
    """Whether a network computes in bf16. A trial's precision is settled (``precision.settle``) before it begins.

    One that never was, of a network exported by an earlier emoreg, is bf16 on a GPU that has it, unless deterministic.
    """
    if config.precision != "auto":
        return config.precision == "bf16"
    return not config.deterministic and device.type == "cuda" and torch.cuda.is_bf16_supported()


def precision_of(config: TrialConfig, device: torch.device) -> Precision:
    """What a trial whose precision is settled computes in."""
    return "bf16" if uses_bf16(config, device) else "float32"


@contextmanager
def reproducible(deterministic: bool, *, tf32: bool = False) -> Iterator[None]:
    """Within, torch uses deterministic algorithms and one CPU thread (the order of a sum depends on the number of threads).

    Where it need not, a GPU multiplies in TF32, if ``tf32``, what stays float32 under autocast.
    """
    if not deterministic:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if tf32 else precision)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)
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
