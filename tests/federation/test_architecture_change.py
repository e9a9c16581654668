"""Two extension points of every strategy: starts of a round by client, and a change of the model's shapes."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fedddpm_app.client.worker import Worker
from fedddpm_app.config import ConfigError, default_run_config, load_config
from fedddpm_app.federation.architecture import restore_architecture
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.rounds.exchanged import Exchanged
from fedddpm_app.federation.strategy import FederatedStrategy
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.inprocess.task import InMemoryTask, as_training_data
from fedddpm_app.shapes import architecture
from fedddpm_app.training.hooks import LocalRound, TrainingHook
from fedddpm_app.weights import copy as copied
from fedddpm_app.weights import num_bytes, snapshot
from tests.algorithms.problems import CLIENTS, RATE, STEPS, gradient, gradient_steps, run, same, shares, start

# ---- starts by client ------------------------------------------------------------------------


class Shifted(FederatedStrategy):
    """Clients 0 and 2 start one above the global weights."""

    def exchanged(self, server_round, partitions):
        shifted = Exchanged(start={name: tensor + 1.0 for name, tensor in self.global_weights.items()})
        return {0: shifted, 2: shifted}


def test_clients_train_from_their_own_starts():
    x = start()
    for _ in range(2):
        starts = [x + 1.0, x, x + 1.0]
        local = [
            gradient_steps(s, STEPS, RATE, lambda v, c=c: gradient(c, v)) for s, c in zip(starts, CLIENTS, strict=True)
        ]
        x = shares(CLIENTS) @ np.stack(local)
    assert same(run(Shifted, rounds=2), x, 1e-12)


class FarStart(FederatedStrategy):
    """Client 1 starts far from the others, whose starts are one object."""

    far = 50.0

    def exchanged(self, server_round, partitions):
        others = copied(self.global_weights)
        far = {name: tensor + self.far for name, tensor in others.items()}
        return {0: Exchanged(start=others), 2: Exchanged(start=others), 1: Exchanged(start=far)}


def line(model, batch):
    x, y = batch
    return ((model(x) - y) ** 2).mean()


def linear_clients():
    random = torch.Generator().manual_seed(0)
    return [(torch.randn(6, 20, generator=random), torch.randn(6, 30, generator=random)) for _ in range(3)]


def linear_run(strategy, **hyper):
    torch.manual_seed(0)
    return simulate(strategy, nn.Linear(20, 30), line, linear_clients(), 2, 2, 0.01, dtype=torch.float32, **hyper)


def test_a_difference_on_the_wire_is_that_from_the_clients_own_start():
    """8-bit differences from other weights would be wrong by 50 times a third."""
    whole, _ = linear_run(FarStart)
    rounded, _ = linear_run(FarStart, wire_dtype="int8-delta")
    assert max((whole[name] - rounded[name]).abs().max() for name in whole) < 1e-2


class FarPart(FarStart):
    """Client 1 also returns a part alone."""

    def exchanged(self, server_round, partitions):
        given = super().exchanged(server_round, partitions)
        return given | {1: Exchanged(None, frozenset({"weight"}), given[1].start)}


def test_a_part_of_another_start_is_averaged_over_the_clients_that_return_it():
    """Also as a difference on the wire: each from its own start."""
    start_of, local = {}, {}

    class Keeps(TrainingHook):
        def on_end(self, result, full_gradient):
            start_of[self.round.partition_id] = copied(self.round.global_weights)
            local[self.round.partition_id] = copied(result.weights)

    class Kept(FarPart):
        hook = Keeps

    torch.manual_seed(0)
    whole, _ = simulate(Kept, nn.Linear(20, 30), line, linear_clients(), 1, 2, 0.01, dtype=torch.float32)
    assert (start_of[1]["bias"] - start_of[0]["bias"]).min() > 49.0
    assert torch.allclose(whole["weight"], sum(local[i]["weight"] for i in range(3)) / 3, atol=1e-5)
    assert torch.allclose(whole["bias"], (local[0]["bias"] + local[2]["bias"]) / 2, atol=1e-6)
    exact, _ = linear_run(FarPart)
    rounded, _ = linear_run(FarPart, wire_dtype="int8-delta")
    assert max((exact[name] - rounded[name]).abs().max() for name in exact) < 1e-2


def test_an_update_is_judged_by_its_distance_from_the_clients_own_start():
    """All clients move as far as each other; from the global weights, client 1 would have moved much further."""
    _, history = linear_run(FarStart, max_update_norm="40.0")
    assert [row["clients"] for row in history] == [[0, 1, 2]] * 2
    assert not any("train/left_out" in row for row in history)


def test_the_bytes_are_those_of_one_model_per_client():
    _, own = linear_run(FarStart)
    _, same_start = linear_run(FederatedStrategy)
    assert [row["comm/down_mb"] for row in own] == [row["comm/down_mb"] for row in same_start]
    assert [row["comm/up_mb"] for row in own] == [row["comm/up_mb"] for row in same_start]


# ---- another architecture --------------------------------------------------------------------


def net(width=4):
    return nn.Sequential(nn.Linear(20, width), nn.Tanh(), nn.Linear(width, 30))


def halve(weights):
    """Keep hidden units 0 and 2."""
    return {
        "0.weight": weights["0.weight"][[0, 2]],
        "0.bias": weights["0.bias"][[0, 2]],
        "2.weight": weights["2.weight"][:, [0, 2]],
        "2.bias": weights["2.bias"],
    }


class Halving(FederatedStrategy):
    """Half of the hidden units leave after a round."""

    when = 1

    def change_architecture(self, server_round, weights):
        return halve if server_round == self.when else None


def net_run(strategy, rounds=3, **hyper):
    torch.manual_seed(0)
    return simulate(strategy, net(), line, linear_clients(), rounds, 2, 0.1, **hyper)


@pytest.mark.parametrize("when", [0, 1])
def test_after_a_change_clients_train_the_small_model(when):
    """The same as a run of the small model from there."""

    class Now(Halving):
        pass

    Now.when = when
    weights, history = net_run(Now)
    assert {name: tuple(tensor.shape) for name, tensor in weights.items()} == {
        name: tuple(tensor.shape) for name, tensor in net(2).state_dict().items()
    }
    torch.manual_seed(0)
    middle = snapshot(net().double()) if when == 0 else net_run(FederatedStrategy, rounds=1)[0]
    small = net(2)
    small.double().load_state_dict(halve(middle))
    expected, _ = simulate(FederatedStrategy, small, line, linear_clients(), 3 - when, 2, 0.1)
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    saved = num_bytes(snapshot(net(4).double())) - num_bytes(snapshot(net(2).double()))
    up = [round(row["comm/up_mb"] * 1e6) for row in history]
    assert up[1] == up[2]
    assert up[0] - up[1] == pytest.approx(3 * saved if when else 0, abs=3 * 16)  # a header may be a few digits shorter


def test_the_average_over_the_rounds_and_the_clients_models_follow():
    """The units leave after round 2; round 3 continues with the halves of both."""
    before, after, averages = {}, {}, {}

    class Averaged(Halving):
        when = 2

        def after_aggregation(self, server_round, weights):
            if server_round == 2:
                self.client_models = {7: copied(weights)}
            after[server_round] = (weights, self.ema_weights, self.client_models, self.architecture)
            return weights

        def average(self, server_round, weights):
            averages[server_round] = super().average(server_round, weights)
            return averages[server_round]

        def change_architecture(self, server_round, weights):
            before[server_round] = (self.ema_weights, self.client_models)
            return super().change_architecture(server_round, weights)

    net_run(Averaged, rounds=3, server_ema_decay=0.5)
    average, models = before[2]
    assert average["0.weight"].shape == (4, 20)
    weights, halved_average, halved_models, digest = after[3]
    assert digest == architecture(weights)
    for name, kept in halve(average).items():
        assert torch.equal(halved_average[name], kept)
        assert torch.allclose(averages[3][name], (kept + weights[name]) / 2, atol=1e-12)
        assert torch.equal(halved_models[7][name], halve(models[7])[name])


def restored(weights, named):
    """Restore a checkpoint with weights, whose state names an architecture."""
    first = snapshot(net())
    strategy = SimpleNamespace(initial_weights=first, reply_references={"arrays": first}, trainer="of the full model")
    restore_architecture(strategy, {"model": weights}, {"attributes": {"architecture": named}})
    return strategy


def test_a_checkpoint_of_another_architecture_is_taken_over_only_with_its_own_model():
    small = snapshot(net(2))
    strategy = restored(small, architecture(small))
    assert strategy.initial_weights["0.weight"].shape == (2, 20)
    assert strategy.reply_references["arrays"]["0.weight"].shape == (2, 20)
    assert not hasattr(strategy, "trainer")
    assert restored(small, "").initial_weights["0.weight"].shape == (4, 20)
    other_names = {f"{name}.new": tensor for name, tensor in small.items()}
    for weights, named in ((snapshot(net(3)), architecture(small)), (other_names, architecture(other_names))):
        with pytest.raises(ConfigError, match="resume: the checkpoint's model is not of the architecture"):
            restored(weights, named)


def test_a_worker_takes_the_architecture_of_the_weights_that_it_gets():
    """A client that joins late has made the full model, and it may answer for runs of both."""
    config = load_config(default_run_config() | {"device": "cpu", "local-steps": 2, "warmup-steps": 0})
    data = [as_training_data(client, torch.float32) for client in linear_clients()]
    worker = Worker(config, InMemoryTask(net(), lambda model, batch, _: line(model, batch), data, [2, 2, 2]))
    for width in (2, 4, 2):
        weights = snapshot(net(width))
        trained = worker.train(TrainingHook(LocalRound(config, 0, 1, weights))).training.weights
        assert trained["0.weight"].shape == (width, 20)
        assert not torch.equal(trained["0.weight"], weights["0.weight"])


def test_a_reply_of_the_old_architecture_is_refused_with_the_difference():
    class Stale(TrainingHook):
        def on_end(self, result, full_gradient):
            if self.round.partition_id == 1 and self.round.server_round > 1:
                result.weights.update(snapshot(net().double()))

    class Late(Halving):
        hook = Stale

    weights, history = net_run(Late)
    assert weights["0.weight"].shape == (2, 20)
    reasons = [row.get("train/left_out", {}) for row in history]
    assert reasons[0] == {}
    for left_out in reasons[1:]:
        assert list(left_out) == ["1"]
        assert re.match(r"its tensors differ from the model's: 0\.bias is .*\[4\].* instead of .*\[2\]", left_out["1"])


def test_a_rounding_error_of_the_old_architecture_is_dropped():
    weights, history = net_run(Halving, wire_dtype="int8-delta", dtype=torch.float32)
    assert weights["0.weight"].shape == (2, 20)
    assert not any("train/left_out" in row for row in history)


class Keeping(TrainingHook):
    keeps_state = True


class Stateful(Halving):
    hook = Keeping


class WithRecord(Halving):
    when = 0

    def prepare(self, grid, weights):
        self.reply_references["extra"] = {"a": torch.zeros(2)}
        return weights


class Renaming(Halving):
    def change_architecture(self, server_round, weights):
        return lambda weights: {f"{name}.new": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("strategy", "hyper", "reason"),
    [
        (WithRecord, {}, "its replies have a further record 'extra', whose reference has the old shapes"),
        (Stateful, {}, "its clients keep a state that has the old shapes"),
        (Halving, {"aggregator": "fedadam"}, 'aggregator = "fedadam" keeps momenta that have the old shapes'),
        (Renaming, {}, "must keep the names of the weights: change their shapes only"),
    ],
    ids=["records", "states", "momenta", "names"],
)
def test_what_would_keep_the_old_shapes_is_refused(strategy, hyper, reason):
    with pytest.raises(RoundFailedError, match=re.escape(reason)):
        net_run(strategy, **hyper)
