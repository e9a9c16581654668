"""Scores on the wire: one record for all the submissions that a peer scores at a time."""

from collections.abc import Sequence

import torch

from fedddpm_app.peers.score import NOVELTY_FACTOR, Score
from fedddpm_app.weights import Weights

_TERMS, _COUNTS, _MATCHES = "terms", "counts", "matches"
_NONE = -1


def scores_like(count: int, num_samples: int) -> Weights:
    """Return the shapes of a record of ``count`` scores, each of ``num_samples`` samples, as meta tensors."""
    return {
        _TERMS: torch.empty((count, 2), dtype=torch.float64, device="meta"),
        _COUNTS: torch.empty((count, 2), dtype=torch.int64, device="meta"),
        _MATCHES: torch.empty((count, num_samples), dtype=torch.int64, device="meta"),
    }


def pack_scores(scores: Sequence[Score], num_samples: int) -> Weights:
    """Return scores as a record; matches are filled up with -1."""
    matches = torch.full((len(scores), num_samples), _NONE, dtype=torch.int64)
    for row, score in zip(matches, scores, strict=True):
        row[: len(score.matches)] = torch.tensor(score.matches, dtype=torch.int64)
    return {
        _TERMS: torch.tensor([[score.distance, score.novelty] for score in scores], dtype=torch.float64),
        _COUNTS: torch.tensor([[score.num_candidates, score.num_confirmed] for score in scores], dtype=torch.int64),
        _MATCHES: matches,
    }


def unpack_scores(record: Weights, num_examples: int) -> list[Score]:
    """Return the scores of a record of the right shapes, whose values another party sent.

    Parameters
    ----------
    record : Weights
        As ``pack_scores`` returns it; terms are finite.
    num_examples : int
        The peer's training images.

    Raises
    ------
    ValueError
        If a value is out of its range; the message says which one.
    """
    num_samples = record[_MATCHES].shape[1]
    found = []
    for terms, counts, row in zip(*(record[name].tolist() for name in (_TERMS, _COUNTS, _MATCHES)), strict=True):
        matches = [index for index in row if index != _NONE]
        if terms[0] < 0 or not 0 <= terms[1] <= NOVELTY_FACTOR:
            raise ValueError(f"a distance of {terms[0]:g} with a novelty term of {terms[1]:g}")
        if not 0 <= counts[1] <= counts[0] <= num_samples or len(matches) > counts[1]:
            raise ValueError(f"{counts[1]} confirmed of {counts[0]} candidates with {len(matches)} matches")
        if any(not 0 <= index < num_examples for index in matches):
            raise ValueError(f"a match with an image outside of its {num_examples} images")
        found.append(Score(terms[0], terms[1], counts[0], counts[1], matches))
    return found
