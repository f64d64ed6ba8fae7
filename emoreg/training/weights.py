"""Weights from a file: the state of one model, out of what trainers save around it."""

from __future__ import annotations

import argparse
import pathlib
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]

_CONTAINERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "module", "net", "network", "weights"),
)
"""Where trainers keep a model's state; an average over the training goes first, as timm has it."""
_WRAPPERS = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_HARMLESS: list[Any] = [argparse.Namespace, pathlib.PosixPath, pathlib.PurePosixPath]
"""What checkpoints hold beside tensors, and may be made when they are read."""


def read_weights(path: Path, expected: Collection[str]) -> State:
    """The state in a file of torch's or safetensors', under the names that a model expects.

    Lightning, DDP, FSDP, ``torch.compile`` and averages put a state into a dictionary, and prefixes before its names
    ("model.", "module.", "_orig_mod."). The prefix under which most of the expected names are found goes, with what is not
    under it; where averaged weights are one of several, they are taken.

    Raises:
        Exception: for a file that holds no state, or several that fit alike.
    """
    if path.suffix == ".safetensors":
        content = load_file(path)
    else:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    state = {_WRAPPERS.sub("", name): tensor for name, tensor in _state(content).items()}
    prefix = _prefix(state, set(expected))
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _state(content: Any) -> State:
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds {type(content).__name__}, and no state dictionary")
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            return _state(content[name])
    state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise ValueError(f"it holds no state dictionary, but {sorted(map(str, content))[:6]}")
    return state


def _prefix(state: State, expected: set[str]) -> str:
    """What stands before the expected names in a state; nothing where none of them is there."""
    found: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in expected:
                found["".join(f"{part}." for part in parts[:start])] += 1
    best = [prefix for prefix, count in found.items() if count == max(found.values())]
    averaged = [prefix for prefix in best if "ema" in re.split(r"[._]", prefix)]
    chosen = averaged if len(averaged) == 1 else best
    if len(chosen) > 1 and "" not in chosen:
        raise ValueError(f"it holds several that fit, {chosen}: save the one that is meant")
    return "" if not chosen or "" in chosen else chosen[0]
