"""What precision ``auto`` means: bf16 where that was measured to be faster. A trial has it settled before it begins."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from collections.abc import Callable, Mapping
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
_PRECISIONS: tuple[Precision, ...] = ("float32", "bf16")


def settle(
    trial: ResolvedTrial, device: torch.device, decided: Mapping[str, Precision], *, began_in: Precision | None = None
) -> ResolvedTrial:
    """The trial with what ``auto`` means for it in its place, under the identity that it has.

    ``decided`` says what ``auto`` means on a CPU in its study, by backbone; it is measured for one that is not in there.
    ``began_in`` is what an earlier attempt computed in: the trial goes on so.
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
    path = memory("precision", config, _batch_size(config))
    seconds = recall(path, *_PRECISIONS)
    if seconds is None:
        seconds = _measure(config)
        remember(path, seconds)
    return "bf16" if seconds["float32"] >= _GAIN * seconds["bf16"] else "float32"


def has_fast_bf16() -> bool:
    """Whether this processor multiplies in bf16 itself (AMX, AVX512-BF16): every other one only imitates it."""
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def stepper(config: TrialConfig, device: torch.device, batch_size: int) -> Callable[[], float]:
    """A function that trains one step of one encoder as a trial would, on made-up images, and returns its seconds.

    It leaves torch's global random streams as they are.
    """
    side = config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (batch_size, side, side, 3), dtype=np.uint8)
    batches = Batches(Split(images=pixels, targets=np.arange(batch_size) % _NUM_CLASSES), device=device)
    net = create_emotional_net(replace(config, weights=None), _NUM_CLASSES).to(device)
    learner = EmotionLearner(config, net, regression=False)
    optimizer = build_optimizer(net, config.regulation.optimizer, fused=not config.deterministic)

    def step() -> float:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):  # a trial's own dropout draws from there
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


def memory(kind: str, config: TrialConfig, *more: str | int) -> Path:
    """Where this machine keeps the measured seconds of a step: by all that they depend on, and what else is given."""
    parts = [
        *(_processor(), torch.__version__, torch.get_num_threads()),
        *(config.backbone, code_fingerprint(config.backbone), config.image_size, config.has_small_stem, config.width, *more),
    ]
    return node_cache() / kind / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}.json"


def recall(path: Path, *names: str) -> dict[str, float] | None:
    """The named seconds that somebody has measured on a machine like this one; None if nobody has."""
    with suppress(OSError, ValueError, KeyError):
        stored = unseal(path.read_bytes())
        return {name: float(stored[name]) for name in names}
    return None


def remember(path: Path, seconds: Mapping[str, float]) -> None:
    """Write down what was measured."""
    with suppress(OSError):  # who cannot measures again
        make_folder(path.parent)
        with replacing(path) as stream:
            stream.write(seal(seconds))


def _measure(config: TrialConfig) -> dict[str, float]:
    cpu, size = torch.device("cpu"), _batch_size(config)
    steps: dict[str, Callable[[], float]] = {name: stepper(replace(config, precision=name), cpu, size) for name in _PRECISIONS}
    for step in steps.values():
        step()  # the first one builds kernels
    seconds = {name: step() for name, step in steps.items()}
    for _ in range(_ROUNDS - 1):
        if not 1 / _CLEAR < seconds["float32"] / seconds["bf16"] < _CLEAR:
            break
        seconds = {name: min(seconds[name], step()) for name, step in steps.items()}
    return seconds


def _batch_size(config: TrialConfig) -> int:
    return min(max(2, config.regulation.batch_size), _LARGEST_BATCH)


def _processor() -> str:
    """The kind of this machine's processor."""
    with suppress(OSError):
        found = re.search(r"^model name\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return found[1].strip() if found else platform.machine()
    return platform.processor() or platform.machine()
