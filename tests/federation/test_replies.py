import math

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict

from fedddpm_app.federation.records import to_arrays, to_weights
from fedddpm_app.federation.replies import ReplyRefusedError, accept_reply

REFERENCE = {"a": torch.zeros(2, 3), "b": torch.zeros(4)}


@pytest.fixture
def reply(grid):
    """Make a reply message with the given weights and metrics."""
    request = Message(RecordDict(), dst_node_id=1000, message_type="train")

    def make(weights=None, metrics=None, arrays=None):
        arrays = arrays if arrays is not None else to_arrays(weights or {"a": torch.ones(2, 3), "b": torch.ones(4)})
        content = RecordDict(
            {"arrays": arrays, "metrics": MetricRecord({"num-examples": 5, "loss": 0.5} | (metrics or {}))}
        )
        return Message(content, reply_to=request)

    return make


def test_a_good_reply_comes_through_exactly(reply):
    accepted = accept_reply(reply(), 3, REFERENCE)
    assert (accepted.partition_id, accepted.num_examples, accepted.number("loss")) == (3, 5, 0.5)
    assert torch.equal(accepted.weights["a"], torch.ones(2, 3))
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
        ({"a": torch.ones(2, 3, dtype=torch.float64), "b": torch.ones(4)}, "float64|shape"),
        ({"a": torch.ones(2, 3)}, "names differ"),
        ({"a": torch.ones(2, 3), "b": torch.ones(4), "c": torch.ones(1)}, "names differ"),
    ],
)
def test_wrong_weights_are_refused(reply, weights, says):
    with pytest.raises(ReplyRefusedError, match=says):
        accept_reply(reply(weights), 0, REFERENCE)


@pytest.mark.parametrize("data", [b"garbage", b""])
def test_garbage_bytes_are_refused(reply, data):
    arrays = ArrayRecord({"a": Array("float32", (2, 3), "numpy.ndarray", data), "b": Array(np.ones(4, np.float32))})
    with pytest.raises(ReplyRefusedError):
        accept_reply(reply(arrays=arrays), 0, REFERENCE)


@pytest.mark.parametrize(
    "metrics",
    [
        {"num-examples": 0},
        {"num-examples": -3},
        {"num-examples": 2.5},
        {"num-examples": float("nan")},
        {"loss": float("nan")},
    ],
)
def test_impossible_metrics_are_refused(reply, metrics):
    with pytest.raises(ReplyRefusedError, match=next(iter(metrics))):
        accept_reply(reply(metrics=metrics), 0, REFERENCE)


def test_a_client_error_is_passed_on(grid):
    request = Message(RecordDict(), dst_node_id=1000, message_type="train")
    with pytest.raises(ReplyRefusedError, match="disk full"):
        accept_reply(Message(Error(2, "disk full"), reply_to=request), 0, REFERENCE)


def test_a_reply_without_records_is_refused(grid):
    request = Message(RecordDict(), dst_node_id=1000, message_type="train")
    with pytest.raises(ReplyRefusedError, match="MetricRecord"):
        accept_reply(Message(RecordDict(), reply_to=request), 0, None)
    metrics_only = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
    with pytest.raises(ReplyRefusedError, match="ArrayRecord"):
        accept_reply(Message(metrics_only, reply_to=request), 0, REFERENCE)
