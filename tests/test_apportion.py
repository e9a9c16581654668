import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedddpm_app.apportion import largest_remainder


@given(st.integers(0, 500), st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any))
def test_largest_remainder_sums_exactly_and_stays_within_one_of_the_quota(total, weights):
    shares = largest_remainder(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) < 1


def test_largest_remainder_refuses_what_cannot_be_split():
    for weights in ([0, 0], [], [-1, 2]):
        with pytest.raises(ValueError, match="cannot be split"):
            largest_remainder(3, weights)
