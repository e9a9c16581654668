"""FedProx against numpy, its term against autograd, and a mutant without the term."""

import torch

from fedddpm_app.algorithms.fedprox import FedProx, FedProxHook
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.training.hooks import LocalRound
from tests.algorithms.problems import (
    CLIENTS,
    RATE,
    ROUNDS,
    STEPS,
    Point,
    caught,
    gradient,
    gradient_steps,
    run,
    same,
    shares,
    start,
)

MU = 0.7


def reference():
    w = start()
    for _ in range(ROUNDS):
        local = [
            gradient_steps(w, STEPS, RATE, lambda x, c=c: gradient(c, x), lambda x, w=w: MU * (x - w)) for c in CLIENTS
        ]
        w = sum(p * v for p, v in zip(shares(CLIENTS), local, strict=True))
    return w


def check_reference(algorithm):
    assert same(run(algorithm, mu=MU), reference())


def test_rounds_equal_the_reference():
    check_reference("fedprox")


def test_a_term_that_is_never_added_is_caught():
    class NoTerm(FedProxHook):
        def adjust_gradients(self, model):
            pass

    class Unsquared(FedProxHook):
        """The gradient of mu/2 ||v - w||, whose length does not depend on the distance."""

        def adjust_gradients(self, model):
            pull = model.x.detach() - self._anchor[0]
            model.x.grad += self.config.fedprox.mu / 2 * pull / pull.norm().clamp(min=1e-12)

    for hook_class in (NoTerm, Unsquared):

        class Mutant(FedProx):
            hook = hook_class

        assert caught(check_reference, Mutant)


def test_the_added_gradient_is_that_of_half_mu_times_the_squared_distance():
    config = load_config(default_run_config() | {"fedprox-mu": MU})
    model = Point()
    hook = FedProxHook(LocalRound(config, 0, 1, {}))
    hook.on_start(model)
    with torch.no_grad():
        model.x += torch.tensor([1.0, -2.0, 0.5])
    term = MU / 2 * (model.x - Point().x.detach()).square().sum()
    (expected,) = torch.autograd.grad(term, model.x)
    hook.adjust_gradients(model)  # there is no gradient yet
    assert torch.allclose(model.x.grad, expected, atol=1e-14)
    hook.adjust_gradients(model)
    assert torch.allclose(model.x.grad, 2 * expected, atol=1e-14)


def test_more_mu_keeps_clients_closer_to_the_global_model():
    moved = [abs(run("fedprox", rounds=1, mu=mu) - start()).max() for mu in (0.0, 1.0, 10.0)]
    assert moved[0] > moved[1] > moved[2]
