"""What a trial asks of a machine, and what this process may use of its own: by affinity, cgroups, and what Slurm says."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from emoreg.config import TrialResources

Resources = Mapping[str, float]
"""Amounts by Ray's names: CPU, GPU, memory in bytes, accelerator_type:T4."""
GPU_KIND = "accelerator_type:"
_SOME = 0.001  # of a kind of GPU, of which a node has 1: Ray's own way to ask for it
_MIB = 2**20
_GIB = 2**30
_OBJECT_STORE_SHARE = 0.3  # as Ray's default
_OBJECT_STORE_BYTES = _GIB  # of which a study needs little: trials have their images from files


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineShare:
    """What this process may use.

    Attributes:
        cpus: cores, at least 1.
        memory: bytes.
    """

    cpus: int
    memory: int

    @property
    def object_store(self) -> int:
        """Bytes of the memory that a private Ray keeps for its object store."""
        return min(round(_OBJECT_STORE_SHARE * self.memory), _OBJECT_STORE_BYTES)

    @property
    def resources(self) -> Resources:
        """What a private Ray gives to trials, by Ray's names; GPUs, which Ray counts itself, aside."""
        return {"CPU": self.cpus, "memory": self.memory - self.object_store}


def machine_share(root: Path = Path("/"), variables: Mapping[str, str] = os.environ) -> MachineShare:
    """What this process may use: the least of what the machine has and of all limits that are set.

    Args:
        root: where ``proc`` and ``sys`` are.
        variables: of the environment: Slurm leaves its limits there.
    """
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    on_node = _number(variables, "SLURM_CPUS_ON_NODE")
    in_job = _number(variables, "SLURM_MEM_PER_NODE") or on_node * _number(variables, "SLURM_MEM_PER_CPU")
    return MachineShare(
        cpus=max(1, min(cpus, on_node or cpus, *_cpu_limits(root))),
        memory=min(memory, in_job * _MIB or memory, *_memory_limits(root)),
    )


def bundle(asked: TrialResources) -> dict[str, float]:
    """What a trial asks for, in Ray's names."""
    resources = {
        "CPU": asked.cpus or 0.0,
        "GPU": asked.gpus or 0.0,
        "memory": math.ceil((asked.memory_gib or 0.0) * _GIB),
        f"{GPU_KIND}{asked.accelerator_type}": _SOME if asked.accelerator_type else 0.0,
    }
    return {name: amount for name, amount in resources.items() if amount}


def with_gpus(asked: TrialResources, *, has_gpus: bool) -> TrialResources:
    """The request, with a GPU for each trial if the study does not say and there are some."""
    if asked.gpus is not None:
        return asked
    return dataclasses.replace(asked, gpus=1.0 if asked.accelerator_type or has_gpus else 0.0)


def num_fit(asked: TrialResources, node: Resources) -> int:
    """How many trials a node holds at once."""
    return min(math.floor(node.get(name, 0.0) / amount + 1e-6) for name, amount in bundle(asked).items())


def _number(variables: Mapping[str, str], name: str) -> int:
    """A limit of Slurm's; 0 where it sets none."""
    text = variables.get(name, "")
    return int(text) if text.isdecimal() else 0


def _cpu_limits(root: Path) -> Iterator[int]:
    """Whole cores that the quotas of cgroups allow."""
    for group in _cgroups(root, "cpu"):
        with suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            yield int(quota) // int(period)  # "max" is no number
        with suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                yield int(quota) // int(period)


def _memory_limits(root: Path) -> Iterator[int]:
    for group in _cgroups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            with suppress(OSError, ValueError):
                yield int((group / name).read_text())


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's cgroups, of both versions, with those above them, whose limits hold too."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                top = root / "sys/fs/cgroup" / controllers
                group = top / name.lstrip("/")
                yield from (group, *(folder for folder in group.parents if folder.is_relative_to(top)))
