"""FedDiffuse against numpy, FedAvg and its published cost; what the clients keep, and what the server sees."""

import json
import logging
import tomllib
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from flwr.app import Error, Message
from safetensors.torch import load_file
from torch import nn

import client_app
from fedddpm_app.algorithms import feddiffuse, get_algorithm
from fedddpm_app.algorithms.feddiffuse import TRAVELS, FedDiffuse, assign_tasks, shares_of_parts
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.diffusion.objective import DenoisingObjective, create_noise_scheduler
from fedddpm_app.diffusion.parts import BOTTLENECK, DECODER, ENCODER, PARTS, parts
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.evaluation.denoising import denoising_loss
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.messages.records import to_arrays
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.federation.own_models import collect_own_models
from fedddpm_app.federation.start_notes import start_notes
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.recording.sheets import read_tiles
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.hooks import TrainingHook
from fedddpm_app.transport.layout import Layout
from fedddpm_app.weights import load_into, num_bytes, select, snapshot
from tests.algorithms.problems import (
    CLIENTS,
    RATE,
    ROUNDS,
    STEPS,
    caught,
    gradient,
    gradient_steps,
    make_clients,
    quadratic,
    run,
    same,
    start,
)
from tests.conftest import ROOT
from tests.data.conftest import client_images

SPLITS = ["full", "usplit", "ulatdec", "udec"]
OWN = sorted(TRAVELS)
PART = (ENCODER, BOTTLENECK, DECODER)  # of each coordinate of the point
FOUR = make_clients(3, 5, 2, 4)
UDEC = {"algorithm": "feddiffuse", "feddiffuse_split": "udec"}


class Three(nn.Module):
    """The point of ``problems``, one coordinate per part: encoder, bottleneck, decoder."""

    def __init__(self):
        super().__init__()
        self.e, self.b, self.d = (nn.Parameter(torch.tensor([value], dtype=torch.float64)) for value in start())

    def parts(self):
        return dict(zip("ebd", PARTS, strict=True))

    def forward(self, a):
        return a * torch.cat([self.e, self.b, self.d])


def values(weights):
    return torch.cat([weights[name] for name in "ebd"]).numpy()


class Shows(FedDiffuse):
    """Writes the clients' own models into the line of the round."""

    def after_aggregation(self, server_round, weights):
        own = {i: values(model).tolist() for i, model in self.evaluated(server_round).items()}
        self.record(own=own, server=values(weights).tolist())
        return weights


def reference(clients, split, rounds=ROUNDS, sampled=None):
    """The four exchanges, transcribed; returns the server's weights and the clients' own models."""
    server, own, sizes = start(), {}, [len(a) for a, _ in clients]
    for r in range(1, rounds + 1):
        chosen = sampled[r - 1] if sampled else range(len(clients))
        returned = {i: TRAVELS.get(split, PARTS) for i in chosen}
        if split == "usplit":
            returned = assign_tasks(chosen, derive_seed(0, "feddiffuse-tasks", r))
        for i in chosen:
            stays = [split in TRAVELS and i in own and part not in TRAVELS[split] for part in PART]
            w = np.where(stays, own.get(i, server), server)
            own[i] = gradient_steps(w, STEPS, RATE, lambda x, i=i: gradient(clients[i], x))
        for k, part in enumerate(PART):
            reporters = [i for i in chosen if part in returned[i]]
            if reporters:
                weight = sum(sizes[i] for i in reporters)
                server = server.copy()
                server[k] = sum(sizes[i] * own[i][k] for i in reporters) / weight
    return server, own


def check_reference(algorithm, split, clients=CLIENTS, **settings):
    _, history = simulate(algorithm, Three(), quadratic, clients, ROUNDS, STEPS, RATE, split=split, **settings)
    per_round, chosen = settings.get("clients_per_round", 0), Participants({i: i for i in range(len(clients))})
    sampled = [chosen.sample(per_round, 0, r) for r in range(1, ROUNDS + 1)]
    for r, row in enumerate(history, 1):
        server, own = reference(clients, split, r, sampled)
        assert same(np.array(row["server"]), server)
        assert row["own"].keys() == (own.keys() if split in TRAVELS else set())
        assert all(same(np.array(row["own"][i]), own[i]) for i in row["own"])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("clients", "settings"), [(CLIENTS, {}), (FOUR, {"clients_per_round": 3})], ids=["all", "3/4"])
def test_rounds_equal_the_reference(split, clients, settings):
    """With sampled clients, some start late, and some come back after rounds that they were not part of."""
    check_reference(Shows, split, clients, **settings)


class SendsAll(Shows):
    """Sends the whole model in every round: the clients' own parts are lost."""

    def exchanged(self, server_round, partitions):
        found = super().exchanged(server_round, partitions)
        return {i: feddiffuse.Exchanged(None, each.returned) for i, each in found.items()}


class NeverRenews(Shows):
    """Sends the clients nothing that others have learned: a part that is returned but not shared."""

    def after_aggregation(self, server_round, weights):
        super().after_aggregation(server_round, weights)
        return self.initial_weights


@pytest.mark.parametrize("mutant", [SendsAll, NeverRenews])
@pytest.mark.parametrize("split", OWN)
def test_broken_exchanges_are_caught(mutant, split):
    assert caught(lambda algorithm: check_reference(algorithm, split), mutant)


def test_full_is_fedavg_bit_for_bit(shared_run):
    assert (run("feddiffuse", split="full") == run("fedavg")).all()  # of a model without parts
    full, fedavg = shared_run(algorithm="feddiffuse", feddiffuse_split="full"), shared_run(algorithm="fedavg")
    for name in ("checkpoints/round-0002/model.safetensors", "checkpoints/round-0002/ema.safetensors"):
        assert (full.path / name).read_bytes() == (fedavg.path / name).read_bytes()
    assert full.losses() == fedavg.losses()
    for key in ("comm/up_mb", "comm/down_mb"):
        assert full.summary[key] == fedavg.summary[key]


@pytest.mark.parametrize("split", OWN)
def test_one_client_trains_its_own_model_as_if_it_were_alone(split):
    _, history = simulate(Shows, Three(), quadratic, CLIENTS[:1], ROUNDS, STEPS, RATE, split=split)
    alone = gradient_steps(start(), ROUNDS * STEPS, RATE, lambda x: gradient(CLIENTS[0], x))
    assert same(np.array(history[-1]["own"][0]), alone, 1e-12)


@pytest.mark.parametrize(("split", "kept"), [("udec", "eb"), ("ulatdec", "e")])
def test_a_part_that_nobody_returns_stays_bit_for_bit(split, kept):
    ended, _ = simulate("feddiffuse", Three(), quadratic, CLIENTS, ROUNDS, STEPS, RATE, split=split)
    initial = Three().state_dict()
    assert {name for name in "ebd" if torch.equal(ended[name], initial[name])} == set(kept)


@pytest.mark.parametrize("split", OWN)
def test_a_late_client_gets_the_whole_model_of_the_server(split):
    """Its encoder is the initial one, bit for bit; what the others return is the average of the round before."""
    got = {}

    class Notes(TrainingHook):
        def __init__(self, local_round):
            super().__init__(local_round)
            got[local_round.server_round, local_round.partition_id] = values(local_round.global_weights)

    class Noted(Shows):
        hook = Notes

    _, history = simulate(Noted, Three(), quadratic, FOUR, 6, STEPS, RATE, split=split, clients_per_round=2)
    first = {i: min(r for r, j in got if j == i) for _, i in got}
    late = {i: r for i, r in first.items() if r > 1}
    assert late
    for i, server_round in late.items():
        server = np.array(history[server_round - 2]["server"])
        assert (got[server_round, i] == server).all()
        stays = [part not in TRAVELS[split] for part in PART]
        assert ((got[server_round, i] == start()) == stays).all()


@pytest.mark.parametrize("split", SPLITS)
def test_the_published_experiment_is_a_valid_config_for_each_split(split):
    """Without a global model, it has no moving average to switch off: the one note at the start."""
    path = ROOT / "conf" / "published" / "feddiffuse-fashion.toml"
    run_config = default_run_config(ROOT) | tomllib.loads(path.read_text()) | {"feddiffuse-split": split}
    config = load_config(run_config)
    notes = start_notes(get_algorithm(config), config, run_config)
    assert [note.split(" = ")[0] for note in notes] == ["server-ema-decay"] * (split in OWN)


# ---- usplit: who returns which part -------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_the_tasks_of_a_round_cover_each_pair_once(count):
    for seed in range(50):
        tasks = assign_tasks(range(10, 10 + count), seed)
        assert list(tasks) == list(range(10, 10 + count))
        of_parts = Counter(part for task in tasks.values() for part in task)
        pairs, odd = divmod(count, 2)
        assert of_parts[BOTTLENECK] == pairs + odd
        assert of_parts[ENCODER] + of_parts[DECODER] == count
        assert abs(of_parts[ENCODER] - of_parts[DECODER]) == odd
        assert all(len(task & {ENCODER, DECODER}) == 1 for task in tasks.values())


def test_coin_order_and_odd_client_are_fair():
    """2,000 rounds of 5 clients; the deviation of a share of n fair draws is below 0.5 / sqrt(n)."""
    seen = Counter(
        (i, part) for seed in range(2000) for i, task in assign_tasks(range(5), seed).items() for part in task
    )
    for i in range(5):
        assert seen[i, DECODER] / 2000 == pytest.approx(1 / 2, abs=4 * 0.5 / 2000**0.5)
        assert seen[i, BOTTLENECK] / 2000 == pytest.approx(3 / 5, abs=4 * 0.5 / 2000**0.5)  # 2 of 4, and the odd one
    both = Counter(
        frozenset({DECODER, BOTTLENECK}) in assign_tasks(range(2), seed).values() for seed in range(2000)
    )  # the coin: the bottleneck comes with the decoder, or with the encoder
    assert both[True] / 2000 == pytest.approx(1 / 2, abs=4 * 0.5 / 2000**0.5)
    odd = Counter(DECODER in assign_tasks([7], seed)[7] for seed in range(2000))
    assert odd[True] / 2000 == pytest.approx(1 / 2, abs=4 * 0.5 / 2000**0.5)


def test_tasks_depend_on_the_seed_and_not_on_the_order_of_clients():
    assert assign_tasks([3, 1, 2, 0], 5) == assign_tasks(range(4), 5)
    assert len({str(sorted(assign_tasks(range(4), seed)[0])) for seed in range(9)}) > 1


# ---- cost ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "saved"), [("full", 0.0), ("usplit", 0.25), ("ulatdec", 0.41), ("udec", 0.736)])
def test_fifteen_rounds_exchange_the_published_share(run_config, monkeypatch, split, saved):
    """With their parts, .427, .334 and .239 of all parameters; 5 clients of which all take part (usplit: 4)."""
    published = {ENCODER: 0.427, BOTTLENECK: 0.334, DECODER: 0.239}
    monkeypatch.setattr(feddiffuse, "shares_of_parts", lambda *_: published)
    clients = 4 if split == "usplit" else 5
    more = {"algorithm": "feddiffuse", "feddiffuse-split": split, "num-rounds": 15, "num-clients": clients}
    config = load_config(run_config | more)
    cost = get_algorithm(config).cost(config, [100] * clients)
    assert 1 - (cost.models_up + cost.models_down) / (30 * clients) == pytest.approx(saved, abs=0.005)


def test_an_odd_client_of_usplit_costs_half_of_encoder_and_decoder_and_the_bottleneck(run_config):
    more = {"algorithm": "feddiffuse", "feddiffuse-split": "usplit", "num-rounds": 1, "num-clients": 3}
    config = load_config(run_config | more)
    share = shares_of_parts(config.unet, config.data)
    cost = get_algorithm(config).cost(config, [100] * 3)
    assert cost.models_up == pytest.approx(1 + (share[ENCODER] + share[DECODER]) / 2 + share[BOTTLENECK])
    assert cost.models_down == 3


def test_the_shares_of_the_parts_are_those_of_the_model_but_without_its_memory(config, monkeypatch):
    made = []

    def create(*arguments, **more):
        made.append(create_unet(*arguments, **more))
        return made[-1]

    monkeypatch.setattr(feddiffuse, "create_unet", create)
    shares_of_parts.cache_clear()
    found = [shares_of_parts(config.unet, config.data) for _ in range(2)][1]
    (model,) = made  # once for all costs
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    model = create_unet(config.unet, config.data, 0)
    weights, part_of = model.state_dict(), parts(model)
    sizes = {part: sum(t.numel() for name, t in weights.items() if part_of[name] == part) for part in PARTS}
    assert found == {part: size / sum(sizes.values()) for part, size in sizes.items()}


@pytest.mark.parametrize(
    "split", [name if name == "udec" else pytest.param(name, marks=pytest.mark.slow) for name in SPLITS]
)
def test_the_bytes_of_a_run_are_those_of_its_parts_and_its_cost(shared_run, run_config, split):
    """Every transfer is a header and the values of its parts; without headers, the bytes are the expected cost."""
    given = {"algorithm": "feddiffuse", "feddiffuse-split": split, "num-rounds": 3, "held-out-fraction": 0.0}
    run = shared_run(**{key.replace("-", "_"): value for key, value in given.items()})
    config = load_config(run_config | given)
    model = create_unet(config.unet, config.data, 0)
    weights, part_of = model.state_dict(), parts(model)
    blob = {  # bytes of a transfer, and of its values alone
        task: (Layout(chosen).size, num_bytes(chosen))
        for task in map(frozenset, ({ENCODER}, {DECODER}, {ENCODER, BOTTLENECK}, {BOTTLENECK, DECODER}, PARTS))
        if (chosen := select(weights, [name for name in weights if part_of[name] in task]))
    }
    whole, spent = blob[frozenset(PARTS)], 0
    for row in run.rounds():
        down = [frozenset(TRAVELS.get(split, PARTS) if row["round"] > 1 else PARTS)] * 4
        up = [frozenset(TRAVELS.get(split, PARTS))] * 4
        if split == "usplit":
            up = assign_tasks(range(4), derive_seed(0, "feddiffuse-tasks", row["round"])).values()
        for key, tasks in (("comm/up_mb", up), ("comm/down_mb", down)):
            assert row[key] * 1e6 == pytest.approx(sum(blob[task][0] for task in tasks), abs=0.1)
            spent += sum(blob[task][1] for task in tasks)
    cost = get_algorithm(config).cost(config, [100] * 4)
    assert spent / whole[1] == pytest.approx(cost.models_up + cost.models_down)
    assert run.summary["comm/up_mb"] == pytest.approx(sum(row["comm/up_mb"] for row in run.rounds()))


# ---- the clients' own models: collected for evaluation alone, in full precision ------------------


class Counts(InProcessGrid):
    """Counts the messages by type; client 1 fails at those of ``fails``."""

    fails = ()

    def _answer(self, message):
        kind, node = message.metadata.message_type, message.metadata.dst_node_id
        self.seen[kind, message.content["config"]["server-round"] if "config" in message.content else 0].append(node)
        if kind in self.fails and node == 1001:
            return Message(Error(1, "out of memory"), reply_to=message)
        return super()._answer(message)


def strategy_of(run_config, folder, fails=(), rounds=2, **more):
    """Run FedDiffuse without a monitor; return the strategy and the messages by type and round."""
    settings = run_config | {"algorithm": "feddiffuse"} | more
    config = load_config(settings)
    task = DiffusionTask(config)
    strategy = FedDiffuse(config, RunRecorder(folder / "strategy"), task)
    grid = Counts(client_app.app, 4, settings)
    grid.fails, grid.seen = fails, defaultdict(list)
    strategy.start(grid, to_arrays(snapshot(task.create_model())), num_rounds=rounds)
    return strategy, grid.seen


def test_nothing_is_collected_where_nothing_reads_it(run_config, tmp_path):
    strategy, seen = strategy_of(run_config, tmp_path)
    assert not [kind for kind, _ in seen if kind == "train.collect"]
    assert strategy.client_models == {}
    assert strategy.accounting.summary()["comm/evaluation_mb"] < 0.001  # clients evaluate the models that they have


def test_the_bytes_of_models_that_are_sent_for_evaluation_are_counted_apart(run_config, tmp_path):
    strategy, seen = strategy_of(run_config, tmp_path, **{"feddiffuse-split": "full"})
    assert {kind: sum(len(n) for (k, _), n in seen.items() if k == kind) for kind in ("train", "evaluate")} == {
        "train": 8,
        "evaluate": 8,
    }
    totals = strategy.accounting.summary()
    assert totals["comm/evaluation_mb"] == totals["comm/down_mb"] == totals["comm/up_mb"] > 0.5


def test_clients_evaluate_their_own_models_and_only_if_they_have_one(run_config, tmp_path):
    """Client 1 never completes a training. The others' models after their last training are in their states."""
    states = {}

    class Keeps(TrainingHook):
        def on_end(self, result, full_gradient):
            states[self.round.partition_id] = result.weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FedDiffuse, "hook", Keeps)
        strategy, seen = strategy_of(run_config, tmp_path, fails=("train",))
    assert [sorted(nodes) for (kind, _), nodes in seen.items() if kind == "evaluate"] == [[1000, 1002, 1003]] * 2
    config = strategy.config
    model = create_unet(config.unet, config.data, 0)
    objective = DenoisingObjective(create_noise_scheduler(config.diffusion))
    losses = []
    for partition in (0, 2, 3):
        load_into(model, states[partition])
        held_out = client_images(config.data, config.run.seed, partition).held_out.without_labels()
        losses.append((denoising_loss(model, objective, held_out, config.evaluation.eval_draws), len(held_out)))
    expected = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert strategy.recorder.stats[-1]["client-eval/loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", ["bf16", "int8-delta"])
def test_collected_models_are_those_of_the_clients_bit_for_bit_whatever_the_wire(dtype):
    trained, collected = {}, {}

    class Keeps(TrainingHook):
        def on_end(self, result, full_gradient):
            trained[self.round.partition_id] = result.weights

    class Collects(FedDiffuse):
        hook = Keeps

        def after_aggregation(self, server_round, weights):
            collected.update(self.evaluated(server_round))
            return weights

    simulate(Collects, Three(), quadratic, CLIENTS, 2, STEPS, RATE, dtype=torch.float32, wire_dtype=dtype)
    assert sorted(collected) == [0, 1, 2]
    for i, model in collected.items():
        assert all(torch.equal(model[name], trained[i][name]) for name in "ebd")
    assert any((model["e"] != model["e"].bfloat16().float()).any() for model in collected.values())


def test_a_limit_of_the_changes_does_not_judge_collected_models():
    """The models have a norm of more than 1,000, their changes one below the limit."""
    far, found = Three(), []
    with torch.no_grad():
        for parameter in far.parameters():
            parameter.add_(1000.0)

    class Collects(FedDiffuse):
        def after_aggregation(self, server_round, weights):
            found.append(collect_own_models(self))
            return weights

    _, (row,) = simulate(Collects, far, quadratic, CLIENTS, 1, 1, 1e-4, max_update_norm="900", split="udec")
    assert "train/left_out" not in row
    assert "collect/left_out" not in row
    norms = [float(torch.linalg.vector_norm(torch.cat(list(model.values())))) for model in found[0].values()]
    assert len(norms) == 3
    assert min(norms) > 1000


@pytest.mark.slow
def test_without_evaluation_during_the_rounds_models_are_collected_once_at_the_end(shared_run):
    run = shared_run(**UDEC, eval_every=0, preview_every=0)
    assert [row.get("comm/evaluation_mb", 0) > 0 for row in run.rounds()] == [False, True]
    assert run.summary["comm/evaluation_mb"] == run.rounds()[-1]["comm/evaluation_mb"]
    often = shared_run(**UDEC)  # the default: an evaluation and sheets in every round, from one collection
    assert often.summary["comm/evaluation_mb"] == pytest.approx(2 * run.summary["comm/evaluation_mb"], rel=1e-3)
    assert often.summary["comm/up_mb"] == run.summary["comm/up_mb"]


def test_a_client_hands_over_no_model_in_a_run_that_does_not_collect_even_if_it_is_asked(caplog, monkeypatch):
    found = []

    class Asks(FedDiffuse):
        def after_aggregation(self, server_round, weights):
            found.append(collect_own_models(self))
            return weights

    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    for collect in (True, False):
        more = {"collect_models": collect}
        simulate(Asks, Three(), quadratic, CLIENTS, 1, STEPS, RATE, dtype=torch.float32, **more)
    assert [sorted(models) for models in found] == [[0, 1, 2], []]
    assert "feddiffuse-collect-models = false: this run's clients hand over no whole model" in caplog.text


@pytest.mark.slow
def test_a_server_that_may_not_collect_has_no_model_to_show(shared_run):
    run = shared_run(**UDEC, feddiffuse_collect_models=False, eval_images=12, eval_final_images=20)
    assert run.summary["status"] == "completed"
    assert run.summary["metrics"] == []
    assert run.summary["comm/evaluation_mb"] < 0.001  # no weights
    assert not [key for row in run.rounds() for key in row if key.startswith("eval/")]
    assert all(row["client-eval/loss"] > 0 for row in run.rounds())
    assert not list(run.path.glob("samples/ro*"))
    assert not (run.path / "pipeline").exists()


@pytest.mark.slow
def test_metrics_pictures_checkpoints_and_pipelines_are_one_per_client(shared_run):
    run = shared_run(**UDEC, eval_images=12, eval_final_images=20)
    names = [f"client-{k:04d}" for k in range(4)]
    folder = run.path / "checkpoints" / "round-0002"
    models = [load_file(folder / name / "model.safetensors") for name in names]
    server = load_file(folder / "model.safetensors")
    for name, model in zip(names, models, strict=True):
        pipeline = DDPMPipeline.from_pretrained(run.path / "pipeline" / name)
        assert all(torch.equal(tensor, model[key]) for key, tensor in pipeline.unet.state_dict().items())
        assert not torch.equal(model["conv_in.weight"], server["conv_in.weight"])
    assert not (run.path / "pipeline" / "unet").exists()
    sheet = read_tiles(run.path / "samples" / "round-0002-clients.png")
    rows = [read_tiles(run.path / "samples" / f"round-0002-{name}.png") for name in names]
    assert [tile.tobytes() for tile in sheet] == [tile.tobytes() for row in rows for tile in row[:10]]
    for metric in (*run.summary["metrics"], *run.rounds()[-1]["eval/metrics"]):
        assert metric["client_names"] == names
        assert metric["value"] == pytest.approx(np.mean(metric["clients"]))
        assert metric["median"] == pytest.approx(np.median(metric["clients"]))
    (row,) = (row for row in run.rounds() if row["round"] == 2)
    losses = list(row["eval/client_losses"].values())
    assert list(row["eval/client_losses"]) == ["0", "1", "2", "3"]
    assert row["eval/loss"] == row["eval/ema_loss"] == pytest.approx(np.mean(losses))
    assert row["eval/median_loss"] == pytest.approx(np.median(losses))
    assert "eval/ema_loss" in next(row for row in run.stats if row["phase"] == "initial")


def test_without_any_clients_model_no_other_model_takes_its_place(run_app, monkeypatch, caplog):
    """Neither metrics nor pictures of averaged parts beside initial ones."""
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    monkeypatch.setattr("fedddpm_app.algorithms.feddiffuse.collect_own_models", lambda strategy: {})
    run = run_app(**UDEC, eval_images=12, eval_final_images=20)
    assert run.summary["status"] == "completed"
    assert run.summary["metrics"] == []
    assert not [key for row in run.rounds() for key in row if key.startswith("eval/")]
    assert not list(run.path.glob("samples/ro*"))
    assert not (run.path / "pipeline").exists()
    assert "no model of a client was collected: there are no metrics" in caplog.text


def test_a_client_whose_model_does_not_arrive_is_named_and_left_out(run_config, tmp_path):
    class Evaluated(FedDiffuse):
        def after_aggregation(self, server_round, weights):
            self.record(own=sorted(self.evaluated(server_round)))
            return weights

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "FedDiffuse", Evaluated)
        strategy, _ = strategy_of(run_config, tmp_path, fails=("train.collect",))
    row = strategy.recorder.stats[-1]
    assert row["own"] == [0, 2, 3]
    assert list(row["collect/left_out"]) == ["1"]
    assert sorted(row["train/client_loss"]) == ["0", "1", "2", "3"]
    assert json.dumps(row)
