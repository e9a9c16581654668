"""The measures together, on scikit-learn's digits with pixels as features: worse images, worse values."""

import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import avg_pool2d

from fedddpm_app.evaluation.distances import frechet_distance, kernel_distance, total_variation
from fedddpm_app.evaluation.manifolds import precision_recall_density_coverage

DIGITS = load_digits()
ORDER = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
PIXELS = torch.from_numpy(DIGITS.data / 16).float()[ORDER]
LABELS = torch.from_numpy(DIGITS.target)[ORDER]
FIRST, REAL = slice(0, 898), slice(898, 1796)


def measures(generated):
    real = PIXELS[REAL]
    distances = {
        "frechet": frechet_distance(generated, real),
        "kernel": kernel_distance(generated, real, seed=0, subsets=20).value,
    }
    return distances | precision_recall_density_coverage(generated, real)


def label_distance(labels):
    return total_variation(labels.bincount(minlength=10), LABELS[REAL].bincount(minlength=10))


@pytest.fixture(scope="module")
def halves():
    """The measures of real images against others as real."""
    return measures(PIXELS[FIRST])


def blur(amount):
    images = PIXELS[FIRST].reshape(-1, 1, 8, 8)
    return images.lerp(avg_pool2d(images, 3, stride=1, padding=1), amount).flatten(1)


def test_real_images_are_better_than_blurred_ones_and_these_better_than_noise(halves):
    blurred = measures(blur(1.0))
    noise = measures(torch.rand(898, 64, generator=torch.Generator().manual_seed(1)))
    for name in ("frechet", "kernel"):
        assert halves[name] < 0.1 * blurred[name]
        assert blurred[name] < 0.5 * noise[name]
    for name in ("precision", "density", "coverage"):
        assert halves[name] > blurred[name] + 0.3
        assert blurred[name] > noise[name] == 0
    assert halves["recall"] > 0.9
    assert max(blurred["recall"], noise["recall"]) < 0.01


def test_a_slight_blur_costs_recall_and_distance_but_flatters_precision_and_density(halves):
    slight = measures(blur(0.3))
    assert slight["frechet"] > 3 * halves["frechet"]
    assert slight["kernel"] > 3 * halves["kernel"]
    assert slight["recall"] < halves["recall"] - 0.3
    assert slight["precision"] > halves["precision"]
    assert slight["density"] > halves["density"]


def test_a_dropped_class_is_noticed(halves):
    kept = LABELS[FIRST] != 0
    dropped = measures(PIXELS[FIRST][kept])
    assert dropped["frechet"] > 1.3 * halves["frechet"]
    assert dropped["recall"] < halves["recall"] - 0.05
    assert dropped["coverage"] < halves["coverage"] - 0.05
    assert dropped["precision"] == pytest.approx(halves["precision"], abs=0.02)
    share = float((LABELS[REAL] == 0).double().mean())
    assert label_distance(LABELS[FIRST][kept]) >= share > label_distance(LABELS[FIRST])


def test_a_few_images_repeated_are_noticed(halves):
    repeated = measures(PIXELS[:10].repeat(50, 1))
    assert repeated["frechet"] > 5 * halves["frechet"]
    assert repeated["kernel"] > 5 * abs(halves["kernel"])
    assert repeated["recall"] == 0
    assert repeated["coverage"] < 0.2
    assert repeated["precision"] > 0.8
