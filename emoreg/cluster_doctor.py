"""What a Ray cluster has and lacks for emoreg: each of its nodes is asked, and a verdict stands on each line, with a cure.

The functions that run on the nodes travel by value, since a node may lack emoreg, or have another: they use nothing of this
module but each other and its constants, and import what may be missing where they use it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import ipaddress
import logging
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import ray
from ray import cloudpickle
from ray.exceptions import AuthenticationError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from emoreg.doctor import Finding
from emoreg.errors import ConfigError
from emoreg.files import Files, without_credentials
from emoreg.storage import join

Answer = Literal["open", "refused", "silent"]

ANSWER_SECONDS = 30.0
"""How long a node may take to answer."""
_IMPORT_SECONDS = 120.0  # torch and Ray Tune, from a slow disk
_GIB = 2**30
_SKEW_NOTE, _SKEW_BAD = 1.0, 30.0
_ROUND_TRIPS = 5
_PACKAGES = ("ray", "torch", "timm", "pyarrow", "optuna")
_KEEP_GPUS_VISIBLE = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # else Ray hides them from what asks for none
_MOST_NAMED = 3
_SUBMIT = "or use `emoreg submit`, which carries it"
_CURE_VERSIONS = "run this in the cluster's image or environment: Ray joins no other version"
_CURE_STORAGE = "mend its permissions or credentials there, or name another with --storage"
_CURE_SHARED = "mount one folder at this path on all nodes (NFS), or use an object store: --storage s3://bucket/path"


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """What Ray declares of a node; memory and object store in bytes."""

    name: str
    ray_id: str
    cpus: float
    gpus: float
    memory: float
    object_store: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a machine says of itself: versions of packages ("none" where missing), free bytes, bytes of cached image sets."""

    versions: Mapping[str, str]
    free_disk: int
    cached: Mapping[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skew:
    """How far a node's clock is ahead of this machine's, give or take ``error``; seconds."""

    ahead: float
    error: float


def examine_cluster(address: str, storage: str) -> Iterator[Finding]:
    """Look at the nodes of a running cluster, from one of its machines.

    Args:
        address: HOST:PORT of its head, or "auto" for the one that this machine belongs to.
        storage: the folder or URI that studies will write to.

    Raises:
        ConfigError: for a cluster that does not answer, or does not let this client in.
        StorageError: for a storage that cannot be named so.
    """
    if "://" not in storage:
        storage = str(Path(storage).expanduser().resolve())
    files = Files(storage)
    try:
        dashboard = _join_cluster(address)
    except _OtherVersions as error:
        yield Finding(verdict="bad", what="versions", found=str(error), cure=_CURE_VERSIONS)
        return
    try:
        nodes, num_gone = list_nodes()
        yield _cluster_line(nodes, num_gone)
        yield from examine_nodes(nodes, files, storage)
        head = ray.get_runtime_context().gcs_address
        yield judge_access(head, _knock(head, RAY_AUTH_MODE="disabled"))
        yield judge_dashboard(dashboard)
    finally:
        ray.shutdown()


def list_nodes() -> tuple[list[Node], int]:
    """The nodes that live, the head first, and how many have left."""
    rows = ray.nodes()
    alive = sorted((row for row in rows if row["Alive"]), key=lambda row: "node:__internal_head__" not in row["Resources"])
    addresses = [row["NodeManagerAddress"] for row in alive]
    nodes = []
    for row in alive:
        address, resources = row["NodeManagerAddress"], row["Resources"]
        nodes.append(
            Node(
                name=address if addresses.count(address) == 1 else f"{address} ({row['NodeID'][:6]})",
                ray_id=row["NodeID"],
                cpus=resources.get("CPU", 0.0),
                gpus=resources.get("GPU", 0.0),
                memory=resources.get("memory", 0.0) + resources.get("object_store_memory", 0.0),
                object_store=resources.get("object_store_memory", 0.0),
            )
        )
    return nodes, len(rows) - len(alive)


def examine_nodes(
    nodes: Sequence[Node], files: Files, storage: str, *, answer_seconds: float = ANSWER_SECONDS
) -> Iterator[Finding]:
    """Ask nodes of the joined cluster, of which some may have died since they were listed.

    Args:
        nodes: of ``list_nodes``.
        files: the storage, as this machine sees it.
        storage: its URI or absolute path, with credentials.
        answer_seconds: how long each may take to answer.
    """
    uri = files.uri.partition("?")[0]
    probes = _Probes(nodes)
    declared = {node.name: node for node in nodes}
    looks, silent = probes.ask(declared, _look, seconds=answer_seconds)
    for group, reason in _groups(silent):
        yield Finding(
            verdict="bad",
            what="nodes",
            found=f"{_names(group)}: {reason}",
            cure="end Ray there and start it again, or wait until the cluster counts it as lost",
        )
    if not looks:
        return
    here = Look(**_look())
    seen = {name: Look(**look) for name, look in looks.items()}
    yield from judge_versions(here, seen)
    codes, cannot = probes.ask(seen, _emoreg, "emoreg.worker", seconds=_IMPORT_SECONDS)
    yield from judge_code(_emoreg("emoreg"), codes, cannot)
    gpus, unknown = probes.ask(seen, _gpus, seconds=_IMPORT_SECONDS)
    yield from judge_gpus({name: declared[name].gpus for name in seen}, gpus, unknown)
    is_usable = yield from _examine_storage(probes, list(codes), storage, uri, untried=list(cannot))
    yield from judge_clocks(_skews(probes, seen))
    yield _object_store_line([declared[name] for name in seen])
    if not is_usable:
        return
    try:
        sets = {found.name: found.size for found in Files(join(storage, "imagesets")).find(deep=False)}
    except OSError as error:
        found = f"this machine cannot list {uri}: {without_credentials(str(error))}"
        yield Finding(verdict="bad", what="image sets", found=found, cure=_CURE_STORAGE)
    else:
        yield from judge_room(sets, declared, seen)


def judge_versions(here: Look, there: Mapping[str, Look]) -> Iterator[Finding]:
    """Python and packages of the nodes against this machine's."""
    for package, version in here.versions.items():
        others = {name: look.versions[package] for name, look in there.items() if look.versions[package] != version}
        alike = [name for name in there if name not in others]
        if alike:
            yield Finding(verdict="ok", what=package, found=f"{version} {_here_and_on(alike, there)}")
        for group, other in _groups(others):
            needs_same = package in ("Python", "ray") or other == "none"
            way = f"use Python {version} there" if package == "Python" else f"pip install {package}=={version} there"
            why = "or one image for all" if needs_same else "else a trial's numbers may depend on its node"
            yield Finding(
                verdict="bad" if needs_same else "note",
                what=package,
                found=f"{other} {_on(group, there)}; {version} here",
                cure=f"{way}, {why}",
            )


def judge_code(here: Mapping[str, str], there: Mapping[str, Mapping[str, str]], cannot: Mapping[str, str]) -> Iterator[Finding]:
    """The emoreg of the nodes, "version" and "digest" of its code, against this machine's, and why it ``cannot`` begin."""
    everywhere = there.keys() | cannot.keys()
    alike = [name for name, code in there.items() if code == here]
    if alike:
        yield Finding(verdict="ok", what="emoreg", found=f"{here['version']} {_here_and_on(alike, everywhere)}")
    for group, code in _groups({name: (code["version"], code["digest"]) for name, code in there.items() if code != here}):
        version, digest = code
        yield Finding(
            verdict="note" if version == here["version"] else "bad",
            what="emoreg",
            found=f"{version}, code {digest}, {_on(group, everywhere)}; {here['version']}, code {here['digest']}, here",
            cure=f"install this checkout there, {_SUBMIT}",
        )
    for group, reason in _groups(cannot):
        yield Finding(
            verdict="bad",
            what="emoreg",
            found=f"it cannot be imported {_on(group, everywhere)}: {reason}",
            cure=f"pip install emoreg's checkout there, with all it needs, {_SUBMIT}",
        )


def judge_gpus(declared: Mapping[str, float], seen: Mapping[str, list[str]], unknown: Mapping[str, str]) -> Iterator[Finding]:
    """The GPUs that Ray gives away on each node against the names of those that torch sees there."""
    said: dict[str, tuple[Literal["ok", "note", "bad"], str, str]] = {}
    for name, gpus in seen.items():
        kinds = ", ".join(f"{gpus.count(kind)} x {kind}" for kind in dict.fromkeys(gpus)) or "none"
        if declared[name] == len(gpus):
            said[name] = ("ok", kinds, "")
        elif declared[name] > len(gpus):
            cure = "install a CUDA build of torch that fits its driver (`nvidia-smi`), or declare what is there: --num-gpus"
            said[name] = ("bad", f"Ray gives away {declared[name]:g}, torch sees {kinds}", cure)
        else:
            cure = f"start Ray there with --num-gpus={len(gpus)}, if trials may use them"
            said[name] = ("note", f"Ray gives away {declared[name]:g}, torch sees {kinds}", cure)
    for name, reason in unknown.items():
        said[name] = ("bad", f"torch cannot be asked: {reason}", "pip install torch there, of this machine's version")
    for group, (verdict, found, cure) in _groups(said):
        yield Finding(verdict=verdict, what="GPUs", found=f"{found} {_on(group, said)}", cure=cure)


def judge_storage(
    uri: str,
    cannot_write: Mapping[str, str],
    cannot_read: Mapping[str, str],
    unseen: Mapping[str, tuple[str, ...]],
    untried: Sequence[str] = (),
) -> Iterator[Finding]:
    """Whether all nodes see one storage.

    Args:
        uri: of the storage, for messages.
        cannot_write: why, by node.
        cannot_read: why, by node that wrote.
        unseen: by every other node, the nodes of which it did not see what they had written; itself among them, perhaps.
        untried: nodes that could not be asked, having no emoreg.
    """
    for verb, failed in (("write to", cannot_write), ("read from", cannot_read)):
        for group, reason in _groups(failed):
            found = f"{_names(group)} cannot {verb} {uri}: {reason}"
            yield Finding(verdict="bad", what="storage", found=found, cure=_CURE_STORAGE)
    everywhere = [*cannot_write, *cannot_read, *unseen, *untried]
    whole = [node for node, lost in unseen.items() if not lost]
    if unseen and all(len(lost) == len(unseen) - 1 for lost in unseen.values()) and not whole:
        found = f"each node sees at {uri} only what it wrote itself"
        yield Finding(verdict="bad", what="storage", found=found, cure=_CURE_SHARED)
    else:
        for group, lost in _groups({node: lost for node, lost in unseen.items() if lost}):
            found = f"{_names(group)} cannot see at {uri} what {_names(lost)} wrote"
            yield Finding(verdict="bad", what="storage", found=found, cure=_CURE_SHARED)
    if untried:
        found = f"{uri} could not be tried {_on(untried, everywhere)}"
        yield Finding(verdict="note", what="storage", found=found, cure="mend emoreg there first, and ask again")
    if whole:
        yield Finding(verdict="ok", what="storage", found=f"{uri}: written and read back {_on(whole, everywhere)}")


def judge_clocks(skews: Mapping[str, Skew]) -> Iterator[Finding]:
    """The clocks of the nodes against this machine's. What the measurement leaves open is not held against a node."""
    cure = "set its clock (chrony, or `timedatectl set-ntp true`): leases, tokens and S3's signatures go by the time"
    good = []
    for name, skew in skews.items():
        least = abs(skew.ahead) - skew.error
        if least <= _SKEW_NOTE:
            good.append(abs(skew.ahead) + skew.error)
            continue
        side = "ahead of" if skew.ahead > 0 else "behind"
        yield Finding(
            verdict="bad" if least > _SKEW_BAD else "note",
            what="clock",
            found=f"{name} is {abs(skew.ahead):.1f} s {side} this machine's (±{skew.error:.2g})",
            cure=cure,
        )
    if good:
        whose = "all" if len(good) == len(skews) else "the others"
        yield Finding(verdict="ok", what="clock", found=f"{whose} within {max(good):.2g} s of this machine's")


def judge_room(sets: Mapping[str, int], declared: Mapping[str, Node], looks: Mapping[str, Look]) -> Iterator[Finding]:
    """Whether the image sets of the storage, bytes by name, fit on the disks of the nodes, and in their memory."""
    arrow = {name: size for name, size in sets.items() if name.endswith(".arrow")}
    total = sum(arrow.values())
    inside = f"{len(arrow)} in this storage, {_size(total)}" if arrow else "none in this storage yet"
    cure = "free some, or start Ray there with TMPDIR on a larger disk: each node keeps its copies in its temporary folder"
    good = []
    for name, look in looks.items():
        missing = [size for file, size in arrow.items() if look.cached.get(file) != size]
        memory = declared[name].memory
        if look.free_disk < sum(missing):
            too_big = look.free_disk < max(missing)
            yield Finding(
                verdict="bad" if too_big else "note",
                what="image sets",
                found=f"{name} has {_size(look.free_disk)} of disk for copies of {_size(sum(missing))}"
                + (", and the largest does not fit" if too_big else ", which fit singly"),
                cure=cure,
            )
        elif memory < total:
            yield Finding(
                verdict="note",
                what="image sets",
                found=f"{name} has {_size(memory)} of memory for {_size(total)}",
                cure="what memory does not hold is read from its disk again and again: smaller sets, or more memory",
            )
        else:
            good.append(name)
    if good:
        disk, memory = min(looks[name].free_disk for name in good), min(declared[name].memory for name in good)
        room = f"disk for copies {_size(disk)} and memory {_size(memory)} or more {_on(good, looks)}"
        yield Finding(verdict="ok", what="image sets", found=f"{inside}; {room}")


def judge_access(head: str, answer: Answer) -> Finding:
    """Whether the cluster whose head is at ``head``, HOST:PORT, is open to a client without a token, by its answer to one."""
    if answer == "refused":
        return Finding(verdict="ok", what="access", found=f"{head} asks for a token")
    if answer == "silent":
        found = f"{head} did not answer a client without a token in {ANSWER_SECONDS:g} s"
        return Finding(verdict="note", what="access", found=found, cure="ask again: it is busy")
    alone = _is_loopback(head.rpartition(":")[0])
    reach = "from this machine" if alone else "from every machine that reaches it"
    return Finding(
        verdict="note" if alone else "bad",
        what="access",
        found=f"{head} asks for no token: anybody may run code on the nodes, {reach}",
        cure="`ray get-auth-token --generate`, and RAY_AUTH_MODE=token with that token for Ray on every node and for clients",
    )


def judge_dashboard(url: str) -> Finding:
    """From where the dashboard at ``url``, perhaps without a scheme, can be reached; empty for none."""
    if not url:
        cure = 'for `emoreg submit`: pip install "ray[default]" on the head, and start Ray with --include-dashboard=true'
        return Finding(verdict="ok", what="dashboard", found="none, or not yet", cure=cure)
    if _is_loopback(urlsplit(url if "//" in url else f"//{url}").hostname or ""):
        return Finding(verdict="ok", what="dashboard", found=f"{url}, for the head alone: others by `ssh -L`")
    return Finding(
        verdict="note",
        what="dashboard",
        found=f"{url}, for all that reach the head",
        cure="plain HTTP shows the token on the way: start the head with --dashboard-host=127.0.0.1, and use `ssh -L`",
    )


class _OtherVersions(Exception):
    """The cluster's Ray or Python is not this machine's."""


def _join_cluster(address: str) -> str:
    """Become a driver of a running cluster; its dashboard's URL, empty for none.

    Raises:
        ConfigError: for a cluster that does not answer, or does not let this client in.
    """
    if "://" in address:
        raise ConfigError(
            f"--address of the doctor must be HOST:PORT of a Ray cluster, or 'auto', on one of its machines, but it is "
            f"{address!r}: from outside, `ray job submit --address http://HEAD:8265 -- python -m emoreg doctor --address auto`"
        )
    if address != "auto":
        _require_answer(address)
    try:
        context = ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": _KEEP_GPUS_VISIBLE},
        )
    except (ConnectionError, RuntimeError, AuthenticationError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if str(cause).startswith("Version mismatch"):
                raise _OtherVersions(" ".join(str(cause).split()).removeprefix("Version mismatch: ")) from error
            cause = cause.__cause__ or cause.__context__
        _require_answer(address)
        raise ConfigError(f"the cluster at {address!r} cannot be joined ({error}): run this on one of its machines") from error
    return str(context.dashboard_url or "")


def _require_answer(address: str) -> None:
    """Refuse an address at which no Ray is, or one that does not take this client's token: Ray would try for 20 seconds.

    Raises:
        ConfigError: with the way out.
    """
    try:
        if address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=5.0).close()
        answer, why = _knock(address), "no Ray is there"
    except (OSError, ValueError, OverflowError) as error:
        answer, why = "silent", str(error)
    if answer == "refused":
        raise ConfigError(
            f"a client must have the cluster's token, but {address!r} refuses this one: set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH as on the head"
        )
    if answer == "silent":
        raise ConfigError(
            f"--address must be HOST:PORT of a running Ray cluster, or 'auto', but {address!r} does not answer ({why}): start "
            "one with `ray start --head`"
        )


def _knock(address: str, **environment: str) -> Answer:
    """Whether a cluster lets a client with these environment variables in: a process of its own, for Ray reads them once."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return "silent"
    if done.returncode == 0 or "version mismatch" in done.stderr:  # it has told its version
        return "open"
    return "refused" if "AuthenticationError" in done.stderr else "silent"


class _Hands:
    """Calls functions on a node."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class _Probes:
    """Hands on each of some nodes."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        cloudpickle.register_pickle_by_value(sys.modules[__name__])
        hands = ray.remote(num_cpus=0)(_Hands)
        self._hands = {
            node.name: hands.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.ray_id, soft=False)).remote()
            for node in nodes
        }

    def ask(
        self,
        names: Iterable[str],
        function: Callable[..., Any],
        *arguments: Any,
        own: Mapping[str, Any] | None = None,
        seconds: float = ANSWER_SECONDS,
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Call a function on nodes, all at once.

        Args:
            names: of the nodes.
            function: what to call.
            arguments: the same for all nodes.
            own: the last argument of each node, by its name, if the function takes one.
            seconds: how long to wait for answers.

        Returns:
            What it gave on each node, and why it gave nothing on the others.
        """
        calls = {
            name: self._hands[name].call.remote(function, *arguments, *([] if own is None else [own[name]])) for name in names
        }
        answers: dict[str, Any] = {}
        silent: dict[str, str] = {}
        if not calls:
            return answers, silent
        done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=seconds)
        for name, call in calls.items():
            if call not in done:
                silent[name] = f"no answer in {seconds:g} s"
                continue
            try:
                answers[name] = ray.get(call)
            except RayTaskError as error:  # what the function raised
                silent[name] = f"{type(error.cause).__name__}: {' '.join(without_credentials(str(error.cause)).split())}"
            except RayError as error:  # the node is gone
                silent[name] = f"it is lost ({type(error).__name__})"
        return answers, silent


def _look() -> dict[str, Any]:
    """The fields of a ``Look``, on any machine."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "none"
    copies = Path(tempfile.gettempdir(), f"emoreg-{os.getuid()}", "imagesets").glob("*.arrow")  # storage.node_cache
    return {
        "versions": versions,
        "free_disk": shutil.disk_usage(tempfile.gettempdir()).free,
        "cached": {path.name: path.stat().st_size for path in copies},
    }


def _emoreg(entry: str) -> dict[str, str]:
    """The version of emoreg and a digest of its code, where its module ``entry`` can be imported."""
    importlib.import_module(entry)
    import emoreg

    digest = hashlib.sha256()
    folder = Path(emoreg.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return {"version": emoreg.__version__, "digest": digest.hexdigest()[:8]}


def _gpus() -> list[str]:
    """The names of the GPUs that torch sees."""
    import torch

    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def _write(storage: str, name: str) -> str | None:
    """Write a file with its name in it; the storage's folder if it had to be made."""
    from emoreg.files import Files

    files = Files(storage)
    made = files.folder is not None and not files.folder.exists()
    files.write(name, name.encode())
    return str(files.folder) if made else None


def _read(storage: str, names: Iterable[str]) -> list[str]:
    """Which of these files do not hold their name."""
    from emoreg.files import Files

    files = Files(storage)
    missing = []
    for name in names:
        try:
            whole = files.read(name).to_pybytes() == name.encode()
        except FileNotFoundError:
            whole = False
        if not whole:
            missing.append(name)
    return missing


def _remove(storage: str, names: Iterable[str], made: Iterable[str]) -> None:
    """Remove these files, and the folders if they are empty."""
    from emoreg.files import Files

    files = Files(storage)
    for name in names:
        files.remove(name)
    for folder in made:
        with suppress(OSError):  # not empty, or another node's
            os.rmdir(folder)


def _examine_storage(
    probes: _Probes, nodes: Sequence[str], storage: str, uri: str, *, untried: Sequence[str]
) -> Generator[Finding, None, bool]:
    """Let each node write a file, and all read what was written. No file is left. Whether a node could do both."""
    token = secrets.token_hex(4)
    names = {node: f".doctor.{token}.{index}" for index, node in enumerate(nodes)}
    written: dict[str, str | None] = {}
    may_have_written: Iterable[str] = nodes
    try:
        written, cannot_write = probes.ask(nodes, _write, storage, own=names)
        may_have_written = written
        missing, cannot_read = probes.ask(written, _read, storage, [names[node] for node in written])
    finally:
        made = sorted({folder for folder in written.values() if folder})
        _, left = probes.ask(may_have_written, _remove, storage, list(names.values()), made)
    for node in written.keys() & left.keys():
        found = f"{node} cannot remove from {uri} {names[node]}, which it wrote: {left[node]}"
        yield Finding(verdict="note", what="storage", found=found, cure="let it remove files, and remove this one")
    writers = {name: node for node, name in names.items()}
    unseen = {reader: tuple(writers[name] for name in lost) for reader, lost in missing.items()}
    yield from judge_storage(uri, cannot_write, cannot_read, unseen, untried)
    return any(not lost for lost in unseen.values())


def _skews(probes: _Probes, names: Iterable[str]) -> dict[str, Skew]:
    """Each node's clock, by the shortest of some round trips: it was read in the middle, give or take half of it."""
    skews: dict[str, Skew] = {}
    for name in names:
        for _ in range(_ROUND_TRIPS):
            before = time.time()
            answer, _ = probes.ask([name], time.time)
            after = time.time()
            if not answer:
                break
            skew = Skew(ahead=answer[name] - (before + after) / 2, error=(after - before) / 2)
            skews[name] = min(skew, skews.get(name, skew), key=lambda skew: skew.error)
    return skews


def _cluster_line(nodes: Sequence[Node], num_gone: int) -> Finding:
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    gone = f"; {num_gone} more {'has' if num_gone == 1 else 'have'} left" if num_gone else ""
    found = f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'} with {cpus:g} CPU, {gpus:g} GPU{gone}"
    return Finding(verdict="ok", what="cluster", found=found)


def _object_store_line(nodes: Sequence[Node]) -> Finding:
    sizes = sorted({_size(node.object_store) for node in nodes}, key=lambda size: float(size.split()[0]))
    found = f"{' to '.join(dict.fromkeys((sizes[0], sizes[-1])))} a node: image sets take none of it, they are mapped from disk"
    return Finding(verdict="ok", what="object store", found=found)


def _size(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _groups(said: Mapping[str, Any]) -> Iterator[tuple[list[str], Any]]:
    """The nodes of which the same is said, and what."""
    groups = defaultdict(list)
    for name, what in said.items():
        groups[what].append(name)
    for what, names in groups.items():
        yield names, what


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _on(names: Iterable[str], everywhere: Iterable[str]) -> str:
    names, num_nodes = list(names), len(list(everywhere))
    if len(names) == num_nodes:
        return "on the node" if num_nodes == 1 else "on all nodes"
    return f"on {_names(names)}"


def _here_and_on(names: Iterable[str], everywhere: Iterable[str]) -> str:
    names = list(names)
    return "everywhere" if len(names) == len(list(everywhere)) else f"here and {_on(names, everywhere)}"
