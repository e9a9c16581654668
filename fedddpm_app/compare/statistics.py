"""Statistics over the seeds of a cell: mean, deviation, and the paired difference to the reference."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its t interval of 95 %.

    Attributes
    ----------
    mean : float
        NaN without a value.
    low, high : float or None
        None for fewer than two values.
    n : int
        The number of values.
    """

    mean: float
    low: float | None
    high: float | None
    n: int


def interval(values: Sequence[float]) -> Interval:
    """Return the mean of the finite values, and m ± t(n - 1) s / sqrt(n)."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return Interval(math.nan, None, None, 0)
    mean, n = statistics.fmean(known), len(known)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(known) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def deviation(values: Sequence[float]) -> float | None:
    """Return the sample deviation of the finite values; None for fewer than two."""
    known = [value for value in values if math.isfinite(value)]
    return statistics.stdev(known) if len(known) > 1 else None


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Interval:
    """Return the interval of the differences to the reference over the seeds that both have."""
    return interval([value - reference[seed] for seed, value in values.items() if seed in reference])


def p_value(mean: float, low: float, n: int) -> float:
    """Return the two-sided p value of the t test whose interval of 95 % begins at ``low``, for two or more values."""
    if low == mean:
        return float(mean == 0.0)
    t = abs(mean) / (mean - low) * float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return 2.0 * float(stdtr(n - 1, -t))


def holm(p_values: Sequence[float]) -> list[bool]:
    """Return which hypotheses Holm's step-down procedure rejects, with a family-wise error rate of 5 %.

    Holm 1979, A simple sequentially rejective multiple test procedure. It holds for dependent tests.
    """
    rejected = [False] * len(p_values)
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        if p_values[index] > (1 - CONFIDENCE) / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected
