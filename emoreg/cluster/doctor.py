"""What a Ray cluster has and lacks for emoreg: each of its nodes is asked, and a verdict stands on each line, with a cure."""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path

import ray

from emoreg.cluster.machine import Finding
from emoreg.cluster.probes import (
    Look,
    Node,
    Probes,
    emoreg_code,
    list_nodes,
    look,
    read,
    remove,
    visible_gpus,
    write,
)
from emoreg.cluster.verdicts import (
    CURE_STORAGE,
    Skew,
    grouped,
    in_gib,
    judge_access,
    judge_clocks,
    judge_code,
    judge_dashboard,
    judge_gpus,
    judge_room,
    judge_storage,
    judge_versions,
    names_of,
)
from emoreg.storage.files import Files, without_credentials
from emoreg.storage.working_copy import join as join_uri
from emoreg.tuning.joining import ANSWER_SECONDS, OtherVersions, join, knock

_IMPORT_SECONDS = 120.0  # torch and Ray Tune, from a slow disk
_ROUND_TRIPS = 5
_KEEP_GPUS_VISIBLE = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}  # else Ray hides them from what asks for none
_FROM_OUTSIDE = "`ray job submit --address http://HEAD:8265 -- python -m emoreg doctor --address auto`"


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
        dashboard = join(address, settings=_KEEP_GPUS_VISIBLE, from_outside=_FROM_OUTSIDE)
    except OtherVersions as error:
        yield Finding(verdict="bad", what="versions", found=error.mismatch, cure=f"{error.cure}: Ray joins no other version")
        return
    try:
        nodes, num_gone = list_nodes()
        yield _cluster_line(nodes, num_gone)
        yield from examine_nodes(nodes, files, storage)
        head = ray.get_runtime_context().gcs_address
        yield judge_access(head, knock(head, RAY_AUTH_MODE="disabled"))
        yield judge_dashboard(dashboard)
    finally:
        ray.shutdown()


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
    probes = Probes(nodes)
    declared = {node.name: node for node in nodes}
    looks, silent = probes.ask(declared, look, seconds=answer_seconds)
    for group, reason in grouped(silent):
        yield Finding(
            verdict="bad",
            what="nodes",
            found=f"{names_of(group)}: {reason}",
            cure="end Ray there and start it again, or wait until the cluster counts it as lost",
        )
    if not looks:
        return
    here = Look(**look())
    seen = {name: Look(**look) for name, look in looks.items()}
    yield from judge_versions(here, seen)
    codes, cannot = probes.ask(seen, emoreg_code, "emoreg.tuning.worker", seconds=_IMPORT_SECONDS)
    yield from judge_code(emoreg_code("emoreg"), codes, cannot)
    gpus, unknown = probes.ask(seen, visible_gpus, seconds=_IMPORT_SECONDS)
    yield from judge_gpus({name: declared[name].gpus for name in seen}, gpus, unknown)
    is_usable = yield from _examine_storage(probes, list(codes), storage, uri, untried=list(cannot))
    yield from judge_clocks(_skews(probes, seen))
    yield _object_store_line([declared[name] for name in seen])
    if not is_usable:
        return
    try:
        sets = {found.name: found.size for found in Files(join_uri(storage, "imagesets")).find(deep=False)}
    except OSError as error:
        found = f"this machine cannot list {uri}: {without_credentials(str(error))}"
        yield Finding(verdict="bad", what="image sets", found=found, cure=CURE_STORAGE)
    else:
        yield from judge_room(sets, declared, seen)


def _examine_storage(
    probes: Probes, nodes: Sequence[str], storage: str, uri: str, *, untried: Sequence[str]
) -> Generator[Finding, None, bool]:
    """Let each node write a file, and all read what was written. No file is left. Whether a node could do both."""
    token = secrets.token_hex(4)
    names = {node: f".doctor.{token}.{index}" for index, node in enumerate(nodes)}
    written: dict[str, str | None] = {}
    may_have_written: Iterable[str] = nodes
    try:
        written, cannot_write = probes.ask(nodes, write, storage, own=names)
        may_have_written = written
        missing, cannot_read = probes.ask(written, read, storage, [names[node] for node in written])
    finally:
        made = sorted({folder for folder in written.values() if folder})
        _, left = probes.ask(may_have_written, remove, storage, list(names.values()), made)
    for node in written.keys() & left.keys():
        found = f"{node} cannot remove from {uri} {names[node]}, which it wrote: {left[node]}"
        yield Finding(verdict="note", what="storage", found=found, cure="let it remove files, and remove this one")
    writers = {name: node for node, name in names.items()}
    unseen = {reader: tuple(writers[name] for name in lost) for reader, lost in missing.items()}
    yield from judge_storage(uri, cannot_write, cannot_read, unseen, untried)
    return any(not lost for lost in unseen.values())


def _skews(probes: Probes, names: Iterable[str]) -> dict[str, Skew]:
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
    sizes = sorted({in_gib(node.object_store) for node in nodes}, key=lambda size: float(size.split()[0]))
    found = f"{' to '.join(dict.fromkeys((sizes[0], sizes[-1])))} a node: image sets take none of it, they are mapped from disk"
    return Finding(verdict="ok", what="object store", found=found)
