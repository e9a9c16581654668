"""FedDyn against numpy, its regulariser against autograd, and mutants."""

import numpy as np
import pytest
import torch

from fedddpm_app.algorithms.feddyn import DUAL, FedDyn, FedDynHook
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.training.hooks import LocalRound
from tests.algorithms.problems import (
    CLIENTS,
    RATE,
    ROUNDS,
    STEPS,
    Point,
    caught,
    check_fixed_point,
    gradient,
    gradient_steps,
    make_clients,
    run,
    same,
    start,
)

ALPHA = 0.7


def reference(clients, rounds=ROUNDS, sampled=None):
    """Algorithm 1, transcribed."""
    w, n = start(), len(clients)
    h, dual = np.zeros_like(w), [np.zeros_like(w)] * n
    for r in range(rounds):
        ended = {}
        for i in sampled[r] if sampled else range(n):
            pull = lambda x, i=i, w=w: ALPHA * (x - w) - dual[i]  # noqa: E731
            ended[i] = gradient_steps(w, STEPS, RATE, lambda x, i=i: gradient(clients[i], x), pull)
            dual[i] = dual[i] - ALPHA * (ended[i] - w)
        h = h - ALPHA / n * sum(v - w for v in ended.values())
        w = np.mean(list(ended.values()), 0) - h / ALPHA
    return w


def check_reference(algorithm):
    assert same(run(algorithm, alpha=ALPHA), reference(CLIENTS))


def test_rounds_equal_the_reference():
    check_reference("feddyn")


def test_rounds_of_sampled_clients_equal_the_reference():
    clients = make_clients(3, 5, 2, 4)
    sampled = [Participants({i: i for i in range(4)}).sample(2, 0, r) for r in range(1, 7)]
    ended = run("feddyn", clients, rounds=6, clients_per_round=2, alpha=ALPHA)
    assert same(ended, reference(clients, 6, sampled))


class Unsquared(FedDynHook):
    """Regularises with alpha/2 ||v - w|| instead of its square."""

    def adjust_gradients(self, model):
        pull = model.x.detach() - self._anchor[0]
        model.x.grad += self.config.feddyn.alpha / 2 * pull / pull.norm().clamp(min=1e-12) - self._dual[0]


class WithoutLinearTerm(FedDynHook):
    def adjust_gradients(self, model):
        super().adjust_gradients(model)
        model.x.grad += self._dual[0]


@pytest.mark.slow
@pytest.mark.parametrize("hook_class", [Unsquared, WithoutLinearTerm])
def test_broken_regularisers_are_caught(hook_class):
    class Mutant(FedDyn):
        hook = hook_class

    assert caught(check_reference, Mutant)
    assert caught(check_fixed_point, Mutant)  # which FedDyn passes in test_properties


def test_a_server_without_memory_is_caught():
    class Mutant(FedDyn):
        def aggregate(self, server_round, replies):
            self.server_dual = {name: value * 0 for name, value in self.server_dual.items()}
            return super().aggregate(server_round, replies)

    assert caught(check_reference, Mutant)


def test_the_added_gradient_is_that_of_the_regulariser():
    config = load_config(default_run_config() | {"feddyn-alpha": ALPHA})
    dual = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64)
    model = Point()
    hook = FedDynHook(LocalRound(config, 0, 2, {"x": model.x.detach().clone()}, state={DUAL: {"x": dual}}))
    hook.on_start(model)
    with torch.no_grad():
        model.x += torch.tensor([1.0, -2.0, 0.5])
    term = -(dual * model.x).sum() + ALPHA / 2 * (model.x - Point().x.detach()).square().sum()
    (expected,) = torch.autograd.grad(term, model.x)
    hook.adjust_gradients(model)
    assert torch.allclose(model.x.grad, expected, atol=1e-14)
