"""What this machine, or a Ray cluster, has and lacks for emoreg: a verdict on each line, and a cure where one is needed."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import platform
import secrets
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from emoreg.config import ImageSetConfig, without_secrets
from emoreg.errors import UserError
from emoreg.formatting import counted
from emoreg.storage.files import Files
from emoreg.storage.locks import has_locks
from emoreg.storage.permissions import user_name

_GIB = 2**30
_LEAST_GIB = 5.0
_REPORT_SECONDS = 120.0  # torch and Ray Tune, from a slow disk
_MOST_NAMED = 3

Verdict = Literal["ok", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: ``ok``, ``note`` (works, with a limit) or ``bad`` (a study would fail)."""

    verdict: Verdict
    what: str
    found: str
    cure: str = ""


def _unless(is_good: bool, verdict: Verdict, what: str, found: str, cure: str) -> Finding:
    return Finding("ok", what, found) if is_good else Finding(verdict, what, found, cure)


def examine(storage: str) -> Iterator[Finding]:
    """Look at this machine: Python, torch, the device, packages, image sets, and the folder or URI that studies write to."""
    fits = (3, 11) <= sys.version_info[:2] < (3, 14)
    yield _unless(fits, "bad", "Python", platform.python_version(), "use Python 3.11, 3.12 or 3.13")
    yield from _device()
    for name in ("timm", "ray", "optuna", "pyarrow", "tensorboard"):
        try:
            yield Finding("ok", name, importlib.import_module(name).__version__)
        except ImportError as error:
            yield Finding("bad", name, f"cannot be imported: {error}", "pip install -e . again")
    yield from _share()
    yield _home()
    try:
        files = Files(storage)
        files.check()
        yield from _locks(files)
        yield from _room(files)
    except UserError as error:
        yield Finding("bad", "storage", without_secrets(storage), str(error))
    yield from _image_sets(storage)


def _device() -> Iterator[Finding]:
    import torch

    from emoreg.torchvision_import import ensure_operators

    yield Finding("ok", "torch", torch.__version__)
    names, cuda = _gpus(), torch.version.cuda
    if names:
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16: trials compute in float32"
        memory = torch.cuda.get_device_properties(0).total_memory / _GIB
        yield Finding("ok", "device", f"{len(names)} x {names[0]}, {memory:.0f} GiB, {bf16}")
    elif cuda is not None:
        cure = "check `nvidia-smi` and the driver's version, or go on with the CPU"
        yield Finding("note", "device", f"CPU only, though torch was built for CUDA {cuda}", cure)
    else:
        yield Finding("ok", "device", "CPU", "for a GPU, install a CUDA build of torch")
    operators = ensure_operators()
    cure = "none needed: its compiled operators are for another torch build, and emoreg uses none of them"
    found = f"{importlib.metadata.version('torchvision')}, operators {operators}"
    yield _unless(operators == "compiled", "ok", "torchvision", found, cure)


def _share() -> Iterator[Finding]:
    from emoreg.tuning.machine import machine_share

    here = machine_share()
    yield Finding("ok", "CPU", f"{counted(here.cpus, 'core')} for this process of {os.cpu_count()}")
    yield Finding("ok", "memory", f"{here.memory / _GIB:.1f} GiB for this process")


def _home() -> Finding:
    home, user = os.path.expanduser("~"), user_name(os.geteuid())
    is_good = os.access(home, os.W_OK)
    cure = "set HOME to a folder that can be written: libraries keep weights and settings there"
    return _unless(is_good, "note", "home", home if is_good else f"{user} has none that can be written ({home})", cure)


def _locks(files: Files) -> Iterator[Finding]:
    if files.folder is not None:
        is_locking = has_locks(files.folder)
        found = "had" if is_locking else "none: drivers have a token instead, machines may pre-train the same twice"
        yield _unless(is_locking, "note", "file locks", found, "mount it with -o flock, or name another with --storage")


def _room(files: Files) -> Iterator[Finding]:
    for what, place, least, use in (
        ("storage", files.folder or Path(tempfile.gettempdir()), _LEAST_GIB, "checkpoints and image sets go there"),
        ("shared memory", Path("/dev/shm"), 1.0, "what is missing Ray takes from the disk"),
    ):
        if place.exists():
            free = shutil.disk_usage(place).free / _GIB
            yield _unless(free >= least, "note", what, f"{place}: {free:.1f} GiB free", f"free some: {use}")


def _image_sets(storage: str) -> Iterator[Finding]:
    from emoreg.data import check
    from emoreg.tuning.images import image_storage

    for name in ("openmoji", "openmoji-objects", "digits"):
        try:
            check(ImageSetConfig(name=name))
            yield Finding("ok", f"images: {name}", "embedded")
        except UserError as error:
            yield Finding("note", f"images: {name}", "not here", str(error))
    with suppress(UserError):  # a storage that cannot be used has been told of
        # openmoji-32px-0123456789ab.arrow
        prepared = sorted({path.stem.rpartition("-")[0] for path in (image_storage(storage) / "imagesets").glob("*.arrow")})
        yield Finding("ok", "images: prepared", ", ".join(prepared) or "none in this storage yet")
    yield Finding("ok", "images: others", "given by path", "see `emoreg data list` for where to get them")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a task found on its node.

    Attributes:
        versions: of Python, of packages ("none" where missing), and of emoreg's code, or why it cannot be imported.
        gpus: names of those that torch sees.
        free: bytes of the disk that copies of image sets go to.
        storage: what hinders the node from using it; None for nothing.
    """

    versions: Mapping[str, str]
    gpus: tuple[str, ...]
    free: int
    storage: str | None


def examine_cluster(address: str, storage: str) -> Iterator[Finding]:
    """Look at the nodes of a running cluster by one task on each, from one of its machines, with which they are compared.

    Args:
        address: HOST:PORT of its head, or "auto" for the one that this machine belongs to.
        storage: the folder or URI that studies will write to.

    Raises:
        ConfigError: for a cluster that does not answer, does not let this client in, or runs another Ray or Python.
        StorageError: for a storage that cannot be named so.
    """
    import ray

    from emoreg.tuning.ray_session import knock, ray_session

    Files(storage)  # before the cluster is joined, which takes its time
    outside = "run `ray job submit --address http://HEAD:8265 -- python -m emoreg doctor --address auto`"
    keep_gpus_visible = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # else Ray hides them from what asks for none
    with ray_session(address, keep_gpus_visible, from_outside=outside):
        yield from examine_nodes([node for node in ray.nodes() if node["Alive"]], storage)
        head = ray.get_runtime_context().gcs_address
        yield judge_access(head, knock(head, RAY_AUTH_MODE="disabled"))


def examine_nodes(nodes: Sequence[Mapping[str, Any]], storage: str, *, seconds: float = _REPORT_SECONDS) -> Iterator[Finding]:
    """Ask nodes of the joined cluster, all at once: rows of ``ray.nodes()``, of which some may have died since."""
    cpus, gpus = ([node["Resources"].get(name, 0.0) for node in nodes] for name in ("CPU", "GPU"))
    yield Finding("ok", "cluster", f"{counted(len(nodes), 'node')} with {sum(cpus):g} CPU, {sum(gpus):g} GPU")
    here = Report(**look(None, ""))
    yield Finding("ok", "versions", ", ".join(f"{name} {version}" for name, version in here.versions.items()))
    files = Files(storage)
    uri: str | None = files.uri.partition("?")[0]
    mark = f".doctor.{secrets.token_hex(4)}"
    is_new = files.folder is not None and not files.folder.exists()
    try:
        files.write(mark, mark.encode())
        reports = _ask(nodes, str(files.folder or storage), mark, seconds)
    except OSError as error:
        cure = f"mend its permissions or credentials here, or name another with --storage ({without_secrets(str(error))})"
        yield Finding("bad", "storage", f"this machine cannot write to {uri}", cure)
        reports, uri = _ask(nodes, None, "", seconds), None
    finally:
        with suppress(OSError):
            files.remove(mark)
            if is_new and files.folder is not None:
                files.folder.rmdir()
    named: dict[Finding, list[str]] = defaultdict(list)
    for node, report, declared in zip(nodes, reports, gpus, strict=True):
        for finding in judge(report, here, declared, uri):
            named[finding].append(f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})")
    for finding, names in named.items():
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        where = "all nodes" if len(names) == len(nodes) else ", ".join(names[:_MOST_NAMED]) + more
        yield replace(finding, found=f"{where}: {finding.found}")


def _ask(nodes: Sequence[Mapping[str, Any]], storage: str | None, mark: str, seconds: float) -> list[Report | str]:
    """The report of each node, or why there is none."""
    import ray
    from ray import cloudpickle
    from ray.exceptions import RayError, RayTaskError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a node may lack emoreg, or have another
    task = ray.remote(num_cpus=0, max_retries=0)(look)
    beside = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    calls = [task.options(scheduling_strategy=strategy).remote(storage, mark) for strategy in beside]
    done, _ = ray.wait(calls, num_returns=len(calls), timeout=seconds)
    reports: list[Report | str] = []
    for call in calls:
        try:
            reports.append(Report(**ray.get(call)) if call in done else f"no answer in {seconds:g} s")
        except RayTaskError as error:
            reports.append(f"{type(error.cause).__name__}: {without_secrets(' '.join(str(error.cause).split()))}")
        except RayError as error:
            reports.append(f"it is lost ({type(error).__name__})")
    return reports


def look(storage: str | None, mark: str) -> dict[str, Any]:
    """The fields of a ``Report``. It runs on nodes by value: of this module it uses what needs no emoreg.

    ``storage`` holds a file ``mark``, whose content is its name; None tries no storage.
    """
    versions = {"Python": platform.python_version()}
    for package in ("ray", "torch", "timm", "pyarrow", "optuna"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    stored = None
    try:
        versions["emoreg"] = _code()
        if storage is not None:
            stored = _try_storage(storage, mark)
    except ImportError as error:
        versions["emoreg"] = f"cannot be imported ({type(error).__name__}: {error})"
        stored = "cannot be tried without emoreg"
    free = shutil.disk_usage(tempfile.gettempdir()).free
    gpus = () if versions["torch"] == "none" else _gpus()
    return {"versions": versions, "gpus": gpus, "free": free, "storage": stored}


def _gpus() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _code() -> str:
    """The version of emoreg and a digest of its code, where what a worker runs can be imported."""
    importlib.import_module("emoreg.tuning.trainable")
    import emoreg

    folder = Path(emoreg.__file__).parent
    content = [(path.relative_to(folder).as_posix(), path.read_bytes()) for path in sorted(folder.rglob("*.py"))]
    return f"{emoreg.__version__} (code {hashlib.sha256(repr(content).encode()).hexdigest()[:8]})"


def _try_storage(storage: str, mark: str) -> str | None:
    from emoreg.errors import StorageError
    from emoreg.storage.files import Files

    files = Files(storage)
    try:
        if not files.exists(mark) or files.read(mark).to_pybytes() != mark.encode():
            return "does not hold what this machine wrote there"
        files.check()
    except (OSError, StorageError) as error:
        return f"cannot be used ({error})"
    return None


def judge(report: Report | str, here: Report, declared: float, uri: str | None) -> Iterator[Finding]:
    """What a node's report, or why there is none, means beside that of this machine.

    Ray gives away ``declared`` GPUs there; ``uri`` is that of the storage, None if it was not tried.
    """
    if isinstance(report, str):
        yield Finding("bad", "node", report, "end Ray there and start it again, or wait until the cluster counts it as lost")
        return
    others = {name: there for name, there in report.versions.items() if there != here.versions[name]}
    for name, there in others.items():
        wanted = here.versions[name]
        cure = f"{name} {wanted} there too, or one image for all"
        must_agree = name in ("Python", "ray") or there == "none"
        if name == "emoreg":
            cure = "install this checkout there, with all it needs, or use `emoreg submit`, which carries it"
            must_agree = there.split()[0] != wanted.split()[0]
        yield Finding("bad" if must_agree else "note", name, f"{there}, but {wanted} here", cure)
    if not others:
        yield Finding("ok", "versions", "as here")
    found = f"Ray gives away {declared:g}, torch sees {', '.join(report.gpus) or 'none'}"
    cure = "install a CUDA build of torch that fits its driver (`nvidia-smi`), or declare what is there: --num-gpus"
    verdict: Verdict = "bad" if declared > len(report.gpus) else "note"
    yield _unless(declared == len(report.gpus), verdict, "GPUs", found, cure)
    if uri is not None:
        cure = "mount one folder at this path on all nodes (NFS), or use an object store: --storage s3://bucket/path"
        yield _unless(report.storage is None, "bad", "storage", f"{uri} {report.storage or 'seen and written'}", cure)
    if report.free < _LEAST_GIB * _GIB:
        cure = "free some, or start Ray there with TMPDIR on a larger disk: each node keeps copies of image sets there"
        yield Finding("note", "disk", f"less than {_LEAST_GIB:g} GiB free", cure)


def judge_access(head: str, answer: str) -> Finding:
    """Whether the cluster whose head is at ``head``, HOST:PORT, is open to a client without a token, by its answer to one."""
    if answer == "refused":
        return Finding("ok", "access", f"{head} asks for a token")
    if answer == "silent":
        return Finding("note", "access", f"{head} did not answer a client without a token", "ask again: it is busy")
    is_alone = head.startswith(("127.", "localhost:", "[::1]:"))
    reach = "from this machine" if is_alone else "from every machine that reaches it"
    cure = "`ray get-auth-token --generate`, and RAY_AUTH_MODE=token with that token for Ray on every node and for clients"
    found = f"{head} asks for no token: anybody may run code on the nodes, {reach}"
    return Finding("note" if is_alone else "bad", "access", found, cure)
