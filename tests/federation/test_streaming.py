"""Replies in a fixed order, whatever arrives first, and not all at once."""

import itertools
import logging
import random
import weakref
from types import SimpleNamespace

import pytest
import torch
from flwr.app import Error, Message, MetricRecord, RecordDict

from fedddpm_app.config import TransportConfig
from fedddpm_app.federation.accounting import Accounting
from fedddpm_app.federation.admission import Admission
from fedddpm_app.federation.clients import Clients
from fedddpm_app.federation.flower_internals import TaskType
from fedddpm_app.federation.messages.messaging import exchange
from fedddpm_app.federation.messages.replies import ReplySpec
from fedddpm_app.federation.messages.streaming import ReplyStream, with_progress
from fedddpm_app.federation.nodes.participants import Participants
from fedddpm_app.transport import ClientEnd, Payload, Transport
from tests.algorithms.problems import make_clients, run

WEIGHTS = {"w": torch.zeros(3)}


@pytest.fixture
def clients(grid, config):
    transport = Transport(TransportConfig("flat", "fp32"))
    return Clients(Participants({p: 100 + p for p in range(6)}), Accounting(), transport, Admission(config), None)


def reply(clients, partition, value=None, error=None, steps=1, extra=None):
    request = Message(RecordDict(), dst_node_id=100 + partition, message_type="train")
    if error:
        return Message(Error(2, error), reply_to=request)
    weights = {"w": torch.full((3,), float(partition if value is None else value))}
    end = ClientEnd(clients.transport.pack(WEIGHTS).record, "fp32", partition)
    records = {"arrays": end.pack(weights).record}
    if extra is not None:
        records["extra"] = end.pack({"w": torch.full((3,), extra)}).record
    metrics = MetricRecord({"server-round": 0, "num-examples": 10, "loss": 0.5, "steps": steps})
    return Message(RecordDict({**records, "metrics": metrics}), reply_to=request)


def stream(clients, messages, awaited=range(6), extra=False):
    records = dict.fromkeys(["arrays", *["extra"] * extra], clients.transport.expect(WEIGHTS))
    asked = ReplySpec(records, ("loss", "steps"))
    return ReplyStream(clients, messages, list(awaited), "round 1", asked)


@pytest.mark.parametrize("order", [*itertools.islice(itertools.permutations(range(6)), 0, 720, 97)])
def test_any_order_of_arrival_gives_the_same_order(clients, tmp_path, order):
    replies = stream(clients, [reply(clients, p) for p in order]).by_partition(tmp_path)
    seen = [(r.partition_id, float(r.load()["w"][0])) for r in replies]
    assert seen == [(p, float(p)) for p in range(6)]
    assert not list(tmp_path.iterdir())


def test_refused_and_missing_replies_hold_nobody_up(clients, tmp_path, caplog):
    def messages():
        yield reply(clients, 3)
        yield reply(clients, 0, error="disk full")
        yield reply(clients, 1, value=float("nan"))
        yield reply(clients, 4)
        yield reply(clients, 4, value=9.0)  # a second answer does not count
        yielded.append(True)
        yield reply(clients, 2)

    yielded = []
    with caplog.at_level(logging.WARNING, "fedddpm"):
        replies = stream(clients, messages()).by_partition(tmp_path)
        assert next(replies).partition_id == 2
        assert yielded
        assert [(r.partition_id, float(r.load()["w"][0])) for r in replies] == [(3, 3.0), (4, 4.0)]
    assert clients.refusals == {
        0: "disk full",
        1: "its weights are not finite",
        5: "its node is gone or did not answer in time",
    }
    assert [record.args[1] for record in caplog.records] == [0, 1, 5]


def test_a_reply_is_handed_on_at_once_when_it_is_its_turn(clients, tmp_path):
    asked_for = []

    def messages():
        for p in range(6):
            asked_for.append(p)
            yield reply(clients, p)

    for r in stream(clients, messages()).by_partition(tmp_path):
        assert asked_for[-1] == r.partition_id


def test_few_replies_are_in_memory_whoever_is_late(clients, tmp_path, monkeypatch):
    """The first partition comes last: two of the others wait in memory, the rest on disk."""
    moved, on_disk = [], Payload.on_disk
    monkeypatch.setattr(Payload, "on_disk", lambda self, folder: moved.append(folder) or on_disk(self, folder))
    replies = stream(clients, [reply(clients, p) for p in (5, 4, 3, 2, 1, 0)]).by_partition(tmp_path)
    assert [float(r.load()["w"][0]) for r in replies] == [0, 1, 2, 3, 4, 5]
    assert moved == [tmp_path] * 3


def test_a_reply_that_was_folded_is_let_go(clients, tmp_path):
    kept = []
    for r in stream(clients, (reply(clients, p) for p in range(6))).by_partition(tmp_path):
        kept.append(weakref.ref(r))
        del r
        assert sum(ref() is not None for ref in kept) <= 1


def test_a_stranger_and_one_that_was_not_asked_are_passed_over(clients, tmp_path):
    stranger = reply(clients, 1)
    stranger.metadata.__dict__["_src_node_id"] = 7
    replies = stream(clients, [stranger, reply(clients, 5), reply(clients, 0)], awaited=[0, 1]).as_they_come()
    assert [r.partition_id for r in replies] == [0]
    assert set(clients.refusals) == {1}


def test_long_work_is_sent_first(clients):
    """Steps of the last round, the most first, with whoever is new; ties by partition."""
    addressed(clients, "train")
    for partition, steps in ((0, 5), (1, 50), (2, 5), (4, 500)):
        list(stream(clients, [reply(clients, partition, steps=steps)], [partition]).as_they_come())
    assert addressed(clients, "train") == [3, 4, 5, 1, 0, 2]
    assert addressed(clients, "train.pretrain") == list(range(6))


def test_equal_work_goes_in_the_order_of_folding(clients):
    """So that no reply has to wait on disk, though some clients were asked before and others were not."""
    for partition in (1, 4):
        list(stream(clients, [reply(clients, partition)], [partition]).as_they_come())
    assert addressed(clients, "train") == list(range(6))


def addressed(clients, message_type):
    messages = clients.address(range(6), message_type, {}, 1, 10.0)
    return [message.metadata.dst_node_id - 100 for message in messages]


def test_the_progress_of_an_algorithm_without_steps_is_reported(clients):
    """In a deployment; the number of steps is a metric that an algorithm may leave out."""
    replies = [reply(clients, 0)]
    del replies[0].content["metrics"]["steps"]
    spec = ReplySpec({"arrays": clients.transport.expect(WEIGHTS)}, ("loss",))
    seen = ReplyStream(clients, replies, [0], "round 1", spec)
    run = SimpleNamespace(primary_task_type=TaskType.SERVER_APP)
    assert [r.partition_id for r in with_progress(run, seen.as_they_come(), "train", 1, 1)] == [0]


def test_no_more_messages_are_under_way_than_asked_for(grid):
    pushed, most = [], []
    push, pull = grid.push_messages, grid.pull_messages
    grid.push_messages = lambda messages: [pushed.append(i) or i for i in push(messages)]

    def pull_one(ids):
        most.append(len(pushed))
        return pull(random.Random(0).sample(sorted(ids), 1))

    grid.pull_messages = pull_one
    queries = [Message(RecordDict(), dst_node_id=node, message_type="query") for node in grid.get_node_ids()]
    taken = 0
    for _ in exchange(grid, queries, 5.0, under_way=2):
        taken += 1
        assert len(pushed) <= taken + 2
    assert taken == 4
    assert most[0] == 2


@pytest.mark.parametrize("transport", ["arrays", "shared-memory"])
@pytest.mark.parametrize("algorithm", ["fedavg", "scaffold", "feddyn", "fednova", "local-only"])
def test_all_transports_give_the_same_weights_bit_for_bit(algorithm, transport):
    clients = make_clients(3, 5, 2, 4)
    flat, other = (run(algorithm, clients, rounds=3, transport=way) for way in ("flat", transport))
    assert (flat == other).all()


def test_a_full_disk_leaves_replies_in_memory(clients, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "fedddpm"):
        replies = stream(clients, [reply(clients, p) for p in (5, 4, 3, 2, 1, 0)]).by_partition(tmp_path / "nowhere")
        assert [r.partition_id for r in replies] == [0, 1, 2, 3, 4, 5]
    assert "waits in memory" in caplog.text


def test_flowers_word_that_a_node_is_gone_settles_its_client(grid):
    """It comes from the SuperLink, whose id no client has."""
    message = Message(RecordDict(), dst_node_id=1002, message_type="query")

    def gone(ids):
        word = Message(Error(3, "node unavailable"), reply_to=message)
        word.metadata.__dict__["_src_node_id"] = 1
        return [word] if message.metadata.message_id in ids else []

    grid.pull_messages = gone
    (answer,) = exchange(grid, [message], 5.0)
    assert answer.metadata.src_node_id == 1002


def test_replies_are_pulled_one_by_one(grid):
    """A deployment's pull takes all that are ready into memory, and one that is malformed would cost them all."""
    asked, pull = [], grid.pull_messages
    grid.pull_messages = lambda ids: asked.append(len(ids)) or pull(ids)
    nodes = list(grid.get_node_ids())
    queries = [Message(RecordDict(), dst_node_id=nodes[k % 4], message_type="query") for k in range(40)]
    assert len(list(exchange(grid, queries, 5.0))) == 40
    assert set(asked) == {1}
