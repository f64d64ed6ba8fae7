"""The ledger of a test split: every opening of it, by whatever study, in the order in which they were made.

It lies in the storage, ``test-openings/TEST_SPLIT``, an opening a file, ``NUMBER-DIGEST.json``, which object stores can do too.
Each names the digest of one before it, so that none can be changed, or taken out from between, without a word. Two that are
made at the same moment follow the same one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emoreg.config import from_json, to_json
from emoreg.errors import ConfigError, StorageError
from emoreg.results.plan import PLAN, Opening
from emoreg.storage.files import Files
from emoreg.storage.retry import Patience
from emoreg.storage.sealed import digest, seal, unseal
from emoreg.storage.working_copy import join

FOLDER = "test-openings"
_NAME = re.compile(r"(\d{6})-([0-9a-f]{32})\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """An opening of a test split.

    Attributes:
        study: whose it was.
        opened: when, UTC.
        command: what was typed, where something was.
        configurations: identities of the trials of the search that were confirmed, or of the trial that was evaluated.
        plan: digest of what a confirmation fixed; None for a single trial.
        before: digest of the entry before; empty for the first.
    """

    study: str
    opened: str
    command: str | None
    configurations: tuple[str, ...]
    plan: str | None
    before: str = ""

    def __str__(self) -> str:
        typed = "" if self.command is None else f" ({self.command})"
        return f"{self.study} on {self.opened[:10]}{typed}"


class Ledger:
    """The openings of one test split."""

    def __init__(self, storage: str, test_split: str, *, patience: Patience | None = None) -> None:
        """Open the ledger in a storage; ``test_split`` is ``ImageSet.test_split``."""
        self._files = Files(join(storage, f"{FOLDER}/{test_split}"), patience=patience)

    def entries(self) -> list[Entry]:
        """All openings, the first one first.

        Raises:
            StorageError: where one is damaged, or missing.
        """
        return [entry for _, entry in self._read()]

    def add(self, *, study: str, opened: str, command: str | None, configurations: tuple[str, ...], plan: str | None) -> None:
        """Write an opening down, unless it is there.

        Raises:
            StorageError: where an earlier one is damaged, or missing.
        """
        there = self._read()
        if any((entry.study, entry.configurations, entry.plan) == (study, configurations, plan) for _, entry in there):
            return
        before = there[-1][0] if there else ""
        entry = Entry(study=study, opened=opened, command=command, configurations=configurations, plan=plan, before=before)
        content = to_json(entry)
        self._files.write(f"{len(there) + 1:06}-{digest(content)}.json", seal(content))

    def _read(self) -> list[tuple[str, Entry]]:
        """The entries with their digests."""
        found: list[tuple[str, Entry]] = []
        for file in self._files.find(deep=False):
            named = _NAME.fullmatch(file.name)
            if named is None:
                continue
            try:
                content = unseal(self._files.read(file.name))
                entry = from_json(Entry, content)
            except (ValueError, ConfigError) as error:
                raise self._damaged(f"{file.name} cannot be read ({error})") from error
            if digest(content) != named[2]:
                raise self._damaged(f"{file.name} holds another opening than its name says")
            if entry.before not in {"", *(known for known, _ in found)} or (found and not entry.before):
                raise self._damaged(f"the opening before {file.name} is missing")
            found.append((named[2], entry))
        return found

    def _damaged(self, what: str) -> StorageError:
        return StorageError(
            f"Restore {self._files.uri!r} from a copy: it holds every opening of a test split, each naming the one before, but "
            f"{what}"
        )


def earlier(entries: Iterable[Entry], opening: Opening, study: str) -> list[Entry]:
    """The openings that a confirmation's choice may have known.

    That of the study itself by single trials, and those of others that came before the search had ended, or were of a
    configuration that is confirmed. Its own plans are told by its ``plan.json``.
    """
    chosen = {found.identity for found in opening.chosen}
    return [
        entry
        for entry in entries
        if entry.opened < opening.opened
        and not (entry.study == study and entry.plan is not None)
        and (entry.study == study or entry.opened < opening.searched_until or chosen.intersection(entry.configurations))
    ]


def refuse_lost(study: str, openings: Sequence[Opening], asked: Opening, entries: Sequence[Entry], *, is_open: bool) -> None:
    """Refuse to go on where what was fixed before an opening is gone, or the ledger of it.

    Args:
        study: that is confirmed.
        openings: as its ``plan.json`` has them.
        asked: what is to be run.
        entries: of the ledgers of its test splits.
        is_open: whether a trial of its confirmation has opened the test set.

    Raises:
        ConfigError: naming what is gone.
    """
    plans = {entry.plan: entry for entry in entries if entry.study == study and entry.plan is not None}
    others = plans.keys() - {asked.digest}
    if not openings and (is_open or others):
        when = f" by {plans[min(others, key=lambda plan: plans[plan].opened)]}" if others else ""
        raise ConfigError(
            f"Restore {PLAN} of the confirmation of {study!r} from a copy, or search and confirm under another --name, whose "
            f"verdict will be exploratory: the test set was opened{when}, but what was fixed before is missing"
        )
    if any(opening.test_splits and opening.digest not in plans for opening in openings if is_open):
        raise ConfigError(
            f"Restore {FOLDER} of the storage from a copy: it must tell of every opening of a test set, but that of the "
            f"confirmation of {study!r} on {openings[-1].opened[:10]} is missing"
        )
