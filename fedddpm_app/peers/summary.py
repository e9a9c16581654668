"""What a verified ledger says: the submissions with their parents and votes, and what each peer did."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Entry = Mapping[str, Any]


class Submission(NamedTuple):
    """A submission with the votes on it.

    ``digest``: of its weights. ``time``: seconds. ``parents``: digests. ``num_votes``: of different voters.
    ``quality`` and ``distance``: Q-N and FD, means over the voters weighted by their examples; NaN without a vote.
    """

    digest: str
    peer: int
    number: int
    time: float
    parents: tuple[str, ...]
    num_votes: int
    quality: float
    distance: float


class PeerSummary(NamedTuple):
    """What a peer did: numbers of its submissions, training steps, votes, and choices of its submissions.

    ``chosen_by_itself`` and ``chosen_by_others``: how often a peer chose one of its submissions to train on from.
    """

    peer: int
    submissions: int
    steps: int
    votes: int
    chosen_by_itself: int
    chosen_by_others: int


def submissions_of(entries: Sequence[Entry]) -> list[Submission]:
    """Return the submissions in the order of the ledger; a vote is for the latest one of its author."""
    latest: dict[int, int] = {}
    votes: list[tuple[Entry, list[Entry]]] = []
    for entry in entries:
        if entry["kind"] == "submission":
            latest[entry["peer"]] = len(votes)
            votes.append((entry, []))
        elif entry["kind"] == "vote":
            votes[latest[entry["author"]]][1].append(entry)
    return [_submission(*each) for each in votes]


def peers_of(entries: Sequence[Entry]) -> list[PeerSummary]:
    """Return what each peer that ever joined did, by its number."""
    sent, voted = (Counter(entry["peer"] for entry in _of_kind(entries, kind)) for kind in ("submission", "vote"))
    steps: Counter[int] = Counter()
    for entry in _of_kind(entries, "submission"):
        steps[entry["peer"]] += entry["steps"]
    chosen = Counter((entry["author"], entry["peer"]) for entry in _of_kind(entries, "choice"))
    of_author = Counter(author for author, _ in chosen.elements())
    return [
        PeerSummary(
            peer, sent[peer], steps[peer], voted[peer], chosen[peer, peer], of_author[peer] - chosen[peer, peer]
        )
        for peer in sorted({entry["peer"] for entry in _of_kind(entries, "joined")})
    ]


def best(submissions: Sequence[Submission], value: Callable[[Submission], float]) -> Submission | None:
    """Return the first of the submissions with the lowest value; None if none has votes."""
    return min((one for one in submissions if not math.isnan(value(one))), key=value, default=None)


def _of_kind(entries: Sequence[Entry], kind: str) -> list[Entry]:
    return [entry for entry in entries if entry["kind"] == kind]


def _submission(entry: Entry, votes: Sequence[Entry]) -> Submission:
    return Submission(
        digest=entry["weights"],
        peer=entry["peer"],
        number=entry["number"],
        time=float(entry["time"]),
        parents=tuple(entry["parents"]),
        num_votes=len(votes),
        quality=_mean([((vote["distance"] + vote["novelty"]) / 2, vote["num_examples"]) for vote in votes]),
        distance=_mean([(vote["distance"], vote["num_examples"]) for vote in votes]),
    )


def _mean(weighted: Sequence[tuple[float, int]]) -> float:
    total = sum(weight for _, weight in weighted)
    return math.fsum(value * weight for value, weight in weighted) / total if total else math.nan
