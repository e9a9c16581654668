import numpy as np
import pytest
import torch
from scipy.stats import betabinom
from sklearn.datasets import load_digits

from fedddpm_app.evaluation import memorization
from fedddpm_app.evaluation.memorization import memorized_share, nearest_training, threshold_at


def random_images(count, shape=(3, 4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def digits():
    """The digits, shuffled: uint8, (1797, 1, 8, 8)."""
    pixels = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]
    return torch.from_numpy(pixels)[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]


def by_hand(images, train, k):
    images, train = images.numpy() / 255, train.numpy() / 255
    every = np.array([[np.linalg.norm((a - b).ravel()) for b in train] for a in images])
    nearest = np.sort(every, axis=1)[:, :k]
    return nearest[:, 0] / nearest.mean(1), every.argmin(1), nearest[:, 0]


@pytest.mark.parametrize("k", [1, 5, 50])
def test_neighbours_are_those_by_hand_whatever_the_blocks(k, monkeypatch):
    images, train = random_images(20), random_images(40, seed=1)
    ratio, index, distance = by_hand(images, train, k)
    for size in (2048, 7, 1):
        monkeypatch.setattr(memorization, "_BLOCK_IMAGES", size)
        found = nearest_training(images, train, k)
        np.testing.assert_allclose(found.ratio, ratio, rtol=1e-6)
        np.testing.assert_allclose(found.distance, distance, rtol=1e-6)
        assert found.index.tolist() == index.tolist()
    assert [t.dtype for t in (found.ratio, found.index, found.distance)] == [torch.float32, torch.int64, torch.float32]


def test_blocks_change_nothing_and_of_equally_near_images_the_first_counts(digits, monkeypatch):
    images, train = digits[:100], torch.cat([digits[100:700], digits[100:700]])
    found = nearest_training(images, train)
    assert int(found.index.max()) < 600
    monkeypatch.setattr(memorization, "_BLOCK_BYTES", 8 * 64 * 33)
    other = nearest_training(images, train)
    for name in ("ratio", "index", "distance"):
        assert torch.equal(getattr(found, name), getattr(other, name))


def test_one_grey_level_in_a_bright_image_is_measured_exactly():
    train = torch.full((3, 3, 64, 64), 255, dtype=torch.uint8)
    train[1:] = 0
    image = train[:1].clone()
    image[0, 0, 0, 0] -= 1
    found = nearest_training(image, train, k=2)
    assert float(found.distance) == np.float32(1 / 255)
    assert int(found.index) == 0


def test_an_exact_copy_has_ratio_zero_even_among_copies():
    train = random_images(30)
    found = nearest_training(train[5:7], torch.cat([train, train[5:6].repeat(50, 1, 1, 1)]))
    assert found.ratio.tolist() == [0, 0]
    assert found.distance.tolist() == [0, 0]
    assert found.index.tolist() == [5, 6]


def test_noisy_copies_are_flagged_and_other_held_out_images_at_the_calibrated_rate(digits):
    train, calibration, held_out = digits[:897], digits[897:1347], digits[1347:]
    noise = 2 * torch.randn(100, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    planted = (train[:100] + noise).round().clamp(0, 255).to(torch.uint8)
    threshold = threshold_at(nearest_training(calibration, train).ratio, rate=0.01)
    found = nearest_training(planted, train)
    assert memorized_share(found.ratio, threshold) == 1
    assert found.index.tolist() == list(range(100))
    # The share of the distribution below the (m+1)-th least of n ratios is Beta(m + 1, n - m) distributed, so
    # the count among as many others is beta-binomial: at most `bound` with a probability of 99.9 %.
    n, m = len(calibration), int(0.01 * len(calibration))
    bound = betabinom.ppf(0.999, len(held_out), m + 1, n - m)
    flagged = memorized_share(nearest_training(held_out, train).ratio, threshold) * len(held_out)
    assert flagged <= bound < 0.05 * len(held_out)


@pytest.mark.parametrize(
    ("rate", "threshold", "share"),
    [(0, 1, 0), (0.1, 2, 0.1), (0.19, 2, 0.1), (0.2, 3, 0.2), (0.7, 8, 0.7), (1, 10, 0.9)],
)
def test_the_threshold_is_the_largest_ratio_with_at_most_the_rate_below(rate, threshold, share):
    ratios = torch.tensor([3.0, 1, 4, 2, 5, 9, 6, 8, 7, 10])
    assert threshold_at(ratios, rate) == threshold
    assert memorized_share(ratios, threshold) == pytest.approx(share)


def test_equal_ratios_and_float32_ones_stay_strictly_below_or_not():
    assert threshold_at(torch.tensor([0.1, 0.3, 0.3, 0.3, 0.5]), 0.4) == torch.tensor(0.3)
    ratios = torch.full((10,), 0.1)
    assert memorized_share(ratios, threshold_at(ratios, 0.5)) == 0
    assert np.isnan(memorized_share(ratios[:0], 0.5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nearest_training(random_images(2).float(), random_images(2)), "torch.float32"),
        (lambda: nearest_training(random_images(2), random_images(2, (1, 4, 5))), r"\(2, 3, 4, 5\) and \(2, 1, 4, 5\)"),
        (lambda: nearest_training(random_images(2), random_images(0)), "0 training images"),
        (lambda: nearest_training(random_images(2), random_images(2), k=0), "k = 0"),
        (lambda: threshold_at(torch.ones(0), 0.1), "0 ratios"),
        (lambda: threshold_at(torch.ones(3), 1.1), "rate of 1.1"),
    ],
)
def test_what_cannot_be_measured_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
