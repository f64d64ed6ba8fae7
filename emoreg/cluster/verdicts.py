"""What the doctor makes of what the nodes of a cluster said: a verdict on each line, and a cure."""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from emoreg.cluster.machine import Finding
from emoreg.cluster.probes import Look, Node
from emoreg.tuning.joining import ANSWER_SECONDS, Answer

CURE_STORAGE = "mend its permissions or credentials there, or name another with --storage"
_CURE_SHARED = "mount one folder at this path on all nodes (NFS), or use an object store: --storage s3://bucket/path"
_SUBMIT = "or use `emoreg submit`, which carries it"
_GIB = 2**30
_SKEW_NOTE, _SKEW_BAD = 1.0, 30.0
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Skew:
    """How far a node's clock is ahead of this machine's, give or take ``error``; seconds."""

    ahead: float
    error: float


def judge_versions(here: Look, there: Mapping[str, Look]) -> Iterator[Finding]:
    """Python and packages of the nodes against this machine's."""
    for package, version in here.versions.items():
        others = {name: look.versions[package] for name, look in there.items() if look.versions[package] != version}
        alike = [name for name in there if name not in others]
        if alike:
            yield Finding(verdict="ok", what=package, found=f"{version} {_here_and_on(alike, there)}")
        for group, other in grouped(others):
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
    for group, code in grouped({name: (code["version"], code["digest"]) for name, code in there.items() if code != here}):
        version, digest = code
        yield Finding(
            verdict="note" if version == here["version"] else "bad",
            what="emoreg",
            found=f"{version}, code {digest}, {_on(group, everywhere)}; {here['version']}, code {here['digest']}, here",
            cure=f"install this checkout there, {_SUBMIT}",
        )
    for group, reason in grouped(cannot):
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
    for group, (verdict, found, cure) in grouped(said):
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
        for group, reason in grouped(failed):
            found = f"{names_of(group)} cannot {verb} {uri}: {reason}"
            yield Finding(verdict="bad", what="storage", found=found, cure=CURE_STORAGE)
    everywhere = [*cannot_write, *cannot_read, *unseen, *untried]
    whole = [node for node, lost in unseen.items() if not lost]
    if unseen and all(len(lost) == len(unseen) - 1 for lost in unseen.values()) and not whole:
        found = f"each node sees at {uri} only what it wrote itself"
        yield Finding(verdict="bad", what="storage", found=found, cure=_CURE_SHARED)
    else:
        for group, lost in grouped({node: lost for node, lost in unseen.items() if lost}):
            found = f"{names_of(group)} cannot see at {uri} what {names_of(lost)} wrote"
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
    inside = f"{len(arrow)} in this storage, {in_gib(total)}" if arrow else "none in this storage yet"
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
                found=f"{name} has {in_gib(look.free_disk)} of disk for copies of {in_gib(sum(missing))}"
                + (", and the largest does not fit" if too_big else ", which fit singly"),
                cure=cure,
            )
        elif memory < total:
            yield Finding(
                verdict="note",
                what="image sets",
                found=f"{name} has {in_gib(memory)} of memory for {in_gib(total)}",
                cure="what memory does not hold is read from its disk again and again: smaller sets, or more memory",
            )
        else:
            good.append(name)
    if good:
        disk, memory = min(looks[name].free_disk for name in good), min(declared[name].memory for name in good)
        room = f"disk for copies {in_gib(disk)} and memory {in_gib(memory)} or more {_on(good, looks)}"
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


def in_gib(num_bytes: float) -> str:
    """Bytes in words."""
    return f"{num_bytes / _GIB:.1f} GiB"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def grouped(said: Mapping[str, Any]) -> Iterator[tuple[list[str], Any]]:
    """The nodes of which the same is said, and what."""
    names_by_what = defaultdict(list)
    for name, what in said.items():
        names_by_what[what].append(name)
    for what, names in names_by_what.items():
        yield names, what


def names_of(names: Sequence[str]) -> str:
    """The first few of them, and how many more."""
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _on(names: Iterable[str], everywhere: Iterable[str]) -> str:
    names, num_nodes = list(names), len(list(everywhere))
    if len(names) == num_nodes:
        return "on the node" if num_nodes == 1 else "on all nodes"
    return f"on {names_of(names)}"


def _here_and_on(names: Iterable[str], everywhere: Iterable[str]) -> str:
    names = list(names)
    return "everywhere" if len(names) == len(list(everywhere)) else f"here and {_on(names, everywhere)}"
