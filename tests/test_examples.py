"""The examples of docs/subclassing.md: they run, they do what they say, and the page shows them as they are."""

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from examples.correct_early import CorrectEarly
from examples.l1_proximal import L1Proximal, L1ProximalHook
from examples.loss_weighted import LossWeighted
from examples.sign_flip import SignFlip
from fedddpm_app import ActionAnswer, FederatedStrategy, TrainingHook
from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.client import worker as client_worker
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.training.hooks import LocalRound
from fedddpm_app.weights import snapshot
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
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "subclassing.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize(("name", "lines"), [("correct_early", 15), ("l1_proximal", 40), ("loss_weighted", 60)])
def test_an_example_is_short_and_the_page_shows_it(name, lines):
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(source.splitlines()) < lines
    code = source.split('"""\n\n', 1)[1]  # after the module's docstring
    assert code in BLOCKS


def test_the_rule_corrects_in_the_first_half_only(run_app):
    app = run_app(algorithm="examples.correct_early:CorrectEarly", num_rounds=4)
    assert ["correct/loss" in row for row in app.rounds()] == [True, True, False, False]
    auxiliary = make_clients(4, seed=9)[0]
    w = start()
    for server_round in range(1, 5):
        local = [gradient_steps(w, STEPS, RATE, lambda x, c=c: gradient(c, x)) for c in CLIENTS]
        w = sum(p * v for p, v in zip(shares(CLIENTS), local, strict=True))
        if server_round <= 2:
            w = gradient_steps(w, 3, RATE, lambda x: gradient(auxiliary, x))
    assert same(run(CorrectEarly, rounds=4, auxiliary_data=auxiliary, correction_steps=3), w)


def test_the_regulariser_equals_its_reference(shared_run):
    def reference(strength):
        w = start()
        for _ in range(ROUNDS):
            pull = lambda x, w=w: strength * np.sign(x - w)  # noqa: E731
            local = [gradient_steps(w, STEPS, RATE, lambda x, c=c: gradient(c, x), pull) for c in CLIENTS]
            w = sum(p * v for p, v in zip(shares(CLIENTS), local, strict=True))
        return w

    assert same(run(L1Proximal, strength=0.1), reference(0.1))
    assert same(run("examples.l1_proximal:L1Proximal", strength=0.1), reference(0.1))
    assert not same(reference(0.1), reference(0.0), 1e-3)
    settings = {"algorithm": "examples.l1_proximal:L1Proximal"}
    weak, strong = (shared_run(**settings, num_rounds=1, algorithm_options=f"strength={s}") for s in (0.0, 0.5))
    assert weak.losses()[1:] == shared_run(algorithm="fedavg", num_rounds=1).losses()[1:] != strong.losses()[1:]


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_malicious_client_sends_its_update_with_the_other_sign(scale):
    w = start()
    for _ in range(ROUNDS):
        local = [gradient_steps(w, STEPS, RATE, lambda x, c=c: gradient(c, x)) for c in CLIENTS]
        local[0] = w - scale * (local[0] - w)
        w = sum(p * v for p, v in zip(shares(CLIENTS), local, strict=True))
    assert same(run(SignFlip, correction_steps=0, scale=scale), w)
    honest = run("fedavg")
    assert same(run("examples.sign_flip:SignFlip", correction_steps=0, scale=-1), honest)
    assert not same(w, honest, 1e-3)


def test_the_page_of_the_rules_shows_the_malicious_client():
    page = (ROOT / "docs" / "aggregators.md").read_text()
    assert (ROOT / "examples" / "sign_flip.py").read_text().split('"""\n\n', 1)[1] in page


@pytest.mark.slow
def test_an_action_of_an_outside_algorithm_is_answered_and_used(shared_run):
    """q = 0 is FedAvg, bit for bit; the factors of other q reach the global model."""
    settings = {"algorithm": "examples.loss_weighted:LossWeighted", "num_rounds": 1}
    unweighted, weighted = (shared_run(**settings, algorithm_options=f"q={q}") for q in (0, 4))
    assert unweighted.losses() == shared_run(algorithm="fedavg", num_rounds=1).losses()
    (factors,) = (row["weighting/factors"] for row in weighted.rounds())
    assert list(factors) == ["0", "1", "2", "3"]
    assert min(factors.values()) < 1 < max(factors.values())
    assert weighted.losses()[-1]["eval/loss"] != unweighted.losses()[-1]["eval/loss"]


def test_the_mean_is_weighted_by_examples_and_losses_within_bounds(run_app, run_config, monkeypatch):
    """One round, transcribed; a client that answers an absurd loss counts twice at most."""
    losses = {0: [1.0] * 4, 1: [2.0] * 4, 2: [-4e14] * 4, 3: [9e14] * 4}  # the median is 1
    answers = lambda self, action, partition_id, *rest: ActionAnswer({"losses": losses[partition_id]})  # noqa: E731
    monkeypatch.setattr(client_worker.Worker, "act", answers)
    algorithm = {"algorithm": "examples.loss_weighted:LossWeighted", "algorithm_options": "q=2"}
    run = run_app(**algorithm, num_rounds=1, class_conditional=False)
    assert run.rounds()[0]["weighting/factors"] == {"0": 1.0, "1": 4.0, "2": 0.25, "3": 4.0}
    config = load_config(run_config | {"num-rounds": 1})
    worker = client_worker.Worker(config, DiffusionTask(config))
    initial = snapshot(worker.task.create_model())
    results = [worker.train(TrainingHook(LocalRound(config, i, 1, initial))) for i in range(4)]
    shares = [r.num_examples * f for r, f in zip(results, (1.0, 4.0, 0.25, 4.0), strict=True)]
    for name, value in load_file(run.path / "checkpoints" / "round-0001" / "model.safetensors").items():
        total = sum(r.training.weights[name].double() * share for r, share in zip(results, shares, strict=True))
        assert torch.allclose(value.double(), total / sum(shares), atol=1e-6)


@pytest.mark.parametrize("answer", [{"losses": [1.0]}, {"losses": 1.0}, {}, {"losses": [1.0, 1.0, 1.0, float("nan")]}])
def test_an_answer_that_is_not_as_declared_leaves_its_client_out_of_the_action(run_app, monkeypatch, answer):
    original = client_worker.Worker.act

    def odd(self, action, partition_id, *rest):
        return ActionAnswer(answer) if partition_id == 2 else original(self, action, partition_id, *rest)

    monkeypatch.setattr(client_worker.Worker, "act", odd)
    run = run_app(algorithm="examples.loss_weighted:LossWeighted", num_rounds=1)
    assert list(run.rounds()[0]["weighting/factors"]) == ["0", "1", "3"]
    assert list(run.rounds()[0]["train/client_loss"]) == ["0", "1", "2", "3"]  # it trains, and counts by n_i


def test_an_action_that_the_algorithm_does_not_have_is_an_error_reply(run_app, monkeypatch):
    class Asks(FederatedStrategy):
        client_actions = LossWeighted.client_actions

        def broadcast(self, server_round):
            stream = self.ask_clients("timestep_losses", self.global_weights)
            assert not list(stream.as_they_come())
            assert all("has no client action" in reason for reason in stream.refused.values())
            return {}

    monkeypatch.setattr("fedddpm_app.apps.server.get_algorithm", lambda config: Asks)
    assert run_app(algorithm="fedavg", num_rounds=1).summary["status"] == "completed"


def test_a_class_from_outside_is_found_with_both_halves(run_config):
    found = get_algorithm(load_config(run_config | {"algorithm": "examples.l1_proximal:L1Proximal"}))
    assert found is L1Proximal
    assert found.hook is L1ProximalHook


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:X", "cannot be imported .*no_such_module.*put the module, .*next to pyproject.toml"),
        ("examples.l1_proximal:Missing", "cannot be imported .*Missing"),
        (
            "examples.l1_proximal:L1ProximalHook",
            "is not a strategy: derive the class from FederatedStrategy",
        ),
        (":X", "cannot be imported"),
        ("examples.l1_proximal:", "cannot be imported"),
    ],
)
def test_a_class_that_cannot_be_had_is_one_sentence(run_config, name, says):
    with pytest.raises(ConfigError, match=f'algorithm = "{name}" {says}'):
        get_algorithm(load_config(run_config | {"algorithm": name}))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", {}),
        ("strength=0.1", {"strength": 0.1}),
        ("a=1 b-c=true  d=text e=1e-3", {"a": 1, "b-c": True, "d": "text", "e": 1e-3}),
    ],
)
def test_options_are_words_with_values(run_config, text, options):
    assert load_config(run_config | {"algorithm-options": text}).run.options == options


def test_options_without_a_value_are_refused(run_config):
    with pytest.raises(ConfigError, match="algorithm-options = 'strength' cannot be used: it should be"):
        load_config(run_config | {"algorithm-options": "strength"})
