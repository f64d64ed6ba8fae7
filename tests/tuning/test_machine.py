from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from emoreg.config import TrialResources
from emoreg.tuning.machine import MachineShare, machine_share, num_fit

GIB = 2**30


def share(root: Path, files: Mapping[str, str] | None = None, **variables: str) -> MachineShare:
    for name, text in (files or {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return machine_share(root, variables)


def test_without_limits_it_is_the_machine(tmp_path: Path) -> None:
    here = share(tmp_path)
    assert here.cpus == len(os.sched_getaffinity(0))
    assert here.memory == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_a_pinned_process_has_the_cores_that_it_is_pinned_to() -> None:
    core = min(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, [{core}]); from emoreg.tuning.machine import *; print(machine_share().cpus)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    "files",
    [
        {
            "proc/self/cgroup": "0::/job\n",
            "sys/fs/cgroup/job/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/job/memory.max": "1024",
        },
        {  # the limit is that of the group above
            "proc/self/cgroup": "0::/job/step\n",
            "sys/fs/cgroup/job/step/cpu.max": "max 100000\n",
            "sys/fs/cgroup/job/step/memory.max": "max\n",
            "sys/fs/cgroup/job/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/job/memory.max": "1024\n",
        },
        {  # a container that sees its own groups alone, by the name that they have outside
            "proc/self/cgroup": "4:memory:/docker/0a1b\n3:cpu,cpuacct:/docker/0a1b\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "1024\n",
        },
    ],
    ids=["v2", "v2 above", "v1 in a container"],
)
def test_a_container_has_its_cgroup_s_limits(files: Mapping[str, str], tmp_path: Path) -> None:
    assert share(tmp_path, files) == MachineShare(cpus=1, memory=1024)


def test_a_cgroup_without_limits_sets_none(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/\n3:cpu:/\n0::/\n",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert share(tmp_path / "a", files) == share(tmp_path / "b")


@pytest.mark.parametrize(
    ("variables", "gib"),
    [
        ({"SLURM_MEM_PER_NODE": "2048"}, 2),
        ({"SLURM_MEM_PER_CPU": "1024", "SLURM_CPUS_ON_NODE": "1"}, 1),
        ({"SLURM_MEM_PER_NODE": "0"}, None),  # --mem=0: all that the node has
        ({"SLURM_MEM_PER_CPU": "1024"}, None),
    ],
)
def test_a_job_has_what_slurm_allots(variables: Mapping[str, str], gib: int | None, tmp_path: Path) -> None:
    here = share(tmp_path, **variables)
    assert here.memory == (gib * GIB if gib else share(tmp_path).memory)
    assert share(tmp_path, SLURM_CPUS_ON_NODE="1").cpus == 1


def test_a_private_ray_s_object_store_takes_little_of_the_memory() -> None:
    assert MachineShare(cpus=4, memory=64 * GIB).resources == {"CPU": 4, "memory": 63 * GIB}
    small = MachineShare(cpus=4, memory=2 * GIB)
    assert small.object_store < 0.7 * GIB
    assert num_fit(TrialResources(cpus=1, memory_gib=0.5), small.resources) == 2
