import io
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedddpm_app.federation.admission import Admission
from fedddpm_app.federation.messages.reasons import is_dead_actor, reason_of
from fedddpm_app.federation.messages.records import to_arrays, to_weights
from fedddpm_app.federation.messages.replies import ReplyRefusedError, ReplySpec, accept_reply
from fedddpm_app.transport import Expected, Transport, get_wire
from fedddpm_app.transport.layout import Layout

ASKED = ReplySpec({"arrays": Expected({"a": torch.zeros(2, 3), "b": torch.zeros(4)})})


@pytest.fixture
def accept(config):
    """Accept a message as the given partition's."""
    transport = Transport(replace(config.transport, transport="flat"))
    return lambda message, partition=0, asked=ASKED, **more: accept_reply(message, partition, asked, transport, **more)


@pytest.fixture
def reply(grid):
    """Make a reply message with the given weights and metrics."""
    request = Message(RecordDict(), dst_node_id=1000, message_type="train")

    def make(weights=None, metrics=None, arrays=None):
        arrays = arrays if arrays is not None else to_arrays(weights or {"a": torch.ones(2, 3), "b": torch.ones(4)})
        content = RecordDict(
            {
                "arrays": arrays,
                "metrics": MetricRecord({"server-round": 0, "num-examples": 5, "loss": 0.5} | (metrics or {})),
            }
        )
        return Message(content, reply_to=request)

    return make


def test_a_good_reply_comes_through_exactly(reply, accept):
    accepted = accept(reply(), 3)
    assert (accepted.partition_id, accepted.num_examples, accepted.number("loss")) == (3, 5, 0.5)
    assert torch.equal(accepted.load()["a"], torch.ones(2, 3))
    assert accepted.num_bytes >= 40
    assert math.isnan(accepted.number("nothing"))


def test_weights_survive_the_record():
    weights = {"x": torch.randn(3, 2), "n": torch.tensor(3)}
    assert all(torch.equal(v, weights[k]) for k, v in to_weights(to_arrays(weights)).items())


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"a": torch.full((2, 3), float("nan")), "b": torch.ones(4)}, "not finite"),
        ({"a": torch.ones(2, 3), "b": torch.full((4,), float("inf"))}, "not finite"),
        ({"a": torch.ones(1, 3), "b": torch.ones(4)}, "shape"),
        ({"a": torch.ones(()), "b": torch.ones(4)}, "shape"),
        ({"a": torch.ones(2, 3, dtype=torch.float64), "b": torch.ones(4)}, "<f8"),
        ({"a": torch.ones(2, 3)}, "names differ"),
        ({"a": torch.ones(2, 3), "b": torch.ones(4), "c": torch.ones(1)}, "names differ"),
    ],
)
def test_wrong_weights_are_refused(reply, accept, weights, says):
    with pytest.raises(ReplyRefusedError, match=says):
        accept(reply(weights))


def npy(values, **save):
    stream = io.BytesIO()
    np.save(stream, values, **save)
    return stream.getvalue()


GOOD = npy(np.ones((2, 3), np.float32))


def with_header(more):
    """The good array, with ``more`` at the end of a version-2 header."""
    header = GOOD[10:128].rstrip() + more + b"\n"
    return b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little") + header + GOOD[128:]


def test_a_version_2_header_is_read(reply, accept):
    version_2 = Array("float32", (2, 3), "numpy.ndarray", with_header(b"  "))
    arrays = ArrayRecord({"a": version_2, "b": Array(np.ones(4, np.float32))})
    accepted = accept(reply(arrays=arrays))
    assert torch.equal(accepted.load()["a"], torch.ones(2, 3))
    assert (arrays["a"].numpy() == 1).all()


@pytest.mark.parametrize(
    "data",
    [
        b"garbage",
        b"",
        b"PK\x03\x04",
        GOOD[:-4],
        GOOD + b"1234",
        GOOD[:9],
        GOOD.replace(b"(2, 3), }          ", b"(1000000000000,), }"),
        GOOD.replace(b"'<f4'", b"'<U1'"),
        GOOD.replace(b"'<f4'", b"'|V4'"),
        GOOD.replace(b"'<f4'", b"'>f4'"),
        GOOD.replace(b"{'des", b"((((("),
        with_header(b" " * 20_000),
        with_header(b" " * 4096 + b"JUNK("),
        GOOD[:10] + b"\xa0" + GOOD[10:127] + GOOD[128:],
        npy(np.ones((3, 2), np.float32).T),
        npy(np.full((2, 3), None), allow_pickle=True),
    ],
)
def test_garbage_bytes_are_refused(reply, accept, data):
    assert data != GOOD
    arrays = ArrayRecord({"a": Array("float32", (2, 3), "numpy.ndarray", data), "b": Array(np.ones(4, np.float32))})
    with pytest.raises(ReplyRefusedError, match=r"^a "):
        accept(reply(arrays=arrays))


def test_another_serialisation_is_refused(reply, accept):
    arrays = ArrayRecord({"a": Array("float32", (2, 3), "pickle", GOOD), "b": Array(np.ones(4, np.float32))})
    with pytest.raises(ReplyRefusedError, match="serialised as 'pickle'"):
        accept(reply(arrays=arrays))


def test_only_what_is_known_goes_on_to_the_aggregation(reply, accept):
    message = reply(metrics={"mine": 1.0, "label-counts": [1, 2]})
    message.content["more"] = to_arrays({"x": torch.ones(1)})
    accepted = accept(message)
    assert not accepted.message.content.array_records
    assert dict(accepted.message.content.metric_records["metrics"]) == {"num-examples": 5, "loss": 0.5}
    assert accepted.metrics["mine"] == 1.0


@pytest.mark.parametrize(
    "metrics",
    [
        {"num-examples": 0},
        {"num-examples": -3},
        {"num-examples": 2.5},
        {"num-examples": float("nan")},
        {"num-examples": 10**12},
        {"loss": float("nan")},
        {"loss": [1.0]},
        {"loss": 1e300},
        {"loss": -1.1e15},
        {"mine": -1e31},
        {"mine": [0.0, 1e308]},
    ],
)
def test_impossible_metrics_are_refused(reply, accept, config, metrics):
    with pytest.raises(ReplyRefusedError, match=next(iter(metrics))):
        accept(reply(metrics=metrics), check_examples=partial(Admission(config).check_examples, 0))


@pytest.mark.parametrize(
    "metrics",
    [
        {"mine": [float("nan")] * 200_000},
        {"loss": [float("nan")] * 200_000},
        {f"mine-{k}": 0.0 for k in range(1_001)},
        {"x" * 101: 0.0},
        {"mine": [10**18] * 100_001},
    ],
)
def test_metrics_have_a_bounded_size(reply, accept, metrics):
    with pytest.raises(ReplyRefusedError) as refused:
        accept(reply(metrics=metrics))
    assert len(str(refused.value)) <= 300


@pytest.mark.parametrize("name", ["x\x1b[31m\n[fedddpm] note: y", "\u202eloss", "[/red]"])
def test_the_name_of_a_metric_is_a_plain_text(reply, accept, name):
    with pytest.raises(ReplyRefusedError) as refused:
        accept(reply(metrics={name: float("nan")}))
    assert str(refused.value).isprintable()


def test_a_missing_metric_is_refused(reply, accept):
    with pytest.raises(ReplyRefusedError, match="metric final-loss is None"):
        accept(reply(), asked=ReplySpec(metrics=("loss", "final-loss")))


def test_a_client_error_is_passed_on(grid, accept):
    request = Message(RecordDict(), dst_node_id=1000, message_type="train")
    with pytest.raises(ReplyRefusedError, match="disk full"):
        accept(Message(Error(2, "disk full"), reply_to=request))


def test_a_dead_actor_is_recognised():
    """The form in which Flower's simulation reports an actor that was killed (recorded with Ray 2.55)."""
    text = "The actor died unexpectedly before finishing this task.\n\tclass_name: ClientAppActor\n\tpid: 1\nnot alive"
    for name in ("ActorDiedError", "OutOfMemoryError"):
        assert is_dead_actor(Error(0, f"<class 'ray.exceptions.{name}'>:<'{text}'>"))
    assert not is_dead_actor(Error(2, "<class 'torch.OutOfMemoryError'>:<'CUDA'>"))
    assert reason_of(Error(2, "<class 'torch.OutOfMemoryError'>:<'CUDA'>")) == "OutOfMemoryError: CUDA"


def test_a_reply_without_records_is_refused(grid, accept):
    request = Message(RecordDict(), dst_node_id=1000, message_type="train")
    with pytest.raises(ReplyRefusedError, match="MetricRecord"):
        accept(Message(RecordDict(), reply_to=request))
    metrics_only = RecordDict({"metrics": MetricRecord({"server-round": 0, "num-examples": 1, "loss": 0.5})})
    with pytest.raises(ReplyRefusedError, match="ArrayRecord"):
        accept(Message(metrics_only, reply_to=request))


@pytest.mark.parametrize("value", [1e31, -3e38])
def test_values_that_overflow_a_mean_are_refused(reply, accept, value):
    with pytest.raises(ReplyRefusedError, match="not finite"):
        accept(reply({"a": torch.full((2, 3), value), "b": torch.ones(4)}))


def test_a_scale_that_overflows_is_refused(reply, config):
    """Finite as it comes, infinite when the difference is scaled up."""
    reference = {"a": torch.zeros(2, 3)}
    wire = get_wire("int8-delta")
    sent = wire.encode({"a": torch.ones(2, 3)}, reference)
    sent["a//scales"].fill_(1e37)
    blob = Layout(wire.like(reference)).pack(sent)
    record = ArrayRecord({"weights": Array("uint8", (len(blob),), "fedddpm.flat", blob)})
    transport = Transport(replace(config.transport, transport="flat", wire_dtype="int8-delta"))
    asked = ReplySpec({"arrays": transport.expect(reference, reference)})
    with pytest.raises(ReplyRefusedError, match="not finite"):
        accept_reply(reply(arrays=record), 0, asked, transport)
