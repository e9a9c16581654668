"""SCAFFOLD against numpy, its options against each other, and the mutants that public code has."""

import numpy as np
import pytest
import torch

from fedddpm_app import weights as weights_module
from fedddpm_app.algorithms.scaffold import VARIATE, Scaffold, ScaffoldHook
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.inprocess.task import as_training_data
from fedddpm_app.training.trainer import Trainer
from tests.algorithms.problems import (
    CLIENTS,
    LONG_RUN,
    OPTIMUM,
    PAIR,
    RATE,
    ROUNDS,
    STEPS,
    Point,
    caught,
    check_fixed_point,
    gradient,
    gradient_steps,
    make_clients,
    quadratic,
    run,
    same,
    start,
)

CPU = torch.device("cpu")


def reference(clients, option, eta_g=1.0, rounds=ROUNDS, sampled=None):
    """Algorithm 1, transcribed."""
    w, c, n = start(), 0.0, len(clients)
    c_i = [np.zeros_like(w)] * n
    for r in range(rounds):
        dw, dc = [], []
        for i in sampled[r] if sampled else range(n):
            y = gradient_steps(w, STEPS, RATE, lambda x, i=i, c=c: gradient(clients[i], x) - c_i[i] + c)
            renewed = gradient(clients[i], w) if option == "I" else c_i[i] - c + (w - y) / (STEPS * RATE)
            dw, dc, c_i[i] = [*dw, y - w], [*dc, renewed - c_i[i]], renewed
        w, c = w + eta_g * np.mean(dw, 0), c + len(dc) / n * np.mean(dc, 0)
    return w


def check_reference(algorithm):
    for option in ("I", "II"):
        assert same(run(algorithm, option=option), reference(CLIENTS, option))


def test_rounds_equal_the_reference():
    check_reference("scaffold")
    assert same(run("scaffold", eta_g=0.5), reference(CLIENTS, "II", eta_g=0.5))


def test_rounds_of_sampled_clients_equal_the_reference():
    clients = make_clients(3, 5, 2, 4)
    participants = Participants({i: i for i in range(4)})
    sampled = [participants.sample(2, 0, r) for r in range(1, 7)]
    assert len({tuple(s) for s in sampled}) > 1
    ended = run("scaffold", clients, rounds=6, clients_per_round=2)
    assert same(ended, reference(clients, "II", rounds=6, sampled=sampled))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_option_two_is_the_mean_gradient_with_any_optimizer_and_schedule(momentum):
    """Then (w - y) / (K eta) is another quantity: momentum counts early gradients more, warm-up late ones."""
    w, c = start(), np.zeros(3)
    c_i = [np.zeros(3)] * len(CLIENTS)
    rates = [RATE / 3, RATE * 2 / 3, RATE, RATE]
    for _ in range(ROUNDS):
        moves, changes = [], []
        for i, client in enumerate(CLIENTS):
            y, velocity, gradients = w, 0.0, []
            for rate in rates:
                gradients.append(gradient(client, y))
                velocity = momentum * velocity + gradients[-1] - c_i[i] + c
                y = y - rate * velocity
            renewed = np.mean(gradients, 0)
            moves, changes, c_i[i] = [*moves, y - w], [*changes, renewed - c_i[i]], renewed
        w, c = w + np.mean(moves, 0), c + np.mean(changes, 0)
    assert same(run("scaffold", option="II", warmup_steps=2, momentum=momentum), w)


def test_the_full_gradient_is_that_of_all_examples_in_batches_of_any_size():
    data = as_training_data(CLIENTS[1], torch.float64)
    weights = {"x": Point().x.detach()}
    for batch_size in (0, 1, 2, 5, 7):
        config = load_config(default_run_config() | {"batch-size": batch_size})
        trainer = Trainer(Point(), lambda model, batch, _: quadratic(model, batch), config.training, CPU)
        found = trainer.full_gradient(weights, data, seed=0)
        assert same(found["x"].numpy(), gradient(CLIENTS[1], start()), 1e-14)


def test_the_options_agree_for_one_full_batch_step():
    assert same(run("scaffold", local_steps=1, option="I"), run("scaffold", local_steps=1, option="II"), 1e-12)
    assert not same(run("scaffold", option="I"), run("scaffold", option="II"), 1e-4)


class Reversed(ScaffoldHook):
    """Adds c_i - c: the sign that a public code base has."""

    def on_start(self, model):
        super().on_start(model)
        self._correction = [-correction for correction in self._correction]


class StartsAtTheWeights(ScaffoldHook):
    """Takes the weights for the first control variate."""

    def initial_variate(self):
        return weights_module.select(self.round.global_weights, self.round.received[VARIATE])


class NeverRenewed(ScaffoldHook):
    def on_end(self, result, full_gradient):
        super().on_end(result, full_gradient)
        self.kept[VARIATE] = self.control_variate


class ChangeOfAll(Scaffold):
    """Adds the mean change of the sampled clients as if all had been sampled."""

    def aggregate(self, server_round, replies):
        before = self.server_variate
        weights = super().aggregate(server_round, replies)
        share = len(self.sampled) / self.config.data.num_clients
        change = weights_module.add_scaled(self.server_variate, before, -1.0)
        self.server_variate = weights_module.add_scaled(before, change, 1.0 / share)
        return weights


@pytest.mark.parametrize("hook_class", [Reversed, StartsAtTheWeights, NeverRenewed])
def test_broken_clients_are_caught(hook_class):
    class Mutant(Scaffold):
        hook = hook_class

    assert caught(check_reference, Mutant)
    if hook_class is Reversed:
        assert caught(check_fixed_point, Mutant)


def test_a_server_that_forgets_the_share_of_clients_is_caught():
    def check(algorithm):
        clients = make_clients(3, 5, 2, 4)
        sampled = [Participants({i: i for i in range(4)}).sample(2, 0, r) for r in range(1, 7)]
        expected = reference(clients, "II", rounds=6, sampled=sampled)
        assert same(run(algorithm, clients, rounds=6, clients_per_round=2), expected)

    check(Scaffold)
    assert caught(check, ChangeOfAll)


@pytest.mark.parametrize("option", ["I", "II"])
@pytest.mark.parametrize("odd", [{"momentum": 0.9}, {"gradient_clip": 0.5}, {"optimizer": "adamw"}], ids=str)
def test_the_fixed_point_is_the_optimum_with_other_optimizers(odd, option):
    """A heuristic, but unlike FedAvg it ends there; AdamW with a constant rate stays near it."""
    distance = np.abs(run("scaffold", PAIR, option=option, **LONG_RUN, **odd) - OPTIMUM).max()
    assert distance < (0.1 if "optimizer" in odd else 1e-6)
    assert np.abs(run("fedavg", PAIR, **LONG_RUN, **odd) - OPTIMUM).max() > 0.4
