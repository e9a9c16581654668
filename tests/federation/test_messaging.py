import time
from functools import partial

from flwr.app import Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.node_pb2 import NodeInfo

from fedddpm_app.federation import messaging
from fedddpm_app.federation.flower_internals import set_source
from fedddpm_app.federation.messaging import exchange, exchange_about


def queries(grid):
    return [Message(RecordDict(), dst_node_id=node, message_type="query") for node in grid.get_node_ids()]


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


def test_messages_that_cannot_be_pushed_or_are_not_answered_are_given_up(grid):
    push, pull = grid.push_messages, grid.pull_messages
    grid.push_messages = lambda messages: [None] if messages[0].metadata.dst_node_id == 1000 else push(messages)
    grid.pull_messages = lambda ids: [m for m in pull(ids) if m.metadata.src_node_id != 1001]
    began, asked = time.monotonic(), enumerate(queries(grid))
    answered = [k for k, _ in exchange_about(grid, partial(next, asked, None), timeout=0.3, under_way=2)]
    assert answered == [2, 3]
    assert 0.3 <= time.monotonic() - began < 2.0


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


def test_a_client_that_hangs_does_not_cost_the_replies_of_those_behind_it(grid):
    """With one process and one deadline for all, the first client would use up the time of the others."""
    in_turn(grid, hung=1, seconds=0.2)
    assert len(list(exchange(grid, queries(grid), timeout=0.22, under_way=4))) == 4


def test_a_reply_that_is_there_when_time_is_over_counts(grid):
    """The server may be busy with an earlier reply at that moment."""
    pull, limits = grid.pull_messages, iter([1])
    grid.pull_messages = lambda ids: pull(set([*ids][: next(limits, None)]))
    replies = exchange(grid, queries(grid), timeout=0.1)
    next(replies)
    time.sleep(0.15)
    assert len(list(replies)) == 3


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


def test_a_node_that_is_away_is_left_to_flower(grid, monkeypatch):
    monkeypatch.setattr(messaging, "_NODES_SECONDS", 0.0)
    asked = queries(grid)
    pull, grid.get_nodes = grid.pull_messages, lambda: []
    grid.pull_messages = lambda ids: [m for m in pull(ids) if m.metadata.src_node_id != 1001]
    assert len(list(exchange(grid, asked, timeout=0.3))) == 3
