"""The model that a peer trains on from: its own score of each candidate, weighed with the votes of others.

Balan et al. 2024 (arXiv 2409.18245, PDFed) say that a node weighs the votes of others, without a formula. Ours:
``value_i(s) = w Q_i(s) + (1 - w) sum_v n_v Q_v(s) / sum_v n_v``, with the voters ``v != i`` that have scored ``s``.
"""

import math
from collections.abc import Mapping, Sequence


def choose(
    candidates: Sequence[str],
    own: Mapping[str, float],
    votes: Mapping[int, tuple[int, Mapping[str, float]]],
    own_weight: float,
) -> tuple[str, float]:
    """Return the candidate with the lowest value, and its value.

    Parameters
    ----------
    candidates : sequence of str
        Digests, in the order of the ledger: of equal values, the first one wins. At least one.
    own : mapping of str to float
        The peer's own score of each candidate, finite; lower is better. Other digests are ignored.
    votes : mapping of int to (int, mapping of str to float)
        By voter, without the peer itself: its number of examples, at least 1, and its scores by digest. A voter does
        not need to have scored each candidate; where none has, the value is the peer's own score. The order of the
        voters changes nothing.
    own_weight : float
        w, in [0, 1]: 1 ignores the others, 0 leaves the choice to them.

    Raises
    ------
    ValueError
        If there are no candidates, a candidate has no own score, or a number is out of its range.
    """
    if not candidates:
        raise ValueError("there are no candidates: a peer chooses after a first submission")
    if not 0 <= own_weight <= 1:
        raise ValueError(f"own_weight = {own_weight}, but it must be in [0, 1]")
    if unscored := [digest for digest in candidates if digest not in own]:
        raise ValueError(f"{len(unscored)} candidates have no own score, the first is {unscored[0]}: score them first")
    values = [_value(digest, own[digest], votes, own_weight) for digest in candidates]
    best = min(range(len(candidates)), key=values.__getitem__)
    return candidates[best], values[best]


def _value(digest: str, own: float, votes: Mapping[int, tuple[int, Mapping[str, float]]], own_weight: float) -> float:
    others = [(examples, scores[digest]) for examples, scores in votes.values() if digest in scores]
    if any(examples < 1 for examples, _ in others):
        raise ValueError(f"a vote on {digest} has the weight of {min(others)[0]} examples, but needs at least 1")
    if not all(math.isfinite(score) for score in (own, *(score for _, score in others))):
        raise ValueError(f"a score of {digest} is NaN or infinite")
    if not others:
        return own
    total = sum(examples for examples, _ in others)
    theirs = math.fsum(examples * score for examples, score in others) / total  # fsum: the same in any order
    return own_weight * own + (1 - own_weight) * theirs
