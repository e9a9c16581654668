"""Split a whole number in proportion to weights."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def largest_remainder(total: int, weights: Sequence[float]) -> list[int]:
    """Split ``total`` into whole shares that are proportional to ``weights`` and sum to ``total`` exactly.

    Ties go to the earlier share (Hamilton's method).

    Raises
    ------
    ValueError
        When a weight is negative, or the weights do not have a positive sum.
    """
    if not sum(weights) > 0 or min(weights) < 0:
        raise ValueError(f"{total} cannot be split by weights {list(weights)}: they must be >= 0 and not all 0")
    quotas = total * np.asarray(weights, dtype=np.float64) / sum(weights)
    shares = np.floor(quotas).astype(int)
    by_remainder = np.argsort(-(quotas - shares), kind="stable")
    shares[by_remainder[: total - shares.sum()]] += 1
    return [int(share) for share in shares]


def labels_by_share(total: int, counts: Sequence[int]) -> Tensor:
    """Return ``total`` labels, int64 and ascending, with class shares proportional to ``counts`` (one per class)."""
    per_class = largest_remainder(total, counts)
    return torch.repeat_interleave(torch.arange(len(per_class)), torch.tensor(per_class))
