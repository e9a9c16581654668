"""The one place where a client's reply is decoded and accepted, or refused with a reason.

No part of a client's reply is trusted. The bytes of its weights are compared with those of the model before any memory
is allocated for them (``transport``). Its numbers are checked. The content for Flower's aggregation is rebuilt from the
known metrics. No reply can therefore end the run for the other clients.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flwr.app import Message, MessageType, MetricRecord, RecordDict

from fedddpm_app import weights as weights_module
from fedddpm_app.config import one_line
from fedddpm_app.federation.flower_internals import ErrorCode
from fedddpm_app.federation.messages.metrics import problem_of
from fedddpm_app.federation.messages.reasons import has_declined, reason_of
from fedddpm_app.federation.messages.records import ARRAYS, METRICS, NUM_EXAMPLES
from fedddpm_app.limits import LARGEST_NUMBER
from fedddpm_app.transport import Expected, Payload, PayloadError, Transport
from fedddpm_app.weights import Weights

_NO_NODE = 1

GONE = "its node is gone or did not answer in time"


class ReplyRefusedError(ValueError):
    """A reply that cannot be used; the message gives the reason, in one plain line: it may quote what a client sent."""

    def __init__(self, reason: str) -> None:
        super().__init__(one_line(reason))


class ReplyDeclinedError(ReplyRefusedError):
    """The client declined, see ``DeclinedError``; the message gives its reason."""


@dataclass(frozen=True)
class Reply:
    """An accepted reply.

    Attributes
    ----------
    partition_id : int
        The sender's partition.
    message : Message
        For Flower's aggregation: ``num-examples`` and the metrics of the ``ReplySpec``, nothing else.
    metrics : MetricRecord
        All metrics that were received: finite numbers, or lists of them.
    payloads : mapping of str to Payload
        The checked weights by record name; empty if the ``ReplySpec`` has none.
    update_norm : float or None
        The L2 norm of the client's change of the weights; None if the reply has no weights.
    record_norms : mapping of str to float
        The L2 norm of each further record's floating-point tensors, by record name.
    kind : str
        The name under which the norms of such changes are compared with each other.
    """

    partition_id: int
    message: Message
    metrics: MetricRecord
    payloads: Mapping[str, Payload]
    update_norm: float | None = None
    record_norms: Mapping[str, float] = field(default_factory=dict)
    kind: str = ARRAYS

    def load(self, record: str = ARRAYS) -> Weights:
        """Decode a record, by default the client's weights: those that it was to return.

        Do not change the result, and preferably do not keep it.

        The weights may lie in the memory in which they arrived; it is freed with the last of them.
        """
        if record not in self.payloads:
            raise KeyError(
                f"the reply has no checked record {record!r}: name it in the strategy's reply_references, or in the "
                "records of the client action."
            )
        return self.payloads[record].decode()

    def on_disk(self, folder: Path) -> "Reply":
        """Return the same reply with its weights on disk, in files that are removed together with the reply."""
        return replace(self, payloads={name: payload.on_disk(folder) for name, payload in self.payloads.items()})

    @property
    def num_bytes(self) -> int:
        """Bytes of its weights as received."""
        return sum(payload.num_bytes for payload in self.payloads.values())

    @property
    def num_examples(self) -> int:
        """Images that the client trained or evaluated on."""
        return int(self.metrics[NUM_EXAMPLES])  # type: ignore[arg-type]

    def number(self, key: str) -> float:
        """Return one of its metrics; NaN if it has no number of that name."""
        value = self.metrics.get(key)
        return float(value) if isinstance(value, int | float) else float("nan")


def mean_reply(weights: Weights, like: Weights, metrics: Mapping[str, float], num_examples: int) -> Reply:
    """Return the mean of several clients in the form of a reply of one, which has all their images.

    Parameters
    ----------
    weights : Weights
        The mean.
    like : Weights
        The weights that the clients started from, which have the names and shapes of ``weights``.
    metrics : mapping of str to float
        The means of the clients' metrics.
    num_examples : int
        The number of images of all clients together.
    """
    record = MetricRecord({NUM_EXAMPLES: num_examples, **metrics})
    message = Message(RecordDict({METRICS: record}), dst_node_id=_NO_NODE, message_type=MessageType.TRAIN)
    return Reply(-1, message, record, {ARRAYS: Payload(weights, Expected(like), 0)})


@dataclass(frozen=True)
class ReplySpec:
    """The content that a reply must have.

    Attributes
    ----------
    records : mapping of str to Expected
        Its weights, by record name.
    metrics : sequence of str
        Its numbers besides ``num-examples``.
    check : callable, optional
        A further check, which may raise ``ReplyRefusedError``.
    lists : mapping of str to int
        Its lists of numbers, with their lengths.
    counts_examples : bool
        Whether it must have ``num-examples``.
    held_out : bool
        Whether ``num-examples`` counts the images that a client evaluated on, not those that it trained on.
    server_round : int
        The round that it must answer; 0 before the rounds.
    kind : str
        As in ``Reply``.
    """

    records: Mapping[str, Expected] = field(default_factory=dict)
    metrics: Sequence[str] = ("loss",)
    check: Callable[[Reply], None] | None = None
    lists: Mapping[str, int] = field(default_factory=dict)
    counts_examples: bool = True
    held_out: bool = False
    server_round: int = 0
    kind: str = ARRAYS


def accept_reply(
    message: Message,
    partition_id: int,
    spec: ReplySpec,
    transport: Transport,
    check_examples: Callable[[int], None] | None = None,
) -> Reply:
    """Check a reply.

    Parameters
    ----------
    message : Message
        Error replies are refused with the client's own reason.
    partition_id : int
        The sender's partition.
    spec : ReplySpec
        The content that it must have.
    transport : Transport
        Receives its weights.
    check_examples : callable, optional
        Raises ``ReplyRefusedError`` for a ``num-examples`` that cannot be true.

    Raises
    ------
    ReplyRefusedError
        With the reason.
    """
    _check_answered(message)
    metrics = message.content.metric_records.get(METRICS)
    if metrics is None:
        raise ReplyRefusedError(f"it has no MetricRecord {METRICS!r}")
    if problem := problem_of(metrics, spec.server_round, spec.metrics, spec.lists, spec.counts_examples):
        raise ReplyRefusedError(problem)
    if spec.counts_examples and check_examples is not None:
        check_examples(int(metrics[NUM_EXAMPLES]))  # type: ignore[arg-type]
    payloads = {
        name: _take(message, name, expected, partition_id, transport) for name, expected in spec.records.items()
    }
    norms = {name: _norm(name, payload) for name, payload in payloads.items()}
    update_norm = norms.pop(ARRAYS) if ARRAYS in norms and payloads[ARRAYS].expected.has_start else None
    kept = [NUM_EXAMPLES, *spec.metrics] if spec.counts_examples else spec.metrics
    message.content = RecordDict({METRICS: MetricRecord({key: metrics[key] for key in kept})})
    reply = Reply(partition_id, message, metrics, payloads, update_norm, norms, spec.kind)
    if spec.check is not None:
        spec.check(reply)
    return reply


def _check_answered(message: Message) -> None:
    """Raise for an error in place of a reply: the client's own, or Flower's report that no reply will arrive."""
    if message.has_error():
        if has_declined(message.error):
            raise ReplyDeclinedError(reason_of(message.error))
        gone = message.error.code in (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)
        raise ReplyRefusedError(GONE if gone else reason_of(message.error))


def _take(message: Message, name: str, expected: Expected, partition_id: int, transport: Transport) -> Payload:
    record = message.content.array_records.get(name)
    if record is None:
        raise ReplyRefusedError(f"it has no ArrayRecord {name!r}")
    try:
        return transport.receive(record, expected, partition_id)
    except PayloadError as error:
        raise ReplyRefusedError(str(error)) from error


def _norm(name: str, payload: Payload) -> float:
    """Return the norm of a record, or of the client's change of the weights; refuse values that are not finite."""
    if name == ARRAYS and payload.expected.has_start:
        norm = payload.update_norm()
        finite = norm < LARGEST_NUMBER
    else:
        norms = weights_module.tensor_norms(payload.sent)
        norm, finite = math.hypot(*norms), all(norm < LARGEST_NUMBER for norm in norms)
    if not finite:
        raise ReplyRefusedError("its weights are not finite")
    return norm
