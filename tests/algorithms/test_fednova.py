"""FedNova against numpy, with unequal steps, momentum and schedules."""

import pytest
import torch
from torch import nn

from fedddpm_app.algorithms.fednova import FedNova
from fedddpm_app.config import load_config
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.training.hooks import TrainingHook
from fedddpm_app.training.optimization import gradient_weight
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
    class Mutant(FedNova):
        def gradient_weight(self, steps):
            return float(steps)

    assert caught(check_reference, Mutant)


def test_a_plain_mean_is_caught():
    assert caught(check_reference, "fedavg")


@pytest.mark.slow
def test_it_removes_the_bias_of_unequal_steps():
    """With one step size to zero FedAvg ends where clients of more steps count more; FedNova at the optimum."""
    clients = [(torch.ones(1, 3), torch.zeros(1, 3)), (torch.ones(1, 3), torch.ones(1, 3))]
    settings = {"clients": clients, "rounds": 200, "local_steps": [1, 9], "lr": 7e-3}
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


@pytest.mark.parametrize("steps", [0.0, -1.0, 0.5, 5e6, 1e300])
def test_a_client_with_impossible_steps_is_left_out(steps):
    class Lies(TrainingHook):
        def on_end(self, result, full_gradient):
            if self.round.partition_id == 1:
                self.metrics["steps"] = steps

    class Mutant(FedNova):
        hook = Lies

    assert same(run(Mutant), run("fednova", [CLIENTS[0], CLIENTS[2]]), 1e-12)


def test_running_means_are_averaged_and_not_stepped():
    """A step of tau_eff times the mean move can take a variance below zero."""

    def loss(model, batch):
        return model(batch).square().mean()

    sizes = (2, 4, 8, 16)
    clients = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)) * 1e-3 for n in sizes]
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    weights, _ = simulate("fednova", model, loss, clients, 1, [4, 4, 4, 60], 0.01)
    left = [0.9**k for k in (4, 4, 4, 60)]  # of the initial variance 1, after momentum 0.1 of as many steps
    expected = sum(n * share for n, share in zip(sizes, left, strict=True)) / sum(sizes)
    assert torch.allclose(weights["0.running_var"], torch.full((3,), expected, dtype=torch.float64), atol=1e-4)


def test_schedules_count(run_config):
    training = {"learning-rate-schedule": "cosine", "warmup-steps": 2, "optimizer": "sgd", "momentum": 0.5}
    strategy = FedNova(load_config(run_config | training), None, None)
    factors = [1 / 3, 2 / 3, 1.0, 0.5]  # two warm-up steps, then the cosine's first two of two
    assert strategy.gradient_weight(4) == pytest.approx(gradient_weight(factors, 0.5), rel=1e-12)
