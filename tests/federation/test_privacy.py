"""Private runs: what leaves a client, what is refused, and a budget that no fault gives back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from flwr.app import MetricRecord
from torch import nn

import client_app
import server_app
from fedddpm_app import simulate
from fedddpm_app.algorithms import REGISTRY, find_algorithm, get_algorithm
from fedddpm_app.auxiliary.generation import Generation
from fedddpm_app.config import ConfigError, load_config
from fedddpm_app.federation.errors import RoundFailedError, TooFewRepliesError
from fedddpm_app.federation.flower_internals import Run
from fedddpm_app.federation.privacy.examples import Spending
from fedddpm_app.federation.start_notes import start_notes
from fedddpm_app.inprocess.grid import run_inprocess
from fedddpm_app.launch.leftovers import find_left_overs
from fedddpm_app.recording.reading import first_run_of
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.training.hooks import TrainingHook
from fedddpm_app.training.privacy import Spent, epsilon_of
from tests.conftest import RunDirectory

QUICK = {"preview-every": 0, "num-clients": 2, "batch-size": 32, "learning-rate": 0.01}
FEDAVG = QUICK | {"algorithm": "fedavg", "train-dp-epsilon": 3.0, "dp-secret-noise": False}
BOTH = QUICK | {"pretrain-dp-epsilon": 2.0, "train-dp-epsilon": 3.0, "dp-secret-noise": False}
ALLOWED = {"fedavg", "fedddpm", "fedddpm-kd", "fedprox", "feddyn", "fednova", "feddiffuse", "local-only"}
PRETRAIN_ONLY = {"aux-only", "kd-only", "mixture"}


class Tapped:
    """The ClientApp, with a copy of the metrics of each reply, and faults by the number of a training."""

    def __init__(self, lost=()):
        self.replies, self.lost, self.trained = [], lost, 0

    def __call__(self, message, context):
        kind = message.metadata.message_type
        reply = client_app.app(message, context)
        if not reply.has_error():
            self.replies.append((kind, dict(reply.content.metric_records.get("metrics", MetricRecord()))))
        if kind == "train":
            self.trained += 1
            if self.trained in self.lost:
                raise RuntimeError("the reply is lost")
        return reply


def run_of(run_config, app=None, **overrides):
    resolved = run_config | {key.replace("_", "-"): value for key, value in overrides.items()}
    run_inprocess(server_app.app, app or client_app.app, resolved, int(resolved["num-clients"]))
    return RunDirectory(Path(resolved["output-dir"]) / resolved["run-name"])


def ledgers(run_config):
    return ledgers_in(Path(run_config["state-dir"]))


def ledgers_in(states):
    folder = states / "privacy"
    return {path.stem: json.loads(path.read_text())["spent"] for path in sorted(folder.glob("*.json"))}


@pytest.mark.slow
def test_a_run_of_both_phases_ends_with_the_promised_epsilons(shared_run):
    """Also in total: above each phase, and below their sum."""
    run = shared_run(**BOTH)
    pretraining = next(row for row in run.stats if row["phase"] == "pretrain")
    assert set(pretraining["pretrain/dp_epsilon"]) == {"0", "1"}
    assert 1.9 < pretraining["pretrain/dp_epsilon_max"] <= 2.0
    first, last = run.rounds()
    for client in ("0", "1"):
        assert first["train/dp_epsilon"][client] < last["train/dp_epsilon"][client] <= 3.0
    assert last["train/dp_epsilon_max"] == max(last["train/dp_epsilon"].values()) > 2.7
    assert 3.0 < last["total/dp_epsilon_max"] < 5.0
    summary = run.summary
    assert summary["train/dp_epsilon"] == last["train/dp_epsilon_max"]
    assert summary["pretrain/dp_epsilon"] == pretraining["pretrain/dp_epsilon_max"]
    assert summary["total/dp_epsilon"] == last["total/dp_epsilon_max"]
    assert summary["train/dp_delta"] == summary["pretrain/dp_delta"] == summary["total/dp_delta"] == 1e-5
    assert summary["status"] == "completed"


@pytest.mark.slow
def test_no_number_of_private_images_leaves_but_their_count(run_config):
    app = Tapped()
    run = run_of(run_config, app, **BOTH)
    allowed = {"num-examples", "steps", "dp-epsilon", "dp-epsilon-total", "server-round"}
    trained = [metrics for kind, metrics in app.replies if kind == "train" or kind.endswith("pretrain")]
    assert len(trained) == 2 * (1 + 2)
    for metrics in trained:
        assert metrics.keys() == allowed
    assert "evaluate" not in [kind for kind, _ in app.replies]
    of_clients = ("train/loss", "train/final_loss", "train/client_loss", "client-eval/loss")
    assert not [key for row in run.stats for key in row if key in of_clients]
    assert next(row for row in run.stats if row["phase"] == "pretrain")["pretrain/client_loss"] == {}


@pytest.mark.slow
def test_a_client_refuses_to_evaluate_in_a_private_run(run_config, monkeypatch):
    monkeypatch.setattr(
        "fedddpm_app.federation.rounds.evaluation.is_private", lambda *_: False
    )  # its server asks all the same
    run = run_of(run_config, **FEDAVG, num_rounds=1)
    assert "client-eval/loss" not in run.rounds()[0]
    assert "no client to evaluate" in run.rounds()[0]["client-eval/left_out"]["0"]


@pytest.mark.slow
def test_the_ledger_has_the_steps_of_every_round(shared_run):
    found = ledgers_in(shared_run(**BOTH).path.parent / "state")
    for spent in found.values():
        assert [(row["phase"], row["steps"]) for row in spent] == [("pretrain", 3), ("train", 2 * 3)]
        assert all(row["noise_multiplier"] > 0.1 for row in spent)
    assert [name.rpartition("-client-")[2] for name in found] == ["0000", "0001"]


@pytest.mark.slow
def test_a_lost_reply_is_spent(run_config):
    """Client 0's first reply is lost; its second one has as much spent as that of client 1, whose replies all came."""
    run = run_of(run_config, Tapped(lost=[1]), **FEDAVG)
    first, second = (row["train/dp_epsilon"] for row in run.rounds())
    assert first.keys() == {"1"}
    assert second["0"] == pytest.approx(second["1"], abs=0.05)
    assert first["1"] < second["0"] <= 3.0


def test_a_repeated_round_ends_the_budget_in_the_last_one(run_config):
    """Round 1 is repeated, so that the three trainings of two planned rounds are one too many: a sentence each."""
    settings = FEDAVG | {"min-replies": 2, "max-round-retries": 1}
    with pytest.raises(RoundFailedError, match="would spend epsilon"):
        run_of(run_config, Tapped(lost=[1]), **settings)
    lines = (Path(run_config["output-dir"]) / "run" / "stats.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines[-2:])  # the attempts at round 2
    reasons = list(first["train/left_out"].values())
    assert len(reasons) == 2
    assert second["declined"] == [0, 1]  # they are not asked again
    assert all(reason.startswith("3 more private steps after 6 would spend epsilon = ") for reason in reasons)
    assert {row["steps"] for spent in ledgers(run_config).values() for row in spent} == {6}


@pytest.mark.slow
def test_what_is_spent_survives_a_resume_from_an_earlier_round(run_config):
    """A run of 3 rounds is resumed after round 1: rounds 2 and 3 are trained again, for which no budget is left."""
    settings = FEDAVG | {"num-rounds": 3, "checkpoint-keep": 3, "checkpoint-every": 1}
    run = run_of(run_config, **settings)
    for server_round in (2, 3):
        shutil.rmtree(run.path / "checkpoints" / f"round-{server_round:04d}")
    (run.path / "summary.json").write_text(json.dumps(run.summary | {"status": "failed"}))
    with pytest.raises(RoundFailedError, match="would spend epsilon"):
        run_of(run_config, **settings, resume=str(run.path))
    assert len(ledgers(run_config)) == 2  # not two more, of the second process
    assert {row["steps"] for spent in ledgers(run_config).values() for row in spent} == {9}


def test_a_run_that_is_resumed_from_its_start_keeps_its_account(tmp_path):
    recorder = RunRecorder(tmp_path / "run")
    recorder.write_config({}, Run.create_empty(11))
    for again in (22, 33):
        recorder.end("failed", {})
        recorder = RunRecorder.resume(tmp_path / "run", None)
        recorder.add_to_config({}, Run.create_empty(again), None)
        assert recorder.first_run == "11"
    (tmp_path / "run" / "config.json").write_text('{"run_config": {}}')
    with pytest.raises(ConfigError, match=r'resume: .*config.json has no "run_id", .* restore the file'):
        first_run_of(tmp_path / "run")


@pytest.mark.slow
def test_a_run_whose_working_files_are_gone_keeps_its_account(run_config, monkeypatch):
    """Its clients have spent their budget of pretraining, and begin no second account."""
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "run", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_of(run_config, **BOTH)
    directory = Path(run_config["output-dir"]) / "run"
    for item in find_left_overs(directory.parent):
        assert item.remove()  # as `fedddpm clean --resumable` does
    assert not (directory / "unfinished").exists()
    spent = ledgers(run_config)
    with pytest.raises(TooFewRepliesError, match="would spend epsilon"):
        run_of(run_config, **BOTH, resume=str(directory))
    assert ledgers(run_config) == spent
    assert len(spent) == 2


@pytest.mark.slow
def test_equal_seeds_repeat_a_run_and_secret_noise_does_not(run_config):
    def weights(name, **more):
        run = run_of(run_config | {"run-name": name}, **FEDAVG | {"num-rounds": 1}, **more)
        return next(run.path.glob("checkpoints/round-0001/model.safetensors")).read_bytes()

    open_noise = weights("a")
    assert weights("b") == open_noise
    secret = weights("c", dp_secret_noise=True)
    assert secret != open_noise
    assert weights("d", dp_secret_noise=True) != secret


@pytest.mark.slow
@pytest.mark.parametrize("wire", [{"wire-dtype": "int8-delta"}, {"transport": "arrays"}, {"algorithm": "feddiffuse"}])
def test_private_weights_travel_as_others_do(run_config, wire):
    run = run_of(run_config, **FEDAVG | wire)
    assert 2.7 < run.summary["train/dp_epsilon"] <= 3.0


# ---- simulate


def points(count, seed):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def distance(model, batch):
    return (model(batch) - batch.sum(1, keepdim=True)).square().mean()


@pytest.mark.slow
def test_simulate_trains_privately_and_learns_with_a_large_budget():
    torch.manual_seed(0)
    model, data = nn.Linear(2, 1), [points(400, 0), points(300, 1)]

    def after(epsilon):
        weights, history = simulate(
            "fedavg", model, distance, data, 3, 20, 0.2, batch_size=50, train_dp_epsilon=epsilon
        )
        return float((weights["weight"] - 1).norm()), history[-1]["train/dp_epsilon_max"]

    error, epsilon = after(8.0)
    assert error < 0.2
    assert 7.2 < epsilon <= 8.0


@pytest.mark.slow
def test_private_updates_can_be_masked():
    """The same noise with and without masks: the mean and the account are the same, and no loss leaves."""
    data, found = [points(40, 0), points(30, 1)], []
    settings = {"batch_size": 10, "train_dp_epsilon": 8.0, "dp_secret_noise": False}
    for secure in (False, True):
        torch.manual_seed(0)
        weights, history = simulate(
            "fedavg", nn.Linear(2, 1), distance, data, 2, 3, 0.1, secure_aggregation=secure, **settings
        )
        found.append((weights["weight"], history[-1]["train/dp_epsilon"], history[-1]["compute/steps"]))
        assert not [key for key in history[-1] if "loss" in key]
    assert torch.allclose(found[1][0], found[0][0], rtol=0, atol=1e-7)
    assert found[1][1:] == found[0][1:]


def test_a_canary_moves_the_weights_by_no_more_than_the_clip():
    """The same seed with and without an extreme example that each step uses: eta K C / n, in one round of SGD."""
    torch.manual_seed(0)
    model, found = nn.Linear(2, 1, bias=False), []
    for canary in (torch.empty(0, 2), torch.full((1, 2), 1e4)):
        data = torch.cat([points(20, 0), canary])
        settings = {"train_dp_epsilon": 1000.0, "dp_secret_noise": False, "dp_clip": 0.5, "gradient_clip": 0.0}
        weights, _ = simulate("fedavg", model, distance, [data], 1, 1, 0.1, **settings)
        found.append(weights["weight"] * len(data))  # each step divides by n
    start = next(model.parameters()).detach().double()
    moved = (found[1] - 21 * start) - (found[0] - 20 * start)
    assert float(moved.norm()) == pytest.approx(0.1 * 0.5, rel=1e-3)


# ---- what is refused


def private(run_config, name, **more):
    return get_algorithm(load_config(run_config | QUICK | {"algorithm": name} | more))


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_every_algorithm_is_allowed_or_refused_with_the_reason(run_config, name):
    rounds, pretraining = {"train-dp-epsilon": 3.0}, {"pretrain-dp-epsilon": 3.0}
    if name in {*ALLOWED, "scaffold"}:
        private(run_config, name, **rounds, **pretraining)
        return
    with pytest.raises(ConfigError, match=r"^(pl|tr).*" + f"{name}|train-loss"):
        private(run_config, name, **rounds)
    if name in {*PRETRAIN_ONLY, "fedddpm-plus"}:
        private(run_config, name, **pretraining)


def test_scaffold_is_private_with_option_two_alone(run_config):
    with pytest.raises(ConfigError, match="Option I of its control variates is the gradient of all a client's images"):
        private(run_config, "scaffold", **{"train-dp-epsilon": 3.0, "scaffold-option": "I"})


def test_fedddpm_plus_needs_a_signal_without_private_losses(run_config):
    private(run_config, "fedddpm-plus", **{"train-dp-epsilon": 3.0, "plus-signal": "probe-loss"})
    with pytest.raises(ConfigError, match='report no loss; use plus-signal = "probe-loss"'):
        private(run_config, "fedddpm-plus", **{"train-dp-epsilon": 3.0})


def test_classes_of_private_pretraining_are_refused(run_config):
    with pytest.raises(ConfigError, match="number of images per class, without noise"):
        private(run_config, "fedddpm", **{"pretrain-dp-epsilon": 3.0, "class-conditional": True})
    private(run_config, "fedavg", **{"train-dp-epsilon": 3.0, "class-conditional": True})


def test_a_hook_that_does_not_answer_for_itself_is_refused(run_config, monkeypatch):
    fedprox = find_algorithm("fedprox")
    monkeypatch.setattr(fedprox, "hook", type("Mine", (fedprox.hook,), {}))
    with pytest.raises(ConfigError, match="Mine does not define why_not_private"):
        private(run_config, "fedprox", **{"train-dp-epsilon": 3.0})
    assert TrainingHook.why_not_private(load_config(run_config)) == ""


# ---- notes and records


@pytest.mark.parametrize(
    ("given", "said", "not_said"),
    [
        ({"train-dp-epsilon": 3.0}, "pretrain-dp-epsilon = 0: the pretrained models have no", "of the local rounds"),
        (
            {"pretrain-dp-epsilon": 3.0},
            "train-dp-epsilon = 0: the weights of the local rounds",
            "the pretrained models",
        ),
        ({"train-dp-epsilon": 3.0, "pretrain-dp-epsilon": 1.0}, "the run cannot be repeated", "no guarantee"),
        ({"train-dp-epsilon": 3.0, "dp-secret-noise": False}, "those who do not know the seed", "cannot be repeated"),
        ({"train-dp-epsilon": 3.0, "algorithm": "fedavg"}, "dp-clip replaces gradient-clip", "no guarantee"),
        ({"pretrain-dp-epsilon": 3.0, "algorithm": "aux-only"}, "no losses of clients", "no guarantee"),
        (
            {"pretrain-dp-epsilon": 3.0, "algorithm": "fedavg"},
            "pretrain-dp-epsilon = 3.0 is set, but has no",
            "private",
        ),
        ({"dp-clip": 3.0}, "dp-clip = 3.0 is set, but has no effect: pretrain-dp-epsilon = 0 and", "no guarantee"),
    ],
    ids=str,
)
def test_a_run_notes_what_has_no_guarantee(run_config, given, said, not_said):
    changed = run_config | given
    config = load_config(changed)
    notes = start_notes(get_algorithm(config), config, changed)
    assert any(said in note for note in notes), notes
    assert not any(not_said in note for note in notes if "is set, but" not in note), notes


def test_spending_is_kept_over_a_checkpoint():
    spending = Spending()
    assert spending.of("train") == {}
    spending.know("pretrain", {0: 1.0, 1: 2.0})
    again = Spending()
    again.load_state_dict(json.loads(json.dumps(spending.state_dict())))
    assert again.of("pretrain") == {"pretrain/dp_epsilon": {"0": 1.0, "1": 2.0}, "pretrain/dp_epsilon_max": 2.0}
    assert again.of("total")["total/dp_epsilon_max"] == 2.0


def test_a_pretraining_after_the_rounds_adds_to_the_total():
    """Also where no reply of a later round says so; nothing that was spent is taken back."""
    spending = Spending()
    for phase in ("train", "total"):
        spending.know(phase, {0: 2.0})
    spending.know("pretrain", {0: 1.0})
    spending.know("total", {0: 2.5})
    assert spending.epsilon == {"pretrain": {0: 1.0}, "train": {0: 2.0}, "total": {0: 2.5}}
    spending.know("total", {0: 2.0})
    assert spending.epsilon["total"] == {0: 2.5}


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["models", "images"])
def test_the_summary_has_what_the_clients_have_spent_if_they_pretrain_last(run_config, sharing):
    more = {"pretrain-from": "global", "num-rounds": 1, "auxiliary-sharing": sharing}
    run = run_of(run_config, **BOTH | more)
    spent = [[Spent(**row) for row in rows] for rows in ledgers(run_config).values()]
    assert all({row.phase for row in rows} == {"train", "pretrain"} for rows in spent)
    assert run.summary["total/dp_epsilon"] == pytest.approx(max(epsilon_of(rows, 1e-5) for rows in spent))
    assert run.summary["total/dp_epsilon"] > run.summary["train/dp_epsilon"]
