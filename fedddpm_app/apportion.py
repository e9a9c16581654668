"""Splitting a whole number of things in proportion."""

from collections.abc import Sequence

import numpy as np


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` into whole shares proportional to ``weights``, so that they sum to it exactly.

    Ties go to the earlier share (Hamilton's method).

    Raises
    ------
    ValueError
        When the weights are not non-negative with a positive sum.
    """
    if not sum(weights) > 0 or min(weights) < 0:
        raise ValueError(f"weights {list(weights)} cannot be split by: they must be >= 0 and not all 0")
    quotas = total * np.asarray(weights, dtype=np.float64) / sum(weights)
    shares = np.floor(quotas).astype(int)
    by_remainder = np.argsort(-(quotas - shares), kind="stable")
    shares[by_remainder[: total - shares.sum()]] += 1
    return [int(share) for share in shares]
