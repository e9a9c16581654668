"""The one place where a client's reply is decoded and accepted, or refused with a reason."""

import math
from dataclasses import dataclass

from flwr.app import Array, ArrayRecord, Message, MetricRecord

from fedddpm_app import weights as weights_module
from fedddpm_app.federation.records import ARRAYS, METRICS, NUM_EXAMPLES, payload_bytes, to_weights
from fedddpm_app.weights import Weights

_NPY_HEADER_BYTES = 4096


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
        As it came, for Flower's aggregation.
    metrics : MetricRecord
        With a positive, whole ``num-examples``; other values are finite numbers or lists.
    num_bytes : int
        Of its arrays.
    """

    partition_id: int
    message: Message
    metrics: MetricRecord
    num_bytes: int

    @property
    def num_examples(self) -> int:
        """Images the client trained or evaluated on."""
        return int(self.metrics[NUM_EXAMPLES])  # type: ignore[arg-type]

    def number(self, key: str) -> float:
        """Return one of its metrics; NaN where it has none of that name."""
        value = self.metrics.get(key)
        return float(value) if isinstance(value, int | float) else float("nan")

    @property
    def weights(self) -> Weights:
        """The weights it carries, decoded anew at each call."""
        return to_weights(self.message.content.array_records[ARRAYS])


def accept_reply(message: Message, partition_id: int, reference: Weights | None) -> Reply:
    """Check a reply.

    Parameters
    ----------
    message : Message
        Error replies are refused with the client's own reason.
    partition_id : int
        The sender's partition.
    reference : Weights or None
        What names, shapes and dtypes the reply's weights must have; None for a reply without weights.

    Raises
    ------
    ReplyRefusedError
        Saying what is wrong.
    """
    if message.has_error():
        raise ReplyRefusedError(message.error.reason or "the client failed without a reason")
    metrics = message.content.metric_records.get(METRICS)
    if metrics is None:
        raise ReplyRefusedError(f"it has no MetricRecord {METRICS!r}")
    _check_metrics(metrics)
    num_bytes = 0
    if reference is not None:
        arrays = message.content.array_records.get(ARRAYS)
        if arrays is None:
            raise ReplyRefusedError(f"it has no ArrayRecord {ARRAYS!r}")
        _check_arrays(arrays, reference)
        num_bytes = payload_bytes(arrays)
    return Reply(partition_id, message, metrics, num_bytes)


def _check_metrics(metrics: MetricRecord) -> None:
    num_examples = metrics.get(NUM_EXAMPLES)
    if not isinstance(num_examples, int) or num_examples < 1:
        raise ReplyRefusedError(f"{NUM_EXAMPLES} is {num_examples!r}, not a positive whole number")
    for key, value in metrics.items():
        if any(not math.isfinite(v) for v in (value if isinstance(value, list) else [value])):
            raise ReplyRefusedError(f"metric {key} is {value}")


def _check_arrays(arrays: ArrayRecord, reference: Weights) -> None:
    if set(arrays) != set(reference):
        odd = sorted(set(arrays) ^ set(reference))[:3]
        raise ReplyRefusedError(f"its parameter names differ, for example {', '.join(odd)}")
    for name, tensor in reference.items():
        array: Array = arrays[name]
        size = tensor.numel() * tensor.element_size()
        if tuple(array.shape) != tuple(tensor.shape) or not size <= len(array.data) <= size + _NPY_HEADER_BYTES:
            raise ReplyRefusedError(f"{name} has shape {tuple(array.shape)} instead of {tuple(tensor.shape)}")
    try:
        weights = to_weights(arrays)
        weights_module.check_match(reference, weights)
    except ValueError as error:
        raise ReplyRefusedError(str(error)) from error
    if not weights_module.is_finite(weights):
        raise ReplyRefusedError("its weights are not finite")
