"""Scores on the wire: what is packed comes out again, and numbers that cannot be true are refused."""

import pytest
import torch

from fedddpm_app.peers.score import Score
from fedddpm_app.peers.votes import pack_scores, scores_like, unpack_scores

SCORES = [Score(12.5, 250.0, 3, 2, [4, 4]), Score(0.0, 0.0, 0, 0, []), Score(1e-3, 1000.0, 5, 5, [0, 1, 2, 3, 9])]


def test_scores_come_out_as_they_were_packed():
    record = pack_scores(SCORES, 5)
    assert unpack_scores(record, 10) == SCORES
    like = scores_like(3, 5)
    assert {name: (each.shape, each.dtype) for name, each in record.items()} == {
        name: (each.shape, each.dtype) for name, each in like.items()
    }


WRONG = [
    ("terms", (0, 0), -1.0, "a distance of -1"),
    ("terms", (0, 1), 1001.0, "novelty term of 1001"),
    ("terms", (1, 1), -0.5, "novelty term of -0.5"),
    ("counts", (0, 0), 6, "2 confirmed of 6 candidates"),
    ("counts", (0, 1), 4, "4 confirmed of 3 candidates"),
    ("counts", (1, 1), -1, "-1 confirmed"),
    ("matches", (1, 0), 3, "0 confirmed of 0 candidates with 1 matches"),
    ("matches", (0, 0), 10, "a match with an image outside of its 10 images"),
    ("matches", (0, 0), -2, "a match with an image outside"),
]


@pytest.mark.parametrize(("name", "place", "value", "message"), WRONG)
def test_numbers_that_cannot_be_true_are_refused(name, place, value, message):
    record = pack_scores(SCORES, 5)
    record[name][place] = value
    with pytest.raises(ValueError, match=message):
        unpack_scores(record, 10)


def test_a_record_of_no_scores_is_empty():
    assert unpack_scores(pack_scores([], 4), 1) == []
    assert pack_scores([], 4)["matches"].shape == torch.Size([0, 4])
