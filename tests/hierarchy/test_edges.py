"""Homogeneity, the choice of an edge and the weights of a merge, by hand."""

import json
import math

import numpy as np
import pytest

from fedddpm_app.hierarchy.edges import EdgeStatistics, homogeneity

ROOT_HALF = math.sqrt(0.5)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ([7, 7, 7], 2.0),
        ([3, 0], 2 - ROOT_HALF),
        ([3, 1], 2 - math.sqrt(2) / 4),
        ([5, 5, *[0] * 8], 2 - math.sqrt(0.4)),  # two of ten classes: 2 (0.5 - 0.1)^2 + 8 (0.1)^2
        ([5, *[0] * 9], 2 - math.sqrt(0.9)),
        ([0, 0, 0], 2.0),  # without images, as after a merge
        ([1], 2.0),
    ],
)
def test_homogeneity(counts, expected):
    assert homogeneity(counts) == pytest.approx(expected, rel=1e-12)
    assert homogeneity([1000 * count for count in counts]) == pytest.approx(expected, rel=1e-12)


def statistics(counts, latest=None):
    images = [sum(row) for row in counts]
    return EdgeStatistics(np.array(counts), np.array(images), np.array(latest or images))


def test_an_edge_whose_clients_reveal_nothing_is_not_the_most_even_one():
    fresh = EdgeStatistics.fresh(2, 2)
    edges = fresh.after_round({0: ([3, 1], 4), 1: ([0, 0], 8)}, {0: 0, 1: 1})
    assert edges.scores() == pytest.approx([2 - 0.25 * 2**0.5, 1.0])
    assert edges.cloud_weights(10.0) == pytest.approx({0: 4 + 10 * (2 - 0.25 * 2**0.5), 1: 8 + 10.0})
    gains = np.array([20 * 2 - 4, 20 * (2 - ROOT_HALF) - 8])  # the images of both edges count
    assert edges.probabilities([0, 2], 20)[1] < edges.probabilities([0, 2], 20)[0]
    assert edges.probabilities([0, 2], 20)[1] == pytest.approx(
        gains[1] / (20 * homogeneity([3, 3]) - 4 + gains[1]), rel=1e-6
    )
    gains = np.array([20 * (2 - 0.25 * 2**0.5) - 4, 20 * 1.0 - 8])  # a client that reveals nothing either
    assert edges.probabilities([0, 0], 20) == pytest.approx(gains / gains.sum(), rel=1e-6)
    assert EdgeStatistics.from_state(edges.state()).images.tolist() == [4, 8]


def test_a_client_prefers_the_edge_that_it_makes_more_even_and_that_has_fewer_images():
    edges = statistics([[4, 0], [0, 4]])
    gains = np.array([10 * 2 - 4, 10 * (2 - ROOT_HALF) - 4])  # with [0, 4] they have [4, 4] and [0, 8]
    assert edges.probabilities([0, 4], 10) == pytest.approx(gains / gains.sum(), rel=1e-7)
    gains = np.array([20 * 2 - 8, 20 * 2 - 4])  # equally even
    assert statistics([[4, 4], [2, 2]]).probabilities([1, 1], 20) == pytest.approx(gains / gains.sum(), rel=1e-7)


def test_edges_with_enough_images_are_all_alike():
    """The gain is bounded by c SH <= 2 c; below 0 it is 0, and 1e-8 stays."""
    assert statistics([[30, 0], [0, 50]]).probabilities([1, 0], 10).tolist() == [0.5, 0.5]
    first, second = statistics([[30, 0], [0, 0]]).probabilities([1, 1], 10)
    assert 0 < first < 1e-8 < second


def test_a_client_with_unknown_labels_chooses_by_the_edges_alone():
    gains = np.array([10 * (2 - ROOT_HALF) - 4, 10 * 2 - 0])
    assert statistics([[4, 0], [0, 0]]).probabilities([0, 0], 10) == pytest.approx(gains / gains.sum(), rel=1e-7)


def test_an_idle_edge_has_no_part_in_a_merge():
    """By the authors' rule it would have 110,000 of 188,377: 0.584, for the model that it got in the last merge."""
    counts = [[5000, 5000, *[0] * 8], [0] * 10]
    busy = 10_000 + 50_000 * (2 - math.sqrt(0.4))
    assert busy / (busy + 10_000 + 50_000 * 2) == pytest.approx(0.416, abs=5e-4)
    assert statistics(counts, [10_000, 0]).cloud_weights(50_000) == pytest.approx({0: busy}, rel=1e-12)


def test_a_merge_weighs_the_images_of_the_latest_round_and_the_homogeneity():
    found = statistics([[3, 1], [5, 5]], [4, 2]).cloud_weights(10)
    assert found == pytest.approx({0: 4 + 10 * (2 - math.sqrt(2) / 4), 1: 2 + 10 * 2}, rel=1e-12)
    assert statistics([[3, 1], [5, 5]], [4, 2]).cloud_weights(0) == {0: 4, 1: 2}


def test_statistics_grow_until_a_merge():
    fresh = EdgeStatistics.fresh(3, 2)
    first = fresh.after_round({4: ([1, 2], 3), 7: ([5, 0], 5), 8: ([0, 1], 1)}, {4: 0, 7: 2, 8: 0})
    assert (first.counts.tolist(), first.latest.tolist()) == ([[1, 3], [0, 0], [5, 0]], [4, 0, 5])
    second = first.after_round({7: ([5, 0], 5)}, {7: 0})
    assert (second.counts.tolist(), second.latest.tolist()) == ([[6, 3], [0, 0], [5, 0]], [5, 0, 5])
    assert fresh.counts.sum() == 0, "the statistics of an earlier round must not change: the round may be repeated"
    again = EdgeStatistics.from_state(json.loads(json.dumps(second.state())))
    assert again.state() == second.state()
    assert again.scores() == second.scores()
