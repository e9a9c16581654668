import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits

from fedddpm_app.evaluation import distances
from fedddpm_app.evaluation.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    total_variation,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(count, mean, covariance, seed=0):
    """Features whose sample mean and unbiased covariance are exactly those given."""
    z = normal(count, len(mean), seed=seed)
    z -= z.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(z.T.cov()), z.T, upper=False).T
    return white @ torch.linalg.cholesky(covariance).T + mean


def random_covariance(d, seed):
    a = normal(d, d, seed=seed)
    return a @ a.T / d + 0.1 * torch.eye(d)


def numpy_frechet_distance(generated, real):
    generated, real = generated.numpy().astype(np.float64), real.numpy().astype(np.float64)
    s1, s2 = np.cov(generated, rowvar=False), np.cov(real, rowvar=False)
    values, vectors = np.linalg.eigh(s1)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    trace = np.sqrt(np.linalg.eigvalsh(root @ s2 @ root).clip(0)).sum()
    return ((generated.mean(0) - real.mean(0)) ** 2).sum() + np.trace(s1) + np.trace(s2) - 2 * trace


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(("n", "m", "d"), [(50, 40, 8), (300, 30, 20), (9, 8, 16), (30, 400, 100), (40, 25, 1)])
def test_frechet_distance_is_numpys(n, m, d, offset, monkeypatch):
    monkeypatch.setattr(distances, "_CHUNK_SIZE", 37)
    generated, real = 1.5 * normal(n, d) + 0.3 + offset, normal(m, d, seed=1) + offset
    if d > 1:
        assert frechet_distance(generated, real) == pytest.approx(numpy_frechet_distance(generated, real), rel=1e-6)
    else:
        difference, roots = generated.mean() - real.mean(), generated.std() - real.std()
        assert frechet_distance(generated, real) == pytest.approx(float(difference**2 + roots**2), rel=1e-6)


@pytest.mark.parametrize("d", [3, 20])
def test_frechet_distance_of_gaussians_is_its_closed_form(d):
    mean, covariance, other = normal(d, seed=3), random_covariance(d, 1), random_covariance(d, 2)
    root = torch.from_numpy(np.real(sqrtm((covariance @ other).numpy())))
    expected = float(mean.square().sum() + (covariance + other - 2 * root).trace())
    generated = with_moments(100, 7 + mean, covariance, seed=4)
    real = with_moments(80, torch.full((d,), 7.0), other, seed=5)
    assert frechet_distance(generated, real) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_accurate_for_close_sets_with_fewer_images_than_features():
    basis = torch.linalg.qr(normal(60, 60)).Q[:8]
    white = with_moments(20, torch.zeros(8), torch.eye(8).double(), seed=1)
    scales = torch.linspace(1, 3, 8, dtype=torch.float64)
    expected = float((1e-3 * scales).square().sum())
    assert frechet_distance(white * (1.001 * scales) @ basis, white * scales @ basis) == pytest.approx(
        expected, rel=1e-7
    )


@pytest.mark.parametrize(("n", "d"), [(100, 8), (10, 40)])
def test_frechet_distance_is_zero_symmetric_and_of_any_dtype(n, d):
    features, other = normal(n, d).float(), normal(n, d, seed=1).float()
    assert 0 <= frechet_distance(features, features.flip(0)) < 1e-12
    assert frechet_distance(features, other) == pytest.approx(frechet_distance(other, features), rel=1e-12)
    assert frechet_distance(features, other) == frechet_distance(features.double(), other.double())


def direct_kernel_distance(x, y):
    """Return the unbiased squared MMD of Binkowski et al. 2018, eq. 4, a pair at a time."""

    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (n * m)


def test_a_subsets_kernel_distance_is_the_direct_sum():
    x, y = normal(6, 3), normal(7, 3, seed=1) + 0.5
    pairs = itertools.product(itertools.combinations(range(6), 3), itertools.combinations(range(7), 3))
    possible = torch.tensor([direct_kernel_distance(x[list(i)], y[list(j)]) for i, j in pairs])
    for seed in range(5):
        value = kernel_distance(x, y, seed, subsets=1).value
        assert float((possible - value).abs().min()) < 1e-6


def test_kernel_distance_averages_to_the_direct_sum_over_all_images():
    x, y = normal(9, 3), normal(8, 3, seed=1) + 0.5
    spread = kernel_distance(x, y, seed=0, subsets=2000)
    assert abs(spread.value - direct_kernel_distance(x, y)) < 3 * spread.std / math.sqrt(2000)


def standard_error(values):
    return float(values.std()) / math.sqrt(len(values))


def test_kernel_distance_is_zero_on_average_for_one_distribution():
    values = [
        kernel_distance(normal(40, 5, seed=2 * i), normal(50, 5, seed=2 * i + 1), i, 10).value for i in range(100)
    ]
    assert abs(np.mean(values)) < 3 * standard_error(np.array(values))
    assert min(values) < 0


def expected_kernel(mean_x, cov_x, mean_y, cov_y):
    """E[(x.y/d + 1)^3] of independent Gaussians: E[(x.y)^p] is the product of their p-th moment tensors."""

    def moments(mean, cov):
        mixed = torch.einsum("i,jk->ijk", mean, cov)
        third = torch.einsum("i,j,k->ijk", mean, mean, mean) + mixed + mixed.permute(1, 0, 2) + mixed.permute(1, 2, 0)
        return mean, cov + torch.outer(mean, mean), third

    d = len(mean_x)
    first, second, third = (
        float((a * b).sum()) / d**p
        for p, (a, b) in enumerate(zip(moments(mean_x, cov_x), moments(mean_y, cov_y), strict=True), 1)
    )
    return third + 3 * second + 3 * first + 1


def test_kernel_distance_of_gaussians_is_its_closed_form():
    x, y = (normal(4), random_covariance(4, 1)), (normal(4, seed=2), random_covariance(4, 3))
    expected = expected_kernel(*x, *x) + expected_kernel(*y, *y) - 2 * expected_kernel(*x, *y)

    def draw(mean, covariance, seed):
        return normal(200, 4, seed=seed) @ torch.linalg.cholesky(covariance).T + mean

    values = [kernel_distance(draw(*x, 10 + 2 * i), draw(*y, 11 + 2 * i), i, subsets=10).value for i in range(100)]
    error = standard_error(np.array(values))
    assert abs(np.mean(values) - expected) < 3 * error
    assert expected > 10 * error


def test_kernel_distance_of_two_halves_of_the_digits_is_within_its_spread():
    pixels = torch.from_numpy(load_digits().data / 16)
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    value, std = kernel_distance(pixels[order[:898]], pixels[order[898:]], seed=0, subsets=20)
    assert abs(value) < 3 * std


def test_a_kernel_distances_subsets_differ_and_are_at_most_the_maximum():
    x, y = normal(20, 3), normal(30, 3, seed=1)
    assert kernel_distance(x, y, 0, 50, max_subset=10) == kernel_distance(x, y, 0, 50)
    assert kernel_distance(x, y, 0, 50).std > 0
    assert kernel_distance(x, y, 0, 50, max_subset=4).std > kernel_distance(x, y, 0, 50).std


def inception_score_by_hand(logits, parts):
    scores = []
    for part in parts:
        p = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits[list(part)].tolist()]
        marginal = [sum(column) / len(p) for column in zip(*p, strict=True)]
        divergences = [sum(a * math.log(a / b) for a, b in zip(row, marginal, strict=True)) for row in p]
        scores.append(math.exp(sum(divergences) / len(p)))
    return np.mean(scores), np.std(scores, ddof=1)


def test_inception_score_is_that_of_some_split_in_parts():
    logits = 2 * normal(6, 4)
    splits = [(part, sorted(set(range(6)) - set(part))) for part in itertools.combinations(range(6), 3)]
    possible = torch.tensor(np.array([inception_score_by_hand(logits, split) for split in splits]))
    found = {inception_score(logits, seed, splits=2) for seed in range(8)}
    assert len(found) > 1
    assert all(float((possible - torch.tensor(spread)).abs().sum(1).min()) < 1e-6 for spread in found)


def test_inception_score_runs_from_one_to_the_number_of_classes():
    assert inception_score(torch.zeros(40, 4), 0) == pytest.approx((1, 0), abs=1e-12)
    sure = 100 * torch.eye(4).repeat(500, 1)
    assert 3.9 < inception_score(sure, 0, splits=2).value <= 4


@pytest.mark.parametrize(
    ("counts", "reference", "expected"),
    [
        ([1, 2, 3], [2, 4, 6], 0.0),
        ([5, 0], [0, 1], 1.0),
        ([1, 1, 0, 0], [1, 1, 1, 1], 0.5),
        ([3, 1], [0.25, 0.75], 0.5),
    ],
)
def test_total_variation(counts, reference, expected):
    assert total_variation(torch.tensor(counts), torch.tensor(reference)) == pytest.approx(expected)
    assert total_variation(torch.tensor(reference), torch.tensor(counts)) == pytest.approx(expected)


@pytest.mark.parametrize("measure", [lambda s: kernel_distance(normal(9, 2), normal(9, 2, seed=1), s, 3),
                                     lambda s: inception_score(normal(40, 3), s)])  # fmt: skip
@pytest.mark.filterwarnings("error", "ignore::ResourceWarning")
def test_random_parts_depend_on_the_seed_alone_and_quietly(measure):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = measure(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert measure(1) == first
    assert measure(2) != first


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(normal(1, 3), normal(9, 3)), "1 generated and 9 real"),
        (lambda: frechet_distance(normal(9, 3), normal(9, 4)), r"\(9, 3\) and \(9, 4\)"),
        (lambda: frechet_distance(normal(9, 3, 1), normal(9, 3)), r"\(9, 3, 1\)"),
        (lambda: frechet_distance(normal(9, 3) / 0, normal(9, 3)), "infinity"),
        (lambda: kernel_distance(normal(9, 3), normal(3, 3), 0), "9 generated and 3 real images, but 4"),
        (lambda: kernel_distance(normal(9, 3), normal(9, 3), 0, max_subset=1), "max_subset is 1"),
        (lambda: inception_score(normal(9, 3), 0), r"\(9, 3\), for 10 splits"),
        (lambda: inception_score(normal(9, 3), 0, splits=1), "1 splits"),
        (lambda: total_variation(torch.ones(3), torch.ones(4)), r"\(3,\) and \(4,\)"),
        (lambda: total_variation(torch.ones(3), torch.zeros(3)), "3 and 0 images"),
    ],
)
def test_what_cannot_be_measured_is_an_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
