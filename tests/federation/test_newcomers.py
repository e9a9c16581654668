"""A partition belongs to a node: what a newcomer that claims it gets in the run, and what it never gets."""

import json
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

import client_app
import server_app
from fedddpm_app.auxiliary.generation import Generation
from fedddpm_app.config import ConfigError
from fedddpm_app.federation.admission import Admission
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.flower_internals import NodeInfo, TaskType
from fedddpm_app.federation.messages.actions import ActionCall
from fedddpm_app.federation.messages.replies import GONE
from fedddpm_app.federation.nodes.bindings import NOT_ITS_OWN, Bindings
from fedddpm_app.federation.nodes.roll_call import RollCall
from fedddpm_app.federation.security_log import SecurityLog
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.inprocess.recorder import MemoryRecorder
from fedddpm_app.training.actions import ClientAction
from fedddpm_app.transport import Transport
from tests.algorithms.peers import SAME_SPEED, Failing, on, run_peers
from tests.conftest import RunDirectory

OWNER, NEWCOMER = 1001, 2001  # two nodes that claim partition 1
GENERATE, TRAIN, PEER_TRAIN, PEER_SCORE = "train.generate", "train", "train.train_and_submit", "train.score"


class Claimed(InProcessGrid):
    """A deployment in this process; ``received`` has each message's node and type."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self._run.primary_task_type = TaskType.SERVER_APP
        self.hidden, self.received = set(), []

    def get_node_ids(self):
        return [node for node in self.contexts if node not in self.hidden]

    def claim(self):
        """Have the newcomer claim the owner's partition, whose node is gone."""
        self.contexts[NEWCOMER] = newcomer_like(self.contexts[OWNER])
        self.hidden = {OWNER}
        return self

    def types_at(self, node):
        return {message_type for receiver, message_type in self.received if receiver == node}

    def _answer(self, message):
        self.received.append((message.metadata.dst_node_id, message.metadata.message_type))
        return super()._answer(message)


def newcomer_like(owner):
    return Context(
        run_id=owner.run_id,
        node_id=NEWCOMER,
        node_config=dict(owner.node_config),
        state=RecordDict(),
        run_config=dict(owner.run_config),
    )


@pytest.fixture
def claimed(run_config):
    return Claimed(client_app.app, 4, run_config)


def run_on(grid, config):
    context = Context(run_id=grid.run.run_id, node_id=1, node_config={}, state=RecordDict(), run_config=dict(config))
    server_app.app(grid=grid, context=context)
    return RunDirectory(folder_of(config))


def folder_of(config):
    return Path(str(config["output-dir"])) / str(config["run-name"])


def test_a_node_that_comes_back_gets_its_partition_back_from_a_newcomer(claimed):
    call = RollCall(claimed, 4, 0.2)
    participants = call.start(0)
    claimed.claim()
    call.update(participants, 1)
    assert participants.node_of[1] == NEWCOMER
    claimed.hidden = set()
    call.update(participants, 1)
    assert participants.node_of[1] == OWNER


def test_a_newcomer_of_a_resumed_run_trains_and_is_not_sent_the_clients_model(run_config, monkeypatch):
    config = run_config | {"auxiliary-generation": "nodes", "num-rounds": 1}
    with monkeypatch.context() as patch:
        patch.setattr(Generation, "run", lambda _: (_ for _ in ()).throw(RuntimeError("stopped")))
        with pytest.raises(RuntimeError, match="stopped"):
            run_on(Claimed(client_app.app, 4, config), config)
    resumed = config | {"resume": str(folder_of(config))}
    grid = Claimed(client_app.app, 4, resumed).claim()
    run = run_on(grid, resumed)
    assert sorted(run.rounds()[0]["train/client_loss"]) == ["0", "1", "2", "3"]
    assert TRAIN in grid.types_at(NEWCOMER)
    assert GENERATE in grid.types_at(1000)
    assert GENERATE not in grid.types_at(NEWCOMER)
    log = [json.loads(line) for line in (run.path / "security.jsonl").read_text().splitlines()]
    assert [line["event"] for line in log] == ["started", "joined", "resumed", "joined", "withheld"]
    assert log[3]["newcomers"] == [1]
    assert log[4]["action"] == "generate"
    assert log[0]["code_sha256"] == log[2]["code_sha256"]


def test_a_newcomer_is_no_peer(monkeypatch):
    """Node 1001 is gone after two trainings, and node 2001 claims its partition."""
    received = []

    class Taken(Failing):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.contexts[NEWCOMER] = newcomer_like(self.contexts[OWNER])

        @property
        def is_taken(self):
            return self._counts.get((1, "train_and_submit"), 0) > 2

        def get_node_ids(self):
            return [node for node in self.contexts if node != (OWNER if self.is_taken else NEWCOMER)]

        def _answer(self, message):
            received.append((message.metadata.dst_node_id, message.metadata.message_type))
            return super()._answer(message)

        @staticmethod
        def fails(partition, action, count):
            return (partition, action) == (1, "train_and_submit") and count > 2

    on(monkeypatch, Taken)
    ended = run_peers(rounds=4, node_timeout=0.2, max_round_retries=1, **SAME_SPEED)
    assert {kind for node, kind in received if node == NEWCOMER} <= {"query", "query.forget"}
    assert len(ended.of("submission", 1)) == 2


def test_a_submission_counts_though_a_newcomer_holds_its_partition_by_then(monkeypatch):
    """Node 1001 has sent its third submission when node 2001 claims its partition; it is asked nothing more."""
    received = []

    class Taken(InProcessGrid):
        sent = 0

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.contexts[NEWCOMER] = newcomer_like(self.contexts[OWNER])

        def get_node_ids(self):
            return [node for node in self.contexts if node != (OWNER if self.sent > 2 else NEWCOMER)]

        def push_messages(self, messages):
            kinds = [(each.metadata.dst_node_id, each.metadata.message_type) for each in messages]
            received.extend(kinds)
            self.sent += kinds.count((OWNER, "train.train_and_submit"))
            return super().push_messages(messages)

    on(monkeypatch, Taken)
    ended = run_peers(rounds=4, node_timeout=0.2, max_round_retries=1, **SAME_SPEED)
    assert {kind for node, kind in received if node == NEWCOMER} <= {"query", "query.forget"}
    assert len(ended.of("submission", 1)) == 3
    assert len(ended.of("left", 1)) == 1


# ---- who an owner is -------------------------------------------------------------------------


def test_of_two_nodes_that_claim_one_partition_at_the_start_the_first_wins_and_both_are_named(claimed, caplog):
    claimed.contexts[NEWCOMER] = newcomer_like(claimed.contexts[OWNER])
    found = []
    participants = RollCall(claimed, 4, 0.2, log=SecurityLog(found.append)).start(0)
    assert participants.node_of[1] == OWNER
    assert f"held by two nodes: node {OWNER} keeps it, and node {NEWCOMER} takes no part" in caplog.text
    (refused,) = (line for line in found if line["event"] == "claim-refused")
    assert (refused["node"], refused["identity"]) == (str(NEWCOMER), f"node-{NEWCOMER}")


@pytest.mark.parametrize(("key", "newcomers"), [(b"the same", set()), (b"another", {1})])
def test_a_node_is_known_by_its_public_key_whatever_its_id(claimed, monkeypatch, key, newcomers):
    """A key that is registered anew, with a SuperLink of a new database, has a new node id."""
    keys = {OWNER: b"the same", NEWCOMER: key}
    nodes = lambda: [NodeInfo(node_id=n, public_key=keys.get(n, b"%d" % n)) for n in claimed.contexts]  # noqa: E731
    monkeypatch.setattr(claimed, "get_nodes", nodes)
    call = RollCall(claimed, 4, 0.2)
    participants = call.start(0)
    claimed.claim()
    call.update(participants, 1)
    assert participants.node_of[1] == NEWCOMER
    assert participants.newcomers == newcomers


def test_an_owner_continues_from_its_own_round_after_a_newcomer(claimed, config):
    call = RollCall(claimed, 4, 0.2)
    clients = Clients(call.start(0), None, None, Admission(config), call)
    clients.state_rounds = dict.fromkeys(range(4), 2)
    claimed.claim()
    assert clients.present() == [0, 1, 2, 3]
    assert clients.state_rounds[1] == 2  # it may be the same site, which has its files
    clients.state_rounds[1] = 3
    kept = clients.state_dict()
    claimed.hidden = set()
    clients.present()
    assert clients.state_rounds == dict.fromkeys(range(4), 2)
    clients.load_state_dict(kept)  # a run that is resumed from a checkpoint of the newcomer's time
    assert clients.state_rounds == dict.fromkeys(range(4), 2)


def test_an_action_that_sends_a_clients_own_refuses_newcomers(claimed, config):
    call = RollCall(claimed, 4, 0.2)
    found = []
    clients = Clients(call.start(0), None, None, Admission(config), call, SecurityLog(found.append))
    claimed.claim()
    clients.present()
    action = ClientAction(lambda _: None, sends_own=True)
    asked = ActionCall("own", action, claimed, clients, Transport(config.transport), 1, 1.0)
    stream = asked.ask([1], {}, {}, {1: {}}, None)
    assert stream.refused == {1: NOT_ITS_OWN}
    assert (found[-1]["event"], found[-1]["partitions"]) == ("withheld", [1])
    with pytest.raises(RuntimeError, match="their own to newcomers"):
        asked.messages([1], None)


def test_an_action_leaves_out_a_client_that_is_away_since_the_start(claimed, config):
    """As the vote of a resumed run, which asks all whose models were kept."""
    claimed.hidden = {OWNER}
    call = RollCall(claimed, 4, 0.2)
    clients = Clients(call.start(1), None, None, Admission(config), call)
    asked = ActionCall("own", ClientAction(lambda _: None), claimed, clients, Transport(config.transport), 1, 1.0)
    assert asked.ask([0, 1], {}, {}, {0: {}, 1: {}}, None).refused == {1: GONE}


def test_owners_that_cannot_be_read_are_named_with_the_fix():
    recorder = MemoryRecorder(Path())
    recorder.append_to("partitions.jsonl", {"partition": 1})
    with pytest.raises(ConfigError, match=r"partitions.jsonl cannot be read .* restore it from a backup"):
        Bindings(recorder)
