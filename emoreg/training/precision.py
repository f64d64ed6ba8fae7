"""What precision ``auto`` means: bf16 where that was measured to be faster. A trial has it settled before it begins."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from emoreg.config import TrialConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.config.trial import Precision
from emoreg.data.batches import Batches
from emoreg.data.image_set import Split
from emoreg.storage.files import replacing
from emoreg.storage.permissions import make_folder
from emoreg.storage.sealed import seal, unseal
from emoreg.storage.working_copy import node_cache
from emoreg.training.backbones import code_fingerprint
from emoreg.training.learners import EmotionLearner
from emoreg.training.model import create_emotional_net
from emoreg.training.optim import build_optimizer

_GAIN = 1.1
"""How many times as fast bf16 must be: a tie is left to float32, whatever a busy machine made of it."""
_CLEAR = 1.3
"""A ratio, or its inverse, after which nothing more is measured."""
_ROUNDS = 3
_LARGEST_BATCH = 64
"""Beyond it the ratio of the two precisions does not change any more, and a step only takes longer."""
_NUM_CLASSES = 10


def settle(
    trial: ResolvedTrial, device: torch.device, decided: Mapping[str, Precision], *, began_in: Precision | None = None
) -> ResolvedTrial:
    """The trial with what ``auto`` means for it in its place, under the identity that it has.

    Args:
        trial: as its study has it.
        device: on which it computes.
        decided: what ``auto`` means on a CPU in its study, by backbone; measured for one that is not in there.
        began_in: what an earlier attempt computed in: the trial goes on so.
    """
    config = trial.config
    if config.precision != "auto":
        return trial
    precision = began_in or (decided.get(config.backbone) if device.type == "cpu" and not config.deterministic else None)
    return replace(trial, config=replace(config, precision=precision or auto_precision(config, device)))


def auto_precision(config: TrialConfig, device: torch.device) -> Precision:
    """What ``auto`` means on a device: float32 if deterministic, else bf16 on a GPU that has it, and on a CPU by measurement.

    A CPU is measured once for each backbone, image size, batch size and number of threads: the machine remembers.
    """
    if config.deterministic:
        return "float32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    if not has_fast_bf16():
        return "float32"
    seconds = _remembered(config)
    return "bf16" if seconds["float32"] >= _GAIN * seconds["bf16"] else "float32"


def has_fast_bf16() -> bool:
    """Whether this processor multiplies in bf16 itself (AMX, AVX512-BF16): every other one only imitates it."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def stepper(config: TrialConfig, device: torch.device, batch_size: int) -> Callable[[], float]:
    """A function that trains one step of one encoder as a trial would, on made-up images, and returns its seconds."""
    side = config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    batches = Batches(Split(images=pixels, targets=np.arange(batch_size) % _NUM_CLASSES), device=device)
    net = create_emotional_net(replace(config, weights=None), _NUM_CLASSES).to(device)
    learner = EmotionLearner(config, net, regression=False)
    optimizer = build_optimizer(net, config.regulation.optimizer, fused=not config.deterministic)

    def step() -> float:
        started = time.perf_counter()
        for images, targets in batches.epoch(
            batch_size, config.regulation.augmentation, _NUM_CLASSES, torch.Generator().manual_seed(0)
        ):
            optimizer.zero_grad()
            learner.loss(images, targets)[0].backward()
            optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return step


def _remembered(config: TrialConfig) -> dict[Precision, float]:
    """Seconds of a step on this machine's CPU, by precision: measured, unless somebody has."""
    path = node_cache() / "precision" / f"{machine_key(config, _batch_size(config))}.json"
    with suppress(OSError, ValueError, KeyError):
        stored = unseal(path.read_bytes())
        return {"float32": float(stored["float32"]), "bf16": float(stored["bf16"])}
    seconds = _measure(config)
    with suppress(OSError):  # who cannot write it down measures again
        make_folder(path.parent)
        with replacing(path) as stream:
            stream.write(seal({str(name): value for name, value in seconds.items()}))
    return seconds


def _measure(config: TrialConfig) -> dict[Precision, float]:
    cpu, size = torch.device("cpu"), _batch_size(config)
    steps: dict[Precision, Callable[[], float]] = {
        "float32": stepper(replace(config, precision="float32"), cpu, size),
        "bf16": stepper(replace(config, precision="bf16"), cpu, size),
    }
    state = torch.get_rng_state()  # dropout draws from the stream that belongs to a trial
    try:
        for step in steps.values():
            step()  # the first one builds kernels
        seconds = {name: step() for name, step in steps.items()}
        for _ in range(_ROUNDS - 1):
            if not 1 / _CLEAR < seconds["float32"] / seconds["bf16"] < _CLEAR:
                break
            seconds = {name: min(seconds[name], step()) for name, step in steps.items()}
    finally:
        torch.set_rng_state(state)
    return seconds


def _batch_size(config: TrialConfig) -> int:
    return min(max(2, config.regulation.batch_size), _LARGEST_BATCH)


def machine_key(config: TrialConfig, *more: str | int) -> str:
    """What the measured seconds of a step depend on: this kind of machine, the network, its threads, and what else is given."""
    parts = [
        *(_processor(), torch.__version__, torch.get_num_threads()),
        *(config.backbone, code_fingerprint(config.backbone), config.image_size, config.has_small_stem, config.width, *more),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """The kind of this machine's processor."""
    with suppress(OSError):
        return next(_model_names(Path("/proc/cpuinfo")), platform.machine())
    return platform.processor() or platform.machine()


def _model_names(cpuinfo: Path) -> Iterator[str]:
    for line in cpuinfo.read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            yield value.strip()
