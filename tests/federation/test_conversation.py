"""Requests that are sent while others are under way: replies come as they arrive, and a lost one holds nobody up."""

import json
import time

import pytest
import torch
from flwr.app import Error, Message
from flwr.proto.node_pb2 import NodeInfo

from fedddpm_app.config import load_config
from fedddpm_app.federation.accounting import Accounting
from fedddpm_app.federation.admission import Admission
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.flower_internals import TaskType
from fedddpm_app.federation.messages import conversation as module
from fedddpm_app.federation.messages import messaging
from fedddpm_app.federation.messages.actions import ActionCall
from fedddpm_app.federation.messages.conversation import Conversation
from fedddpm_app.federation.messages.replies import ReplyRefusedError
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.training.actions import ActionAnswer, ClientAction
from fedddpm_app.transport import Transport
from fedddpm_app.transport.shared import ROOT, write_file
from tests.algorithms.problems import Point

ASK = ClientAction(lambda request: ActionAnswer(), metrics=("number",))


@pytest.fixture
def talk(run_config):
    """Four nodes whose clients are played here, those that do not answer for now, and an action to ask for."""
    grid = InProcessGrid(None, 4, run_config)
    slow = set()
    pull = grid.pull_messages

    def only_fast(ids):
        return pull([i for i in ids if i in grid._waiting and grid._waiting[i].metadata.dst_node_id not in slow])

    grid.pull_messages = only_fast
    grid._answer = lambda message: Message(Error(7, f"I am {message.metadata.dst_node_id - 1000}"), reply_to=message)
    config = load_config(run_config)
    transport = Transport(config.transport)
    found = {partition: 1000 + partition for partition in range(4)}
    clients = Clients(Participants(found), Accounting(), transport, Admission(config), None)
    call = ActionCall("ask", ASK, grid, clients, transport, 1, 5.0)
    yield grid, slow, call
    transport.close()


def weights():
    return Point().state_dict()


def test_a_later_request_is_answered_while_an_earlier_one_is_under_way(talk):
    grid, slow, call = talk
    slow.add(1000)
    conversation = Conversation(grid, 5.0, None)
    conversation.ask(call, [0], weights())
    conversation.ask(call, [1, 2], weights())
    first = [conversation.receive().request.partition for _ in range(2)]
    assert sorted(first) == [1, 2]
    conversation.ask(call, [3], weights())
    assert conversation.receive().request.partition == 3
    slow.clear()
    assert conversation.receive().request.partition == 0
    with pytest.raises(LookupError):
        conversation.receive()


def test_an_error_is_refused_with_the_clients_reason(talk):
    grid, _, call = talk
    conversation = Conversation(grid, 5.0, None)
    conversation.ask(call, [2], weights())
    with pytest.raises(ReplyRefusedError, match="I am 2"):
        conversation.receive().accept()


def test_few_messages_are_under_way_and_urgent_ones_go_first(talk):
    grid, slow, call = talk
    slow |= {1000, 1001}
    conversation = Conversation(grid, 5.0, 2)
    conversation.ask(call, [0, 1, 2], weights())
    conversation.ask(call, [3], weights(), first=True)
    assert sorted(m.metadata.dst_node_id for m in grid._waiting.values()) == [1000, 1001]
    slow.remove(1001)
    assert [conversation.receive().request.partition for _ in range(3)] == [1, 3, 2]


def test_each_message_of_a_deployment_has_a_time_limit_of_its_own(talk):
    """A message that is sent later is given up later."""
    grid, slow, call = talk
    grid.run.primary_task_type = TaskType.SERVER_APP
    slow |= {1000, 1001}
    conversation = Conversation(grid, 0.3, None)
    began = time.monotonic()
    conversation.ask(call, [0], weights())
    time.sleep(0.2)
    conversation.ask(call, [1], weights())
    lost = conversation.receive()
    assert lost.request.partition == 0
    assert 0.3 <= time.monotonic() - began < 0.45
    with pytest.raises(ReplyRefusedError, match="gone or did not answer in time"):
        lost.accept()
    assert conversation.receive().request.partition == 1
    assert time.monotonic() - began >= 0.5


def test_a_reply_that_arrived_while_nobody_was_waiting_counts(talk):
    grid, _, call = talk
    grid.run.primary_task_type = TaskType.SERVER_APP
    conversation = Conversation(grid, 0.1, None)
    conversation.ask(call, [0], weights())
    time.sleep(0.2)  # the server evaluates
    with pytest.raises(ReplyRefusedError, match="I am 0"):
        conversation.receive().accept()


def test_in_a_simulation_the_time_limit_counts_from_the_last_reply(talk, monkeypatch):
    grid, slow, call = talk
    monkeypatch.setattr(module, "patience", lambda timeout: timeout)
    slow |= {1000, 1001}
    conversation = Conversation(grid, 0.2, None)
    conversation.ask(call, [0, 1], weights())
    time.sleep(0.3)
    slow.remove(1001)
    assert conversation.receive().request.partition == 1
    began = time.monotonic()
    with pytest.raises(ReplyRefusedError, match="did not answer in time"):
        conversation.receive().accept()
    assert time.monotonic() - began >= 0.2


def test_a_restarted_node_is_given_up_at_once(talk, monkeypatch):
    grid, slow, call = talk
    slow.add(1000)
    monkeypatch.setattr("fedddpm_app.federation.messages.messaging._NODES_SECONDS", 0.0)
    conversation = Conversation(grid, 60.0, None)
    conversation.ask(call, [0], weights())
    nodes = [*grid.get_nodes()]
    nodes[0].last_activated_at = "later"
    grid.get_nodes = lambda: nodes
    assert conversation.receive().message.error.reason == "its node was restarted in the meantime"


def test_a_message_that_flower_rejects_is_answered_by_an_error(talk):
    grid, _, call = talk
    push = grid.push_messages
    grid.push_messages = lambda messages: [
        i if message.metadata.dst_node_id != 1001 else "" for message in messages for i in push([message])
    ]
    conversation = Conversation(grid, 60.0, None)
    conversation.ask(call, [0, 1], weights())
    answers = {answer.request.partition: answer for answer in (conversation.receive() for _ in range(2))}
    assert answers[1].message.error.reason == "it could not be sent"
    assert answers[0].message.error.reason == "I am 0"


def test_what_was_sent_is_released_after_its_last_reader(talk, monkeypatch):
    grid, slow, call = talk
    slow.add(1000)
    released = []
    monkeypatch.setattr(Transport, "release", lambda self, packed: released.append(packed))
    conversation = Conversation(grid, 5.0, None)
    conversation.ask(call, [0, 1, 2], weights())
    others = Point().state_dict() | {"x": torch.zeros(7)}
    conversation.ask(call, [3], others)
    first = [conversation.receive().request for _ in range(3)]
    assert sorted(request.partition for request in first) == [1, 2, 3]
    (alone,) = (request.packed for request in first if request.partition == 3)
    assert released == [alone]
    slow.clear()
    last = conversation.receive().request.packed
    assert released == [alone, last]
    assert {id(request.packed) for request in first} == {id(alone), id(last)}


def test_files_that_a_client_sent_besides_its_answer_are_removed(talk):
    _, _, call = talk
    conversation = Conversation(call.grid, 5.0, None)
    conversation.ask(call, [1, 2], weights())
    folder = call.transport.probe()["weights"].data  # a reference to a file in the directory
    directory = ROOT / json.loads(folder)["directory"]
    late = {p: write_file(directory.name, f"up-{p}", [b"late"]).name for p in (1, 2)}
    answer = conversation.receive()
    with pytest.raises(ReplyRefusedError, match="I am"):
        answer.accept()
    left = {path.name for path in directory.glob("up-*")}
    assert left == {late[3 - answer.request.partition]}


def test_a_reply_that_a_node_sent_before_it_was_started_anew_is_taken(talk, monkeypatch):
    """The server pulls a few replies at a time, and sees meanwhile that the node was started anew."""
    grid, slow, call = talk
    grid.run.primary_task_type = TaskType.SERVER_APP
    monkeypatch.setattr(messaging, "_NODES_SECONDS", 0.0)
    monkeypatch.setattr(module, "PULLS", 1)
    activated = dict.fromkeys(grid.get_node_ids(), "before")
    grid.get_nodes = lambda: [NodeInfo(node_id=node, last_activated_at=when) for node, when in activated.items()]
    slow.add(1000)
    conversation = Conversation(grid, 30.0, None)
    conversation.ask(call, [0, 1], weights())
    activated |= {1000: "after", 1001: "after"}
    found = {}
    for _ in range(2):
        answer = conversation.receive()
        with pytest.raises(ReplyRefusedError) as refused:
            answer.accept()
        found[answer.request.partition] = str(refused.value)
    assert "I am 1" in found[1]
    assert "gone or did not answer in time" in found[0]
