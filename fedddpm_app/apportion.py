"""Splitting a whole number of things in proportion."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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


def labels_by_share(total: int, counts: Sequence[int]) -> Tensor:
    """Return ``total`` labels, int64 and ascending, spread over the classes as ``counts`` (one per class) are."""
    per_class = largest_remainder(total, counts)
    return torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class))
