"""Separate metrics of fidelity and diversity: how two sets of features cover each other's neighbourhoods."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fedddpm_app.evaluation.distances import comparable_features

_BLOCK_BYTES = 32 * 2**20


def precision_recall_density_coverage(generated: Tensor, real: Tensor, k: int = 5) -> dict[str, float]:
    """Return precision, recall, density and coverage.

    The ball of an image contains every point that is not farther than the image's k-th nearest neighbour in its own
    set; the image itself does not count as a neighbour, but copies of it do. Precision is the share of generated images
    in a ball of a real image, recall is the reverse (Kynkaanniemi et al. 2019, eqs. 1-2). Density is the mean number
    of real balls that contain a generated image, divided by k. Coverage is the share of real balls that contain a
    generated image (Naeem et al. 2020, eqs. 3-4). For all four metrics a distance equal to a radius is inside, as in
    the first paper: an image with k or more copies has radius 0, and its ball contains only these copies.

    Distances are float64 and computed from differences, not from an expanded square as in scikit-learn, which gives
    copies a small distance that is not 0.

    Parameters
    ----------
    generated, real : Tensor
        Features, floating point, shapes (N, d) and (M, d); N, M > k. Compare only values of equal N, M and k.
    k : int
        At least 1.

    Returns
    -------
    dict of str to float
        ``precision``, ``recall`` and ``coverage`` in [0, 1]; ``density`` in [0, M / k], around 1 for equal
        distributions.

    Raises
    ------
    ValueError
        As ``comparable_features``, or for ``k`` < 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, but must be at least 1")
    generated, real = comparable_features(generated, real, least=k + 1)
    generated_radii, real_radii = _radii(generated, k), _radii(real, k)
    precise = balls = 0
    recalled, covered = torch.zeros(2, len(real), dtype=torch.bool)
    for rows, distances in blocks_of_distances(generated, real):
        in_real = distances <= real_radii
        precise += int(in_real.any(1).sum())
        balls += int(in_real.sum())
        covered |= in_real.any(0)
        recalled |= (distances <= generated_radii[rows, None]).any(0)
    return {
        "precision": precise / len(generated),
        "recall": int(recalled.sum()) / len(real),
        "density": balls / (k * len(generated)),
        "coverage": int(covered.sum()) / len(real),
    }


def _radii(features: Tensor, k: int) -> Tensor:
    """Return each point's distance to its k-th nearest other point, float64, shape (N,)."""
    radii = torch.empty(len(features), dtype=torch.float64)
    for rows, distances in blocks_of_distances(features, features):
        distances[torch.arange(len(rows)), rows] = torch.inf
        radii[rows] = distances.topk(k, dim=1, largest=False).values[:, -1]
    return radii


def blocks_of_distances(points: Tensor, others: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (rows, distances): int64 (B,) and float64 (B, M), B so that a block's memory is bounded.

    Parameters
    ----------
    points, others : Tensor
        float64, shapes (N, d) and (M, d), on the CPU; N may be 0. Distances are Euclidean, from differences: that of
        equal points is 0.
    """
    size = max(1, _BLOCK_BYTES // (8 * len(others)))
    for rows in torch.split(torch.arange(len(points)), size):
        yield rows, torch.cdist(points[rows], others, compute_mode="donot_use_mm_for_euclid_dist")
