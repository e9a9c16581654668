"""FedAvg against numpy."""

from tests.algorithms.problems import CLIENTS, RATE, ROUNDS, STEPS, gradient, gradient_steps, run, same, shares, start


def reference(clients, steps):
    w = start()
    for _ in range(ROUNDS):
        local = [gradient_steps(w, k, RATE, lambda x, c=c: gradient(c, x)) for c, k in zip(clients, steps, strict=True)]
        w = sum(p * v for p, v in zip(shares(clients), local, strict=True))
    return w


def test_rounds_equal_the_reference():
    assert same(run("fedavg"), reference(CLIENTS, [STEPS] * 3))
    assert same(run("fedavg", local_steps=[1, 5, 2]), reference(CLIENTS, [1, 5, 2]))
