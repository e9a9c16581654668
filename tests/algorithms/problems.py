"""Small float64 problems whose gradients numpy knows, and how the tests run them."""

import numpy as np
import torch
from torch import nn

from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.inprocess.simulate import simulate

ROUNDS, STEPS, RATE = 3, 4, 0.05


class Point(nn.Module):
    """A vector x of parameters; puts out a x for each example."""

    def __init__(self, start=(0.5, -1.0, 2.0)):
        super().__init__()
        self.x = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, a):
        return a * self.x


def quadratic(model, batch):
    """The mean over examples (a, b) of sum(a / 2 (x - b)^2)."""
    a, b = batch
    return ((model(a) - a * b) ** 2 / (2 * a)).sum(1).mean()


def make_clients(*sizes, seed=0):
    """One data set of examples (a, b) per client, each around a centre of its own."""
    random = np.random.default_rng(seed)
    clients = []
    for size in sizes:
        a, centre = random.uniform(0.5, 3.0, (size, 3)), random.normal(0, 3, 3)
        clients.append((torch.tensor(a), torch.tensor(centre + random.normal(0, 1, (size, 3)))))
    return clients


CLIENTS = make_clients(3, 5, 2)
PAIR = [(torch.full((1, 3), a), torch.full((1, 3), b)) for a, b in ((1.0, -1.0), (4.0, 3.0))]
OPTIMUM = (1.0 * -1.0 + 4.0 * 3.0) / (1.0 + 4.0)  # of the mean of the pair's losses
LONG_RUN = {"rounds": 100, "local_steps": 10, "lr": 0.02}  # FedDyn, the slower one, comes within 1e-8 of a fixed point


def gradient(client, x):
    a, b = (tensor.numpy() for tensor in client)
    return (a * (x - b)).mean(0)


def gradient_steps(x, steps, rate, *gradients):
    """Plain gradient descent on the sum of the given gradient functions."""
    for _ in range(steps):
        x = x - rate * sum(g(x) for g in gradients)
    return x


def run(algorithm, clients=CLIENTS, rounds=ROUNDS, local_steps=STEPS, lr=RATE, **hyper):
    """Simulate on the quadratics; returns x."""
    weights, _ = simulate(algorithm, Point(), quadratic, clients, rounds, local_steps, lr, **hyper)
    return weights["x"].numpy()


def start():
    return Point().x.detach().numpy()


def shares(clients):
    sizes = np.array([len(a) for a, _ in clients], float)
    return sizes / sizes.sum()


def same(a, b, tolerance=1e-10):
    return np.abs(a - b).max() <= tolerance


def check_fixed_point(algorithm):
    """The pair's exact optimum is where the algorithm ends, though local steps pull each client to its own."""
    ended = run(algorithm, PAIR, **LONG_RUN)
    assert np.isfinite(ended).all()
    assert np.abs(ended - OPTIMUM).max() < 1e-6


def caught(check, mutant):
    """Whether a property, a function of the algorithm, tells a mutant: it raises, or the mutant diverges."""
    try:
        check(mutant)
    except AssertionError:
        return True
    except RoundFailedError as error:
        return "diverged" in str(error) or "not finite" in str(error)
    return False
