"""FedPhD against numpy over rounds, its choice of edges by frequency, and its pruning in both modes."""

import dataclasses
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from safetensors.torch import load_file

import client_app
import server_app
from fedddpm_app.algorithms import get_algorithm
from fedddpm_app.algorithms.fedphd import FedPhD, FedPhDHook
from fedddpm_app.config import ConfigError, default_run_config, load_config
from fedddpm_app.diffusion.pruning import channel_norms, kept_shares, prunable_weights
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.messages.label_counts import check_label_counts
from fedddpm_app.federation.messages.replies import ReplyRefusedError
from fedddpm_app.hierarchy.edges import EdgeStatistics
from fedddpm_app.inprocess.grid import InProcessGrid, run_inprocess
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.training.hooks import LocalRound
from tests.algorithms.problems import (
    RATE,
    STEPS,
    Point,
    caught,
    gradient,
    gradient_steps,
    make_clients,
    quadratic,
    run,
    same,
    start,
)
from tests.conftest import TINY

SIZES = (3, 5, 2, 4)
CLIENTS = make_clients(*SIZES)
COUNTS = [[3, 0, 0], [1, 4, 0], [0, 1, 1], [0, 0, 4]]
POINTS = {"num_edges": 2, "cloud_every": 3, "prune_ratio": 0.0, "cloud_homogeneity": 0.5}
ROUNDS = 7


def sh(counts):
    q = np.array(counts) / sum(counts)
    return 2 - np.linalg.norm(q - 1 / 3)


def reference(history):
    """The algorithm with the recorded edges, transcribed; returns x after each round."""
    cloud, edges, result = start(), [start(), start()], []
    counts, latest = np.zeros((2, 3)), np.zeros(2)
    for row in history:
        edge_of = {int(i): e for i, e in row["edge/of_client"].items()}
        assert sorted(edge_of) == row["clients"]
        local = {
            i: gradient_steps(edges[e], STEPS, RATE, lambda x, i=i: gradient(CLIENTS[i], x)) for i, e in edge_of.items()
        }
        for e in {*edge_of.values()}:
            mine = [i for i in edge_of if edge_of[i] == e]
            n = np.array([SIZES[i] for i in mine], float)
            edges[e] = n @ np.stack([local[i] for i in mine]) / n.sum()
            counts[e] += np.sum([COUNTS[i] for i in mine], 0)
            latest[e] = n.sum()
        busy = [e for e in range(2) if latest[e]]
        p = np.array([latest[e] + 0.5 * sum(SIZES) * sh(counts[e]) for e in busy])
        merged = p @ np.stack([edges[e] for e in busy]) / p.sum()
        assert list(row["cloud/weights"].values()) == pytest.approx(p, rel=1e-12)
        result.append(merged)
        if row["round"] % 3 == 0:
            cloud, counts, latest = merged, np.zeros((2, 3)), np.zeros(2)
            edges = [cloud, cloud]
    return result


def check_reference(algorithm, **more):
    settings = POINTS | more
    weights, history = simulate(
        algorithm, Point(), quadratic, CLIENTS, ROUNDS, STEPS, RATE, class_counts=COUNTS, **settings
    )
    assert same(weights["x"].numpy(), reference(history)[-1], 1e-12)
    return history


def test_rounds_equal_the_transcription():
    history = check_reference("fedphd")
    assert [row["cloud/merged"] for row in history] == [False, False, True, False, False, True, True]
    assert len({tuple(row["edge/of_client"].items()) for row in history}) > 1, "each round has its own draw"
    assert any(len({*row["edge/of_client"].values()}) == 2 for row in history)


def test_with_one_client_per_round_idle_edges_do_not_pull_back():
    history = check_reference("fedphd", clients_per_round=1)
    assert any(len(row["cloud/weights"]) == 1 for row in history)
    assert any(len(row["cloud/weights"]) == 2 for row in history)


def test_an_idle_edge_that_pulls_back_is_caught(monkeypatch):
    """The authors' rule: an edge without clients since the merge has even statistics, and so the highest score."""

    def all_edges(self, a):
        return {e: max(float(self.latest[e]), 3.0) + a * score for e, score in enumerate(self.scores())}

    class Pulling(FedPhD):
        def aggregate(self, server_round, replies):
            cloud = self.cloud_model or self.global_weights
            self.edge_models = {0: cloud, 1: cloud} | self.edge_models
            return super().aggregate(server_round, replies)

    monkeypatch.setattr(EdgeStatistics, "cloud_weights", all_edges)
    assert caught(lambda mutant: check_reference(mutant, clients_per_round=1), Pulling)


def test_clients_that_all_start_from_the_merge_are_caught():
    class Flat(FedPhD):
        def exchanged(self, server_round, partitions):
            super().exchanged(server_round, partitions)
            return {}

    assert caught(check_reference, Flat)


def test_edges_are_drawn_with_their_probabilities(config):
    """5,000 clients with equal labels draw by the same statistics: within four standard deviations."""
    config = dataclasses.replace(config, hierarchy=dataclasses.replace(config.hierarchy, num_edges=3))
    strategy = FedPhD(config, None, None)
    counts = np.zeros((3, 10), np.int64)
    counts[0, 0], counts[1, 5], counts[1, 0] = 700, 500, 300
    strategy.statistics = EdgeStatistics(counts, counts.sum(1), counts.sum(1)).state()
    clients = range(5_000)
    strategy.label_counts = {partition: [1, *[0] * 9] for partition in clients}
    c = config.hierarchy.edge_homogeneity * 5_000
    p = EdgeStatistics.from_state(strategy.statistics).probabilities([1, *[0] * 9], c)
    drawn = strategy._draw_edges(1, clients)
    found = np.bincount(list(drawn.values()), minlength=3)
    assert 0.2 < p.min() < p.max() < 0.5
    assert (np.abs(found - 5_000 * p) < 4 * np.sqrt(5_000 * p * (1 - p))).all()
    assert drawn == strategy._draw_edges(1, clients)
    assert drawn != strategy._draw_edges(2, clients)
    strategy.attempt = 1
    assert drawn == strategy._draw_edges(1, clients), "a repeated round repeats its draw"


def test_one_edge_and_no_pruning_are_fedavg_bit_for_bit(shared_run):
    alone = {"num_edges": 1, "prune_ratio": 0.0}
    assert (run("fedphd", **alone) == run("fedavg")).all()
    fedphd, fedavg = shared_run(algorithm="fedphd", **alone), shared_run(algorithm="fedavg")
    assert fedphd.losses() == fedavg.losses()
    for name in ("model", "ema"):
        first, second = (load_file(r.path / f"checkpoints/round-0002/{name}.safetensors") for r in (fedphd, fedavg))
        assert all(torch.equal(first[key], second[key]) for key in second)
    bytes_of = [(r.summary["comm/up_mb"], r.summary["comm/down_mb"]) for r in (fedphd, fedavg)]
    assert bytes_of[0] == bytes_of[1]


def test_edges_cost_no_bytes_between_clients_and_server(shared_run):
    fedphd, fedavg = shared_run(algorithm="fedphd", prune_ratio=0.0, cloud_every=3), shared_run(algorithm="fedavg")
    assert [row["comm/up_mb"] for row in fedphd.rounds()] == [row["comm/up_mb"] for row in fedavg.rounds()]
    assert [row["comm/down_mb"] for row in fedphd.rounds()] == [row["comm/down_mb"] for row in fedavg.rounds()]
    assert fedphd.losses() != fedavg.losses()


# ---- pruning ---------------------------------------------------------------------------------

A = {"algorithm": "fedphd", "unet_channels": "16,16", "num_rounds": 3}  # 4 groups of 4 channels: one of four leaves
B = A | {"prune_round": 1, "cloud_every": 3, "prune_penalty": 0.01}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [A, B], ids=["mode A", "mode B"])
def test_after_the_pruning_all_models_of_the_run_are_small(shared_run, settings):
    run = shared_run(**settings)
    full = create_unet_of(settings)
    (row,) = (row for row in run.stats if row["phase"] == "prune")
    assert row["round"] == settings.get("prune_round", 0)
    assert row["prune/least_removed"] == row["prune/largest_removed"] == 0.25
    assert row["prune/parameters_before"] == sum(p.numel() for p in full.parameters())
    assert row["prune/num_bytes"] == 4 * row["prune/parameters"] < row["prune/num_bytes_before"]
    assert row["prune/macs"] < 0.65 * row["prune/macs_before"]
    for name in ("model", "ema"):
        weights = load_file(run.path / f"checkpoints/round-0003/{name}.safetensors")
        assert sum(tensor.numel() for tensor in weights.values()) == row["prune/parameters"]
    pipeline = DDPMPipeline.from_pretrained(run.path / "pipeline")
    ema = load_file(run.path / "checkpoints/round-0003/ema.safetensors")
    assert all(torch.equal(ema[name], tensor) for name, tensor in pipeline.unet.state_dict().items())
    up = [row["comm/up_mb"] * 1e6 / 4 for row in run.rounds()]
    sizes = [row["prune/num_bytes_before"]] * row["round"] + [row["prune/num_bytes"]] * (3 - row["round"])
    assert np.array(up) - sizes == pytest.approx(np.full(3, up[-1] - sizes[-1]), abs=1000)  # the same header, shorter
    losses = [row["eval/loss"] for row in run.rounds()]
    assert losses[-1] < losses[-2], "the small model learns"


def create_unet_of(settings):
    overrides = {key.replace("_", "-"): value for key, value in settings.items()}
    config = load_config(default_run_config() | TINY | overrides)
    return create_unet(config.unet, config.data, 0)


@pytest.mark.slow
def test_a_client_that_comes_after_the_pruning_trains_the_small_model(run_app, monkeypatch):
    """Node 3 connects when the others have been asked to train in round 1, after which the model is pruned."""
    nodes, answer, trained = InProcessGrid.get_node_ids, InProcessGrid._answer, []

    def noted(self, message):
        if message.metadata.message_type == "train":
            trained.append(message.metadata.dst_node_id)
        return answer(self, message)

    monkeypatch.setattr(InProcessGrid, "_answer", noted)
    monkeypatch.setattr(
        InProcessGrid, "get_node_ids", lambda self: [node for node in nodes(self) if node != 1003 or len(trained) >= 3]
    )
    run = run_app(**B | {"min_available_nodes": 3, "num_rounds": 2, "cloud_every": 2})
    assert [row["clients"] for row in run.rounds()] == [[0, 1, 2], [0, 1, 2, 3]]
    assert sorted(run.rounds()[1]["train/client_loss"]) == ["0", "1", "2", "3"]
    (row,) = (row for row in run.stats if row["phase"] == "prune")
    assert row["round"] == 1
    small = 1.07 * row["prune/num_bytes"] / 1e6  # with the header of a message, which is long for a model this small
    assert run.rounds()[1]["comm/up_mb"] == pytest.approx(4 * small, rel=0.02)
    for key in ("comm/down_mb", "comm/evaluation_mb"):
        assert run.rounds()[1][key] == pytest.approx(4 * small, rel=0.02)


def test_the_pruning_follows_on_a_merge_and_on_sparse_rounds(shared_run):
    run = shared_run(**B)
    assert [row["cloud/merged"] for row in run.rounds()] == [True, False, True]
    plain = shared_run(**B | {"prune_penalty": 0.0})
    assert plain.rounds()[0]["train/loss"] != run.rounds()[0]["train/loss"]


@pytest.mark.parametrize(("server_round", "sparse"), [(1, True), (2, True), (3, False)])
def test_the_sparse_penalty_is_added_in_the_rounds_up_to_the_pruning(run_config, server_round, sparse):
    config = load_config(run_config | {"num-rounds": 4, "prune-round": 2, "prune-penalty": 0.5})
    model = create_unet(config.unet, config.data, 0)
    hook = FedPhDHook(LocalRound(config, 0, server_round, {}))
    hook.on_start(model)
    norms = channel_norms(prunable_weights(model))
    expected = 1.0 + 0.5 * norms.item() if sparse else 1.0
    assert hook.add_to_loss(torch.tensor(1.0), model, None).item() == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{}, {"prune-round": 1}], ids=["mode A", "mode B"])
def test_no_penalty_without_a_later_pruning(run_config, settings):
    config = load_config(run_config | {"prune-penalty": 0.5, "prune-ratio": 0.0 if settings else 0.25} | settings)
    assert not config.prune.is_sparse_round(1)


def test_the_cost_counts_the_small_models(shared_run, run_config):
    run = shared_run(**B)
    (row,) = (row for row in run.stats if row["phase"] == "prune")
    config = load_config(run_config | {key.replace("_", "-"): value for key, value in B.items()})
    parameters, compute = (row[f"prune/{key}"] / row[f"prune/{key}_before"] for key in ("parameters", "macs"))
    assert kept_shares(config.unet, config.data, 0.25) == pytest.approx((parameters, compute), rel=1e-12)
    cost = FedPhD.cost(config, [10] * 4)
    assert cost.models_up == cost.models_down == pytest.approx(4 * (1 + 2 * parameters))
    local = 4 * config.training.local_steps
    assert [row["compute/steps"] for row in run.rounds()] == pytest.approx([local, compute * local, compute * local])
    assert cost.steps == pytest.approx(local * (1 + 2 * compute))


@pytest.mark.slow
def test_a_run_that_is_complete_gets_more_rounds(run_config, tmp_path):
    """The merge at the end of a run is shown, and changes nothing for the edges."""
    settings = run_config | {"algorithm": "fedphd", "prune-ratio": 0.0, "cloud-every": 3, "eval-every": 0}
    settings |= {"preview-every": 0, "run-name": "whole", "num-rounds": 3}
    run_inprocess(server_app.app, client_app.app, settings, 4)
    short = settings | {"run-name": "short", "num-rounds": 2}
    run_inprocess(server_app.app, client_app.app, short, 4)
    run_inprocess(server_app.app, client_app.app, short | {"resume": str(tmp_path / "short"), "num-rounds": 3}, 4)
    whole, more = (
        load_file(tmp_path / name / "checkpoints/round-0003/model.safetensors") for name in ("whole", "short")
    )
    assert all(torch.equal(whole[name], more[name]) for name in whole)


# ---- labels ----------------------------------------------------------------------------------


def test_clients_reveal_their_labels_only_for_a_choice(shared_run, monkeypatch, run_app, caplog):
    caplog.set_level("INFO", "fedddpm")
    run_app(algorithm="fedphd", num_rounds=1, prune_ratio=0.0)
    assert "every client reveals to the server how many images of each class it has" in caplog.text
    caplog.clear()
    monkeypatch.setattr(DiffusionTask, "class_counts", None)
    run_app(algorithm="fedphd", num_rounds=1, num_edges=1, prune_ratio=0.0)
    assert "reveals" not in caplog.text


def test_data_without_labels_are_refused_before_round_1(run_app, monkeypatch):
    monkeypatch.setattr(DiffusionTask, "class_counts", lambda *_: [])
    message = r"num-edges = 2: a client chooses its edge by its labels, which the data lack: use .*, or num-edges = 1"
    with pytest.raises(ConfigError, match=message):
        run_app(algorithm="fedphd", prune_ratio=0.0)
    with pytest.raises(ConfigError, match=message):
        run("fedphd", num_edges=2, prune_ratio=0.0)


def test_a_client_whose_counts_do_not_fit_still_trains(run_app, monkeypatch):
    original = DiffusionTask.class_counts
    monkeypatch.setattr(DiffusionTask, "class_counts", lambda self, p: [] if p == 2 else original(self, p))
    (row,) = run_app(algorithm="fedphd", num_rounds=1, prune_ratio=0.0).rounds()
    assert list(row["report_labels/left_out"]) == ["2"]
    assert "a client chooses its edge by its labels" in row["report_labels/left_out"]["2"]
    assert sorted(row["edge/of_client"]) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("wrong", [[1, 2], [1, 2, 4], [-1, 2, 5], [1.5, 2.5, 2.0], 6, None], ids=str)
def test_counts_that_do_not_fit_are_refused(wrong):
    reply = SimpleNamespace(metrics={"label-counts": wrong}, num_examples=6)
    with pytest.raises(ReplyRefusedError, match="its label counts are not 3 numbers that add up to its 6 images"):
        check_label_counts(3, reply)
    reply.metrics["label-counts"] = [1, 0, 5]
    check_label_counts(3, reply)


@pytest.mark.parametrize(
    "counts", [[[3, 0]], [[3, 0, 0], [5, 0], [2, 0], [4, 0]], [[1, 0], [5, 0], [2, 0], [4, 0]]], ids=str
)
def test_class_counts_that_do_not_fit_the_data_are_refused(counts):
    with pytest.raises(ConfigError, match=r"class_counts = .*: give one list for each of 4 clients"):
        run("fedphd", CLIENTS, class_counts=counts)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num-edges": 5}, "num-edges = 5 is more than num-clients = 4: use at most 4"),
        (
            {"prune-round": 2},
            "prune-round = 2 leaves no round to train the pruned model, as num-rounds = 2: use at most 1",
        ),
        ({"aggregator": "krum"}, 'aggregator = "krum" has no meaning'),
    ],
)
def test_settings_without_meaning_are_refused(run_config, overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        get_algorithm(load_config(run_config | {"algorithm": "fedphd"} | overrides))


def test_another_model_is_refused_before_round_1():
    with pytest.raises(ConfigError, match="prune-ratio: a Point cannot be pruned"):
        run("fedphd", num_edges=1, prune_ratio=0.5)
