import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedddpm_app.apportion import labels_by_systematic_sampling, largest_remainder


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
        with pytest.raises(ValueError, match="cannot follow"):
            labels_by_systematic_sampling(3, weights, 0.5)


@given(
    st.integers(0, 300),
    st.lists(st.integers(0, 1000), min_size=1, max_size=12).filter(any),
    st.floats(0, 1, exclude_max=True),
)
def test_systematic_sampling_sums_exactly_and_stays_within_one_of_the_quota(total, counts, start):
    labels = labels_by_systematic_sampling(total, counts, start)
    assert labels.tolist() == sorted(labels.tolist())
    found = labels.bincount(minlength=len(counts)).tolist()
    assert len(found) == len(counts)
    assert sum(found) == total
    for number, count in zip(found, counts, strict=True):
        assert abs(number - total * count / sum(counts)) < 1 + 1e-6
        assert count or not number
