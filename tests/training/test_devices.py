from __future__ import annotations

import pynvml
import pytest
import torch

from emoreg.training.devices import gpu_utilisation


def test_a_cpu_has_no_gpu_utilisation() -> None:
    assert gpu_utilisation(torch.device("cpu")) is None


def test_a_gpu_that_nvml_does_not_show_stops_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no GPU, torch asks NVML all the same, and NVML refuses."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu_utilisation(torch.device("cuda", 0)) is None

    def refuse(device: object) -> int:
        raise pynvml.NVMLError_NotSupported

    monkeypatch.setattr(torch.cuda, "utilization", refuse)
    assert gpu_utilisation(torch.device("cuda", 0)) is None
