"""The training images that are matched too often."""

import pytest

from fedddpm_app.peers.dedup import images_to_leave_out


def test_the_top_tail_of_the_counts_by_hand():
    """Of 40 counts, 30 times 0, 8 times 1, then 2 and 3, the 38th is 1: the two above it are left out."""
    matches = [[*range(8)], [20, 20, 21], [21, 21]]
    assert images_to_leave_out(matches, 40) == [20, 21]
    assert images_to_leave_out([indices for each in matches for indices in [each[::-1]]][::-1], 40) == [20, 21]


def test_all_matched_images_are_left_out_while_they_are_few():
    assert images_to_leave_out([[7], [3, 7]], 40) == [3, 7]
    assert images_to_leave_out([[7], [3, 5]], 40) == []  # three of 40, alike: leaving out all would be 7.5 %


def test_images_without_matches_stay():
    assert images_to_leave_out([], 40) == []
    assert images_to_leave_out([[], []], 40) == []


@pytest.mark.parametrize("num_images", [1, 2, 19, 20, 100])
def test_at_most_a_twentieth_is_left_out(num_images):
    matches = [[k] * (k + 1) for k in range(num_images)]
    left_out = images_to_leave_out(matches, num_images)
    assert left_out == list(range(num_images - num_images // 20, num_images))


def test_what_is_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="match with image 4, but there are 4"):
        images_to_leave_out([[4]], 4)
    with pytest.raises(ValueError, match="percentile = 0"):
        images_to_leave_out([[1]], 4, percentile=0)
