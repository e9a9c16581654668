"""Numbers worked out by hand; t(1) = 12.706, t(2) = 4.303 at 97.5 %, from a printed table."""

import math

import pytest

from fedddpm_app.compare.statistics import deviation, holm, interval, p_value, paired_difference


def test_a_mean_with_its_interval():
    """1, 2, 6: mean 3, deviation sqrt((4 + 1 + 9) / 2) = sqrt(7), half width 4.303 sqrt(7 / 3)."""
    found = interval([1.0, 2.0, 6.0])
    assert (found.mean, found.n) == (3.0, 3)
    assert deviation([1.0, 2.0, 6.0]) == pytest.approx(math.sqrt(7))
    half = 4.303 * math.sqrt(7 / 3)
    assert (found.low, found.high) == (pytest.approx(3 - half, abs=2e-3), pytest.approx(3 + half, abs=2e-3))


def test_differences_are_paired_by_seed():
    """Seeds 0 and 2 are common: differences 1 and 3, mean 2, deviation sqrt(2), half width 12.706 sqrt(2 / 2)."""
    found = paired_difference({0: 5.0, 1: 100.0, 2: 9.0}, {2: 6.0, 0: 4.0, 7: -50.0})
    assert (found.mean, found.n) == (2.0, 2)
    assert (found.low, found.high) == (pytest.approx(2 - 12.706, abs=1e-3), pytest.approx(2 + 12.706, abs=1e-3))


def test_one_value_has_no_interval_and_nan_does_not_count():
    one = interval([4.0, math.nan])
    assert (one.mean, one.low, one.high, one.n) == (4.0, None, None, 1)
    assert deviation([4.0]) is None
    none = interval([])
    assert math.isnan(none.mean)
    assert none.n == 0


def test_the_p_value_is_that_of_the_interval():
    """t = 3.182 has p = 0.05 with 3 degrees of freedom, and t = 5.841 has p = 0.01 (printed table)."""
    assert p_value(1.0, 0.0, 4) == pytest.approx(0.05, abs=1e-9)
    assert p_value(-1.0, -1.0 - 3.182 / 5.841, 4) == pytest.approx(0.01, abs=1e-4)
    assert (p_value(2.0, 2.0, 3), p_value(0.0, 0.0, 3)) == (0.0, 1.0)


def test_holm_stops_at_the_first_p_value_above_its_limit():
    """Limits 0.05/4 = 0.0125, 0.0167, 0.025, 0.05: the third is above its own, so the fourth is not looked at."""
    assert holm([0.04, 0.001, 0.03, 0.015]) == [False, True, False, True]
    assert holm([0.01, 0.04]) == [True, True]
    assert holm([]) == []
