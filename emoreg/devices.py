"""Which device a trial computes on, and what it is called."""

from __future__ import annotations

from typing import Literal

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
            f"device must be there, but it is 'cuda' and torch {torch.__version__} sees no GPU: use --device cpu, or see "
            "`emoreg doctor`"
        )
    return torch.device("cuda" if choice == "cuda" or (choice == "auto" and has_gpu) else "cpu")


def device_name(device: torch.device) -> str:
    """What a person calls the device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
