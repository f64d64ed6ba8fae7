"""What ``compile="auto"`` means for a backbone of a study: compiled where its steps repay the seconds that compiling takes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

import torch

from emoreg.config import TrialConfig
from emoreg.results.written import Compilation
from emoreg.training.compilation import missing_compiler
from emoreg.training.precision import memory, recall, remember, stepper

_CPU = torch.device("cpu")
_GAIN = 1.1
"""How many times as fast a compiled step must be: a tie is left as it is, whatever a busy machine made of it."""
_MOST_GAIN = 1.5
"""What is hoped for at most, before anything is measured."""
_WORTH_MEASURING = 60.0
"""Seconds that a study must be able to save by that: measuring compiles, which takes most of a minute of a small network."""
_FEW_IMAGES = 5_000
"""Images through an encoder that are never worth it: they take ResNet-18 four minutes in float32 on one core."""
_PROBE_BATCH = 16
_TIMED_STEPS = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledStep:
    """Seconds of a training step as it is, of it compiled, and of compiling it on a machine that never has."""

    eager: float
    compiled: float
    compiling: float


def auto_compile(config: TrialConfig, num_images: float, slots: int, notify: Callable[[str], None]) -> Compilation:
    """What ``auto`` means for a backbone of a study on CPUs: compiled where its steps repay the seconds of compiling.

    Nothing is compiled to find out where the most that can be hoped for would not be worth it.

    Args:
        config: a trial of the backbone, whose precision is settled.
        num_images: that pass through an encoder in training, in all trials of the study.
        slots: trials that run at once.
        notify: told that a backbone is compiled, which takes a while.
    """
    missing = missing_compiler(_CPU)
    if missing is not None:
        return Compilation(compiled=False, reason=f"no compiler: {missing}")
    if num_images < _FEW_IMAGES:
        return Compilation(compiled=False, reason=f"a study of {num_images:,.0f} images through an encoder is too short")
    path = memory("compile", config, config.precision, config.regulation.batch_size)
    seconds = recall(path, *(field.name for field in fields(CompiledStep)))
    if seconds is not None:
        found = CompiledStep(**seconds)
    else:
        expected = num_images / slots * _seconds_per_image(config)
        if expected * (1 - 1 / _MOST_GAIN) < _WORTH_MEASURING:
            return Compilation(
                compiled=False,
                reason=f"its steps take {expected:.0f} s, of which compiling could not save {_WORTH_MEASURING:g} s",
            )
        notify(f"compiling {config.backbone} to see whether it pays")
        try:
            found = measure(config)
        except RuntimeError as error:  # what torch's compiler raises
            log.debug("%s cannot be compiled", config.backbone, exc_info=True)
            return Compilation(compiled=False, reason=f"it cannot be compiled: {type(error).__name__}")
        remember(path, asdict(found))
    return decide(found, num_images / slots / config.regulation.batch_size)


def decide(step: CompiledStep, num_steps: float) -> Compilation:
    """Whether so many steps, one after the other, repay compiling."""
    saved = num_steps * (step.eager - step.compiled)
    gain = step.eager / step.compiled
    figures = f"a step takes {step.eager:.3g} s, compiled {step.compiled:.3g} s, and compiling {step.compiling:.0f} s"
    if gain < _GAIN:
        return Compilation(compiled=False, reason=f"not {_GAIN:g} times as fast: {figures}")
    if saved <= step.compiling:
        return Compilation(compiled=False, reason=f"{num_steps:,.0f} steps save {saved:.0f} s: {figures}")
    return Compilation(compiled=True, reason=f"{num_steps:,.0f} steps save {saved:.0f} s: {figures}")


def measure(config: TrialConfig) -> CompiledStep:
    """Compile a step on this machine's CPU, and time it beside the same as it is, alternating."""
    batch = config.regulation.batch_size
    eager, compiled = (stepper(replace(config, compile=name), _CPU, batch) for name in ("off", "on"))
    eager()
    first = compiled()
    pairs = [(eager(), compiled()) for _ in range(_TIMED_STEPS)]
    least = [min(seconds) for seconds in zip(*pairs, strict=True)]
    return CompiledStep(eager=least[0], compiled=least[1], compiling=first - least[1])


def _seconds_per_image(config: TrialConfig) -> float:
    """Of a small step as it is, which needs no more than to tell seconds from hours."""
    size = min(config.regulation.batch_size, _PROBE_BATCH)
    step = stepper(replace(config, compile="off"), _CPU, size)
    step()  # the first one builds kernels
    return step() / size
