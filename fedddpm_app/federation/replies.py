"""The one place where a client's reply is decoded and accepted, or refused with a reason.

Nothing a client sends is trusted: the bytes of its weights are compared with what the model has before any memory is
taken for them (``transport``), its numbers are checked, and what goes on to Flower's aggregation is rebuilt from the
known metrics, so that no reply can end the run for the others.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from flwr.app import Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from torch import Tensor

from fedddpm_app import weights as weights_module
from fedddpm_app.federation.records import ARRAYS, IMAGES, METRICS, NUM_EXAMPLES
from fedddpm_app.transport import Expected, Payload, PayloadError, Transport
from fedddpm_app.transport.numpy_arrays import read_arrays
from fedddpm_app.weights import Weights

_LARGEST_NORM = 1e30  # of a tensor; more overflows in a mean, or when a difference is scaled up


GONE = "its node is gone or did not answer in time"


class ReplyRefusedError(ValueError):
    """A reply that cannot be used; the message says why."""


@dataclass(frozen=True)
class Reply:
    """An accepted reply.

    Attributes
    ----------
    partition_id : int
        Whose it is.
    message : Message
        For Flower's aggregation: ``num-examples`` and the asked-for metrics, nothing else.
    metrics : MetricRecord
        All the metrics that came: finite numbers, or lists of them.
    payloads : mapping of str to Payload
        The checked weights by record name; empty where none were asked for.
    """

    partition_id: int
    message: Message
    metrics: MetricRecord
    payloads: Mapping[str, Payload]

    def load(self, record: str = ARRAYS) -> Weights:
        """Decode a record (by default the client's weights); not to be changed, and best not kept.

        The weights may lie in the memory that they came in, which is let go with the last of them.
        """
        if record not in self.payloads:
            raise KeyError(f"the reply's {record!r} was not asked for: put what it is like into reply_references.")
        return self.payloads[record].decode()

    def on_disk(self, folder: Path) -> "Reply":
        """Return the same reply with its weights on disk, in files that are gone when it is let go."""
        return replace(self, payloads={name: payload.on_disk(folder) for name, payload in self.payloads.items()})

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights as they came."""
        return sum(payload.num_bytes for payload in self.payloads.values())

    @property
    def num_examples(self) -> int:
        """Images the client trained or evaluated on."""
        return int(self.metrics[NUM_EXAMPLES])  # type: ignore[arg-type]

    def number(self, key: str) -> float:
        """Return one of its metrics; NaN where it has none of that name."""
        value = self.metrics.get(key)
        return float(value) if isinstance(value, int | float) else float("nan")


@dataclass(frozen=True)
class ReplySpec:
    """What a reply must have.

    Attributes
    ----------
    records : mapping of str to Expected
        Its weights, by record name.
    metrics : sequence of str
        Its numbers besides ``num-examples``.
    check : callable, optional
        May raise ``ReplyRefusedError`` for more.
    """

    records: Mapping[str, Expected] = field(default_factory=dict)
    metrics: Sequence[str] = ("loss",)
    check: Callable[[Reply], None] | None = None


def accept_reply(
    message: Message, partition_id: int, asked: ReplySpec, transport: Transport, max_num_examples: int | None = None
) -> Reply:
    """Check a reply.

    Parameters
    ----------
    message : Message
        Error replies are refused with the client's own reason.
    partition_id : int
        The sender's partition.
    asked : ReplySpec
        What it must have.
    transport : Transport
        Takes its weights.
    max_num_examples : int, optional
        More than this is refused, so that no client takes over a weighted mean.

    Raises
    ------
    ReplyRefusedError
        Saying what is wrong.
    """
    _check_answered(message)
    told = message.content.metric_records.get(METRICS)
    if told is None:
        raise ReplyRefusedError(f"it has no MetricRecord {METRICS!r}")
    _check_metrics(told, asked.metrics, max_num_examples)
    payloads = {
        name: _take(message, name, expected, partition_id, transport) for name, expected in asked.records.items()
    }
    message.content = RecordDict({METRICS: MetricRecord({key: told[key] for key in (NUM_EXAMPLES, *asked.metrics)})})
    reply = Reply(partition_id, message, told, payloads)
    if asked.check is not None:
        asked.check(reply)
    return reply


def accept_images(message: Message, shape: tuple[int, ...]) -> Tensor:
    """Return the images of a reply, uint8 of just this ``shape``.

    Raises
    ------
    ReplyRefusedError
        Saying what is wrong.
    """
    _check_answered(message)
    arrays = message.content.array_records.get(IMAGES)
    if arrays is None:
        raise ReplyRefusedError(f"it has no ArrayRecord {IMAGES!r}")
    try:
        return read_arrays(arrays, {IMAGES: torch.empty(shape, dtype=torch.uint8, device="meta")})[IMAGES]
    except PayloadError as error:
        raise ReplyRefusedError(str(error)) from error


def _check_answered(message: Message) -> None:
    """Raise for an error in place of a reply: the client's own, or Flower's word that there is no answer to come."""
    if message.has_error():
        gone = message.error.code in (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)
        raise ReplyRefusedError(GONE if gone else _reason(message.error.reason))


def _reason(text: str | None) -> str:
    """Return what a client's exception said, without Flower's ``<class 'X'>:<'...'>`` round it."""
    said = re.fullmatch(r"<class '([\w.]*?)(\w+)'>:<'(.*)'>", text or "", re.DOTALL)
    if said is None:
        return text or "the client failed without a reason"
    return said[3] if said[2].endswith(("ConfigError", "StateError")) else f"{said[2]}: {said[3]}"


def _take(message: Message, name: str, expected: Expected, partition_id: int, transport: Transport) -> Payload:
    record = message.content.array_records.get(name)
    if record is None:
        raise ReplyRefusedError(f"it has no ArrayRecord {name!r}")
    try:
        payload = transport.receive(record, expected, partition_id)
    except PayloadError as error:
        raise ReplyRefusedError(str(error)) from error
    if not weights_module.is_finite(payload.sent, below=_LARGEST_NORM):
        raise ReplyRefusedError("its weights are not finite")
    return payload


def _check_metrics(told: MetricRecord, wanted: Sequence[str], max_num_examples: int | None) -> None:
    num_examples = told.get(NUM_EXAMPLES)
    if not isinstance(num_examples, int) or num_examples < 1:
        raise ReplyRefusedError(f"{NUM_EXAMPLES} is {num_examples!r}, not a positive whole number")
    if max_num_examples is not None and num_examples > max_num_examples:
        raise ReplyRefusedError(
            f"{NUM_EXAMPLES} is {num_examples}, more than max-examples-per-client = {max_num_examples}"
        )
    for key in wanted:
        if not isinstance(told.get(key), int | float):
            raise ReplyRefusedError(f"metric {key} is {told.get(key)!r}, not a number")
    for key, value in told.items():
        if any(not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            raise ReplyRefusedError(f"metric {key} is {value}")
