import numpy as np
import pytest
import torch

from fedddpm_app.evaluation import manifolds
from fedddpm_app.evaluation.manifolds import precision_recall_density_coverage


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(generated, real, k):
    """Kynkaanniemi et al. 2019, eqs. 1-2, and Naeem et al. 2020, eqs. 3-4, a pair at a time."""
    y, x = generated.double().numpy(), real.double().numpy()

    def radius(points, i):
        return sorted(np.linalg.norm(points[i] - points[j]) for j in range(len(points)) if j != i)[k - 1]

    generated_radii, real_radii = [radius(y, j) for j in range(len(y))], [radius(x, i) for i in range(len(x))]
    cross = [[np.linalg.norm(a - b) for b in x] for a in y]
    pairs = [(j, i) for j in range(len(y)) for i in range(len(x))]
    in_real = [(j, i) for j, i in pairs if cross[j][i] <= real_radii[i]]
    in_generated = [(j, i) for j, i in pairs if cross[j][i] <= generated_radii[j]]
    return {
        "precision": len({j for j, _ in in_real}) / len(y),
        "recall": len({i for _, i in in_generated}) / len(x),
        "density": len(in_real) / (k * len(y)),
        "coverage": len({i for _, i in in_real}) / len(x),
    }


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize(
    ("generated", "real"),
    [
        (0.7 * normal(200, 6) + 0.3, normal(200, 6, seed=1)),
        (normal(120, 2), normal(60, 2, seed=1)),
        (normal(10, 3, seed=1).repeat(6, 1), normal(80, 3, seed=1)),  # copies of real images, radii of 0
        (torch.randint(4, (90, 3), generator=torch.Generator().manual_seed(0)).double(),
         torch.randint(4, (70, 3), generator=torch.Generator().manual_seed(1)).double()),  # ties everywhere
    ],
    ids=["shifted", "unequal", "repeated", "ties"],
)  # fmt: skip
def test_all_four_are_those_by_hand(generated, real, k, monkeypatch):
    expected = by_hand(generated, real, k)
    assert precision_recall_density_coverage(generated, real, k) == expected
    monkeypatch.setattr(manifolds, "_BLOCK_BYTES", 7 * 8 * 80)
    assert precision_recall_density_coverage(generated, real, k) == expected


def test_a_set_covers_itself_and_one_of_its_distribution_nearly():
    features = 1000 + normal(300, 4).float()
    same = precision_recall_density_coverage(features, features.flip(0), k=5)
    assert same == {"precision": 1, "recall": 1, "density": 6 / 5, "coverage": 1}  # k neighbours and itself
    other = precision_recall_density_coverage(normal(1000, 2), normal(1000, 2, seed=1))
    assert min(other.values()) > 0.9
    assert other["density"] == pytest.approx(1, abs=0.05)


def test_disjoint_sets_do_not_cover_each_other():
    found = precision_recall_density_coverage(normal(50, 3), normal(60, 3, seed=1) + 100)
    assert found == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_a_dropped_mode_costs_recall_and_coverage_and_a_foreign_one_precision_and_density():
    modes = torch.arange(400) % 4 * 100
    real = normal(400, 3) + modes[:, None]
    generated = normal(400, 3, seed=1) + modes[:, None]
    whole = precision_recall_density_coverage(generated, real)
    dropped = precision_recall_density_coverage(generated[modes > 0], real)
    foreign = precision_recall_density_coverage(generated, real[modes > 0])
    for name in ("recall", "coverage"):
        assert dropped[name] == pytest.approx(0.75 * whole[name], abs=0.02)
        assert foreign[name] == pytest.approx(whole[name], abs=0.02)
    for name in ("precision", "density"):
        assert dropped[name] == pytest.approx(whole[name], abs=0.02)
        assert foreign[name] == pytest.approx(0.75 * whole[name], abs=0.02)


def test_a_few_images_repeated_have_precision_but_no_recall_and_little_coverage():
    real = normal(500, 3)
    repeated = precision_recall_density_coverage(real[:10].repeat(50, 1), real)
    assert repeated["precision"] == 1
    assert repeated["recall"] == 10 / 500  # the copied ones alone: the radii are 0
    assert 10 / 500 <= repeated["coverage"] < 0.2


@pytest.mark.parametrize(
    ("n", "m", "k", "message"),
    [(5, 9, 5, "5 generated and 9 real images, but 6"), (9, 5, 5, "9 generated and 5"), (9, 9, 0, "k is 0")],
)
def test_too_few_images_are_an_error(n, m, k, message):
    with pytest.raises(ValueError, match=message):
        precision_recall_density_coverage(normal(n, 2), normal(m, 2), k)
    assert precision_recall_density_coverage(normal(6, 2), normal(6, 2), 5)["precision"] == 1
