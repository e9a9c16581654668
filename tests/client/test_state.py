"""What a client keeps: written whole, checked when read, gone when the run is over."""

import logging
from dataclasses import replace

import pytest
import torch
from flwr.app import Context, RecordDict

import client_app
from fedddpm_app.algorithms import REGISTRY, get_algorithm
from fedddpm_app.algorithms.scaffold import VARIATE_CHANGE, Scaffold, ScaffoldHook
from fedddpm_app.apps.resuming import MAY_CHANGE
from fedddpm_app.client.state import ClientState, ClientStateError
from fedddpm_app.config import default_run_config, load_config
from fedddpm_app.experiment.task import DiffusionTask
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.messages.records import to_arrays
from fedddpm_app.federation.messages.replies import ReplyRefusedError
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.inprocess.simulate import simulate
from fedddpm_app.recording.recorder import RunRecorder
from fedddpm_app.weights import snapshot
from tests.algorithms.problems import CLIENTS, RATE, STEPS, Point, quadratic, run, same
from tests.algorithms.test_scaffold import reference

DEFAULTS = default_run_config()
STATEFUL = [n for n, kind in REGISTRY.items() if kind.keeps_state(load_config(DEFAULTS | {"algorithm": n}))]


@pytest.fixture
def context():
    return Context(run_id=7, node_id=1, node_config={}, state=RecordDict(), run_config={})


@pytest.fixture
def open_state(config, context):
    return lambda state_round=0: ClientState(config, context, "7", 3, state_round)


def make(value):
    return {"dual": {"a.weight": torch.full((2, 3), value), "b": torch.tensor(value, dtype=torch.float64)}}


def test_what_is_saved_is_there_next_time_in_its_dtypes(open_state):
    assert dict(open_state()) == {}
    open_state().save(1, make(1.5))
    loaded = open_state(1)
    assert list(loaded) == ["dual"]
    assert torch.equal(loaded["dual"]["a.weight"], torch.full((2, 3), 1.5))
    assert loaded["dual"]["b"].dtype == torch.float64
    assert loaded.get("other") is None


def test_the_context_holds_a_marker_and_no_weights(open_state, context):
    open_state().save(4, make(1.0))
    (marker,) = context.state.config_records.values()
    assert list(marker) == ["4"]
    assert len(marker["4"]) == 64
    assert not context.state.array_records


def test_clients_and_runs_do_not_share(open_state, config):
    open_state().save(1, make(1.0))
    for run_id, partition in ((8, 3), (7, 2)):
        other = Context(run_id=run_id, node_id=1, node_config={}, state=RecordDict(), run_config={})
        ClientState(config, other, str(run_id), partition).save(1, make(2.0))
    assert float(open_state(1)["dual"]["b"]) == 1.0


def test_a_run_with_other_settings_does_not_read_it(open_state, config, context):
    """One that collects the clients' models could name the run of one that does not."""
    open_state().save(1, make(1.0))
    other = replace(config, feddiffuse=replace(config.feddiffuse, collect_models=not config.feddiffuse.collect_models))
    with pytest.raises(ClientStateError, match="is that of a run with other settings"):
        ClientState(other, context, "7", 3, 1)["dual"]


def test_a_run_with_other_settings_does_not_remove_it(open_state, config, context):
    """A message names the run whose state is to be forgotten."""
    open_state().save(1, make(0.5))
    other = ClientState(replace(config, training=replace(config.training, learning_rate=0.5)), context, "7", 3, 1)
    other.forget()
    other.save(2, make(0.7))
    assert len([*open_state().folder.glob("*.safetensors")]) == 2
    assert torch.equal(open_state(1)["dual"]["b"], make(0.5)["dual"]["b"])


def test_a_resumed_run_may_change_no_key_by_which_a_state_is_known(run_config):
    known = load_config(run_config).about_training
    values = {"num-rounds": 9, "pretrain-timeout": 9.0, "node-timeout": 9.0, "min-replies": 2, "checkpoint-every": 2}
    values |= {"preview-images": 20, "eval-every": 2, "memorization-rate": 0.5, "wire-dtype": "fp32"}
    for key, value in values.items():
        assert key.startswith((*MAY_CHANGE, "wire-dtype"))
        assert load_config(run_config | {key: value}).about_training == known, key
    for key, value in {"learning-rate": 0.5, "algorithm": "scaffold", "feddiffuse-collect-models": False}.items():
        assert load_config(run_config | {key: value}).about_training != known, key


def test_a_lost_file_is_one_sentence_with_its_path(open_state):
    state = open_state()
    state.save(5, make(1.0))
    (file,) = state.folder.iterdir()
    file.unlink()
    with pytest.raises(ClientStateError, match=r"its state of round 5 is lost: .*client-0003-round-0005") as lost:
        open_state(5)["dual"]
    assert "state-dir" in str(lost.value)


def test_a_restarted_node_goes_on_from_its_files(open_state, context):
    open_state().save(5, make(1.0))
    context.state = RecordDict()  # what a restarted SuperNode has
    assert float(open_state(5)["dual"]["b"]) == 1.0
    open_state(5).save(6, make(2.0))
    context.state = RecordDict()
    assert float(open_state(5)["dual"]["b"]) == 1.0  # the reply of round 6 was lost with the node
    (file,) = open_state().folder.glob("*round-0006*")
    file.write_bytes(file.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ClientStateError, match=r"its state of round 6 has changed: .* another SHA-256"):
        open_state(6)["dual"]
    with pytest.raises(ClientStateError, match=r"its state of round 7 is lost: .*round-0007-unknown"):
        open_state(7)["dual"]


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_changed_file_is_not_read(open_state, content):
    state = open_state()
    state.save(5, make(1.0))
    (file,) = state.folder.iterdir()
    file.write_bytes(file.read_bytes()[:-1] + b"\x01" if content is None else content)
    with pytest.raises(ClientStateError, match=r"its state of round 5 has changed: .* another SHA-256"):
        open_state(5)["dual"]


def test_a_client_goes_on_from_the_round_that_the_server_accepted(open_state):
    open_state(0).save(1, make(1.0))
    open_state(1).save(2, make(2.0))
    assert float(open_state(2)["dual"]["b"]) == 2.0
    assert float(open_state(1)["dual"]["b"]) == 1.0  # the reply of round 2 was lost or refused
    assert dict(open_state(0)) == {}
    open_state(1).save(3, make(3.0))
    kept = [p.name.rsplit("-", 1)[0] for p in sorted(open_state().folder.iterdir())]
    assert kept == [f"client-0003-round-000{server_round}" for server_round in (1, 2, 3)]
    open_state(3).save(4, make(4.0))
    open_state(4).save(5, make(5.0))  # one earlier state more than the server keeps checkpoints
    with pytest.raises(ClientStateError, match="round 1 is lost"):
        open_state(1)["dual"]
    assert float(open_state(2)["dual"]["b"]) == 2.0


def test_the_states_of_permanent_checkpoints_are_kept(config, context):
    config = load_config(default_run_config() | {"checkpoint-keep": 0, "checkpoint-every": 4})
    state_round = 0
    for server_round in (1, 2, 3, 6, 7, 9, 10, 11):  # it was not sampled in the others
        ClientState(config, context, "7", 3, state_round).save(server_round, make(float(server_round)))
        state_round = server_round
    folder = ClientState(config, context, "7", 3).folder
    assert sorted(int(path.name.split("-")[3]) for path in folder.iterdir()) == [3, 7, 10, 11]


def test_forgetting_removes_the_files_and_the_marker(open_state, context):
    open_state().save(1, make(1.0))
    open_state().forget()
    assert not context.state.config_records
    assert not open_state().folder.exists()
    open_state().forget()  # nothing to forget


@pytest.mark.parametrize(
    "algorithm", [name if name == "feddyn" else pytest.param(name, marks=pytest.mark.slow) for name in STATEFUL]
)
def test_a_finished_run_leaves_no_state(shared_run, algorithm):
    run = shared_run(algorithm=algorithm)
    assert not list((run.path.parent / "state").rglob("*.safetensors"))


class LosesFiles(InProcessGrid):
    """Client 1 loses its files before round 2; another client's disk may fail at the same time."""

    lost = (1,)

    def _answer(self, message):
        if message.metadata.message_type == "train" and message.content["config"]["server-round"] == 2:
            for partition in self.lost:
                for path in self.state_dir.rglob(f"client-{partition:04d}*"):
                    path.unlink()
        return super()._answer(message)


@pytest.fixture
def start(run_config, tmp_path):
    def run(algorithm, lost):
        resolved = run_config | {"algorithm": algorithm}
        config = load_config(resolved)
        task = DiffusionTask(config)
        strategy = get_algorithm(config)(config, RunRecorder(tmp_path / f"strategy-{algorithm}"), task)
        grid = LosesFiles(client_app.app, 4, resolved)
        grid.lost, grid.state_dir = lost, tmp_path / "state"
        strategy.start(grid, to_arrays(snapshot(task.create_model())), num_rounds=2)
        return strategy

    return run


@pytest.mark.parametrize("algorithm", STATEFUL)
def test_a_client_that_lost_its_state_is_named_and_left_out(start, algorithm):
    strategy = start(algorithm, lost=(1,))
    assert set(strategy.recorder.stats[-1]["train/client_loss"]) == {"0", "2", "3"}
    assert "its state of round 1 is lost" in strategy.clients.refusals[1]


def test_when_all_clients_lost_their_state_the_run_ends_with_the_reason(start):
    with pytest.raises(
        RoundFailedError, match=r"round 2: none of the 4 clients .* client 0: its state of round 1 is lost"
    ):
        start("scaffold", lost=(0, 1, 2, 3))


def test_a_client_that_diverged_once_comes_back_as_it_was(caplog, monkeypatch):
    """SCAFFOLD equals its transcription in which the client was not there in that round: both sides are as before."""
    monkeypatch.setattr(logging.getLogger("fedddpm"), "propagate", True)
    now = {}

    class Tells(Scaffold):
        def broadcast(self, server_round):
            now["round"] = server_round
            return super().broadcast(server_round)

    def loss(model, batch):
        once = now["round"] == 2 and len(batch[0]) == len(CLIENTS[1][0])
        return quadratic(model, batch) * (float("nan") if once else 1.0)

    weights, history = simulate(Tells, Point(), loss, CLIENTS, 4, STEPS, RATE)
    everyone = ["0", "1", "2"]
    assert [sorted(row["train/client_loss"]) for row in history] == [everyone, ["0", "2"], everyone, everyone]
    expected = reference(CLIENTS, "II", rounds=4, sampled=[(0, 1, 2), (0, 2), (0, 1, 2), (0, 1, 2)])
    assert same(weights["x"].numpy(), expected)
    assert "client 1 is left out: its training diverged, with a last loss of nan: lower learning-rate" in caplog.text


def test_a_reply_that_the_server_refused_leaves_the_clients_state_as_it_was():
    class Refuses(Scaffold):
        def broadcast(self, server_round):
            self.now = server_round
            return super().broadcast(server_round)

        def check_reply(self, reply):
            if (self.now, reply.partition_id) == (2, 1):
                raise ReplyRefusedError("not today")

    expected = reference(CLIENTS, "II", rounds=4, sampled=[(0, 1, 2), (0, 2), (0, 1, 2), (0, 1, 2)])
    assert same(run(Refuses, rounds=4), expected)


@pytest.mark.parametrize("where", ["kept", "sent"])
def test_what_is_not_finite_is_neither_kept_nor_sent(where):
    class Breaks(ScaffoldHook):
        def on_end(self, result, full_gradient):
            super().on_end(result, full_gradient)
            for record in getattr(self, where).values():
                record["x"] = record["x"] * float("nan")

    class Mutant(Scaffold):
        hook = Breaks

    with pytest.raises(RoundFailedError, match=f"in self.{where} of the hook, is not finite: lower learning-rate"):
        run(Mutant)


def test_the_stateful_algorithms_are_known():
    assert STATEFUL == ["scaffold", "feddyn", "moon", "feddiffuse", "local-only"]


def test_a_record_that_was_not_asked_for_is_told():
    class Forgets(Scaffold):
        def prepare(self, grid, weights):
            weights = super().prepare(grid, weights)
            del self.reply_references[VARIATE_CHANGE]
            return weights

    with pytest.raises(KeyError, match=r"name it in the strategy.s reply_references"):
        run(Forgets)
