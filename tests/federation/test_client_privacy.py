"""Differential privacy of clients: the clipped and noisy mean, its account, an adaptive clip, and refusals."""

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant
from torch import nn

import client_app
import server_app
from fedddpm_app import FederatedStrategy
from fedddpm_app.algorithms import REGISTRY, get_algorithm
from fedddpm_app.client.worker import Worker
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.privacy.clients import ClientPrivacy, planned_noise
from fedddpm_app.federation.start_notes import start_notes
from fedddpm_app.inprocess.grid import InProcessGrid, run_inprocess
from fedddpm_app.inprocess.recorder import MemoryRecorder
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.training.secret import secret_choice, secret_generator, secret_normal
from tests.algorithms.problems import CLIENTS, Point, gradient, quadratic
from tests.conftest import RunDirectory

PRIVATE = {"algorithm": "fedavg", "max-update-norm": "", "client-dp-epsilon": 8.0, "dp-secret-noise": False}
ALLOWED = {"fedavg", "fedprox", "moon"}


def mechanism(run_config, recorder=None, **more):
    changed = run_config | PRIVATE | {key.replace("_", "-"): value for key, value in more.items()}
    return ClientPrivacy(load_config(changed), recorder or MemoryRecorder(Path()))


def run_simulated(rounds=1, clients=CLIENTS, lr=0.05, **more):
    settings = {"client_dp_epsilon": 8.0, "dp_secret_noise": False} | more
    return simulate("fedavg", Point(), quadratic, clients, rounds, 1, lr, **settings)


# ---- the mechanism


@pytest.mark.parametrize("clip", [0.3, 100.0])
def test_a_round_is_the_sum_of_clipped_updates_with_noise_over_the_expected_number(run_config, clip):
    """One step of gradient descent per client; equal weights, although the clients' sizes differ."""
    weights, history = run_simulated(client_dp_clip=clip)
    start = Point().x.detach().numpy()
    updates = [-0.05 * gradient(client, start) for client in CLIENTS]
    norms = [float(np.linalg.norm(update)) for update in updates]
    total = sum(update * min(1.0, clip / norm) for update, norm in zip(updates, norms, strict=True))
    alone = mechanism(run_config, num_clients=3, num_rounds=1, client_dp_clip=clip, seed=0)
    noise = alone.noisy_sum({"x": torch.zeros(3, dtype=torch.float64)}, 1)["x"].numpy()
    assert weights["x"].numpy() == pytest.approx(start + (total + noise) / 3, rel=1e-12)
    assert history[0]["client-dp/clipped_share"] == pytest.approx(sum(norm > clip for norm in norms) / 3)
    assert history[0]["client-dp/clip"] == clip


def test_one_client_more_moves_the_weights_by_at_most_the_clip():
    """The same noise with and without a client whose data are extreme, in a run that expects as many clients."""
    extreme = (torch.full((1, 3), 1.0, dtype=torch.float64), torch.full((1, 3), 1e6, dtype=torch.float64))
    same = (torch.full((1, 3), 1.0, dtype=torch.float64), Point().x.detach()[None])  # its gradient is 0
    found = [run_simulated(clients=[*CLIENTS, last], client_dp_clip=0.5)[0]["x"] for last in (same, extreme)]
    assert float((found[1] - found[0]).norm()) == pytest.approx(0.5 / 4, rel=1e-9)


def test_secret_numbers_do_not_follow_from_a_small_seed(monkeypatch):
    """Torch's generator on the CPU uses 32 bits of its seed: with equal seeds, secret ones still differ."""
    monkeypatch.setattr("fedddpm_app.training.secret.secrets.randbits", lambda _: 7)
    cpu = torch.device("cpu")
    first, second = (torch.randn(8, generator=secret_generator(cpu)) for _ in range(2))
    assert not torch.equal(first, second)
    draws = torch.randn(100_000, generator=secret_generator(cpu))
    assert abs(float(draws.mean())) < 0.02
    assert float(draws.std()) == pytest.approx(1, abs=0.02)
    assert float(secret_choice(100_000, 0.25).double().mean()) == pytest.approx(0.25, abs=0.01)
    normal = secret_normal((50_000, 2))
    assert normal.shape == (50_000, 2)
    assert float((normal < -1).double().mean()) == pytest.approx(0.1587, abs=0.005)
    assert float(normal.std()) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("secret", [False, True])
@pytest.mark.parametrize("quantile", [0.0, 0.5])
def test_the_noise_has_the_variance_of_the_accountant(run_config, secret, quantile):
    """With an adaptive clip, the noise of the sum and that of the count together are worth the accountant's."""
    private = mechanism(run_config, dp_secret_noise=secret, client_dp_clip=0.25, client_dp_quantile=quantile)
    noise = private.noisy_sum({"w": torch.zeros(20_000, dtype=torch.float64)}, 1)["w"] / 0.25
    assert float(noise.std()) == pytest.approx(private.noise_multiplier, rel=0.03)
    assert abs(float(noise.mean())) < 0.03 * private.noise_multiplier
    planned = planned_noise(private._config)
    assert private.noise_multiplier**-2 + (2 * private.count_noise) ** -2 == pytest.approx(planned**-2)
    again = private.noisy_sum({"w": torch.zeros(20_000, dtype=torch.float64)}, 1)["w"] / 0.25
    assert torch.equal(again, noise) is not secret


def test_each_client_takes_part_by_chance(run_config):
    private = mechanism(run_config, num_clients=20, clients_per_round=5)
    samples = [private.sample(range(20), server_round, 0) for server_round in range(400)]
    assert np.mean([len(sample) for sample in samples]) == pytest.approx(5, abs=0.4)
    assert np.var([len(sample) for sample in samples]) == pytest.approx(20 * 0.25 * 0.75, rel=0.25)
    counts = np.bincount([client for sample in samples for client in sample], minlength=20)
    assert counts.min() > 60
    assert private.sample(range(20), 1, 0) != private.sample(range(20), 1, 1)
    few = [private.sample(range(10), server_round, 0) for server_round in range(400)]  # absent ones are not replaced
    assert few == [[client for client in sample if client < 10] for sample in samples]


def test_a_round_without_clients_is_noise_alone():
    """0.3 clients are expected; also a sample of one is divided by 0.3."""
    weights, history = run_simulated(rounds=6, clients=CLIENTS * 10, clients_per_round=1, seed=3)
    sizes = [len(row["clients"]) for row in history]
    assert 0 in sizes
    assert max(sizes) > 1
    empty = history[sizes.index(0)]
    assert "train/loss" not in empty
    assert empty["client-dp/epsilon"] > 0
    assert torch.isfinite(weights["x"]).all()


def test_who_takes_part_does_not_depend_on_who_answers(monkeypatch):
    """All clients except one fail: each round is released at once, and this one is in no more of them than q says."""
    train = Worker.train

    def fails(worker, hook, ledger=None):
        if hook.round.partition_id:
            raise RuntimeError("it cannot train")
        return train(worker, hook, ledger)

    monkeypatch.setattr(Worker, "train", fails)
    _, history = run_simulated(rounds=40, clients=CLIENTS * 4, clients_per_round=3)
    assert [row["round"] for row in history] == [*range(1, 41)]
    assert 3 <= sum(0 in row["clients"] for row in history) <= 18  # 10 expected
    assert history[-1]["client-dp/epsilon"] <= 8


def test_a_client_that_declined_is_not_asked_again_and_nobody_takes_its_place(run_config, monkeypatch):
    create = InProcessGrid.__init__

    def with_policy(self, *args, **kwargs):
        create(self, *args, **kwargs)
        self.contexts[1001].node_config["site-max-rounds"] = 1

    monkeypatch.setattr(InProcessGrid, "__init__", with_policy)
    run = run_of(run_config, num_rounds=3, local_steps=1)
    assert [row.get("train/left_out", {}).keys() for row in run.rounds()] == [set(), {"1"}, set()]
    assert [row.get("declined") for row in run.rounds()] == [None, None, [1]]
    assert [row["clients"] for row in run.rounds()] == [[0, 1, 2, 3]] * 3


def test_the_clip_moves_to_the_quantile_of_the_norms(run_config):
    """Of norms 1, 2, ... 100, which do not change, 30 % are at most 30."""
    private = mechanism(run_config, num_clients=100, client_dp_clip=1.0, client_dp_quantile=0.3, num_rounds=200)
    for server_round in range(1, 201):
        private.adapt(min(100, math.floor(private.clip)), 100, server_round)
    assert private.clip == pytest.approx(30, abs=6)
    fixed = mechanism(run_config, client_dp_clip=1.0)
    fixed.adapt(0, 2, 1)
    assert fixed.clip == 1.0


# ---- the account


@pytest.mark.parametrize("per_round", [0, 2])
def test_the_epsilon_is_that_of_opacus_for_the_sampling_used(run_config, per_round):
    private = mechanism(run_config, num_clients=8, clients_per_round=per_round, num_rounds=4)
    found = [private.spend(server_round) for server_round in range(1, 5)]
    accountant = RDPAccountant()
    accountant.history = [(planned_noise(private._config), per_round / 8 or 1.0, 4)]
    assert found[-1] == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
    assert 0.99 * 8 <= found[-1] <= 8
    assert found == sorted(found)
    assert private.summary() == {"client-dp/epsilon": found[-1], "client-dp/delta": 1e-5}


def run_of(run_config, **overrides):
    resolved = run_config | PRIVATE | {key.replace("_", "-"): value for key, value in overrides.items()}
    run_inprocess(server_app.app, client_app.app, resolved, int(resolved["num-clients"]))
    return RunDirectory(Path(resolved["output-dir"]) / resolved["run-name"])


def test_a_run_ends_with_the_promised_epsilon_and_a_resume_gives_nothing_back(run_config):
    """Two rounds, then the second one again: three are spent, and the budget was for two."""
    settings = {"client_dp_quantile": 0.5, "checkpoint_every": 1, "checkpoint_keep": 2}
    run = run_of(run_config, **settings)
    first, second = run.rounds()
    assert first["client-dp/epsilon"] < second["client-dp/epsilon"] == run.summary["client-dp/epsilon"]
    assert 0.99 * 8 <= second["client-dp/epsilon"] <= 8
    assert second["client-dp/clip"] != first["client-dp/clip"] == 1.0
    account = (run.path / "client-privacy.jsonl").read_text().splitlines()
    assert len(account) == 2
    shutil.rmtree(run.path / "checkpoints" / "round-0002")
    with pytest.raises(RoundFailedError, match=r"round 2: one more round after 2 would spend .* num-rounds = 1"):
        run_of(run_config, **settings, resume=str(run.path))
    assert (run.path / "client-privacy.jsonl").read_text().splitlines() == account
    (run.path / "client-privacy.jsonl").rename(run.path / "aside")
    with pytest.raises(ConfigError, match=r"client-privacy.jsonl of the run has 0 rounds, but .* knows of 1"):
        run_of(run_config, **settings, resume=str(run.path), num_rounds=1)
    (run.path / "aside").rename(run.path / "client-privacy.jsonl")
    run_of(run_config, **settings, resume=str(run.path), num_rounds=1)
    assert run.summary["status"] == "completed"
    assert run.summary["client-dp/epsilon"] == second["client-dp/epsilon"]


# ---- what is refused


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_algorithm_is_allowed_or_refused_with_the_reason(run_config, name):
    config = load_config(run_config | PRIVATE | {"algorithm": name, "optimizer": "sgd", "gradient-clip": 0.0})
    if name in ALLOWED:
        assert get_algorithm(config) is not None
    else:
        with pytest.raises(ConfigError, match=r"client-dp-epsilon = 8\.0.*(0\.0)"):
            get_algorithm(config)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"aggregator": "fedmedian"}, 'aggregator = "fedmedian" compares'),
        ({"max-update-norm": "100x"}, "one client could decide whether another one is left out"),
        ({"secure-aggregation": True}, "the server clips each client's update"),
        ({"min-replies": 0.5}, "tells who did not answer: use min-replies = 1"),
        ({"client-dp-delta": 0.5}, "protects no single one of 2 clients"),
        ({"client-dp-epsilon": 1e-9}, "cannot be reached by 2 steps"),
        ({"client-dp-quantile": 1.0}, "below 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(run_config, given, reason):
    base = run_config | PRIVATE | {"num-clients": 2}
    get_algorithm(load_config(base))
    with pytest.raises(ConfigError, match=reason):
        get_algorithm(load_config(base | given))


def test_records_and_buffers_without_noise_are_refused():
    class Sends(FederatedStrategy):
        def prepare(self, grid, weights):
            self.reply_references["more"] = {"m": torch.zeros(2)}
            return weights

    settings = {"client_dp_epsilon": 8.0, "dp_secret_noise": False}
    with pytest.raises(ConfigError, match="has clients send more besides their weights"):
        simulate(Sends, Point(), quadratic, CLIENTS, 1, 1, 0.1, **settings)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    data = [torch.randn(8, 3, dtype=torch.float64)]
    with pytest.raises(ConfigError, match="num_batches_tracked is not a parameter"):
        simulate("fedavg", model, lambda m, batch: m(batch).square().mean(), data * 2, 1, 1, 0.1, **settings)


@pytest.mark.parametrize("aggregator", ["fedavgm", "fedadam"])
def test_rules_step_from_the_noisy_mean(aggregator):
    weights, _ = run_simulated(rounds=2, aggregator=aggregator)
    plain, _ = run_simulated(rounds=2)
    assert torch.isfinite(weights["x"]).all()
    assert not torch.equal(weights["x"], plain["x"])


def test_a_run_says_what_is_protected_from_whom(run_config):
    changed = run_config | PRIVATE
    config = load_config(changed)
    notes = start_notes(get_algorithm(config), config, changed)
    assert any("the server sees every update" in note for note in notes)
    assert any("do not know the seed" in note for note in notes)
    secret = load_config(changed | {"dp-secret-noise": True})
    assert any("cannot be repeated" in note for note in start_notes(get_algorithm(secret), secret, changed))
    off = dataclasses.replace(config, client_dp=dataclasses.replace(config.client_dp, epsilon=0.0))
    assert not any("every update" in note for note in start_notes(get_algorithm(off), off, changed))
