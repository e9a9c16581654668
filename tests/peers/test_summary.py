"""What a ledger says about submissions and peers, by hand."""

import math

import pytest

from fedddpm_app.peers.summary import best, peers_of, submissions_of
from tests.peers.stories import STORY, build, choice, joined, submission, vote


def test_submissions_with_their_votes():
    """On a1: Q-N 2 and distance 3 by ten examples, 1 and 2 by thirty; the first vote of peer 1 is replaced."""
    _, entries = build([*STORY, vote(1, "a1", 2.0, 0.0, num_examples=30)])
    first, second, *rest = submissions_of(entries)
    assert (first.digest, first.peer, first.number, first.parents, first.num_votes) == ("a1", 0, 1, ("start",), 2)
    assert (first.quality, first.distance) == pytest.approx(((2 * 10 + 1 * 30) / 40, (3 * 10 + 2 * 30) / 40))
    assert (second.digest, second.num_votes, second.quality) == ("b1", 1, 2.0)
    assert all(one.num_votes == 0 and math.isnan(one.quality) for one in rest)
    assert rest[-1].parents == ("b2", "a2")


def test_what_each_peer_did():
    """Peer 0 chose a1, its own, and peer 1 chose a1 too; peer 2 only votes."""
    _, entries = build([*STORY, joined(2), vote(2, "a3"), choice(1, "b2")])
    assert [tuple(peer) for peer in peers_of(entries)] == [(0, 3, 15, 1, 1, 1), (1, 2, 10, 2, 1, 0), (2, 0, 0, 1, 0, 0)]


def test_a_choice_of_weights_that_two_peers_submitted_is_of_its_author():
    _, entries = build([*STORY, submission(1, 3, ["a1"], "a1"), choice(0, "a1", author=1), choice(1, "a1", author=0)])
    assert [(peer.chosen_by_itself, peer.chosen_by_others) for peer in peers_of(entries)] == [(1, 2), (0, 1)]
    assert [one.num_votes for one in submissions_of(entries) if one.digest == "a1"] == [2, 0]


def test_the_best_by_quality_and_by_distance_may_differ():
    _, entries = build([*STORY, vote(0, "a2", distance=1.0, novelty=90.0), vote(1, "b2", distance=4.0, novelty=0.0)])
    found = submissions_of(entries)
    assert best(found, lambda one: one.quality).digest == "a1"
    assert best(found, lambda one: one.distance).digest == "a2"
    assert best([one for one in found if one.digest == "a3"], lambda one: one.quality) is None


def test_votes_without_examples_have_no_mean():
    _, entries = build([*STORY, vote(1, "a3", num_examples=0)])
    assert best(submissions_of(entries)[-1:], lambda one: one.quality) is None
