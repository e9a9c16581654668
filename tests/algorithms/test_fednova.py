"""FedNova against numpy, with unequal steps, momentum and schedules."""

import numpy as np
import pytest
import torch

from fedddpm_app.algorithms.fednova import GRADIENT_WEIGHT, FedNova, FedNovaHook
from fedddpm_app.optimization import gradient_weight
from tests.algorithms.problems import CLIENTS, RATE, ROUNDS, caught, gradient, run, same, shares, start

TAUS = [1, 5, 2]


def reference(momentum=0.0):
    """d_i = (w - w_i) / ||a_i||_1 with the closed form of the paper's section 4; w <- w - tau_eff sum p_i d_i."""
    w, p = start(), shares(CLIENTS)
    for _ in range(ROUNDS):
        d, norms = [], []
        for client, tau in zip(CLIENTS, TAUS, strict=True):
            x, v = w, 0.0
            for _ in range(tau):
                v = momentum * v + gradient(client, x)
                x = x - RATE * v
            norms.append((tau - momentum * (1 - momentum**tau) / (1 - momentum)) / (1 - momentum))
            d.append((w - x) / norms[-1])
        w = w - (p @ norms) * (p @ d)
    return w


def check_reference(algorithm):
    for momentum in (0.0, 0.9):
        assert same(run(algorithm, local_steps=TAUS, momentum=momentum), reference(momentum))


def test_rounds_equal_the_reference():
    check_reference("fednova")


def test_counting_steps_where_momentum_counts_more_is_caught():
    class CountsSteps(FedNovaHook):
        def on_end(self, result, full_gradient):
            self.metrics[GRADIENT_WEIGHT] = float(result.steps)

    class Mutant(FedNova):
        hook = CountsSteps

    assert caught(check_reference, Mutant)


def test_it_removes_the_bias_of_unequal_steps():
    """With one step size to zero FedAvg ends where clients of more steps count more; FedNova at the optimum."""
    clients = [(torch.ones(1, 3), torch.zeros(1, 3)), (torch.ones(1, 3), torch.ones(1, 3))]
    settings = {"clients": clients, "rounds": 3000, "local_steps": [1, 9], "lr": 1e-3}
    assert abs(run("fednova", **settings) - 0.5).max() < 0.01
    assert abs(run("fedavg", **settings) - 0.9).max() < 0.01


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_gradient_weight_is_what_constant_gradients_move_by(momentum):
    factors = [0.5, 1.0, 1.0, 0.25]
    x, v = 0.0, 0.0
    for factor in factors:
        v = momentum * v + 1.0
        x -= factor * v
    assert gradient_weight(factors, momentum) == pytest.approx(-x, rel=1e-14)
    assert gradient_weight([1.0] * 7, 0.0) == 7


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_client_with_an_impossible_weight_is_left_out(weight):
    class Lies(FedNovaHook):
        def on_end(self, result, full_gradient):
            super().on_end(result, full_gradient)
            if self.round.partition_id == 1:
                self.metrics[GRADIENT_WEIGHT] = weight

    class Mutant(FedNova):
        hook = Lies

    others = [CLIENTS[0], CLIENTS[2]]
    assert same(run(Mutant), run("fednova", others), 1e-12)
    assert np.isfinite(run(Mutant)).all()
