"""What a ledger says about submissions and peers, by hand."""

import math

import pytest

from fedddpm_app.peers.summary import best, peers_of, submissions_of
from tests.peers.stories import STORY, build, choice, joined, submission, vote


def test_submissions_with_their_votes():
    """On a1: Q-N 2 and distance 3 by ten examples, 1 and 2 by thirty."""
    kind, facts = STORY[7]
    first, second, third, fourth, last = submissions_of(
        build([*STORY[:7], (kind, facts | {"num_examples": 30}), *STORY[8:]])[1]
    )
    assert (first.digest, first.peer, first.number, first.parents, first.num_votes) == ("a1", 0, 1, ("start",), 2)
    assert (first.quality, first.distance) == pytest.approx(((2 * 10 + 1 * 30) / 40, (3 * 10 + 2 * 30) / 40))
    assert (second.digest, second.num_votes, second.quality) == ("b1", 1, 2.0)
    assert (third.digest, third.quality, fourth.digest, fourth.quality) == ("a2", 2.0, "b2", 25.5)
    assert (last.num_votes, last.parents) == (0, ("b2", "a2"))
    assert math.isnan(last.quality)


def test_what_each_peer_did():
    """Peer 0 chose a1, its own, and b2; peer 1 chose a1; peer 2 only votes."""
    _, entries = build([*STORY, joined(2), vote(2, "a3")])
    assert [tuple(peer) for peer in peers_of(entries)] == [(0, 3, 15, 3, 1, 1), (1, 2, 10, 2, 0, 1), (2, 0, 0, 1, 0, 0)]


def test_votes_and_choices_of_equal_weights_are_of_their_author_and_submission():
    """Peer 1 submits the weights of a3 and then the same again."""
    equal = [choice(1, "a3"), submission(1, 3, ["a3"], "a3"), vote(0, "a3", author=1), choice(0, "a3", author=1)]
    _, entries = build([*STORY, *equal, choice(1, "a3", author=1), submission(1, 4, ["a3"], "a3"), vote(1, "a3")])
    assert [(peer.chosen_by_itself, peer.chosen_by_others) for peer in peers_of(entries)] == [(1, 2), (1, 2)]
    found = [(one.peer, one.number, one.num_votes) for one in submissions_of(entries) if one.digest == "a3"]
    assert found == [(0, 3, 1), (1, 3, 1), (1, 4, 0)]


def test_the_best_by_quality_and_by_distance_may_differ():
    found = submissions_of(build()[1])
    assert best(found, lambda one: one.quality).digest == "a1"
    assert best(found, lambda one: one.distance).digest == "b2"
    assert best([one for one in found if one.digest == "a3"], lambda one: one.quality) is None


def test_votes_without_examples_have_no_mean():
    _, entries = build([*STORY, vote(1, "a3", num_examples=0)])
    assert best(submissions_of(entries)[-1:], lambda one: one.quality) is None
