"""The candidates of a run of peers and the votes on them: what every peer knows, without the models themselves.

Candidates are the latest submission of each peer: a new one replaces the earlier one, with the votes on it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fedddpm_app.peers.choice import choose, mean_vote, relative
from fedddpm_app.peers.score import Score
from fedddpm_app.weights import Weights


@dataclass(frozen=True)
class Submission:
    """A candidate.

    Attributes
    ----------
    peer : int
        Who submitted it.
    number : int
        Its number among the peer's submissions, from 1.
    order : int
        Its number among all submissions of the run, from 1.
    digest : str
        Of its weights.
    samples : Weights
        Generated with it, by name.
    """

    peer: int
    number: int
    order: int
    digest: str
    samples: Weights

    @property
    def key(self) -> str:
        """A name that no other submission has, whatever its weights."""
        return f"{self.peer}:{self.number}"


class Means(NamedTuple):
    """Means of the votes on a candidate, weighted by the voters' examples; score: what counts in a choice."""

    score: float
    distance: float
    novelty: float


class Board:
    """Candidates and votes.

    Parameters
    ----------
    own_weight : float
        The weight of a peer's own score in its choice, see ``choose``.
    with_novelty : bool
        Whether novelty is a part of the scores in a choice.

    Attributes
    ----------
    candidates : dict of int to Submission
        By peer.
    """

    def __init__(self, own_weight: float, with_novelty: bool) -> None:
        self.candidates: dict[int, Submission] = {}
        self._own_weight, self._with_novelty = own_weight, with_novelty
        self._votes: dict[int, dict[str, Score]] = {}  # by voter and key, on candidates alone
        self._examples: dict[int, int] = {}  # by voter, those of its latest vote
        self._entered = 0

    def enter(self, peer: int, number: int, digest: str, samples: Weights) -> Submission:
        """Add a submission in the place of the peer's earlier one; return it."""
        self._entered += 1
        if earlier := self.candidates.get(peer):
            for votes in self._votes.values():
                votes.pop(earlier.key, None)
        submission = Submission(peer, number, self._entered, digest, samples)
        self.candidates[peer] = submission
        return submission

    def in_order(self) -> list[Submission]:
        """Return the candidates, the earliest first."""
        return sorted(self.candidates.values(), key=lambda submission: submission.order)

    def unscored(self, peer: int) -> list[Submission]:
        """Return the candidates that a peer has not scored yet, its own ones too."""
        return [each for each in self.in_order() if each.key not in self._votes.get(peer, {})]

    def vote(self, voter: int, submission: Submission, num_examples: int, score: Score) -> None:
        """Add a vote on a candidate."""
        self._votes.setdefault(voter, {})[submission.key] = score
        self._examples[voter] = num_examples

    def value(self, score: Score) -> float:
        """Return what counts in a choice, lower is better."""
        return score.value(self._with_novelty)

    def choose(self, peer: int, among_others: bool) -> tuple[Submission, float]:
        """Return the candidate that a peer chooses, and its value; see ``choice.choose``.

        With ``among_others`` it is one of another peer, unless there is none. The peer has scored all candidates.
        """
        candidates = [each for each in self.in_order() if not (among_others and each.peer == peer)] or self.in_order()
        own = {key: self.value(score) for key, score in self._votes.get(peer, {}).items()}
        by_key = {each.key: each for each in candidates}
        key, value = choose([*by_key], own, self._votes_on_others(without=peer), self._own_weight)
        return by_key[key], value

    def means(self) -> dict[int, Means]:
        """Return the means of the votes on each peer's candidate that has votes, also by its author."""
        found = {}
        for peer, submission in sorted(self.candidates.items()):
            given = {voter: scores[submission.key] for voter, scores in self._votes.items() if submission.key in scores}
            if given:
                terms = (self.value, lambda score: score.distance, lambda score: score.novelty)
                found[peer] = Means(*(self._mean(given, term) for term in terms))
        return found

    def best(self) -> Submission | None:
        """Return the candidate with the lowest mean vote of others, see ``choice``; without votes the earliest one."""
        votes = {voter: (examples, relative(scores)) for voter, (examples, scores) in self._votes_on_others().items()}
        means = {each.key: mean_vote(each.key, votes) for each in self.in_order()}
        voted = {key: mean for key, mean in means.items() if mean is not None}
        return min(self.in_order(), key=lambda each: voted.get(each.key, math.inf), default=None)

    def confirmed(self) -> dict[int, int]:
        """Return, by voter, how many samples of the candidates match its training images."""
        return {v: sum(score.num_confirmed for score in self._votes[v].values()) for v in sorted(self._votes)}

    def state_dict(self) -> dict[str, object]:
        """Return candidates and votes, for a checkpoint."""
        candidates = [[e.peer, e.number, e.order, e.digest, dict(e.samples)] for e in self.in_order()]
        votes = {voter: {key: _packed(score) for key, score in given.items()} for voter, given in self._votes.items()}
        return {"candidates": candidates, "votes": votes, "examples": self._examples, "entered": self._entered}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue with those of a checkpoint."""
        self.candidates = {each[0]: Submission(*each) for each in state["candidates"]}
        self._entered = state["entered"]
        self._votes = {
            voter: {key: _unpacked(packed) for key, packed in given.items()} for voter, given in state["votes"].items()
        }
        self._examples = {**state["examples"]}

    def _votes_on_others(self, without: int | None = None) -> dict[int, tuple[int, dict[str, float]]]:
        """Return each voter's examples and its scores of the submissions of others; one voter may be left out."""
        own = {peer: submission.key for peer, submission in self.candidates.items()}
        return {
            voter: (
                self._examples[voter],
                {key: self.value(score) for key, score in given.items() if key != own.get(voter)},
            )
            for voter, given in self._votes.items()
            if voter != without
        }

    def _mean(self, given: Mapping[int, Score], term: Callable[[Score], float]) -> float:
        """Return the mean of a term of scores by voter, weighted by the voters' examples."""
        total = sum(self._examples[voter] for voter in given)
        return math.fsum(self._examples[voter] * term(score) for voter, score in given.items()) / total


def _packed(score: Score) -> list[float]:
    return [score.distance, score.novelty, score.num_candidates, score.num_confirmed]


def _unpacked(packed: Sequence[Any]) -> Score:
    distance, novelty, num_candidates, num_confirmed = packed
    return Score(distance, novelty, num_candidates, num_confirmed, [])
