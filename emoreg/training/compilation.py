"""What ``compile`` means: an encoder's training step compiled by torch where a study repays what that takes.

Only whole batches in training are compiled, one graph a backbone, size of batch and precision. The last, smaller batch of an
epoch and evaluations run as they are: a graph more would take half a minute or more to compile, for one step an epoch, or for a
pass over held-out images that is the smaller part of a trial. A graph belongs to no network: all trials of a process share it,
and those of a machine its kernels, on disk. Weights, their names and checkpoints are the same.

This module imports torch's compiler when it is used, which takes seconds.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from emoreg.config import TrialConfig
from emoreg.config.resolved import ResolvedTrial
from emoreg.config.trial import Compile
from emoreg.errors import ConfigError
from emoreg.storage.permissions import make_folder
from emoreg.storage.working_copy import node_cache
from emoreg.training.backbones import Encoder

_MOST_GRAPHS = 64
"""Of a process: backbones times sizes of batches. Beyond it, networks run as they are."""

log = logging.getLogger(__name__)


def settle_compile(
    trial: ResolvedTrial, device: torch.device, decided: Mapping[str, bool], *, began_in: Compile | None = None
) -> ResolvedTrial:
    """The trial with what ``compile`` means for it in its place, "on" or "off", under the identity that it has.

    ``decided`` says what ``auto`` means in its study, by backbone; a backbone that is not in there is not compiled.
    ``began_in`` is what an earlier attempt did: the trial goes on so.

    Raises:
        ConfigError: for "on" where there is no compiler.
    """
    config = trial.config
    missing = missing_compiler(device)
    if config.compile == "on" and missing is not None:
        raise no_compiler(missing)
    compiled: Compile = config.compile
    if compiled == "auto":
        asked = began_in == "on" or (began_in is None and decided.get(config.backbone, False))
        compiled = "on" if asked and not config.deterministic and missing is None else "off"
        if asked and missing is not None:
            log.warning("not compiled, as the study has it, but run as it is: %s", missing)
    return replace(trial, config=replace(config, compile=compiled))


def no_compiler(missing: str) -> ConfigError:
    """What is said where a trial asks to be compiled and cannot be."""
    return ConfigError(
        f"Install a C++ compiler (apt-get install g++), or set compile='auto' or 'off': compile='on' needs one, but on "
        f"{platform.node()} {missing}"
    )


def missing_compiler(device: torch.device) -> str | None:
    """What a device lacks to compile for; None where it has all."""
    name = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(name) is None:
        return f"there is no {name!r}"
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def compile_steps(encoder: Encoder, config: TrialConfig) -> None:
    """Have an encoder compute whole training batches compiled, if the trial is: see ``settle_compile``."""
    if config.compile == "on":
        sizes = frozenset({config.pretraining.batch_size, config.regulation.batch_size})
        encoder.compile_training(sizes, compiled_features)


def compiled_features(model: nn.Module, images: Tensor) -> Tensor:
    """The features of images, by a compiled graph that all networks of one architecture share."""
    features: Tensor = _compiled(torch.get_num_threads())(model, images)
    return features


@functools.cache
def _compiled(num_threads: int) -> Callable[[nn.Module, Tensor], Tensor]:
    """The compiled ``_features``, whose kernels are made for so many threads of a CPU."""
    folder = node_cache() / "compiled"
    with suppress(OSError):  # who cannot keep kernels compiles again
        make_folder(folder)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))  # read when the compiler is first used
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else processes that outlive a worker compile for it
    settings: dict[str, Any] = {
        "dynamic": False,
        "recompile_limit": _MOST_GRAPHS,
        "options": {
            "fallback_random": True,  # dropout and stochastic depth draw from the streams that a checkpoint keeps
            "cpp.threads": num_threads,
        },
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about torch
        compiled: Callable[[nn.Module, Tensor], Tensor] = torch.compile(_features, **settings)
    return compiled


def _features(model: nn.Module, images: Tensor) -> Tensor:
    features: Tensor = model(images)
    return features
