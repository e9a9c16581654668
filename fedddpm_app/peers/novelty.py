"""How much of generated images repeats training images: matches in an embedding, class by class.

Balan et al. 2024 (arXiv 2409.18245, PDFed). Generated images nearer than ``T`` to a training image are *candidates*,
with ``T = mean - 0.5 std`` of the distances of the training images to their nearest neighbours of the same class. A
verifier gives a candidate a similarity in [0, 1]; from 0.8 it is a *confirmed* match.

=========  ========================================
Symbol     Here
=========  ========================================
``T``      ``Threshold.radius``
``V_A``    mean similarity of the candidates
``V_C``    mean similarity of the confirmed matches
``R_C``    confirmed matches / generated images
=========  ========================================

Deviations from the paper, and our readings:

- The paper's verifier is a network whose weights are not published. Ours is ``similarity_of_distance``.
- "Each image counts once": a generated image that is near several training images counts by the most similar one. Many
  generated images may match one training image: all of them count, because ``R_C`` is a share of generated images.
- ``std`` is the population's. ``T`` is at least 0, and 0 for a class with one image.
- Copies are candidates even where ``T = 0`` (a data set of duplicates), or where rounding moved them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fedddpm_app.evaluation.manifolds import blocks_of_distances

CONFIRMED = 0.8
AT_RADIUS = 0.2
ROUNDING = 1e-4  # relative to the features' size; a change of each pixel by one grey level is about 100 times as large


class Threshold(NamedTuple):
    """What is near in a class: ``radius`` is T >= 0; features within ``rounding`` of each other are of copies."""

    radius: float
    rounding: float


Verifier = Callable[[Tensor, Tensor, Threshold], Tensor]
"""Similarities of P candidate pairs: from the generated and the training images' features, float64 (P, d) each, and the
threshold of their class, to float64 (P,) in [0, 1]; 1 for a copy."""


class Matches(NamedTuple):
    """The matches of a set of generated images: numbers of ``num_candidates`` and ``confirmed``, and similarities.

    ``confirmed``: the training image of each confirmed match, in the order of the generated images; a training image
    may be in it several times. ``candidate_similarity`` and ``confirmed_similarity``: V_A and V_C, in [0, 1], 0.0 if
    there are none. ``share``: R_C.
    """

    num_candidates: int
    confirmed: list[int]
    candidate_similarity: float
    confirmed_similarity: float
    share: float


def similarity_of_distance(generated: Tensor, train: Tensor, threshold: Threshold) -> Tensor:
    """Return the similarity of pairs by their distance d: 1 for a copy, else ``max(0, 1 - 0.8 d / T)``.

    It is 0.2 at T, and confirms a match up to ``d = T / 4``. Measured on the pixels' principal components, for 600 and
    6,000 training images of MNIST, Fashion-MNIST and CIFAR-10 and 200 to 1,200 of digits: at most 0.05 % of held-out
    images are that near to a training image of their class (0.25 % without classes, on MNIST), and training images with
    noise of 4 grey levels are, at a median of 0.11 T or less.
    """
    distances = (generated - train).square().sum(1).sqrt()
    copies = distances <= threshold.rounding
    if threshold.radius == 0:
        return copies.double()
    return (1 - (1 - AT_RADIUS) * distances / threshold.radius).clamp(min=0).masked_fill(copies, 1)


@dataclass(frozen=True)
class TrainingClass:
    """The training images of one class, as a set to compare generated images with.

    Attributes
    ----------
    index : Tensor
        int64, shape (M,): the numbers of these images among all training images.
    features : Tensor
        float64, shape (M, d).
    threshold : Threshold
        Of these features.
    """

    index: Tensor
    features: Tensor
    threshold: Threshold

    @classmethod
    def of(cls, index: Tensor, features: Tensor) -> "TrainingClass":
        """Return a class with its threshold; M >= 1."""
        rounding = ROUNDING * float(features.square().sum(1).mean().sqrt())
        return cls(index, features, Threshold(_radius(features), rounding))

    def best_matches(self, generated: Tensor, verifier: Verifier) -> tuple[Tensor, Tensor]:
        """Return the similarity of each generated image, and the place of its training image in ``index``.

        Parameters
        ----------
        generated : Tensor
            Features, float64, shape (N, d).
        verifier : callable
            Gives a similarity to each candidate pair.

        Returns
        -------
        similarity : Tensor
            float64, shape (N,): the highest over the candidate pairs; NaN for an image that is no candidate.
        place : Tensor
            int64, shape (N,); the first training image of several equally similar ones.
        """
        best = torch.full((len(generated),), torch.nan, dtype=torch.float64)
        place = torch.zeros(len(generated), dtype=torch.int64)
        for rows, distances in blocks_of_distances(generated, self.features):
            near = (distances < self.threshold.radius) | (distances <= self.threshold.rounding)
            pairs = near.nonzero()
            similarity = _checked(verifier(generated[rows][pairs[:, 0]], self.features[pairs[:, 1]], self.threshold))
            table = torch.full(distances.shape, -torch.inf, dtype=torch.float64)
            table[near] = similarity
            highest, first = table.max(1)
            best[rows] = highest.masked_fill(~near.any(1), torch.nan)
            place[rows] = first
        return best, place


def matches_of(similarity: Tensor, train: Tensor) -> Matches:
    """Return the matches of generated images.

    Parameters
    ----------
    similarity : Tensor
        float64, shape (N,), N >= 1; NaN for an image that is no candidate.
    train : Tensor
        int64, shape (N,): the number of the training image that each one is most similar to.
    """
    candidates = similarity[~similarity.isnan()]
    confirmed = similarity >= CONFIRMED  # not NaN
    return Matches(
        num_candidates=len(candidates),
        confirmed=train[confirmed].tolist(),
        candidate_similarity=_mean(candidates),
        confirmed_similarity=_mean(similarity[confirmed]),
        share=int(confirmed.sum()) / len(similarity),
    )


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0


def _radius(features: Tensor) -> float:
    if len(features) < 2:
        return 0.0
    nearest = torch.empty(len(features), dtype=torch.float64)
    for rows, distances in blocks_of_distances(features, features):
        distances[torch.arange(len(rows)), rows] = torch.inf
        nearest[rows] = distances.amin(1)
    return max(0.0, float(nearest.mean() - 0.5 * nearest.std(correction=0)))


def _checked(similarity: Tensor) -> Tensor:
    if not ((similarity >= 0) & (similarity <= 1)).all():
        raise ValueError("the verifier gave a similarity outside [0, 1]")
    return similarity
