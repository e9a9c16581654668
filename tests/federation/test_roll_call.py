"""Nodes that come late, go, and come back."""

import time

import pytest
from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

import client_app
from fedddpm_app.config import ConfigError
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.nodes import roll_call
from fedddpm_app.federation.nodes.roll_call import RollCall
from fedddpm_app.inprocess.grid import InProcessGrid


class ChangingGrid(InProcessGrid):
    """``hidden`` nodes are not connected; ``silent`` ones are, and do not answer; ``hide_after`` goes by looks."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.hidden, self.silent, self.appears_at, self.looks = set(), set(), {}, 0

    def get_node_ids(self):
        self.looks += 1
        there = [node for node in self.contexts if node not in self.hidden]
        return [node for node in there if self.looks >= self.appears_at.get(node, 0)]

    def pull_messages(self, message_ids):
        return [m for m in super().pull_messages(message_ids) if m.metadata.src_node_id not in self.silent]


@pytest.fixture
def changing(run_config):
    return ChangingGrid(client_app.app, 4, run_config)


@pytest.fixture
def short_greeting(monkeypatch):
    monkeypatch.setattr(roll_call, "_ANSWER_SECONDS", 0.1)


def test_a_node_that_connects_late_is_waited_for(changing):
    changing.appears_at = {1002: 4}
    assert RollCall(changing, 4, 30.0).start(0).present == [0, 1, 2, 3]


def test_a_run_starts_with_fewer_when_that_is_allowed(changing, caplog):
    changing.hidden = {1001}
    call = RollCall(changing, 4, 0.2)
    participants = call.start(3)
    assert participants.present == [0, 2, 3]
    assert participants.absent(4) == [1]
    assert "client 1 is not connected: the run starts without it" in caplog.text
    changing.hidden = set()
    call.update(participants, 1)
    assert participants.present == [0, 1, 2, 3]
    assert "client 1 is connected" in caplog.text


def test_a_node_that_answers_and_is_gone_counts_as_not_connected(changing):
    pull = changing.pull_messages

    def answer_and_go(message_ids):
        replies = pull(message_ids)
        if any(reply.metadata.src_node_id == 1003 for reply in replies) and 1003 not in changing.hidden:
            changing.hidden = {1003}
            late.extend(replies)
            return []
        return replies or [late.pop() for _ in late]

    late: list[Message] = []
    changing.pull_messages = answer_and_go
    call = RollCall(changing, 4, 0.2)
    participants = call.start(3)
    assert participants.present == [0, 1, 2]
    changing.hidden = set()
    changing.pull_messages = pull
    call.update(participants, 1)
    assert participants.present == [0, 1, 2, 3]


def test_too_few_end_the_wait_with_the_fix(changing):
    changing.hidden = {1000, 1001}
    with pytest.raises(ConfigError, match=r"min-available-nodes = 3, but after .* only 2 nodes are connected"):
        RollCall(changing, 4, 0.1).start(3)


def test_a_listed_node_that_is_dead_holds_nobody_up(changing, short_greeting):
    changing.silent = {1003}
    assert RollCall(changing, 4, 0.3).start(3).present == [0, 1, 2]


def test_nodes_that_go_and_come_back_under_another_id_keep_their_partition(changing, caplog):
    call = RollCall(changing, 4, 0.2)
    participants = call.start(0)
    changing.hidden = {1002}
    call.update(participants, 1)
    assert participants.present == [0, 1, 3]
    assert "client 2 is gone: its node is not connected" in caplog.text
    assert participants.node_of[2] == 1002  # what it sends late is still known
    changing.contexts[2002] = changing.contexts[1002]
    changing.contexts[2002].node_id = 2002
    call.update(participants, 1)
    assert participants.present == [0, 1, 2, 3]
    assert participants.node_of[2] == 2002


def test_a_second_node_of_one_partition_takes_over_when_the_first_is_gone(changing, caplog):
    """The first may be dead and still listed, or the second a mistake."""
    call = RollCall(changing, 4, 0.2)
    participants = call.start(0)
    changing.contexts[2001] = changing.contexts[1001]
    call.update(participants, 1)
    assert participants.node_of[1] == 1001
    assert "partition-id = 1 is held by two nodes" in caplog.text
    changing.hidden = {1001}
    call.update(participants, 1)
    assert participants.node_of[1] == 2001
    assert participants.present == [0, 1, 2, 3]


def test_a_node_that_does_not_answer_holds_up_one_phase_and_is_asked_again(changing, short_greeting):
    changing.silent = {1003}
    call = RollCall(changing, 4, 0.3)
    participants = call.start(3)
    call.update(participants, 1)
    began = time.monotonic()
    call.update(participants, 1)
    assert time.monotonic() - began < 0.1
    expired = Message(Error(ErrorCode.MESSAGE_UNAVAILABLE, "its time is over"), reply_to=greeting_of(call))
    pull = changing.pull_messages
    changing.pull_messages = lambda ids: [expired]
    call._read_answers()
    changing.pull_messages, changing.silent = pull, set()
    call.update(participants, 1)
    call.update(participants, 1)
    assert participants.present == [0, 1, 2, 3]


def greeting_of(call):
    """A stand-in for the one message that has no answer."""
    (message_id,) = call._pending
    message = Message(RecordDict(), dst_node_id=1003, message_type="query")
    message.metadata.__dict__["_message_id"] = message_id
    return message


@pytest.mark.parametrize(
    "told", [None, {"partition-id": [1]}, {"partition-id": 1.5}, {"worker": [1], "partition-id": 3}]
)
def test_what_a_node_tells_of_itself_is_not_trusted(changing, told):
    call = RollCall(changing, 4, 0.3)
    participants = call.start(0)

    def answer(message, context):
        return Message(RecordDict({} if told is None else {"metrics": MetricRecord(told)}), reply_to=message)

    changing._client_app = answer
    changing.contexts[3000] = InProcessGrid(client_app.app, 1, {}).contexts[1000]
    changing.contexts[3000].node_id = 3000
    call.update(participants, 1)
    assert participants.present == [0, 1, 2, 3]


def test_files_travel_only_where_everyone_is_known_to_read_them(changing):
    changing.hidden = {1003}
    changing._client_app = lambda message, context: Message(
        RecordDict({"metrics": MetricRecord({"partition-id": context.node_id - 1000, "shares-memory": 1})}),
        reply_to=message,
    )
    assert not RollCall(changing, 4, 0.1).start(3).share_memory
    changing.hidden = set()
    assert RollCall(changing, 4, 0.1).start(3).share_memory


@pytest.mark.parametrize("node_config", [{"partition-id": 9}, {}])
def test_a_newcomer_that_does_not_fit_is_named_and_ends_nothing(changing, caplog, node_config):
    call = RollCall(changing, 4, 0.2)
    participants = call.start(0)
    newcomer = InProcessGrid(client_app.app, 1, {}).contexts[1000]
    newcomer.node_config, newcomer.node_id = node_config, 3000
    changing.contexts[3000] = newcomer
    call.update(participants, 1)
    assert participants.present == [0, 1, 2, 3]
    assert ("a node has partition-id = 9" in caplog.text) or ("has no partition-id" in caplog.text)


def test_a_round_waits_a_bounded_time_for_min_replies(changing):
    call = RollCall(changing, 4, 0.1)
    participants = call.start(0)
    changing.hidden = {1000, 1001, 1002}
    with pytest.raises(RoundFailedError, match=r"1 clients are connected .* min-replies = 2: start the missing"):
        call.update(participants, 2)
    changing.appears_at = dict.fromkeys(changing.hidden, changing.looks + 2)
    changing.hidden = set()
    RollCall(changing, 4, 5.0).start(0)


def test_in_the_middle_of_a_run_clients_that_are_away_are_waited_for(changing):
    call = RollCall(changing, 4, 5.0)
    participants = call.start(0)
    changing.appears_at = {1000 + node: changing.looks + 4 + node for node in range(4)}
    call.update(participants, 2)
    assert participants.present == [0, 1]


def failing(changing, *nodes, times=None, text="no module named torchvision"):
    """Have the queries of some nodes raise, at most so many times each."""
    app, left = changing._client_app, {1000 + node: times for node in nodes}

    def answer(message, context):
        if left.get(context.node_id, 0) != 0:
            left[context.node_id] = None if times is None else left[context.node_id] - 1
            raise RuntimeError(text if isinstance(text, str) else text(context.node_id))
        return app(message, context)

    changing._client_app = answer
    return changing


def test_one_node_that_raises_counts_as_not_connected(changing, caplog):
    participants = RollCall(failing(changing, 1), 4, 0.2).start(3)
    assert participants.present == [0, 2, 3]
    assert caplog.text.count("a node could not report its partition: RuntimeError: no module named torchvision") == 1
    with pytest.raises(ConfigError, match=r"only 3 nodes are connected: .* Not counted: .* named torchvision"):
        RollCall(failing(changing, 1), 4, 0.2).start(0)


@pytest.mark.parametrize("answer", [{}, {"partition-id": 7}, {"partition-id": 1, "num-partitions": 9}])
def test_one_node_that_answers_nonsense_counts_as_not_connected(changing, answer):
    app = changing._client_app

    def answering(message, context):
        reply = Message(RecordDict({"metrics": MetricRecord(answer)}), reply_to=message)
        return reply if context.node_id == 1001 else app(message, context)

    changing._client_app = answering
    assert RollCall(changing, 4, 0.2).start(3).present == [0, 2, 3]


def test_a_node_that_failed_once_is_asked_again(changing, caplog, monkeypatch):
    call = RollCall(failing(changing, 1, times=1), 4, 0.2)
    participants = call.start(3)
    call.update(participants, 1)
    assert participants.present == [0, 1, 2, 3]
    monkeypatch.setattr(roll_call, "_RETRY_SECONDS", 0.05)  # and before the run starts
    assert RollCall(failing(changing, 2, times=1), 4, 30.0).start(0).present == [0, 1, 2, 3]


def test_an_error_that_all_nodes_report_ends_the_run_at_once(changing):
    began = time.monotonic()
    with pytest.raises(ConfigError, match="no module named torchvision"):
        RollCall(failing(changing, 0, 1, 2, 3), 4, 60.0).start(0)
    assert time.monotonic() - began < 5.0


def test_a_second_answer_to_the_same_query_does_not_count(changing):
    pull = changing.pull_messages
    changing.pull_messages = lambda ids: [reply for reply in pull(ids) for _ in range(2)]
    assert RollCall(changing, 4, 1.0).start(0).present == [0, 1, 2, 3]
