"""What a ledger may hold: the facts of each kind of entry, and which entries may follow which.

============  ========================================================================================
Kind          Facts
============  ========================================================================================
genesis       ``weights`` (digest of the initial weights), ``seed``
joined, left  ``peer``
submission    ``peer``, ``number`` (from 1, by peer), ``time`` (seconds since the genesis), ``parents``
              (digests of weights: the initial ones, or submitted ones), ``weights`` and
              ``samples`` (digests), ``steps``, ``num_examples``, ``loss`` (null if not finite)
vote          ``peer``, ``submission`` (the digest of its weights), ``author`` (the peer that submitted it),
              ``score``, ``distance``, ``novelty``, ``num_examples`` (the weight of the vote), ``num_candidates``,
              ``num_confirmed``
choice        ``peer``, ``chosen`` (the digest of a submission's weights), ``author``, ``value``
============  ========================================================================================
"""

from collections.abc import Callable, Mapping
from typing import Any


class LedgerError(ValueError):
    """A ledger is not valid.

    Parameters
    ----------
    number : int
        The number of the first bad line, from 1.
    reason : str
        What is wrong with it, as the rest of a sentence that starts with the line.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"line {number} {reason}")
        self.number = number


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _are_digests(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_digest, value))


def _is_number_or_null(value: object) -> bool:
    return value is None or _is_number(value)


Check = Callable[[object], bool]
FACTS: dict[str, dict[str, Check]] = {
    "genesis": {"weights": _is_digest, "seed": _is_count},
    "joined": {"peer": _is_count},
    "left": {"peer": _is_count},
    "submission": {
        "peer": _is_count,
        "number": _is_count,
        "time": _is_number,
        "parents": _are_digests,
        "weights": _is_digest,
        "samples": _is_digest,
        "steps": _is_count,
        "num_examples": _is_count,
        "loss": _is_number_or_null,
    },
    "vote": {
        "peer": _is_count,
        "submission": _is_digest,
        "author": _is_count,
        "score": _is_number,
        "distance": _is_number,
        "novelty": _is_number,
        "num_examples": _is_count,
        "num_candidates": _is_count,
        "num_confirmed": _is_count,
    },
    "choice": {"peer": _is_count, "chosen": _is_digest, "author": _is_count, "value": _is_number},
}


_TARGETS = {"vote": "submission", "choice": "chosen"}  # the facts that name a submission


class History:
    """What is known from the entries so far: the peers that are present, the submissions and their numbers."""

    def __init__(self) -> None:
        self._models: set[str] = set()  # which may be parents: the initial one and all submitted ones
        self._submitted: set[tuple[int, str]] = set()  # peer and digest: two peers may submit the same weights
        self._present: set[int] = set()
        self._numbers: dict[int, int] = {}

    def add(self, number: int, entry: Mapping[str, Any]) -> None:
        """Take the entry of a line into account.

        Raises
        ------
        LedgerError
            If it lacks a fact, or may not follow the entries so far; nothing is then changed.
        """
        kind = entry.get("kind")
        if not isinstance(kind, str) or kind not in FACTS:
            raise LedgerError(number, f"has the unknown kind {kind!r}")
        for name, check in FACTS[kind].items():
            if name not in entry:
                raise LedgerError(number, f"is a {kind} without {name}")
            if not check(entry[name]):
                raise LedgerError(number, f"has {name} = {entry[name]!r}, which is no such fact of a {kind}")
        if problem := self._problem(kind, entry):
            raise LedgerError(number, problem)
        self._note(kind, entry)

    def _problem(self, kind: str, entry: Mapping[str, Any]) -> str:
        """Return why an entry may not follow, or an empty text."""
        started = bool(self._models)
        if kind == "genesis":
            return "is a second genesis" if started else ""
        if not started:
            return f"is a {kind} before the genesis"
        peer = entry["peer"]
        if kind == "joined":
            return f"says that peer {peer} joined, but it is present" if peer in self._present else ""
        if peer not in self._present:
            return f"is a {kind} of peer {peer}, which has not joined or has left"
        return self._problem_of_submission(entry) if kind == "submission" else self._problem_of_target(kind, entry)

    def _problem_of_submission(self, entry: Mapping[str, Any]) -> str:
        peer, number, expected = entry["peer"], entry["number"], self._numbers.get(entry["peer"], 0) + 1
        if number != expected:
            return f"is submission {number} of peer {peer} instead of {expected}"
        unknown = [parent for parent in entry["parents"] if parent not in self._models]
        return f"has the unknown parent {unknown[0][:12]}" if unknown else ""

    def _problem_of_target(self, kind: str, entry: Mapping[str, Any]) -> str:
        if kind not in _TARGETS:
            return ""
        target, author = entry[_TARGETS[kind]], entry["author"]
        known = (author, target) in self._submitted
        return "" if known else f"is a {kind} for {target[:12]}, which peer {author} did not submit"

    def _note(self, kind: str, entry: Mapping[str, Any]) -> None:
        if kind == "genesis":
            self._models.add(entry["weights"])
        elif kind == "joined":
            self._present.add(entry["peer"])
        elif kind == "left":
            self._present.remove(entry["peer"])
        elif kind == "submission":
            self._models.add(entry["weights"])
            self._submitted.add((entry["peer"], entry["weights"]))
            self._numbers[entry["peer"]] = entry["number"]
