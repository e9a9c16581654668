"""Flower's rules in our loop: what they give, what they are told, what they compose with."""

import dataclasses
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from fedddpm_app.algorithms import REGISTRY, get_algorithm
from fedddpm_app.config import AggregatorName, ConfigError, load_config
from fedddpm_app.federation.aggregation import least_replies
from fedddpm_app.inprocess.simulate import simulate
from tests.algorithms.problems import (
    RATE,
    STEPS,
    Point,
    gradient,
    gradient_steps,
    make_clients,
    quadratic,
    run,
    same,
    shares,
    start,
)

RULES = list(get_args(AggregatorName))
AUXILIARY = make_clients(4, seed=9)[0]
CORRECTED = {"auxiliary_data": AUXILIARY, "correction_steps": 2}
COMPOSE = {
    "fedavg": {},
    "fedddpm": CORRECTED,
    "fedddpm-plus": CORRECTED | {"threshold": 1e9},
    "fedddpm-kd": {"correction_steps": 0},  # a point generates no images
    "fedddpm-late": {"correction_steps": 0, "pretrain_steps": 2},
    "fedprox": {},
    "moon": {},
}
CLIENTS = make_clients(3, 5, 2, 4, 6, 3, 2)


def trained(w):
    return np.stack([gradient_steps(w, STEPS, RATE, lambda x, c=c: gradient(c, x)) for c in CLIENTS])


def mean(w):
    return shares(CLIENTS) @ trained(w)


@pytest.mark.parametrize("algorithm", COMPOSE)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_composes(algorithm, rule):
    extra = COMPOSE[algorithm]
    ended = run(algorithm, CLIENTS, rounds=3, aggregator=rule, **extra)
    assert np.isfinite(ended).all()
    assert ended.dtype == np.float64
    if rule != "fedavg":
        assert not same(ended, run(algorithm, CLIENTS, rounds=3, **extra), 1e-9)


@pytest.mark.parametrize("algorithm", sorted(REGISTRY.keys() - set(COMPOSE)))
def test_combinations_without_meaning_are_refused_with_the_reason(run_config, algorithm):
    with pytest.raises(
        ConfigError, match=f'aggregator = "krum" has no meaning with algorithm = "{algorithm}": .+; use'
    ):
        get_algorithm(load_config(run_config | {"algorithm": algorithm, "aggregator": "krum"}))


def test_median_and_trimmed_mean_are_taken_number_by_number():
    w = trained(start())
    assert same(run("fedavg", CLIENTS, rounds=1, aggregator="fedmedian"), np.median(w, 0))
    inner = np.sort(w, 0)[1:-1]
    assert same(run("fedavg", CLIENTS, rounds=1, aggregator="fedtrimmedavg", trim=0.2), inner.mean(0))


@pytest.mark.parametrize(("rule", "chosen"), [("krum", 1), ("multikrum", 3)])
def test_krum_takes_the_clients_nearest_to_their_neighbours(rule, chosen):
    """Blanchard et al.: the score is the sum of squared distances to the n - f - 2 closest others."""
    w, f = trained(start()), 2
    distances = ((w[:, None] - w[None]) ** 2).sum(2)
    scores = np.sort(distances, 1)[:, 1 : len(w) - f - 2 + 1].sum(1)
    best = np.argsort(scores)[:chosen]
    sizes = shares(CLIENTS)[best]
    expected = sizes @ w[best] / sizes.sum()
    assert same(run("fedavg", CLIENTS, rounds=1, aggregator=rule, malicious=f, selected=3), expected)


def test_bulyan_averages_what_is_closest_to_the_median():
    """El Mhamdi et al. with n = 7, f = 1: of 5 chosen by Krum, the 3 nearest to the median, number by number."""
    w = trained(start())
    distances = ((w[:, None] - w[None]) ** 2).sum(2)
    chosen = w[np.argsort(np.sort(distances, 1)[:, 1:5].sum(1))[:5]]
    nearest = np.argsort(abs(chosen - np.median(chosen, 0)), 0)[:3]
    expected = np.take_along_axis(chosen, nearest, 0).mean(0)
    assert same(run("fedavg", CLIENTS, rounds=1, aggregator="bulyan", malicious=1), expected)


def test_a_lying_client_does_not_move_the_robust_rules():
    liar = (torch.ones(2, 3), torch.full((2, 3), 1e6))
    clients = [*CLIENTS[:6], liar]
    honest = np.stack([gradient_steps(start(), STEPS, RATE, lambda x, c=c: gradient(c, x)) for c in CLIENTS[:6]])
    assert abs(run("fedavg", clients, rounds=1)).max() > 1e4
    for rule in ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"):
        ended = run("fedavg", clients, rounds=1, aggregator=rule, malicious=1)
        assert (ended >= honest.min(0) - 1e-9).all()
        assert (ended <= honest.max(0) + 1e-9).all()


def fedavgm(w, memory, r):
    memory["v"] = 0.9 * memory["v"] + (w - mean(w)) if memory else w - mean(w)
    return w - memory["v"]


def fedadam(w, memory, r):
    delta, m, v = mean(w) - w, memory.get("m", 0.0), memory.get("v", 0.0)
    memory["m"], memory["v"] = 0.9 * m + 0.1 * delta, 0.99 * v + 0.01 * delta**2
    eta = 0.1 * np.sqrt(1 - 0.99 ** (r + 1)) / (1 - 0.9 ** (r + 1))  # Flower counts its bias correction from 2
    return w + eta * memory["m"] / (np.sqrt(memory["v"]) + 1e-3)


def fedyogi(w, memory, r):
    delta, m, v = mean(w) - w, memory.get("m", 0.0), memory.get("v", 0.0)
    memory["m"] = 0.9 * m + 0.1 * delta
    memory["v"] = v - 0.01 * delta**2 * np.sign(v - delta**2)
    return w + 0.01 * memory["m"] / (np.sqrt(memory["v"]) + 1e-3)


def fedadagrad(w, memory, r):
    delta = mean(w) - w
    memory["v"] = memory.get("v", 0.0) + delta**2
    return w + 0.1 * delta / (np.sqrt(memory["v"]) + 1e-3)


@pytest.mark.parametrize("step", [fedavgm, fedadam, fedyogi, fedadagrad])
@pytest.mark.parametrize("corrected", [False, True])
def test_rules_with_memory_step_from_what_the_round_started_from(step, corrected):
    """Also where a correction has moved what they returned the round before."""
    w, memory = start(), {}
    for r in range(1, 4):
        w = step(w, memory, r)
        if corrected:
            w = gradient_steps(w, 2, RATE, lambda x: gradient(AUXILIARY, x))
    extra = CORRECTED if corrected else {"correction_steps": 0}
    assert same(run("fedddpm", CLIENTS, rounds=3, aggregator=step.__name__, **extra), w)


def test_server_learning_rates_reach_the_rules():
    halfway = run("fedavg", CLIENTS, rounds=1, aggregator="fedavgm", aggregator_learning_rate=0.5)
    assert same(halfway, (start() + mean(start())) / 2)
    for rule in ("fedadam", "fedyogi", "fedadagrad"):
        moves = [
            run("fedavg", CLIENTS, rounds=1, aggregator=rule, aggregator_learning_rate=rate) - start()
            for rate in (0.1, 0.2)
        ]
        assert same(2 * moves[0], moves[1])


@pytest.mark.parametrize("rule", ["fedavgm", "fedadam", "fedyogi", "fedadagrad"])
def test_rules_with_momenta_leave_running_means_alone(rule):
    """They are averaged: a step beyond the mean can take a variance below zero."""
    generator = torch.Generator().manual_seed(0)
    clients = [torch.randn(n, 3, generator=generator) * 1e-3 for n in (2, 4, 8, 16)]
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))

    def loss(model, batch):
        return model(batch).square().mean()

    plain, stepped = (
        simulate("fedavg", model, loss, clients, 5, [1, 2, 4, 8], 0.01, aggregator=name)[0] for name in ("fedavg", rule)
    )
    for name in ("0.running_mean", "0.running_var", "0.num_batches_tracked"):
        assert torch.allclose(plain[name], stepped[name])
    assert not torch.allclose(plain["1.weight"], stepped["1.weight"])


def test_krum_tells_close_models_apart_in_float32():
    """|x|^2 + |y|^2 - 2 x.y leaves nothing of distances that are small beside the weights."""

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.full((20_000,), 3.0))

        def forward(self):
            return self.x

    def loss(model, batch):
        return ((model() - 3.0 - batch) ** 2).sum() / 2

    pulls = [torch.full((1, 20_000), pull) for pull in (1e-4, 1.1e-4, 1.2e-4, 5e-3, -5e-3)]
    weights, _ = simulate("fedavg", Wide(), loss, pulls, 1, 1, 1.0, dtype=torch.float32, aggregator="krum", malicious=1)
    assert float((weights["x"] - 3.0).mean()) == pytest.approx(1.1e-4, rel=0.01)


@pytest.mark.parametrize("rule", RULES)
def test_the_dtypes_of_a_model_stay(rule):
    """Flower's rules turn whole numbers, and some of them float32, into float64."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.zeros(3))
            self.register_buffer("steps", torch.tensor(0))

        def forward(self, a):
            self.steps += 1
            return a * self.x

    model = Counting()
    weights, _ = simulate("fedavg", model, quadratic, CLIENTS, 2, 3, 0.05, dtype=torch.float32, aggregator=rule)
    assert weights["x"].dtype == torch.float32
    assert weights["steps"].dtype == torch.int64
    if rule in ("fedavg", "fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan"):
        assert int(weights["steps"]) == 6
    assert int(model.steps) == 0  # the caller's model is not touched


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (
            {"aggregator": "krum", "aggregator-malicious": 1},
            'aggregator = "krum" with aggregator-malicious = 1 needs 5 clients per round, but a round has 4: use more '
            "clients, or aggregator-malicious = 0.",
        ),
        ({"aggregator": "bulyan", "aggregator-malicious": 1}, "needs 7 clients per round"),
        ({"aggregator": "krum", "clients-per-round": 2}, "needs 3 clients per round, but a round has 2"),
        ({"aggregator": "multikrum", "aggregator-selected": 5}, "aggregator-selected = 5 is more than the 4 clients"),
        (
            {"aggregator": "fedtrimmedavg", "aggregator-trim": 0.2},
            "0.2 of 4 clients cuts off 0: use at least 0.25",
        ),
        ({"aggregator": "fedtrimmedavg", "clients-per-round": 2}, "needs at least 3 clients per round"),
        ({"aggregator": "krumm"}, "aggregator = 'krumm' cannot be used"),
    ],
    ids=str,
)
def test_a_rule_that_cannot_work_is_refused(run_config, overrides, says):
    with pytest.raises(ConfigError, match=says.replace("(", r"\(")):
        get_algorithm(load_config(run_config | {"algorithm": "fedavg"} | overrides))


@pytest.mark.parametrize(
    ("rule", "settings", "least"),
    [
        ("krum", {"aggregator-malicious": 2}, 7),
        ("multikrum", {"aggregator-malicious": 1, "aggregator-selected": 2}, 5),
        ("multikrum", {"aggregator-malicious": 1, "aggregator-selected": 6}, 7),
        ("bulyan", {"aggregator-malicious": 1}, 7),
        ("fedtrimmedavg", {"aggregator-trim": 0.25}, 4),
        ("fedtrimmedavg", {"aggregator-trim": 0.2}, 5),
        ("fedmedian", {}, 1),
    ],
)
def test_the_least_replies_are_those_that_keep_the_rules_promise(run_config, rule, settings, least):
    assert least_replies(load_config(run_config | settings | {"aggregator": rule})) == least


def test_too_few_replies_leave_the_weights_as_they_are(caplog):
    def loss(model, batch):
        if len(batch[0]) == 5:
            raise ValueError("out of memory")
        return quadratic(model, batch)

    weights, history = simulate(
        "fedavg", Point(), loss, CLIENTS, 2, 1, 0.1, aggregator="bulyan", aggregator_malicious=1
    )
    assert torch.equal(weights["x"], Point().x.detach())
    assert [len(row["train/client_loss"]) for row in history] == [6, 6]
    assert "bulyan needs 7 replies, but 6 arrived: the global weights stay unchanged" in caplog.text


def test_the_keys_of_the_rules_are_those_of_the_config(config):
    assert set(dataclasses.asdict(config.aggregator)) == {
        "learning_rate",
        "momentum",
        "beta_2",
        "tau",
        "trim",
        "malicious",
        "selected",
    }
