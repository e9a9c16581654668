"""The ledger of a federation without a server: a chain of entries, each of which seals those before it.

A line is canonical JSON (sorted keys, ASCII, no NaN). ``hash`` is the SHA-256 of the line without this key, and
``previous`` the ``hash`` of the line before; the first line, the genesis, has ``NOTHING`` there. So a change of any
byte shows. That lines are missing at the end shows only against a length or a head that is stored elsewhere: a
checkpoint names both. ``rules`` says which entries follow which, and ``replay`` makes the choices again.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedddpm_app import limits
from fedddpm_app.disk.bounded import read_bytes
from fedddpm_app.peers.replay import check_choices
from fedddpm_app.peers.rules import History, LedgerError

LEDGER = "ledger.jsonl"
NOTHING = "0" * 64
_SEALS = ("hash", "previous")

Entry = dict[str, Any]


class StoredLedger(NamedTuple):
    """A ledger as read: its entries, not verified, and whether an unfinished line after them was left out."""

    entries: list[Entry]
    torn: bool


class Ledger:
    """A ledger that grows; writing its lines to a file is up to the caller.

    Parameters
    ----------
    entries : sequence of dict
        Those of a ledger that is continued.

    Attributes
    ----------
    head : str
        The hash of the last entry; ``NOTHING`` at the start.
    length : int
        The number of entries.

    Raises
    ------
    LedgerError
        As ``verify``.
    """

    def __init__(self, entries: Sequence[Mapping[str, Any]] = ()) -> None:
        self.head = NOTHING
        self.length = 0
        self._history = History()
        for entry in entries:
            self._follow(entry)

    def entry(self, kind: str, facts: Mapping[str, Any]) -> Entry:
        """Add an entry, and return it with its keys sorted: ``json.dumps`` of it is the line to write.

        Parameters
        ----------
        kind : str
            A kind that ``rules`` knows.
        facts : mapping
            Of JSON types, and finite; further facts than the kind needs are welcome.

        Raises
        ------
        LedgerError
            If the entry may not follow the others; the ledger is then unchanged.
        ValueError
            If a fact is NaN, or has the name of a key that the ledger sets.
        """
        if taken := {"kind", *_SEALS} & facts.keys():
            raise ValueError(f"facts are called {', '.join(sorted(taken))}, which the ledger sets: rename them")
        content = json.loads(line({**facts, "kind": kind, "previous": self.head}))
        entry: Entry = json.loads(line({**content, "hash": _hash(content)}))
        self._follow(entry)
        return entry

    def _follow(self, entry: Mapping[str, Any]) -> None:
        number = self.length + 1
        if entry.get("previous") != self.head:
            raise LedgerError(number, "does not follow the line before it: a line was changed, added or removed")
        if not _is_sealed(entry):
            raise LedgerError(number, "was changed: its hash is not that of its content")
        self._history.add(number, entry)
        self.head = entry["hash"]
        self.length = number


def line(entry: Mapping[str, Any]) -> str:
    """Return an entry as its line, without the newline.

    Raises
    ------
    ValueError
        For NaN or infinity, which JSON does not have.
    """
    return json.dumps(entry, sort_keys=True, allow_nan=False)


def verify(entries: Sequence[Mapping[str, Any]], head: str | None = None) -> None:
    """Check a ledger: the chain, the facts, that each entry may follow those before it, and the choices.

    Parameters
    ----------
    entries : sequence of dict
        As ``read_ledger`` returns them.
    head : str or None
        The hash that the last entry must have.

    Raises
    ------
    LedgerError
        With the number of the first bad line, and what is wrong.
    """
    ledger = Ledger(entries)
    if not ledger.length:
        raise LedgerError(1, "is missing: a ledger starts with a genesis")
    if head not in (None, ledger.head):
        raise LedgerError(ledger.length, f"has the hash {ledger.head[:12]} instead of {str(head)[:12]}")
    check_choices(entries)


def read_ledger(path: Path) -> StoredLedger:
    """Read a ledger, without verifying its chain.

    A last line without a newline is what a killed process leaves; a resumed run removes it.

    Raises
    ------
    LedgerError
        If a line is not an entry, or not written as the ledger writes it.
    OSError
        If the file cannot be read.
    """
    try:
        content = read_bytes(path, limits.LINES_BYTES)
    except ValueError as error:
        raise LedgerError(1, f"cannot be read: {error}") from error
    *lines, rest = content.split(b"\n")
    return StoredLedger([_parse(number, text) for number, text in enumerate(lines, start=1)], bool(rest))


def _parse(number: int, text: bytes) -> Entry:
    try:
        entry = json.loads(text)
        canonical = line(entry).encode()
    except (ValueError, RecursionError) as error:
        raise LedgerError(number, "is not JSON") from error
    if not isinstance(entry, dict):
        raise LedgerError(number, "is not an entry, but another value of JSON")
    if canonical != text:
        raise LedgerError(number, "was changed: it is not written as a ledger writes it")
    return entry


def _is_sealed(entry: Mapping[str, Any]) -> bool:
    try:
        return bool(entry.get("hash") == _hash(entry))
    except ValueError:  # NaN, which some readers of JSON accept
        return False


def _hash(entry: Mapping[str, Any]) -> str:
    content = {key: value for key, value in entry.items() if key != "hash"}
    return hashlib.sha256(line(content).encode()).hexdigest()
