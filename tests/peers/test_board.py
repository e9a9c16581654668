"""Candidates and votes: a new submission replaces the earlier one, means are weighted, and nothing else counts."""

import json

import pytest
import torch

from fedddpm_app.peers.board import Board
from fedddpm_app.peers.score import Score
from fedddpm_app.recording.trees import join, split


def score(distance, novelty=0.0, confirmed=0):
    return Score(distance, novelty, confirmed, confirmed, [0] * confirmed)


@pytest.fixture
def board():
    """Peers 0 and 1 have submitted, and peers 0, 1 and 2 voted, with 10, 20 and 30 examples."""
    board = Board(own_weight=0.5, with_novelty=True)
    for peer in (1, 0):
        board.enter(peer, 1, f"digest-{peer}", {"images": torch.full((2,), peer)})
    for voter, terms in enumerate([(4.0, 8.0), (6.0, 2.0), (2.0, 2.0)]):
        for peer, distance in enumerate(terms):
            board.vote(voter, board.candidates[peer], 10 * (voter + 1), score(distance, 10.0 * peer, peer))
    return board


def test_a_new_submission_replaces_the_earlier_one_with_its_votes(board):
    assert board.unscored(2) == []
    board.enter(1, 2, "newer", {})
    assert [each.digest for each in board.in_order()] == ["digest-0", "newer"]
    assert [each.digest for each in board.unscored(2)] == ["newer"]
    assert sorted(board.means()) == [0]
    assert board.confirmed() == {0: 0, 1: 0, 2: 0}  # the match was with the earlier one


def test_means_are_weighted_by_the_voters_examples(board):
    means = board.means()
    assert means[0].distance == pytest.approx((10 * 4 + 20 * 6 + 30 * 2) / 60)
    assert means[1].distance == pytest.approx((10 * 8 + 20 * 2 + 30 * 2) / 60)
    assert means[1].novelty == 10.0
    assert means[1].score == pytest.approx((means[1].distance + 10) / 2)
    assert board.best().peer == 0
    assert board.confirmed() == {0: 1, 1: 1, 2: 1}


def test_a_choice_has_the_own_score_and_those_of_others_except_the_authors(board):
    """Scores of (0, 1): by peer 0 2 and 9, by peer 1 3 and 6, by peer 2 1 and 6."""
    chosen, value = board.choose(0, among_others=False)
    theirs = (20 * 1 + 30 * 1 / 3.5) / 50  # peer 1 leaves its own submission out, so its 3 is its mean
    assert (chosen.peer, value) == (0, pytest.approx((2 / 5.5 + theirs) / 2))
    chosen, value = board.choose(0, among_others=True)
    assert (chosen.peer, value) == (1, pytest.approx((9 / 5.5 + 6 / 3.5) / 2))  # peer 1 has no vote on its own
    board.candidates.pop(1)
    assert board.choose(0, among_others=True)[0].peer == 0  # there is no other one


def test_a_peer_cannot_promote_its_own_submission(board):
    """Peer 1 votes 0 on its own and as much as it wants on the other one."""
    honest = board.best(), board.choose(0, among_others=False), board.choose(2, among_others=False)
    board.vote(1, board.candidates[1], 20, score(0.0))
    board.vote(1, board.candidates[0], 20, score(1e12))
    assert (board.best(), board.choose(0, among_others=False), board.choose(2, among_others=False)) == honest


def test_equal_values_go_to_the_earlier_submission():
    board = Board(1.0, True)
    for peer in (2, 0, 1):
        board.vote(5, board.enter(peer, 1, "equal weights", {}), 1, score(3.0))
    assert board.choose(5, among_others=False)[0].peer == 2
    assert board.best().peer == 2


def test_without_votes_the_earliest_candidate_is_the_best_and_without_candidates_none():
    board = Board(0.5, True)
    assert board.best() is None
    board.enter(3, 1, "a", {})
    board.enter(1, 1, "b", {})
    assert board.best().peer == 3


def test_without_novelty_a_choice_is_by_distance_and_novelty_is_still_known(board):
    plain = Board(0.5, with_novelty=False)
    plain.load_state_dict(board.state_dict())
    assert plain.means()[1].score == pytest.approx(plain.means()[1].distance / 2)
    assert plain.means()[1].novelty == 10.0


def test_the_state_goes_through_a_checkpoint(board):
    value, tensors = split(board.state_dict())
    again = Board(0.5, True)
    again.load_state_dict(join(json.loads(json.dumps(value)), tensors))
    assert again.means() == board.means()
    assert again.choose(0, among_others=False)[1] == board.choose(0, among_others=False)[1]
    assert torch.equal(again.candidates[1].samples["images"], torch.tensor([1, 1]))
    assert again.enter(2, 1, "next", {}).order == 3
