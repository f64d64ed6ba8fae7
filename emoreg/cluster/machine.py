"""What this machine has and lacks for emoreg: a verdict on each line, and a cure where one is needed."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from emoreg.errors import UserError
from emoreg.torchvision_import import ensure_operators

_STYLES = {"ok": "green", "note": "yellow", "bad": "red"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One line: ``ok``, ``note`` (works, with a limit) or ``bad`` (a study would fail)."""

    verdict: Literal["ok", "note", "bad"]
    what: str
    found: str
    cure: str = ""


def examine(storage: str) -> Iterator[Finding]:
    """Look at Python, torch, the device, torchvision's operators, Ray, Optuna, storage and the image sets.

    Args:
        storage: the folder, or file:// URI, that studies will write to.
    """
    python = platform.python_version()
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding(verdict="ok" if fits else "bad", what="Python", found=python, cure="" if fits else "use Python 3.11 or 3.12")
    yield from _torch()
    for package in ("timm", "ray", "optuna", "pyarrow", "tensorboard"):
        yield _package(package)
    yield _cores()
    yield from _disk(storage)
    yield from _image_sets(storage)


def print_findings(findings: Iterator[Finding], console: Console) -> int:
    """Print a table of the findings; exit code 1 if one is bad."""
    table = Table("", "what", "found", "cure", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.columns[1].no_wrap = True
    table.columns[2].overflow = table.columns[3].overflow = "fold"  # a long path is told whole
    all_findings = list(findings)
    for finding in all_findings:
        table.add_row(
            f"[{_STYLES[finding.verdict]}]{finding.verdict}[/]", finding.what, Text(finding.found), Text(finding.cure)
        )
    console.print(table)
    num_bad = sum(finding.verdict == "bad" for finding in all_findings)
    console.print(f"{num_bad} of these would stop a study." if num_bad else "Nothing here would stop a study.")
    return 1 if num_bad else 0


def _torch() -> Iterator[Finding]:
    import torch

    yield Finding(verdict="ok", what="torch", found=torch.__version__)
    if torch.cuda.is_available():
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: trials compute in float32"
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        yield Finding(verdict="ok", what="device", found=f"{len(names)} x {names[0]}, {memory:.0f} GiB, {bf16}")
    elif torch.version.cuda is not None:
        yield Finding(
            verdict="note",
            what="device",
            found=f"CPU only, though torch was built for CUDA {torch.version.cuda}",
            cure="check `nvidia-smi` and the driver's version, or go on with the CPU",
        )
    else:
        yield Finding(verdict="ok", what="device", found="CPU", cure="for a GPU, install a CUDA build of torch")
    operators = ensure_operators()
    yield Finding(
        verdict="ok",
        what="torchvision",
        found=f"{importlib.metadata.version('torchvision')}, operators {operators}",
        cure=""
        if operators == "compiled"
        else "none needed: its compiled operators are for another torch build, and emoreg uses none of them",
    )


def _package(name: str) -> Finding:
    try:
        module = __import__(name)
    except ImportError as error:
        return Finding(verdict="bad", what=name, found=f"cannot be imported: {error}", cure="pip install -e . again")
    return Finding(verdict="ok", what=name, found=module.__version__)


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0))
    return Finding(verdict="ok", what="CPU", found=f"{cores} cores for this process of {os.cpu_count()}")


def _disk(storage: str) -> Iterator[Finding]:
    from emoreg.tuning.preflight import check_storage, image_storage

    try:
        check_storage(storage)
    except UserError as error:
        yield Finding(verdict="bad", what="storage", found=storage, cure=str(error))
        return
    for what, place, least, use in (
        ("storage", image_storage(storage), 5.0, "checkpoints and image sets go there"),
        ("shared memory", Path("/dev/shm"), 1.0, "what is missing Ray takes from the disk"),
    ):
        if not place.exists():
            continue
        free = shutil.disk_usage(place).free / 2**30
        enough = free >= least
        yield Finding(
            verdict="ok" if enough else "note",
            what=what,
            found=f"{place}: {free:.1f} GiB free",
            cure="" if enough else f"free some: {use}",
        )


def _image_sets(storage: str) -> Iterator[Finding]:
    from emoreg.config import ImageSetConfig
    from emoreg.data import check
    from emoreg.tuning.preflight import image_storage

    for name in ("openmoji", "openmoji-objects", "digits"):
        try:
            check(ImageSetConfig(name=name))
        except UserError as error:
            yield Finding(verdict="note", what=f"images: {name}", found="not here", cure=str(error))
        else:
            yield Finding(verdict="ok", what=f"images: {name}", found="embedded")
    with contextlib.suppress(UserError):  # a storage that cannot be used has been told of
        # openmoji-32px-0123456789ab.arrow
        prepared = sorted({path.stem.rpartition("-")[0] for path in (image_storage(storage) / "imagesets").glob("*.arrow")})
        yield Finding(verdict="ok", what="images: prepared", found=", ".join(prepared) or "none in this storage yet")
    yield Finding(
        verdict="ok", what="images: others", found="given by path", cure="see `emoreg data list` for where to get them"
    )
