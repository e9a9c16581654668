"""The centralised control against numpy: all data in one place, as many steps as FedAvg's clients take together."""

import numpy as np
import pytest
import torch

from fedddpm_app.algorithms.centralized import Centralized
from fedddpm_app.config import load_config
from fedddpm_app.federation.nodes.participants import Participants
from tests.algorithms.problems import (
    CLIENTS,
    RATE,
    ROUNDS,
    STEPS,
    gradient,
    gradient_steps,
    make_clients,
    run,
    same,
    shares,
    start,
)


def pooled_gradient(x):
    return sum(p * gradient(c, x) for p, c in zip(shares(CLIENTS), CLIENTS, strict=True))


def test_it_is_gradient_descent_on_all_data():
    assert same(
        run("centralized"), gradient_steps(start(), ROUNDS * STEPS * len(CLIENTS), RATE, pooled_gradient), 1e-12
    )


def test_its_steps_are_those_that_the_rounds_clients_would_take():
    unequal = run("centralized", local_steps=[1, 5, 2])
    assert same(unequal, gradient_steps(start(), ROUNDS * 8, RATE, pooled_gradient), 1e-12)
    sampled = run("centralized", clients_per_round=2)
    assert same(sampled, gradient_steps(start(), ROUNDS * STEPS * 2, RATE, pooled_gradient), 1e-12)


@pytest.mark.parametrize("algorithm", ["centralized", "aux-only"])
def test_a_client_that_is_not_connected_does_not_lower_a_controls_compute(monkeypatch, algorithm):
    settings = {"auxiliary_data": make_clients(4, seed=9)[0], "correction_steps": 3} if algorithm == "aux-only" else {}
    expected = run(algorithm, **settings)
    sample = Participants.sample
    monkeypatch.setattr(Participants, "sample", lambda *arguments: sample(*arguments)[1:])
    assert same(run(algorithm, **settings), expected, 1e-12)


def test_momentum_stays_over_the_rounds():
    x, v = start(), np.zeros(3)
    for _ in range(ROUNDS * STEPS * len(CLIENTS)):
        v = 0.9 * v + pooled_gradient(x)
        x = x - RATE * v
    assert same(run("centralized", momentum=0.9), x, 1e-12)


def test_no_weights_travel_for_training_and_clients_still_evaluate(shared_run):
    run = shared_run(algorithm="centralized")
    for row in run.rounds():
        assert row["comm/up_mb"] == 0
        assert row["train/steps"] == 12  # 3 of each of 4 clients
        assert {"train/loss", "eval/loss", "client-eval/loss"} <= row.keys()


def test_the_progress_counts_the_steps_of_all_clients(config):
    assert Centralized.total_steps(config, 24) == 24


def test_it_learns_from_every_client(run_config):
    """On the app's task the pooled data are the clients' training images, each once."""
    from fedddpm_app.experiment.task import DiffusionTask

    task = DiffusionTask(load_config(run_config))
    sizes = [len(task.train_data(partition)) for partition in range(4)]
    pooled = task.pooled_data()
    assert len(pooled) == sum(sizes)
    second = pooled.batch(torch.arange(sizes[0], sizes[0] + sizes[1])).images
    assert torch.equal(second, task.train_data(1).batch(torch.arange(sizes[1])).images)
