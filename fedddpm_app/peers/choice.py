"""The model that a peer trains on from: its own score of each candidate, weighed with the votes of others.

Balan et al. 2024 (arXiv 2409.18245, PDFed) say that a node weighs the votes of others, without a formula. Ours:
``value_i(s) = w r_i(s) + (1 - w) sum_v n_v r_v(s) / sum_v n_v``, with the voters v that have scored s, except i and the
author of s. ``r_v(s) = Q_v(s) / mean_s' Q_v(s')`` is the score of v beside its mean score of the candidates; those of
others leave their own submissions out. So peers that measure on other scales, or all low, count alike, a peer cannot
promote its own submission, and one voter moves a value by no more than its weight times the number of candidates.
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
        The peer's own scores, at least of each candidate; finite, not negative, lower is better.
    votes : mapping of int to (int, mapping of str to float)
        By voter, without the peer itself: its number of examples, at least 1, and its scores by digest, without those
        of its own submissions. A voter does not need to have scored each candidate; where none has, the value is
        ``r_i``. The order of the voters changes nothing.
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
    mine = relative(own)
    theirs = {voter: (examples, relative(scores)) for voter, (examples, scores) in votes.items()}
    values = [_value(digest, mine[digest], theirs, own_weight) for digest in candidates]
    best = min(range(len(candidates)), key=values.__getitem__)
    return candidates[best], values[best]


def relative(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores of one voter, each divided by their mean; 1 for all if they are 0.

    Raises
    ------
    ValueError
        For a score that is negative, NaN or infinite.
    """
    for digest, score in scores.items():
        if not (math.isfinite(score) and score >= 0):
            raise ValueError(f"a score of {digest} is {score}, but it must be finite and not negative")
    mean = math.fsum(scores.values()) / max(1, len(scores))
    return {digest: score / mean if mean else 1.0 for digest, score in scores.items()}


def mean_vote(digest: str, votes: Mapping[int, tuple[int, Mapping[str, float]]]) -> float | None:
    """Return the mean of votes on a submission, weighted by the voters' examples; None without one."""
    given = [(examples, scores[digest]) for examples, scores in votes.values() if digest in scores]
    if any(examples < 1 for examples, _ in given):
        raise ValueError(f"a vote on {digest} has the weight of {min(given)[0]} examples, but needs at least 1")
    if not given:
        return None
    total = sum(examples for examples, _ in given)
    return math.fsum(examples * score for examples, score in given) / total  # fsum: the same in any order


def _value(digest: str, own: float, votes: Mapping[int, tuple[int, Mapping[str, float]]], own_weight: float) -> float:
    theirs = mean_vote(digest, votes)
    return own if theirs is None else own_weight * own + (1 - own_weight) * theirs
