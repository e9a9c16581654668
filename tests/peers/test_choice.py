"""The choice of a parent from own scores and votes, by hand."""

import math

import pytest

from fedddpm_app.peers.choice import choose

OWN = {"a": 4.0, "b": 2.0, "c": 3.0}  # mean 3
VOTES = {1: (10, {"a": 1.0, "b": 3.0}), 2: (30, {"a": 80.0, "b": 120.0})}  # of their means 2 and 100: a 0.5, 0.8
A, B, C = 4 / 3, 2 / 3, 1.0
THEIRS_A, THEIRS_B = (10 * 0.5 + 30 * 0.8) / 40, (10 * 1.5 + 30 * 1.2) / 40  # 0.725 and 1.275; none on c


@pytest.mark.parametrize(
    ("own_weight", "expected"),
    [
        (1.0, ("b", B)),
        (0.5, ("b", (B + THEIRS_B) / 2)),  # 0.971; a 1.029, c 1
        (0.0, ("a", THEIRS_A)),
        (0.2, ("a", 0.2 * A + 0.8 * THEIRS_A)),  # 0.847; b 1.153, c 1
    ],
)
def test_the_lowest_value_wins(own_weight, expected):
    digest, value = choose(["a", "b", "c"], OWN, VOTES, own_weight)
    assert (digest, value) == (expected[0], pytest.approx(expected[1]))
    assert choose(["a", "b", "c"], OWN, dict(reversed(VOTES.items())), own_weight) == (digest, value)


def test_the_scale_of_a_voter_changes_nothing():
    """Each peer measures with an embedder of its own."""
    scaled = {1: VOTES[1], 2: (30, {"a": 0.08, "b": 0.12})}
    first, second = (choose(["a", "b", "c"], OWN, votes, 0.2) for votes in (VOTES, scaled))
    assert first == (second[0], pytest.approx(second[1], rel=1e-12))


def test_a_voter_that_is_all_against_one_candidate_has_no_more_than_its_weight():
    votes = {1: (10, {"a": 1e12, "b": 0.0}), 2: (10, {"a": 1.0, "b": 4.0})}
    assert choose(["a", "b"], {"a": 1.0, "b": 1.0}, votes, 0.0) == ("b", pytest.approx((0 + 1.6) / 2))
    many = votes | {voter: (10, {"a": 1.0, "b": 4.0}) for voter in range(3, 6)}
    assert choose(["a", "b"], {"a": 1.0, "b": 1.0}, many, 0.0) == ("a", pytest.approx((2 + 4 * 0.4) / 5))


def test_without_votes_the_own_score_counts_alone():
    assert choose(["a", "b", "c"], OWN, {}, 0.0) == ("b", pytest.approx(B))
    assert choose(["c"], OWN, VOTES, 0.0) == ("c", pytest.approx(C))


def test_the_earlier_one_of_equal_candidates_wins():
    own = dict.fromkeys("abc", 0.0)
    assert choose(["c", "a", "b"], own, {}, 0.5) == ("c", 1.0)
    assert choose(["b", "c", "a"], own, {}, 0.5) == ("b", 1.0)


def test_only_candidates_are_chosen():
    assert choose(["a", "c"], OWN, {}, 1.0) == ("c", pytest.approx(C))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((["a"], {"a": -1.0}, {}, 0.5), "a score of a is -1.0, but it must be finite and not negative"),
        (([], OWN, {}, 0.5), "no candidates"),
        ((["a"], OWN, {}, 1.1), r"own_weight = 1.1, but it must be in \[0, 1\]"),
        ((["a", "z"], OWN, {}, 0.5), "1 candidates have no own score, the first is z"),
        ((["a"], {"a": math.nan}, {}, 0.5), "a score of a is nan"),
        ((["a"], OWN, {1: (1, {"a": math.inf})}, 0.5), "a score of a is inf"),
        ((["a"], OWN, {1: (0, {"a": 1.0})}, 0.5), "weight of 0 examples"),
    ],
)
def test_what_cannot_be_chosen_from_is_an_error(arguments, says):
    with pytest.raises(ValueError, match=says):
        choose(*arguments)
