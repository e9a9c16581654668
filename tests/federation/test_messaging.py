import threading
import time
from contextlib import nullcontext
from functools import partial

import httpx
import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from fedddpm_app.federation.errors import ActorLostError
from fedddpm_app.federation.flower_internals import TaskType, set_source
from fedddpm_app.federation.messages import deadlines, messaging, pulling
from fedddpm_app.federation.messages.messaging import exchange, exchange_about
from fedddpm_app.federation.nodes.roll_call import RollCall
from tests.federation.flower_grid import deployed_grid


def queries(grid):
    return [Message(RecordDict(), dst_node_id=node, message_type="query") for node in grid.get_node_ids()]


@pytest.fixture
def deployed(grid):
    """Nodes that may not answer; in a simulation, each message has an answer."""
    grid.run.primary_task_type = TaskType.SERVER_APP


def test_replies_come_one_by_one(grid):
    replies = exchange(grid, queries(grid), timeout=5.0)
    first = next(replies)
    partitions = [m.content.metric_records["metrics"]["partition-id"] for m in (first, *replies)]
    assert sorted(partitions) == [0, 1, 2, 3]


def test_a_node_cannot_answer_in_anothers_name(grid):
    pull = grid.pull_messages

    def as_another(ids):
        replies = pull(ids)
        for reply in replies:
            set_source(reply, 1003)  # the text of a client, which Flower takes over
        return replies

    grid.pull_messages = as_another
    replies = exchange(grid, queries(grid), timeout=5.0)
    partitions = {m.metadata.src_node_id: m.content["metrics"]["partition-id"] for m in replies}
    assert partitions == {1000: 0, 1001: 1, 1002: 2, 1003: 3}


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("RecordDict", b"no json"),
        ("RecordDict", b"[1]"),
        ("RecordDict", b"[" * 100_000),
        ("MetricRecord", b"\xff\xff"),
        ("Message", b"\n\xff"),
    ],
)
def test_a_malformed_object_of_a_node_costs_that_node_alone(monkeypatch, kind, body):
    """Flower's grid of a deployment decodes them when they are pulled."""

    def spoil(node, objects):
        for key in [key for key, content in objects.items() if content.startswith(kind.encode()) and node == 1001]:
            head = objects[key].partition(b"\0")[0].rpartition(b" ")[0]
            objects[key] = head + f" {len(body)}".encode() + b"\0" + body

    def answer(node, message):
        return Message(RecordDict({"metrics": MetricRecord({"partition-id": node - 1000})}), reply_to=message)

    grid = deployed_grid(monkeypatch, [1000, 1001, 1002], answer, spoil)
    assert RollCall(grid, 3, 0.2).start(2).present == [0, 2]
    replies = {reply.metadata.src_node_id: reply for reply in exchange(grid, queries(grid), timeout=5.0)}
    assert replies[1001].error.reason.startswith("its reply cannot be decoded: ")
    partitions = {node: reply.content["metrics"]["partition-id"] for node, reply in replies.items() if node != 1001}
    assert partitions == {1000: 0, 1002: 2}


def test_a_reply_belongs_to_the_message_that_it_was_pulled_for(monkeypatch):
    """The id that it names is the node's text: node 1001 answers the message to node 1002, and nothing else."""
    asked = {}

    def answer(node, message):
        asked[node] = message
        reply = Message(RecordDict({"metrics": MetricRecord({"node": node})}), reply_to=message)
        if node == 1001:
            reply.metadata.__dict__["_reply_to_message_id"] = asked[1002].metadata.message_id
        return reply

    grid = deployed_grid(monkeypatch, [1002, 1001], answer)
    replies = [(m.metadata.src_node_id, m.content["metrics"]["node"]) for m in exchange(grid, queries(grid), 5.0)]
    assert sorted(replies) == [(1001, 1001), (1002, 1002)]


def test_an_error_of_the_connection_is_not_a_nodes_error(monkeypatch):
    grid = deployed_grid(monkeypatch, [1000], lambda node, message: Message(RecordDict(), reply_to=message))
    asked = queries(grid)

    def unreachable(ids):
        raise httpx.ConnectError("the SuperLink is gone")

    monkeypatch.setattr(grid, "pull_messages", unreachable)
    with pytest.raises(httpx.ConnectError):
        list(exchange(grid, asked, 5.0))


def test_a_reply_that_arrives_just_before_the_deadline_counts(grid, monkeypatch):
    """The last pause may be longer than the time that is left."""
    began, pull = time.monotonic(), grid.pull_messages
    monkeypatch.setattr(messaging, "_LONGEST_POLL_SECONDS", 0.4)
    monkeypatch.setattr(messaging, "FIRST_POLL_SECONDS", 0.4)
    grid.pull_messages = lambda ids: pull(ids) if time.monotonic() > began + 0.15 else []
    assert len(list(exchange(grid, queries(grid), timeout=0.2))) == 4


@pytest.mark.usefixtures("deployed")
def test_missing_replies_are_given_up_after_the_timeout(grid):
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [m for m in pull(ids) if m.metadata.src_node_id != 1001]
    began = time.monotonic()
    assert len(list(exchange(grid, queries(grid), timeout=0.3))) == 3
    assert 0.3 <= time.monotonic() - began < 2.0


def test_few_messages_are_on_their_way_at_a_time(grid):
    made = []
    messages = queries(grid)

    def requests():
        for k, message in enumerate(messages):
            made.append(k)
            yield k, message

    replies = exchange_about(grid, partial(next, requests(), None), timeout=5.0, under_way=2)
    first = next(replies)
    assert made == [0, 1]
    rest = list(replies)
    partitions = {k: m.content.metric_records["metrics"]["partition-id"] for k, m in (first, *rest)}
    assert partitions == {0: 0, 1: 1, 2: 2, 3: 3}


@pytest.mark.usefixtures("deployed")
def test_messages_that_cannot_be_pushed_or_are_not_answered_are_given_up(grid):
    push, pull = grid.push_messages, grid.pull_messages
    grid.push_messages = lambda messages: [None] if messages[0].metadata.dst_node_id == 1000 else push(messages)
    grid.pull_messages = lambda ids: [m for m in pull(ids) if m.metadata.src_node_id != 1001]
    began, asked = time.monotonic(), enumerate(queries(grid))
    answered = [k for k, _ in exchange_about(grid, partial(next, asked, None), timeout=0.3, under_way=2)]
    assert answered == [2, 3]
    assert 0.3 <= time.monotonic() - began < 2.0


@pytest.mark.parametrize("deployed", [False, True])
def test_a_dead_actor_ends_a_simulation_and_a_node_cannot_pretend_one(grid, deployed, monkeypatch):
    if deployed:
        grid.run.primary_task_type = TaskType.SERVER_APP
    died = Error(0, "<class 'ray.exceptions.ActorDiedError'>:<'The actor died unexpectedly'>")
    sent = queries(grid)
    grid.pull_messages = lambda ids: [Message(died, reply_to=sent[0])]
    with nullcontext() if deployed else pytest.raises(ActorLostError, match="can be resumed"):
        assert all(reply.has_error() for reply in exchange(grid, sent, timeout=5.0))


def in_turn(grid, hung, seconds):
    """Have one process answer, message by message; a client that hangs is stopped after ``seconds``."""
    pull, began = grid.pull_messages, {}

    def pull_next(ids):
        first = min(ids, key=lambda message_id: int(message_id.rpartition("-")[2]))
        busy = seconds if first.endswith(str(hung)) else seconds / 10
        if time.monotonic() - began.setdefault(first, time.monotonic()) < busy:
            return []
        return pull({first})

    grid.pull_messages = pull_next


def test_a_client_that_hangs_does_not_cost_the_replies_of_those_behind_it(grid, monkeypatch):
    """With one process and one deadline for all, the first client would use up the time of the others."""
    monkeypatch.setattr(deadlines, "START_SECONDS", 0.0)
    in_turn(grid, hung=1, seconds=0.2)
    assert len(list(exchange(grid, queries(grid), timeout=0.25, under_way=4))) == 4


def test_what_a_node_had_taken_before_it_was_started_anew_is_given_up(grid, monkeypatch):
    """Flower would say nothing of it until the time to live is over."""
    monkeypatch.setattr(messaging, "_NODES_SECONDS", 0.0)
    activated = dict.fromkeys(grid.get_node_ids(), "before")
    grid.get_nodes = lambda: [NodeInfo(node_id=node, last_activated_at=when) for node, when in activated.items()]
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [m for m in pull(ids) if m.metadata.src_node_id != 1001]
    replies = exchange(grid, queries(grid), timeout=30.0)
    assert {next(replies).metadata.src_node_id for _ in range(3)} == {1000, 1002, 1003}
    activated[1001] = "after"
    [lost] = list(replies)
    assert lost.metadata.src_node_id == 1001
    assert lost.error.code == ErrorCode.NODE_UNAVAILABLE


@pytest.mark.usefixtures("deployed")
def test_a_node_that_is_away_is_left_to_flower(grid, monkeypatch):
    monkeypatch.setattr(messaging, "_NODES_SECONDS", 0.0)
    asked = queries(grid)
    pull, grid.get_nodes = grid.pull_messages, lambda: []
    grid.pull_messages = lambda ids: [m for m in pull(ids) if m.metadata.src_node_id != 1001]
    assert len(list(exchange(grid, asked, timeout=0.3))) == 3


@pytest.fixture
def stuck(grid, monkeypatch):
    """Node 1000's upload has begun, and does not go on before the event is set; Flower waits for it in the pull."""
    grid.run.primary_task_type = TaskType.SERVER_APP
    monkeypatch.setattr(pulling, "_FIRST_WAIT_SECONDS", 0.05)
    pull, goes_on = grid.pull_messages, threading.Event()

    def wait_for_objects(ids):
        if any(grid._waiting[each].metadata.dst_node_id == 1000 for each in ids):
            goes_on.wait(20.0)
        return pull(ids)

    grid.pull_messages = wait_for_objects
    yield goes_on
    goes_on.set()


def test_an_upload_that_stops_holds_nobody_up(grid, stuck, monkeypatch):
    monkeypatch.setattr(pulling, "LAST_UPLOADS_SECONDS", 0.3)
    began = time.monotonic()
    found = [reply.metadata.src_node_id for reply in exchange(grid, queries(grid), timeout=0.5)]
    assert sorted(found) == [1001, 1002, 1003]
    assert 0.8 <= time.monotonic() - began < 3.0


def test_an_upload_that_has_begun_may_end_after_the_deadline(grid, stuck):
    threading.Timer(0.4, stuck.set).start()
    found = [reply.metadata.src_node_id for reply in exchange(grid, queries(grid), timeout=0.2)]
    assert sorted(found[:3]) == [1001, 1002, 1003]
    assert found[3:] == [1000]


def test_replies_that_came_in_time_are_taken_also_when_the_server_was_busy(grid, deployed, monkeypatch):
    """It pulls one at a time, and works on the first beyond the deadline, and then beyond the time of last uploads."""
    grid.run.primary_task_type = TaskType.SERVER_APP
    monkeypatch.setattr(messaging, "PULLS", 1)
    monkeypatch.setattr(pulling, "LAST_UPLOADS_SECONDS", 0.1)
    found = []
    for reply in exchange(grid, queries(grid), timeout=0.1):
        found.append(reply.metadata.src_node_id)
        time.sleep(0.2)
    assert sorted(found) == [1000, 1001, 1002, 1003]


def test_an_upload_that_ended_while_the_server_was_busy_is_taken(grid, stuck, monkeypatch):
    """Node 1000's ends 0.2 s after the deadline; the work on another reply lasts longer than all that is waited for."""
    monkeypatch.setattr(pulling, "LAST_UPLOADS_SECONDS", 0.3)
    monkeypatch.setattr(messaging, "PULLS", 1)
    threading.Timer(0.3, stuck.set).start()
    found = []
    for reply in exchange(grid, queries(grid), timeout=0.1):
        found.append(reply.metadata.src_node_id)
        time.sleep(0.5 if len(found) == 3 else 0.0)
    assert sorted(found) == [1000, 1001, 1002, 1003]


def test_few_replies_are_downloaded_beside_each_other(grid, deployed, monkeypatch):
    """Each download lasts longer than the server waits for it, and the server works on each reply for a while."""
    grid.run.primary_task_type = TaskType.SERVER_APP
    monkeypatch.setattr(pulling, "_FIRST_WAIT_SECONDS", 0.01)
    pull, under_way, most = grid.pull_messages, [], []

    def slow(ids):
        under_way.append(ids)
        most.append(len(under_way))
        time.sleep(0.1)
        under_way.pop()
        return pull(ids)

    grid.pull_messages = slow
    assert len(list(exchange(grid, queries(grid), timeout=10.0))) == 4
    assert max(most) == 2
    monkeypatch.setattr(pulling, "_SLOW_SECONDS", 0.0)
    assert len(list(exchange(grid, queries(grid), timeout=10.0))) == 4
    assert max(most) > 2, "slow ones hold nobody up"


def test_a_reply_that_a_node_sent_before_it_was_started_anew_is_taken(grid, monkeypatch):
    monkeypatch.setattr(messaging, "_NODES_SECONDS", 0.0)
    monkeypatch.setattr(messaging, "PULLS", 2)
    activated = dict.fromkeys(grid.get_node_ids(), "before")
    grid.get_nodes = lambda: [NodeInfo(node_id=node, last_activated_at=when) for node, when in activated.items()]
    replies = exchange(grid, queries(grid), timeout=30.0)
    first = next(replies)
    activated[1003] = "after"
    assert not any(reply.has_error() for reply in (first, *replies))
