"""Every place where another party's message becomes values: only the documented error, in bounded memory."""

import contextlib
import json
import math
import shutil
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedddpm_app.auxiliary.pretraining import PRETRAIN
from fedddpm_app.config import ConfigError
from fedddpm_app.federation.messages.messaging import exchange
from fedddpm_app.federation.messages.reasons import reason_of
from fedddpm_app.federation.messages.replies import ReplyRefusedError, ReplySpec, accept_reply
from fedddpm_app.federation.nodes.roll_call import RollCall
from fedddpm_app.inprocess.grid import InProcessGrid
from fedddpm_app.launch import delivery
from fedddpm_app.launch.receiver import FetchError, FileReceiver
from fedddpm_app.progress import parse_line, parse_note
from fedddpm_app.transport import ClientEnd, Expected, PayloadError, Transport, shared
from fedddpm_app.transport.carriers import FILE, FLAT, can_read, pack_arrays, pack_file, pack_flat, receive
from fedddpm_app.transport.layout import Layout, read
from fedddpm_app.transport.reference import FileReference
from fedddpm_app.transport.shared import SharedDirectory, map_file, write_file
from fedddpm_app.transport.wire import get_wire
from tests.faults.mutations import MANY, blobs, bounded, edited, json_texts
from tests.federation.flower_grid import deployed_grid

WEIGHTS = {"conv.weight": torch.ones(3, 2), "norm.bias": torch.ones(4), "steps": torch.tensor(7)}
LAYOUT = Layout(WEIGHTS)
BLOB = LAYOUT.pack(WEIGHTS)
LONGEST_REASON = 9000  # bytes, for at most some 2,000 characters; a reason goes to the log and to stats.jsonl


def as_sent(values):
    """The shapes and dtypes of some weights."""
    return {name: (tensor.shape, tensor.dtype) for name, tensor in values.items()}


def check_reason(error):
    """A reason can be written to any log: it is short, and valid Unicode."""
    assert len(str(error).encode()) < LONGEST_REASON


def test_the_bound_is_noticed():
    with bounded():
        with pytest.raises(MemoryError):
            np.empty(200_000_000, np.uint8)
        with pytest.raises(RuntimeError):
            torch.empty(200_000_000, dtype=torch.uint8)
        np.ones(50_000_000, np.uint8)


@MANY
@given(blobs(BLOB))
def test_a_blob_of_any_layout(blob):
    with bounded():
        try:
            found = read(blob)
        except PayloadError as error:
            return check_reason(error)
        assert sum(tensor.numel() * tensor.element_size() for tensor in found.values()) <= len(blob)


@MANY
@given(blobs(BLOB))
def test_a_blob_of_the_model(blob):
    with bounded():
        try:
            found = LAYOUT.views(blob)
        except PayloadError as error:
            return check_reason(error)
        assert as_sent(found) == as_sent(WEIGHTS)


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "ROOT", tmp_path)
    with contextlib.closing(SharedDirectory.create()) as found:
        yield found


TEXTS = st.text(max_size=5000) | st.sampled_from(
    ["\ud800", "\x1b[31m", "x" * 10**6, "<class 'ray.RayTaskError(X)'>:<'"]
)
STYPES = st.sampled_from([FLAT, FILE, "numpy.ndarray", "pickle", ""])
PARTITION = 3


@st.composite
def records(draw, sent, directory, kind):
    """A record of weights in one of the three carriers, with changes to names, types, bytes, or the file."""
    if draw(st.booleans()):
        record = pack_arrays(WEIGHTS).record
        for name in draw(st.lists(st.sampled_from([*WEIGHTS]), max_size=2)):
            old = record.get(name) or record[next(iter(record))]
            data = draw(edited(old.data))
            record[name] = Array(old.dtype, tuple(old.shape), draw(STYPES) if draw(st.booleans()) else old.stype, data)
        if draw(st.integers(0, 4)) == 0:
            record[draw(st.sampled_from(["weights", "\ud800", "x" * 3000]))] = record.pop(next(iter(record)))
        return record
    blob = draw(blobs(Layout(sent).pack(sent)) | st.just(Layout(sent).pack(sent)))
    if draw(st.booleans()):
        return one_array(FLAT, blob)
    reference = write_file(directory.path.name, kind, [blob])
    data = draw(st.just(reference.to_json()) | json_texts(json.loads(reference.to_json())))
    return one_array(draw(st.just(FILE) | STYPES), data)


def one_array(stype, data):
    return ArrayRecord({"weights": Array("uint8", (len(data),), stype, data)})


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8-delta"])
def test_a_clients_record(directory, dtype):
    expected = Expected(WEIGHTS, dtype, WEIGHTS)
    sent = get_wire(dtype).encode(WEIGHTS, WEIGHTS)

    @MANY
    @given(records(sent, directory, f"up-{PARTITION}"))
    def check(record):
        try:
            with bounded():
                payload = receive(record, expected, PARTITION, directory)
                assert as_sent(payload.decode()) == as_sent(WEIGHTS)
        except PayloadError as error:
            check_reason(error)
        directory.remove_unread()

    check()


def test_a_servers_record(directory):
    @MANY
    @given(records(WEIGHTS, directory, "down"))
    def check(record):
        with bounded():
            assert can_read(record) in (True, False)
            try:
                ClientEnd(record, "fp32", PARTITION).unpack()
            except PayloadError as error:
                check_reason(error)
        for path in directory.path.glob("down-*"):
            path.unlink()

    check()


def test_a_reference_to_a_file(directory):
    valid = json.loads(pack_file(WEIGHTS, directory.path.name, "down").file.to_json())

    @MANY
    @given(json_texts(valid))
    def check(data):
        with bounded(), contextlib.suppress(PayloadError):
            map_file(FileReference.from_json(data))

    check()


NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats() | st.sampled_from([10**12, -1, 0, 2.0])
METRICS = NUMBERS | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5) | st.lists(st.floats(), max_size=5)
METRICS |= st.sampled_from([[0.5] * 3000, [1] * 3000])
GOOD = {"num-examples": 5, "loss": 0.5, "final-loss": 0.5, "steps": 3, "losses": [1.0, 2.0], "server-round": 0}


@st.composite
def metric_records(draw, good):
    changed = draw(st.dictionaries(st.sampled_from([*good, "extra", "x" * 300]), METRICS, max_size=3))
    left_out = draw(st.sets(st.sampled_from([*good]), max_size=1))
    return MetricRecord({key: value for key, value in {**good, **changed}.items() if key not in left_out})


PRETRAINED = ReplySpec(metrics=[name for name in PRETRAIN.metrics if name != "num-examples"])
SPECS = [ReplySpec({"arrays": Expected(WEIGHTS)}, ("loss", "steps"), lists={"losses": 2}), PRETRAINED]


def at_most_a_million(num_examples):
    """The check that ``Admission`` gives to a reply's number of images."""
    if num_examples > 10**6:
        raise ReplyRefusedError("too many")


@pytest.mark.parametrize("spec", SPECS)
def test_a_reply(config, grid, directory, spec):
    transport = Transport(replace(config.transport, transport="flat"))
    request = Message(RecordDict(), dst_node_id=1000, message_type="train")

    @MANY
    @given(metric_records(GOOD), records(WEIGHTS, directory, "up-0"), st.integers(0, 9), TEXTS)
    def check(metrics, record, form, text):
        message = Message(RecordDict({"arrays": record, "metrics": metrics}), reply_to=request)
        if form == 0:
            message = Message(Error(len(text) % 9, text), reply_to=request)
        elif form < 3:
            del message.content[("arrays", "metrics")[form - 1]]
        elif form == 3:
            message.content["arrays"] = pack_flat(WEIGHTS).record
        try:
            with bounded():
                reply = accept_reply(message, 0, spec, transport, at_most_a_million)
        except ReplyRefusedError as error:
            return check_reason(error)
        assert 1 <= reply.num_examples <= 10**6
        assert all(isinstance(reply.number(key), float) for key in reply.metrics)
        json.dumps(dict(reply.metrics), allow_nan=False)
        assert math.isfinite(reply.update_norm or 0.0)

    check()


@pytest.fixture
def grid(config):
    """Flower's identity of this process, without which no message can be made."""
    return InProcessGrid(lambda message, context: message, 2, {})


def test_the_objects_of_a_message(monkeypatch):
    """A node of a deployment sends them; Flower's grid decodes them."""

    @MANY
    @given(st.data())
    def check(data):
        def spoil(node, objects):
            if node == 1001:
                key = data.draw(st.sampled_from(sorted(objects, key=objects.__getitem__)))
                head, _, body = objects[key].partition(b"\0")
                form = data.draw(st.integers(0, 2))
                objects[key] = data.draw((edited(objects[key]), edited(head).map(lambda h: h + b"\0" + body),
                                          edited(body).map(lambda b: head + b"\0" + b))[form])  # fmt: skip

        def answer(node, message):
            content = {"metrics": MetricRecord({"node": node, "list": [1.5]}), "config": ConfigRecord({"a": str(node)})}
            content["arrays"] = one_array(FLAT, b"%d" % node)  # equal objects would be one object of both nodes
            return Message(RecordDict(content), reply_to=message)

        grid = deployed_grid(monkeypatch, [1000, 1001], answer, spoil)
        asked = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in (1000, 1001)]
        replies = {reply.metadata.src_node_id: reply for reply in exchange(grid, asked, 5.0)}
        assert replies.keys() == {1000, 1001}
        assert replies[1000].content["metrics"]["node"] == 1000
        if replies[1001].has_error():
            check_reason(reason_of(replies[1001].error))

    check()


IDENTITY = {"partition-id": 0, "worker": 1, "shares-memory": 0}


@MANY
@given(metric_records(IDENTITY) | st.none(), TEXTS)
def test_an_answer_to_the_roll_call(metrics, text):
    odd = []

    def answer(message, context):
        if context.node_id not in odd:
            return Message(RecordDict({"metrics": MetricRecord(IDENTITY | {"partition-id": context.node_id - 1000})}),
                           reply_to=message)  # fmt: skip
        if metrics is None:
            return Message(Error(2, text), reply_to=message)
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    grid = InProcessGrid(answer, 2, {})
    roll_call = RollCall(grid, 2, timeout=0.0)
    with bounded():
        participants = roll_call.start(0)
    odd.append(1007)  # a new node, later in the run: it may be left out, and must not end the run
    grid.contexts[1007] = types.SimpleNamespace(node_id=1007, node_config={})
    with bounded():
        roll_call.update(participants, 0)
    assert set(participants.present) == {0, 1}
    odd[:] = [1001]
    try:
        with bounded():
            RollCall(InProcessGrid(answer, 2, {}), 2, timeout=0.0).start(1)
    except ConfigError as error:
        check_reason(error)


EVENT = b"[fedddpm] phase=train round=1/4 client=2 step=3/9 loss=0.1234 left=12s"


@MANY
@given(edited(EVENT) | edited(b"[fedddpm] note: text"))
def test_a_log_line(line):
    text = line.decode(errors="replace")
    event = parse_line(text)
    assert event is None or parse_line(event.to_line()) is not None
    assert parse_note(text) is None or "note: " in text


@pytest.fixture
def delivered(tmp_path):
    source = tmp_path / "source"
    (source / "plots").mkdir(parents=True)
    for name in ("a.txt", "plots/b.png"):
        (source / name).write_bytes(name.encode())
    return [line.encode() for line in delivery.lines_of(source, 1.0, 1.0, 10)]


def test_a_delivery(tmp_path, delivered):
    """Edited lines in any order; no file appears outside the folder."""
    lines = st.one_of(*(edited(line) | delivery_lines(line) for line in delivered))

    @MANY
    @given(st.lists(lines | st.sampled_from(delivered), max_size=8))
    def check(sent):
        shutil.rmtree(tmp_path / "to", ignore_errors=True)
        receiver = FileReceiver(tmp_path / "to" / "run")
        try:
            with bounded():
                for line in sent:
                    receiver.take(line.decode(errors="replace"))
        except FetchError:
            pass
        receiver.close()
        assert {path.name for path in tmp_path.iterdir()} <= {"source", "to"}
        assert {path.name for path in (tmp_path / "to").glob("*")} <= {"run"}

    check()


def delivery_lines(line):
    """The same kind of line with other JSON."""
    head, found, about = line.partition(b"{")
    return json_texts(json.loads(found + about)).map(lambda text: head + text) if found else st.just(line)
