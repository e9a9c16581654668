"""What a ledger may hold: the facts of each kind of entry, and which entries may follow which.

============  ========================================================================================
Kind          Facts
============  ========================================================================================
genesis       ``weights`` (digest of the initial weights), ``seed``, and how peers choose, see ``choice``: ``node``
              ("select" or "merge"), ``own_vote``, ``with_novelty``
joined, left  ``peer``, ``time`` (seconds since the genesis)
submission    ``peer``, ``number`` (from 1, by peer), ``time``, ``parents`` (digests of weights), ``weights`` and
              ``samples`` (digests), ``steps``, ``num_examples``, ``loss`` (null if not finite)
vote          ``peer``, ``submission`` (the digest of its weights), ``author`` (the peer that submitted it),
              ``score``, ``distance``, ``novelty``, ``num_examples`` (the weight of the vote), ``num_candidates``,
              ``num_confirmed``
choice        ``peer``, ``chosen`` (the digest of a submission's weights), ``author``, ``value``
============  ========================================================================================

Time does not go back. A peer that is present votes at most once on a submission, while it is its author's latest. It
chooses one for each training, except that those that join before the first submission train the initial model. What it
trained on from are the parents of its next submission: the chosen one, and as a second one perhaps its own latest at
that time. ``replay`` checks the choices themselves.
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
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _are_digests(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_digest, value))


def _is_number_or_null(value: object) -> bool:
    return value is None or _is_number(value)


_LARGEST = 1e300  # JSON has whole numbers of any length, which no float holds
Check = Callable[[object], bool]
FACTS: dict[str, dict[str, Check]] = {
    "genesis": {
        "weights": _is_digest,
        "seed": _is_count,
        "node": lambda value: value in ("select", "merge"),
        "own_vote": _is_number,
        "with_novelty": lambda value: isinstance(value, bool),
    },
    "joined": {"peer": _is_count, "time": _is_number},
    "left": {"peer": _is_count, "time": _is_number},
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
    """What is known from the entries so far: the peers that are present, and what each submitted, voted and chose."""

    def __init__(self) -> None:
        self._initial = ""  # the digest of the initial model, from the genesis on
        self._time = 0.0
        self._present: set[int] = set()
        self._numbers: dict[int, int] = {}
        self._latest: dict[int, str] = {}  # the digest of each peer's latest submission
        self._voters: dict[int, set[int]] = {}  # by author, those that have voted on its latest submission
        self._parents: dict[int, list[str]] = {}  # by peer, what it trains on from: the chosen one, and its own latest

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
        if kind == "genesis":
            return "is a second genesis" if self._initial else ""
        if not self._initial:
            return f"is a {kind} before the genesis"
        if entry.get("time", self._time) < self._time:
            return f"has the time {entry['time']}, before that of an earlier line, {self._time}"
        return self._problem_of_peer(kind, entry)

    def _problem_of_peer(self, kind: str, entry: Mapping[str, Any]) -> str:
        peer = entry["peer"]
        if kind == "joined":
            return f"says that peer {peer} joined, but it is present" if peer in self._present else ""
        if peer not in self._present:
            return f"is a {kind} of peer {peer}, which has not joined or has left"
        if kind == "submission":
            return self._problem_of_submission(entry)
        return self._problem_of_target(kind, entry) if kind in _TARGETS else ""

    def _problem_of_submission(self, entry: Mapping[str, Any]) -> str:
        peer, number, expected = entry["peer"], entry["number"], self._numbers.get(entry["peer"], 0) + 1
        if number != expected:
            return f"is submission {number} of peer {peer} instead of {expected}"
        if peer not in self._parents:
            return f"is a submission of peer {peer}, which has not chosen what it trains on from"
        allowed = self._parents[peer]
        if entry["parents"] not in (allowed, allowed[:1]):
            found, right = (" and ".join(digest[:12] for digest in each) for each in (entry["parents"], allowed))
            return f"has the parents {found} instead of {right}"
        return ""

    def _problem_of_target(self, kind: str, entry: Mapping[str, Any]) -> str:
        peer, target, author = entry["peer"], entry[_TARGETS[kind]], entry["author"]
        if self._latest.get(author) != target:
            return f"is a {kind} for {target[:12]}, which is not the latest submission of peer {author}"
        if kind == "vote" and peer in self._voters[author]:
            return f"is a second vote of peer {peer} on the same submission"
        if kind == "choice" and peer in self._parents:
            return f"is a choice of peer {peer}, which has not submitted what it trains"
        return ""

    def _note(self, kind: str, entry: Mapping[str, Any]) -> None:
        self._time = entry.get("time", self._time)
        if kind == "genesis":
            self._initial = entry["weights"]
            return
        peer = entry["peer"]
        if kind == "joined":
            self._present.add(peer)
            if not self._latest:
                self._parents[peer] = [self._initial]
        elif kind == "left":
            self._present.remove(peer)
            self._parents.pop(peer, None)  # its training is lost
        elif kind == "submission":
            self._latest[peer], self._numbers[peer], self._voters[peer] = entry["weights"], entry["number"], set()
            del self._parents[peer]
        elif kind == "vote":
            self._voters[entry["author"]].add(peer)
        else:
            own = [self._latest[peer]] if peer in self._latest and peer != entry["author"] else []
            self._parents[peer] = [entry["chosen"], *own]
