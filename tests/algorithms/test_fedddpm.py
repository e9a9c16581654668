import logging
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Error, Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from safetensors.torch import load_file

import client_app
from fedddpm_app.algorithms.fedddpm import FedDDPM
from fedddpm_app.apportion import largest_remainder
from fedddpm_app.auxiliary.pretraining import PRETRAIN
from fedddpm_app.client.worker import Worker
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.diffusion.objective import create_noise_scheduler
from fedddpm_app.diffusion.sampling import image_seeds, sample_images
from fedddpm_app.diffusion.unet import create_unet
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages import deadlines
from fedddpm_app.federation.messages.records import to_arrays, to_weights
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.seeding import derive_seed
from fedddpm_app.training.hooks import LocalRound, TrainingHook
from fedddpm_app.weights import load_into, snapshot
from tests.algorithms.problems import CLIENTS, RATE, ROUNDS, STEPS, gradient, gradient_steps, make_clients, shares
from tests.algorithms.problems import run as run_point
from tests.algorithms.problems import same as close
from tests.algorithms.problems import start as initial_point

ONE_OF_FEDAVG = {"num_rounds": 1, "correction_steps": 0}  # enough where it is about the clients' training


def final_weights(run, server_round=2):
    return load_file(run.path / "checkpoints" / f"round-{server_round:04d}" / "model.safetensors")


def local_train(config, weights, partition, server_round):
    """A client's round, without Flower."""
    hook = TrainingHook(LocalRound(config, partition, server_round, weights))
    return Worker(config, DiffusionTask(config)).train(hook)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


class FailingGrid(InProcessGrid):
    """Clients in ``failing`` raise on messages of type ``kind``."""

    failing: tuple[int, ...] = ()
    kind = "train.pretrain"

    def _answer(self, message):
        context = self.contexts[message.metadata.dst_node_id]
        kept = context.run_config
        if context.node_config["partition-id"] in self.failing and message.metadata.message_type == self.kind:
            context.run_config = kept | {"dataset": "path:/disk/unplugged"}
        reply = super()._answer(message)
        context.run_config = kept
        return reply


@pytest.fixture
def start(run_config, tmp_path):
    """Run a strategy class in-process; returns (strategy, final weights)."""

    def run(kind=FedDDPM, grid=None, **overrides):
        resolved = run_config | {k.replace("_", "-"): v for k, v in overrides.items()}
        config = load_config(resolved)
        recorder = RunRecorder(tmp_path / f"strategy-{len(list(tmp_path.iterdir()))}")
        strategy = kind(config, recorder, DiffusionTask(config))
        initial = snapshot(create_unet(config.unet, config.data, config.run.seed))
        grid = grid or InProcessGrid(client_app.app, config.data.num_clients, resolved)
        result = strategy.start(grid, to_arrays(initial), num_rounds=config.run.num_rounds)
        return strategy, to_weights(result.arrays)

    return run


def test_without_correction_steps_it_is_fedavg_bit_for_bit(shared_run):
    fedavg = shared_run(algorithm="fedavg")
    assert same(final_weights(fedavg), final_weights(shared_run(algorithm="fedddpm", correction_steps=0)))
    assert not same(final_weights(fedavg), final_weights(shared_run(algorithm="fedddpm")))


@pytest.mark.slow
def test_never_correcting_is_fedavg_and_always_is_fedddpm(start):
    class Never(FedDDPM):
        def should_correct(self, server_round, weights):
            return False

    class Second(FedDDPM):
        def should_correct(self, server_round, weights):
            return server_round == 2

    strategy, never = start(Never)
    _, fedavg = start(correction_steps=0)
    assert same(never, fedavg)
    assert len(strategy.auxiliary_data) == 12
    _, second = start(Second)
    assert not same(second, fedavg)


def test_rounds_equal_the_reference():
    """The clients' mean by n_i, then K_s steps on D_aux with a step size of its own; over rounds, in float64."""
    auxiliary, w = make_clients(4, seed=9)[0], initial_point()
    for _ in range(ROUNDS):
        local = [gradient_steps(w, STEPS, RATE, lambda x, c=c: gradient(c, x)) for c in CLIENTS]
        w = sum(p * v for p, v in zip(shares(CLIENTS), local, strict=True))
        w = gradient_steps(w, 3, 0.2, lambda x: gradient(auxiliary, x))
    settings = {"auxiliary_data": auxiliary, "correction_steps": 3, "correction_learning_rate": 0.2}
    assert close(run_point("fedddpm", **settings), w)


def test_one_client_is_local_training(start, run_config):
    _, averaged = start(num_clients=1, correction_steps=0, partition="iid")
    config = load_config(run_config | {"num-clients": 1, "correction-steps": 0, "partition": "iid"})
    weights = snapshot(create_unet(config.unet, config.data, 0))
    for server_round in (1, 2):
        weights = local_train(config, weights, 0, server_round).training.weights
    assert same(averaged, weights)


def test_a_round_is_the_mean_weighted_by_examples(start, run_config):
    """One round against its transcription from the formula, in float64."""
    _, averaged = start(num_rounds=1, correction_steps=0)
    config = load_config(run_config | {"num-rounds": 1, "correction-steps": 0})
    initial = snapshot(create_unet(config.unet, config.data, 0))
    results = [local_train(config, initial, i, 1) for i in range(4)]
    total = sum(r.num_examples for r in results)
    assert len({r.num_examples for r in results}) > 1
    for name, value in averaged.items():
        expected = sum(r.training.weights[name].double() * r.num_examples for r in results) / total
        assert torch.allclose(value.double(), expected, atol=1e-6)


@pytest.mark.parametrize("conditional", [False, True])
def test_each_clients_share_is_drawn_from_the_model_it_uploaded(start, run_config, conditional):
    """D_aux, transcribed: m_i proportional to n_i, samples of w_i^0 (and of its classes), by partition id."""
    strategy, _ = start(num_rounds=1, auxiliary_size=13, class_conditional=conditional)
    config = load_config(run_config | {"class-conditional": conditional})
    worker, model = Worker(config, DiffusionTask(config)), create_unet(config.unet, config.data, seed=5)
    initial = snapshot(create_unet(config.unet, config.data, config.run.seed))
    uploads = [worker.act(PRETRAIN, k, 0, initial, {}) for k in range(4)]
    shares = largest_remainder(13, [u.metrics["num-examples"] for u in uploads])
    assert len(set(shares)) > 1
    offset, turn = 0, np.random.default_rng(derive_seed(config.run.seed, "auxiliary-labels")).random()
    for client, (upload, share) in enumerate(zip(uploads, shares, strict=True)):
        load_into(model, upload.records["arrays"])
        labels = None
        if conditional:
            of_examples = [label for label, count in enumerate(upload.metrics["label-counts"]) for _ in range(count)]
            first = (turn + client * (5**0.5 - 1) / 2) % 1
            labels = torch.tensor([of_examples[int((k + first) * len(of_examples) / share)] for k in range(share)])
        expected = sample_images(
            model,
            create_noise_scheduler(config.diffusion),
            sampler="ddim",
            steps=2,
            seeds=image_seeds(config.run.seed, "auxiliary", share, client),
            shape=(1, 8, 8),
            labels=labels,
        )
        assert torch.equal(strategy.auxiliary_data.images[offset : offset + share], expected)
        if conditional:
            assert strategy.auxiliary_data.labels[offset : offset + share].tolist() == labels.tolist()
        offset += share
    assert offset == 13 == len(strategy.auxiliary_data)


@pytest.mark.slow
def test_pretraining_may_start_from_the_first_rounds_mean(start, shared_run, run_config):
    """The first image of D_aux comes from the model that client 0 trains from FedAvg's first mean."""
    strategy, _ = start(num_rounds=1, pretrain_from="global")
    mean = final_weights(shared_run(algorithm="fedavg", num_rounds=1), 1)
    config = load_config(run_config)
    upload = Worker(config, DiffusionTask(config)).act(PRETRAIN, 0, 0, mean, {})
    model = create_unet(config.unet, config.data, seed=5)
    load_into(model, upload.records["arrays"])
    count = strategy.auxiliary.clients.count(0)
    expected = sample_images(
        model,
        create_noise_scheduler(config.diffusion),
        sampler="ddim",
        steps=2,
        seeds=image_seeds(config.run.seed, "auxiliary", count, 0),
        shape=(1, 8, 8),
    )
    assert torch.equal(strategy.auxiliary_data.images[:count], expected)
    assert [row["phase"] for row in strategy.recorder.stats if row["phase"] != "data"][:2] == ["initial", "pretrain"]


def test_late_pretraining_cannot_give_the_initial_weights(run_config):
    odd = {"pretrain-from": "global", "init-from-pretrained": True}
    with pytest.raises(ConfigError, match='use pretrain-from = "initial", or init-from-pretrained = false'):
        FedDDPM.check_config(load_config(run_config | odd))


@pytest.mark.parametrize(("warmup", "decays"), [(0.0, [0.0, 0.5, 0.5]), (3.0, [0.0, 1 / 4, 2 / 5])])
def test_a_pretrained_model_is_the_ema_of_its_training(run_config, warmup, decays):
    """The uploaded weights, from the EMA's formula over the weights after each AdamW step."""
    config = load_config(run_config | {"pretrain-steps": 3, "ema-decay": 0.5, "ema-warmup": warmup})
    worker = Worker(config, DiffusionTask(config))
    initial = snapshot(create_unet(config.unet, config.data, 0))
    seen = []
    step = torch.optim.AdamW.step

    def spy(optimizer, *args, **kwargs):
        result = step(optimizer, *args, **kwargs)
        seen.append((optimizer.param_groups[0]["lr"], snapshot(worker.trainer.model)))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        uploaded = worker.act(PRETRAIN, 0, 0, initial, {}).records["arrays"]
    # cosine over 3 steps, the rate that each step used
    assert [lr / config.pretrain.learning_rate for lr, _ in seen] == pytest.approx([1.0, 0.75, 0.25])
    ema = initial
    for decay, (_, weights) in zip(decays, seen, strict=True):
        ema = {name: decay * ema[name] + (1 - decay) * weights[name] for name in ema}
    assert all(torch.allclose(uploaded[name], ema[name], atol=1e-6) for name in ema)
    assert not same(uploaded, seen[-1][1])


def test_a_correction_that_diverges_ends_the_run_with_its_learning_rate(start):
    with pytest.raises(RoundFailedError, match=r"round 1 after their correction are not finite: .*= 1e\+18"):
        start(correction_learning_rate=1e18)


def test_starting_from_the_pretrained_mean_alone_generates_nothing(start):
    strategy, _ = start(num_rounds=1, correction_steps=0, init_from_pretrained=True)
    assert strategy.auxiliary_data is None
    assert [row["phase"] for row in strategy.recorder.stats] == ["pretrain", "initial", "round"]


def test_messages_outlive_flowers_default_where_the_answers_are_waited_for(start, run_config):
    lifetimes = {}

    class Spy(InProcessGrid):
        def push_messages(self, messages):
            messages = list(messages)
            lifetimes.update({m.metadata.message_type: m.metadata.ttl for m in messages})
            return super().push_messages(messages)

    overrides = {"pretrain_timeout": 200_000.0, "round_timeout": 100_000.0, "num_rounds": 1}
    start(grid=Spy(client_app.app, 4, run_config), **overrides)
    assert lifetimes["train.pretrain"] > 4 * 200_000, "in a simulation, a message may wait for all others"
    assert lifetimes["train"] > 4 * 100_000
    assert lifetimes["evaluate"] > 4 * 100_000


def test_a_reply_that_would_break_flowers_aggregation_leaves_its_client_out(start, run_config):
    class Odd(InProcessGrid):
        def _answer(self, message):
            reply = super()._answer(message)
            if message.metadata.dst_node_id == 1001 and message.metadata.message_type == "train":
                reply.content["more"] = reply.content["arrays"]
                reply.content["metrics"]["extra"] = 1.0
            if message.metadata.dst_node_id == 1002 and message.metadata.message_type == "train":
                del reply.content["metrics"]["loss"]
            return reply

    strategy, _ = start(grid=Odd(client_app.app, 4, run_config), **ONE_OF_FEDAVG)
    assert set(strategy.recorder.stats[-1]["train/client_loss"]) == {"0", "1", "3"}


@pytest.mark.parametrize("kind", ["train.pretrain", "train", "evaluate"])
def test_a_node_that_is_gone_leaves_its_client_out(start, run_config, caplog, monkeypatch, kind):
    """Flower itself answers for a node that went offline, under its own node id."""
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)

    class Gone(InProcessGrid):
        def _answer(self, message):
            if message.metadata.dst_node_id == 1001 and message.metadata.message_type == kind:
                error = Message(Error(ErrorCode.NODE_UNAVAILABLE, "gone"), reply_to=message)
                error.metadata.__dict__["_src_node_id"] = SUPERLINK_NODE_ID
                return error
            return super()._answer(message)

    strategy, _ = start(grid=Gone(client_app.app, 4, run_config), num_rounds=1)
    assert "client 1 is left out: its node is gone or did not answer in time" in caplog.text
    clients = {row["phase"]: row for row in strategy.recorder.stats}
    assert (clients["pretrain"]["pretrain/clients"] == [0, 2, 3]) == (kind == "train.pretrain")
    assert (set(clients["round"]["train/client_loss"]) == {"0", "2", "3"}) == (kind == "train")


def test_a_client_that_claims_too_many_images_is_left_out(start, run_config):
    class Greedy(InProcessGrid):
        def _answer(self, message):
            reply = super()._answer(message)
            if message.metadata.dst_node_id == 1001 and message.metadata.message_type == "train":
                reply.content["metrics"]["num-examples"] = 10_000_001
            return reply

    strategy, _ = start(grid=Greedy(client_app.app, 4, run_config), **ONE_OF_FEDAVG)
    assert set(strategy.recorder.stats[-1]["train/client_loss"]) == {"0", "2", "3"}


def test_pretraining_is_waited_for_as_long_as_configured(start, run_config, monkeypatch):
    monkeypatch.setattr(deadlines, "START_SECONDS", 0.0)

    class Slow(InProcessGrid):
        """Answers no pretraining."""

        def pull_messages(self, message_ids):
            return [m for m in super().pull_messages(message_ids) if m.metadata.message_type != "train.pretrain"]

    began = time.monotonic()
    with pytest.raises(RoundFailedError, match="pretrain: none of the 4 clients"):
        start(grid=Slow(client_app.app, 4, run_config), pretrain_timeout=0.5)
    assert 0.5 <= time.monotonic() - began < 30


def test_weights_that_are_not_finite_end_the_run_before_they_spread(start):
    class Broken(FedDDPM):
        def after_aggregation(self, server_round, weights):
            return {name: value * float("nan") for name, value in weights.items()}

    with pytest.raises(RoundFailedError, match="the global weights of round 1 are not finite"):
        start(Broken)


def test_the_order_of_replies_changes_nothing(start, run_config):
    class Backwards(InProcessGrid):
        def pull_messages(self, message_ids):
            return list(super().pull_messages(message_ids))[::-1]

    _, forwards = start(num_rounds=1)
    _, backwards = start(grid=Backwards(client_app.app, 4, run_config), num_rounds=1)
    assert same(forwards, backwards)


def test_a_client_that_cannot_pretrain_is_named_and_left_out(start, run_config, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    grid = FailingGrid(client_app.app, 4, run_config)
    grid.failing = (2,)
    strategy, _ = start(grid=grid, num_rounds=1)
    assert "pretrain: client 2 is left out" in caplog.text
    assert "there is no such folder" in caplog.text
    pretrain = next(row for row in strategy.recorder.stats if row["phase"] == "pretrain")
    assert pretrain["pretrain/clients"] == [0, 1, 3]
    assert len(strategy.auxiliary_data) == 12  # the others fill its share
    assert strategy.recorder.stats[-1]["clients"] == [0, 1, 2, 3]  # it still trains in the rounds


def test_when_every_pretraining_fails_the_run_ends(start, run_config):
    grid = FailingGrid(client_app.app, 4, run_config)
    grid.failing = (0, 1, 2, 3)
    with pytest.raises(RoundFailedError, match="pretrain: none of the 4 clients"):
        start(grid=grid)


def test_when_every_client_fails_a_round_the_run_ends(start, run_config):
    grid = FailingGrid(client_app.app, 4, run_config)
    grid.failing, grid.kind = (0, 1, 2, 3), "train"
    with pytest.raises(RoundFailedError, match="round 1: none of the 4 clients"):
        start(grid=grid, **ONE_OF_FEDAVG)


def test_one_failing_client_does_not_stop_a_round(start, run_config):
    grid = FailingGrid(client_app.app, 4, run_config)
    grid.failing, grid.kind = (1,), "train"
    strategy, _ = start(grid=grid, **ONE_OF_FEDAVG)
    assert set(strategy.recorder.stats[-1]["train/client_loss"]) == {"0", "2", "3"}


def test_sampled_rounds_take_the_asked_number(start):
    strategy, _ = start(clients_per_round=2, correction_steps=0)
    rounds = [row for row in strategy.recorder.stats if row["phase"] == "round"]
    assert all(len(row["clients"]) == 2 == len(row["train/client_loss"]) for row in rounds)


def test_pretraining_uploads_are_counted_and_no_model_stays(start):
    strategy, _ = start(num_rounds=1)
    without, _ = start(num_rounds=1, correction_steps=0)
    assert strategy.accounting.bytes_up == 2 * without.accounting.bytes_up
    assert not list(Path(strategy.recorder.directory).rglob("pretrain-*"))


@pytest.mark.slow
def test_starting_from_the_pretrained_average_changes_the_start(shared_run):
    fresh, warm = shared_run(num_rounds=1), shared_run(num_rounds=1, init_from_pretrained=True)
    losses = [next(row["eval/loss"] for row in run.stats if row["phase"] == "initial") for run in (fresh, warm)]
    assert losses[0] != losses[1]
    assert not same(*(final_weights(run, 1) for run in (fresh, warm)))


def test_keeping_the_correction_optimizer_changes_round_two(shared_run):
    fresh, kept = shared_run(), shared_run(correction_keep_optimizer=True)
    assert fresh.losses()[:-1] == kept.losses()[:-1]
    assert not same(final_weights(fresh), final_weights(kept))


def test_conditional_samples_follow_each_clients_classes(start, run_config):
    strategy, _ = start(class_conditional=True, auxiliary_size=40, num_rounds=1)
    labels = strategy.auxiliary_data.labels
    assert len(labels) == 40
    assert set(labels.tolist()) == set(range(10))  # the clients' classes together, in their proportions
    assert max(torch.bincount(labels).tolist()) - min(torch.bincount(labels).tolist()) <= 3


@pytest.mark.parametrize("counts", [[5], [0] * 10, [1] * 11, [1e308] * 10, [10**9, *[0] * 9], [-1, 1, *[0] * 8]])
def test_label_counts_that_do_not_fit_leave_the_client_out(start, monkeypatch, counts):
    monkeypatch.setattr("fedddpm_app.experiment.task.DiffusionTask.label_counts", lambda self, partition_id: counts)
    with pytest.raises(RoundFailedError, match="pretrain: none of the 4 clients"):
        start(class_conditional=True)
