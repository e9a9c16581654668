"""Updates as whole numbers: the mean within the step, no overflow, and what is clipped."""

import numpy as np
import pytest
import torch

from fedddpm_app.secure.encoding import CLIPPED, Encoding
from fedddpm_app.secure.masks import Vector

START = {"w": torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64), "steps": torch.tensor(10)}


def change(*values, steps=10):
    return {"w": START["w"] + torch.tensor(values, dtype=torch.float64).view(2, 2), "steps": torch.tensor(steps)}


def summed(encoding, clients, shares):
    total = Vector.zeros(encoding.num_narrow, encoding.num_wide)
    for seed, (weights, loss) in enumerate(clients):
        total.add(encoding.encode(weights, {"loss": loss}, shares[seed], seed))
    return total


def test_the_mean_is_the_weighted_one_within_the_bound():
    """Shares 1/4 and 3/4: 0.25 * 0.4 + 0.75 * -0.8 = -0.5; steps (14 + 3 * 18) / 4 = 17; loss 0.25 * 2 + 0.75 * 4."""
    encoding = Encoding(START, ["loss"], clip=1.0, num_clients=2)
    clients = [(change(0.4, 0.0, 1e-4, 1.0, steps=14), 2.0), (change(-0.8, 0.1, 1e-5, 1.0, steps=18), 4.0)]
    weights, metrics = encoding.decode(summed(encoding, clients, [0.25, 0.75]), 1.0)
    expected = torch.tensor([[-0.5, 0.075], [0.25e-4 + 0.75e-5, 1.0]], dtype=torch.float64)
    bound = encoding.bound(2, 1.0)
    assert 0 < bound < 1e-9
    off = (weights["w"] - START["w"] - expected).abs().max()
    assert off <= bound + 1e-15
    assert int(weights["steps"]) == 17
    assert metrics["loss"] == pytest.approx(3.5, abs=1e-11)
    assert metrics[CLIPPED] == 0.0


def test_the_sum_of_those_that_are_left_is_divided_by_their_share():
    encoding = Encoding(START, ["loss"], clip=1.0, num_clients=3)
    clients = [(change(0.4, 0.0, 0.0, 0.0), 1.0), (change(0.1, 0.0, 0.0, 0.0), 5.0)]
    weights, metrics = encoding.decode(summed(encoding, clients, [0.25, 0.5]), 0.75)
    assert float(weights["w"][0, 0] - START["w"][0, 0]) == pytest.approx(0.2, abs=encoding.bound(2, 0.75))
    assert metrics["loss"] == pytest.approx(11 / 3)


def test_the_rounding_has_the_mean_of_the_value():
    """A change of 0.3 steps becomes 1 in 30 % of the cases, 0 otherwise: 5 standard deviations are 0.023."""
    start = {"w": torch.zeros(10_000, dtype=torch.float64)}
    encoding = Encoding(start, [], clip=1.0, num_clients=2)
    numbers = encoding.encode({"w": start["w"] + 0.3 * encoding.step}, {}, 1.0, seed=0).narrow
    assert set(numbers.tolist()) == {0, 1}
    assert abs(numbers.mean() - 0.3) < 0.023


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_updates_do_not_overflow_and_are_clipped(sign):
    start = {"w": torch.zeros(50, dtype=torch.float64)}
    encoding = Encoding(start, [], clip=0.5, num_clients=3)
    weights = {"w": torch.full((50,), sign * 100.0, dtype=torch.float64)}
    total = Vector.zeros(50, 1)
    for seed in range(3):
        total.add(encoding.encode(weights, {}, 1 / 3, seed))
    mean, metrics = encoding.decode(total, 1.0)
    assert (mean["w"] - sign * 0.5).abs().max() <= encoding.bound(3, 1.0)
    assert metrics[CLIPPED] == pytest.approx(1.0)


def test_the_share_of_clipped_values_is_averaged():
    """Client 0 has one of its four values outside, client 1 none: 0.5 * 0.25 + 0.5 * 0."""
    encoding = Encoding(START, ["loss"], clip=1.0, num_clients=2)
    clients = [(change(2.0, 0.0, 0.0, 1.0), 1.0), (change(0.0, 0.0, 0.0, 0.0), 1.0)]
    assert encoding.decode(summed(encoding, clients, [0.5, 0.5]), 1.0)[1][CLIPPED] == pytest.approx(0.125)


@pytest.mark.parametrize(
    ("weights", "metrics"),
    [
        (change(float("nan"), 0.0, 0.0, 0.0), {"loss": 1.0}),
        (change(0.0, float("inf"), 0.0, 0.0), {"loss": 1.0}),
        (change(0.0, 0.0, 0.0, 0.0), {"loss": float("nan")}),
        (change(0.0, 0.0, 0.0, 0.0), {}),
    ],
)
def test_what_is_not_finite_is_not_encoded(weights, metrics):
    with pytest.raises(ValueError, match="finite"):
        Encoding(START, ["loss"], 1.0, 2).encode(weights, metrics, 0.5, 0)


def test_float32_weights_come_back_as_float32():
    start = {"w": torch.tensor([1.0, 2.0])}
    encoding = Encoding(start, [], clip=4.0, num_clients=2)
    total = Vector.zeros(2, 1)
    total.add(encoding.encode({"w": torch.tensor([1.5, 1.0])}, {}, 1.0, 3))
    weights, _ = encoding.decode(total, 1.0)
    assert weights["w"].dtype == torch.float32
    assert np.allclose(weights["w"], [1.5, 1.0], atol=1e-7, rtol=0)
