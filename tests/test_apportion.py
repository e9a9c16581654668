import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedddpm_app.apportion import labels_by_systematic_sampling, largest_remainder, split_groups


@given(st.integers(0, 500), st.lists(st.integers(0, 1000), min_size=1, max_size=8).filter(any))
def test_largest_remainder_sums_exactly_and_stays_within_one_of_the_quota(total, weights):
    shares = largest_remainder(total, weights)
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) < 1


def test_largest_remainder_gives_ties_to_the_earlier_share():
    assert largest_remainder(7, [2, 1, 2, 1]) == [3, 1, 2, 1]
    assert largest_remainder(8, [1] * 10) == [1] * 8 + [0] * 2


@given(st.data(), st.integers(1, 6), st.integers(1, 8))
def test_the_rounding_of_groups_does_not_add_up(data, num_groups, num_shares):
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=num_groups, max_size=num_groups))
    rows = st.lists(st.integers(0, 50), min_size=num_shares, max_size=num_shares).filter(any)
    weights = data.draw(st.lists(rows, min_size=num_groups, max_size=num_groups))
    found = split_groups(sizes, weights)
    for size, of_group, shares in zip(sizes, weights, found, strict=True):
        assert sum(shares) == size
        for share, weight in zip(shares, of_group, strict=True):
            assert abs(share - size * weight / sum(of_group)) < 1
            assert weight or not share


@pytest.mark.parametrize(("groups", "size", "shares"), [(100, 8, 10), (100, 8, 20), (10, 20, 30), (3, 1, 7)])
def test_equal_shares_of_many_groups_are_equal(groups, size, shares):
    """Largest remainders of each group would always leave the same shares out: here 2, 12, 10 and 6 of them."""
    totals = [sum(each) for each in zip(*split_groups([size] * groups, [[1] * shares] * groups), strict=True)]
    assert max(totals) - min(totals) <= 1


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
