"""Which device a trial computes on, and what it is called."""

from __future__ import annotations

from typing import Literal

import pynvml
import torch

from emoreg.errors import ConfigError

DeviceChoice = Literal["auto", "cpu", "cuda"]


def pick_device(choice: DeviceChoice) -> torch.device:
    """The device asked for; ``auto`` is the GPU where there is one.

    Raises:
        ConfigError: for a GPU where torch sees none.
    """
    has_gpu = torch.cuda.is_available()
    if choice == "cuda" and not has_gpu:
        raise ConfigError(
            f"Use --device cpu, or see `emoreg doctor`: device must be there, but it is 'cuda' and torch "
            f"{torch.__version__} sees no GPU"
        )
    return torch.device("cuda" if choice == "cuda" or (choice == "auto" and has_gpu) else "cpu")


def device_name(device: torch.device) -> str:
    """What a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def gpu_utilisation(device: torch.device) -> float | None:
    """Share of the last second in which the GPU computed, in [0, 1]; None on a CPU, and where NVML cannot be asked."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except (ModuleNotFoundError, RuntimeError, pynvml.NVMLError):  # a container without NVML, or a driver that hides it
        return None
