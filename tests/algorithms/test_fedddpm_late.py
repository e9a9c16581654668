"""FedDDPM-Late: rounds, fine-tuning, vote, distillation; the mean where the mean wins."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from fedddpm_app import weights as weights_module
from fedddpm_app.algorithms.fedddpm_late import FedDDPMLate, anneal, fine_tune
from fedddpm_app.auxiliary.pretraining import train_own_model
from fedddpm_app.client.worker import Worker
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.training.actions import ClientAction
from tests.algorithms.problems import CLIENTS, run

LATE = {"algorithm": "fedddpm-late"}
LOCAL = LATE | {"late_teacher": "local"}


def final_weights(run, server_round=2, kind="model"):
    return load_file(run.path / "checkpoints" / f"round-{server_round:04d}" / f"{kind}.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def fine_tuned(config, weights, server_round=2):
    """Every client's own model and its number of images, without Flower."""
    worker = Worker(config, DiffusionTask(config))
    answers = [
        worker.act(ClientAction(fine_tune), p, server_round, weights, {}) for p in range(config.data.num_clients)
    ]
    return [(answer.records["arrays"], answer.metrics["num-examples"]) for answer in answers]


@pytest.mark.slow
def test_without_distillation_steps_it_is_the_mean_of_the_fine_tuned_models_bit_for_bit(shared_run, run_config):
    rounds = final_weights(shared_run(algorithm="fedavg"))
    expected = weights_module.weighted_mean(fine_tuned(load_config(run_config), rounds))
    assert same(final_weights(shared_run(**LATE, correction_steps=0)), expected)


def test_one_client_ends_with_its_own_fine_tuned_model(shared_run, run_config):
    alone = {"num_clients": 1, "partition": "iid", "num_rounds": 1}
    rounds = final_weights(shared_run(algorithm="fedavg", **alone), 1)
    config = load_config(run_config | {"num-clients": 1, "partition": "iid"})
    ((own, _),) = fine_tuned(config, rounds, 1)
    assert same(final_weights(shared_run(**LATE, correction_steps=0, **alone), 1), own)


def test_a_vote_for_the_mean_is_the_mean_where_nothing_is_saved(shared_run):
    """The set and the distillation cost less than one step of each client, so that no second fine-tuning follows."""
    run = shared_run(**LATE)
    assert run.rounds()[-1]["late/teacher"] == "mean"
    assert run.rounds()[-1]["late/anneal_steps"] == 0
    assert same(final_weights(run), final_weights(shared_run(**LATE, correction_steps=0)))


@pytest.mark.slow
def test_the_saved_steps_go_to_a_second_fine_tuning(shared_run):
    run = shared_run(**LATE, late_teacher="mean", correction_steps=20)
    row = run.rounds()[-1]
    assert row["late/anneal_steps"] == (20 * 4 / 3 + 12 * 2 / 3 / 8) // 4
    assert not same(final_weights(run), final_weights(shared_run(**LATE, correction_steps=0)))
    local = shared_run(**LOCAL, correction_steps=20)
    assert abs(local.summary["compute/steps"] - run.summary["compute/steps"]) < 4, "both outcomes cost the same"


def test_local_models_generate_and_teach(shared_run):
    run = shared_run(**LOCAL)
    assert run.phases() == ["initial", "round", "fine_tune", "auxiliary", "round"]
    assert run.rounds()[-1]["correct/steps"] == 2
    assert (run.path / "auxiliary" / "dataset").is_dir()
    assert not same(final_weights(run), final_weights(shared_run(**LATE, correction_steps=0)))


def test_the_rounds_before_are_those_of_fedavg(shared_run):
    late, fedavg = shared_run(**LOCAL), shared_run(algorithm="fedavg")
    assert late.rounds()[0]["eval/loss"] == fedavg.rounds()[0]["eval/loss"]
    assert late.rounds()[1]["train/loss"] == fedavg.rounds()[1]["train/loss"]


def test_the_moving_average_ends_with_the_result(shared_run):
    run = shared_run(**LOCAL)
    assert same(final_weights(run), final_weights(run, kind="ema"))


@pytest.mark.parametrize(
    ("own", "under_mean", "wins"),
    [
        ({0: 1.0, 1: 1.0, 2: 3.0}, {0: 2.0, 1: 2.0, 2: 2.0}, False),  # two small clients against a large one
        ({0: 1.0, 1: 1.0, 2: 3.0}, {0: 2.0, 1: 2.0}, True),  # the large one does not answer
        ({0: 1.0, 1: 1.0, 2: 1.0}, {0: 2.0}, False),  # fewer votes than min-replies
        ({0: 3.0, 1: 3.0, 2: 1.0}, {0: 2.0, 1: 2.0, 2: 2.0}, True),
        ({0: 2.0, 1: 2.0, 2: 2.0}, {0: 2.0, 1: 2.0, 2: 2.0}, False),  # a tie is for the mean
        ({0: None, 1: 1.0, 2: 1.0}, {1: 2.0, 2: 2.0}, True),  # a client without a loss of its own does not vote
        ({0: None, 1: None, 2: None}, {}, False),
        ({0: 1.0, 1: 1.0, 2: 1.0}, {}, False),
    ],
)
def test_votes_count_by_examples(run_config, tmp_path, monkeypatch, own, under_mean, wins):
    config = load_config(run_config | LATE | {"min-replies": 2})
    strategy = FedDDPMLate(config, RunRecorder(tmp_path / "run"), DiffusionTask(config))
    sizes = {0: 10, 1: 20, 2: 40}
    models = [SimpleNamespace(partition_id=p, num_examples=sizes[p], held_out_loss=loss) for p, loss in own.items()]
    asked = []

    def ask_clients(action, weights, partitions):
        asked.extend(partitions)
        replies = [
            SimpleNamespace(partition_id=p, num_examples=5, number=lambda _, loss=loss: loss)
            for p, loss in under_mean.items()
        ]
        return SimpleNamespace(answers=lambda: replies)

    monkeypatch.setattr(strategy, "ask_clients", ask_clients)
    assert strategy.choose_local(models, {}) is wins
    assert asked == [p for p, loss in own.items() if loss is not None]


def test_a_second_fine_tuning_starts_from_the_mean(shared_run, run_config):
    """Its result is the mean of what the clients make of the mean of the first fine-tuning."""
    run = shared_run(**LATE, late_teacher="mean", correction_steps=20)
    steps = run.rounds()[-1]["late/anneal_steps"]
    config, mean = load_config(run_config), final_weights(shared_run(**LATE, correction_steps=0))
    worker = Worker(config, DiffusionTask(config))
    answers = [worker.act(ClientAction(anneal), p, 2, mean, {"steps": steps}) for p in range(4)]
    expected = weights_module.weighted_mean((a.records["arrays"], a.metrics["num-examples"]) for a in answers)
    assert steps > 0
    assert same(final_weights(run), expected)


def test_a_client_without_held_out_images_fine_tunes_and_does_not_vote(run_config, monkeypatch):
    config = load_config(run_config | LATE)
    worker = Worker(config, DiffusionTask(config))
    weights = weights_module.snapshot(worker.task.create_model())
    assert "held-out-loss" in worker.act(ClientAction(fine_tune), 0, 2, weights, {}).metrics
    for loss in (float("nan"), ValueError("it has only one image")):
        monkeypatch.setattr(DiffusionTask, "held_out_loss", lambda *_, loss=loss: raising(loss))
        answer = worker.act(ClientAction(fine_tune), 0, 2, weights, {})
        assert "held-out-loss" not in answer.metrics
        assert answer.records["arrays"]


def raising(loss):
    if isinstance(loss, Exception):
        raise loss
    return loss, 1


@pytest.mark.slow
def test_a_subclass_can_leave_the_distillation_out(run_app, shared_run, monkeypatch):
    monkeypatch.setattr(FedDDPMLate, "should_correct", lambda *_: False)
    assert same(final_weights(run_app(**LOCAL)), final_weights(shared_run(**LATE, correction_steps=0)))


def test_a_failed_second_fine_tuning_leaves_the_mean(run_app, shared_run, monkeypatch):
    monkeypatch.setattr("fedddpm_app.algorithms.fedddpm_late.train_own_model", failing_to_anneal)
    run = run_app(**LATE, late_teacher="mean", correction_steps=20)
    assert run.summary["status"] == "completed"
    assert same(final_weights(run), final_weights(shared_run(**LATE, correction_steps=0)))


def failing_to_anneal(request, steps, purpose, server_round):
    if purpose == "anneal":
        raise RuntimeError("out of memory")
    return train_own_model(request, steps, purpose, server_round)


def test_more_than_half_of_the_images_may_be_held_out(shared_run):
    row = shared_run(**LATE, held_out_fraction=0.7).rounds()[-1]
    assert len(row["vote/mean_loss"]) == 4
    assert "vote/left_out" not in row


def test_a_vote_is_recorded(shared_run):
    row = shared_run(**LATE).rounds()[-1]
    assert set(row["vote/local_loss"]) == set(row["vote/mean_loss"]) == {"0", "1", "2", "3"}
    assert row["vote/local"] == [p for p in range(4) if row["vote/local_loss"][str(p)] < row["vote/mean_loss"][str(p)]]


@pytest.mark.slow
def test_cycles_repeat_all_of_it(shared_run, run_config):
    """The first of two cycles is the run with one cycle and half the rounds."""
    whole, half = shared_run(**LOCAL, late_cycles=2), shared_run(**LOCAL, num_rounds=1)
    assert whole.phases() == ["initial", *(["fine_tune", "auxiliary", "round"] * 2)]
    assert whole.rounds()[0]["eval/loss"] == half.rounds()[0]["eval/loss"]
    assert [row["round"] for row in whole.stats if row["phase"] == "fine_tune"] == [1, 2]
    assert not list(whole.path.rglob("fine_tune-*"))
    config = load_config(run_config | LATE | {"late-teacher": "local", "late-cycles": 2})
    sizes = DiffusionTask(config).client_sizes()
    assert whole.summary["compute/steps"] == pytest.approx(FedDDPMLate.cost(config, sizes).steps)


@pytest.mark.parametrize(
    ("overrides", "fix"),
    [
        ({"late-cycles": 3}, "late-cycles = 3 is more than num-rounds = 2"),
        ({"held-out-fraction": 0.0}, 'use held-out-fraction = 0.1, or late-teacher = "local"'),
        ({"init-from-pretrained": True}, "use init-from-pretrained = false"),
    ],
)
def test_what_it_cannot_use_is_refused(run_config, overrides, fix):
    with pytest.raises(ConfigError, match=fix):
        FedDDPMLate.check_config(load_config(run_config | LATE | overrides))


def test_simulate_refuses_a_model_that_cannot_generate():
    with pytest.raises(ConfigError, match="cannot generate an auxiliary set"):
        run("fedddpm-late", CLIENTS, late_teacher="local", correction_steps=1)
