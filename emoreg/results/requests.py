"""What people ask of a study, whether it runs or not: trials to try first, and trials to stop.

A request is a file, ``requests/...`` in the study's folder, that its driver finds, and removes once it is done. Needs neither
torch, Ray nor Optuna, and no lock: a driver is not disturbed.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from emoreg.config import StudyConfig, Value, replace_paths
from emoreg.config.by_hand import check_values
from emoreg.errors import ConfigError
from emoreg.results.analysis import TrialSummary
from emoreg.results.written import stored_rows
from emoreg.storage.files import Files
from emoreg.storage.sealed import seal, unseal

log = logging.getLogger(__name__)

REQUESTS = "requests"
_ENQUEUE, _STOP = f"{REQUESTS}/enqueue.", f"{REQUESTS}/stop."


@dataclass(frozen=True, kw_only=True, slots=True)
class EnqueuedTrial:
    """A trial that somebody wants to be tried first.

    Attributes:
        name: of its request.
        params: chosen values by path; the sampler proposes the others.
    """

    name: str
    params: Mapping[str, Value]


def check_enqueued(config: StudyConfig, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values of a trial to be enqueued, as the search space has them.

    Raises:
        ConfigError: for values that the study does not search, that break a rule together, or that might not be used.
    """
    if config.confirmed:
        raise ConfigError("Enqueue trials in the study itself: a confirmation runs what its plan fixed, and searches nothing")
    if not values:
        raise ConfigError(f"Choose a value, as in {next(iter(config.search_space))}=...: a trial must have one chosen by hand")
    checked = check_values(config.search_space, values)
    for path in checked:
        when = config.search_space[path].when
        if when is not None and when.path in config.search_space and when.path not in checked:
            raise ConfigError(
                f"Choose {when.path} too, one of {', '.join(map(str, when.values))}: {path} is searched only there, and others "
                "may be proposed"
            )
    replace_paths(config.trial, checked)
    return checked


def enqueue(files: Files, config: StudyConfig, values: Mapping[str, Value]) -> dict[str, Value]:
    """Ask that a trial with these values be the next of the search; the values as they will be used.

    Raises:
        ConfigError: see ``check_enqueued``; or for a trial that has ended already.
    """
    checked = check_enqueued(config, values)
    for row in stored_rows(files, "trials", TrialSummary) or ():
        if row.role == "search" and row.is_searched and row.status != "failed" and json.loads(row.params) == checked:
            raise ConfigError(f"Choose other values: a trial must be a new one, but {row.identity} was run with these")
    files.write(f"{_ENQUEUE}{time.time_ns()}.{secrets.token_hex(4)}", seal({"params": checked}))
    return checked


def enqueued(files: Files) -> tuple[EnqueuedTrial, ...]:
    """The trials that wait to be tried first, in the order in which they were asked for; damaged requests are passed over."""
    return tuple(trial for name in _names(files, _ENQUEUE) if (trial := read_enqueued(files, name)) is not None)


def read_enqueued(files: Files, name: str) -> EnqueuedTrial | None:
    """The request of this name; None where it is damaged, or gone."""
    try:
        return EnqueuedTrial(name=name, params=unseal(files.read(name))["params"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def ask_to_stop(files: Files, config: StudyConfig, running: Collection[str], identity: str) -> str:
    """Ask that a running trial save and end as pruned; its whole identity.

    ``running`` are the identities of the trials of the search that run now; ``identity`` is one of them, or how it begins.

    Raises:
        ConfigError: for an identity that no such trial has, or several.
    """
    if config.confirmed:
        raise ConfigError("Stop the whole confirmation: one without trials that somebody picked out would prove nothing")
    found = [other for other in running if identity and other.startswith(identity)]
    if len(found) != 1:
        raise ConfigError(
            f"Name a trial that runs now, of which there are {', '.join(running) or 'none'}: it must be one of the search "
            f"(controls are never picked out), by its identity or the beginning, but it is {identity!r}"
        )
    files.write(f"{_STOP}{found[0]}", b"")
    return found[0]


def asked_to_stop(files: Files) -> frozenset[str]:
    """Identities of the trials that are to stop."""
    return frozenset(name.removeprefix(_STOP) for name in _names(files, _STOP))


def remove_stop(files: Files, identity: str) -> None:
    """Forget that a trial is to stop: it has ended."""
    remove_request(files, f"{_STOP}{identity}")


def remove_request(files: Files, name: str) -> None:
    """Remove a request that is done; one that cannot be, as another user's, stays, and does no harm."""
    try:
        files.remove(name)
    except OSError as error:
        log.warning("%s is done, and cannot be removed: %s", name, error)


def _names(files: Files, prefix: str) -> list[str]:
    return [found.name for found in files.find(REQUESTS) if found.name.startswith(prefix) and not found.name.endswith(".tmp")]
