"""The choice of a parent from own scores and votes, by hand."""

import math

import pytest

from fedddpm_app.peers.choice import choose

OWN = {"a": 4.0, "b": 2.0, "c": 3.0}
VOTES = {1: (10, {"a": 1.0, "b": 8.0}), 2: (30, {"a": 2.0, "b": 4.0})}  # means: a 1.75, b 5; none on c


@pytest.mark.parametrize(
    ("own_weight", "expected"),
    [
        (1.0, ("b", 2.0)),
        (0.5, ("a", (4 + 1.75) / 2)),  # b (2 + 5) / 2, c 3
        (0.0, ("a", 1.75)),
        (0.8, ("b", 0.8 * 2 + 0.2 * 5)),  # a 3.55, c 3
    ],
)
def test_the_lowest_value_wins(own_weight, expected):
    digest, value = choose(["a", "b", "c"], OWN, VOTES, own_weight)
    assert (digest, value) == (expected[0], pytest.approx(expected[1]))
    assert choose(["a", "b", "c"], OWN, dict(reversed(VOTES.items())), own_weight) == (digest, value)


def test_without_votes_the_own_score_counts_alone():
    assert choose(["a", "b", "c"], OWN, {}, 0.0) == ("b", 2.0)
    assert choose(["c"], OWN, VOTES, 0.0) == ("c", 3.0)


def test_the_earlier_one_of_equal_candidates_wins():
    own = dict.fromkeys("abc", 1.0)
    assert choose(["c", "a", "b"], own, {}, 0.5) == ("c", 1.0)
    assert choose(["b", "c", "a"], own, {}, 0.5) == ("b", 1.0)


def test_only_candidates_are_chosen():
    assert choose(["a", "c"], OWN, {}, 1.0) == ("c", 3.0)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([], OWN, {}, 0.5), "no candidates"),
        ((["a"], OWN, {}, 1.1), r"own_weight = 1.1, but it must be in \[0, 1\]"),
        ((["a", "z"], OWN, {}, 0.5), "1 candidates have no own score, the first is z"),
        ((["a"], {"a": math.nan}, {}, 0.5), "a score of a is NaN"),
        ((["a"], OWN, {1: (1, {"a": math.inf})}, 0.5), "a score of a is NaN or infinite"),
        ((["a"], OWN, {1: (0, {"a": 1.0})}, 0.5), "weight of 0 examples"),
    ],
)
def test_what_cannot_be_chosen_from_is_an_error(arguments, says):
    with pytest.raises(ValueError, match=says):
        choose(*arguments)
