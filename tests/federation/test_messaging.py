import time

from flwr.app import Message, RecordDict

from fedddpm_app.federation.messaging import exchange


def queries(grid):
    return [Message(RecordDict(), dst_node_id=node, message_type="query") for node in grid.get_node_ids()]


def test_replies_come_one_by_one(grid):
    replies = exchange(grid, queries(grid), timeout=5.0)
    first = next(replies)
    partitions = [m.content.metric_records["metrics"]["partition-id"] for m in (first, *replies)]
    assert sorted(partitions) == [0, 1, 2, 3]


def test_missing_replies_are_given_up_after_the_timeout(grid):
    pull = grid.pull_messages
    grid.pull_messages = lambda ids: [m for m in pull(ids) if m.metadata.src_node_id != 1001]
    began = time.monotonic()
    assert len(list(exchange(grid, queries(grid), timeout=0.3))) == 3
    assert 0.3 <= time.monotonic() - began < 2.0
