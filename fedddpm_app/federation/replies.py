"""The one place where a client's reply is decoded and accepted, or refused with a reason.

Nothing a client sends is trusted: an array's npy header is read and compared with what the model has before
any memory is taken for it, and what goes on to Flower's aggregation is rebuilt from the known records and
metrics, so that no reply can end the run for the others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from torch import Tensor

from fedddpm_app import weights as weights_module
from fedddpm_app.federation.records import ARRAYS, IMAGES, METRICS, NUM_EXAMPLES, payload_bytes
from fedddpm_app.weights import Weights

_NUMPY = "numpy.ndarray"
_MAX_HEADER = 4096


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
        For Flower's aggregation: the arrays, ``num-examples`` and the asked-for metrics, nothing else.
    metrics : MetricRecord
        All the metrics that came: finite numbers, or lists of them.
    records : mapping of str to ArrayRecord
        The checked arrays by record name; empty where none were asked for.
    references : mapping of str to Weights
        What they were checked against.
    """

    partition_id: int
    message: Message
    metrics: MetricRecord
    records: Mapping[str, ArrayRecord]
    references: Mapping[str, Weights]

    def load(self, record: str = ARRAYS) -> Weights:
        """Decode a record (by default the client's weights); nothing is kept, so memory holds it once."""
        if record not in self.records:
            raise KeyError(f"the reply's {record!r} was not asked for: put what it is like into reply_references.")
        return _decode(self.records[record], self.references[record])

    @property
    def num_bytes(self) -> int:
        """Bytes of its arrays."""
        return sum(payload_bytes(arrays) for arrays in self.records.values())

    @property
    def num_examples(self) -> int:
        """Images the client trained or evaluated on."""
        return int(self.metrics[NUM_EXAMPLES])  # type: ignore[arg-type]

    def number(self, key: str) -> float:
        """Return one of its metrics; NaN where it has none of that name."""
        value = self.metrics.get(key)
        return float(value) if isinstance(value, int | float) else float("nan")


def accept_reply(
    message: Message,
    partition_id: int,
    references: Mapping[str, Weights],
    *,
    metrics: Sequence[str] = ("loss",),
    max_num_examples: int | None = None,
) -> Reply:
    """Check a reply.

    Parameters
    ----------
    message : Message
        Error replies are refused with the client's own reason.
    partition_id : int
        The sender's partition.
    references : mapping of str to Weights
        The ArrayRecords that it must have, each with the names, shapes and dtypes of its arrays.
    metrics : sequence of str
        The numbers that it must have besides ``num-examples``.
    max_num_examples : int, optional
        More than this is refused, so that no client takes over a weighted mean.

    Raises
    ------
    ReplyRefusedError
        Saying what is wrong.
    """
    if message.has_error():
        raise ReplyRefusedError(message.error.reason or "the client failed without a reason")
    told = message.content.metric_records.get(METRICS)
    if told is None:
        raise ReplyRefusedError(f"it has no MetricRecord {METRICS!r}")
    _check_metrics(told, metrics, max_num_examples)
    content = RecordDict({METRICS: MetricRecord({key: told[key] for key in (NUM_EXAMPLES, *metrics)})})
    records = {name: _checked(message, name, reference) for name, reference in references.items()}
    if ARRAYS in records:
        content[ARRAYS] = ArrayRecord(dict(records[ARRAYS]))  # of its own: some rules use it up
    message.content = content
    return Reply(partition_id, message, told, records, references)


def accept_images(message: Message, shape: tuple[int, ...]) -> Tensor:
    """Return the images of a reply, uint8 of just this ``shape``.

    Raises
    ------
    ReplyRefusedError
        Saying what is wrong.
    """
    if message.has_error():
        raise ReplyRefusedError(message.error.reason or "the client failed without a reason")
    arrays = message.content.array_records.get(IMAGES)
    if arrays is None:
        raise ReplyRefusedError(f"it has no ArrayRecord {IMAGES!r}")
    return _decode(arrays, {IMAGES: torch.empty(shape, dtype=torch.uint8, device="meta")})[IMAGES]


def _checked(message: Message, name: str, reference: Weights) -> ArrayRecord:
    arrays = message.content.array_records.get(name)
    if arrays is None:
        raise ReplyRefusedError(f"it has no ArrayRecord {name!r}")
    if not weights_module.is_finite(_decode(arrays, reference)):
        raise ReplyRefusedError("its weights are not finite")
    return arrays


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


def _decode(arrays: ArrayRecord, reference: Weights) -> Weights:
    if set(arrays) != set(reference):
        odd = sorted(set(arrays) ^ set(reference))[:3]
        raise ReplyRefusedError(f"its parameter names differ, for example {', '.join(odd)}")
    return {name: _decode_array(name, arrays[name], tensor) for name, tensor in reference.items()}


def _decode_array(name: str, array: Array, reference: Tensor) -> Tensor:
    """Return an array's values where its npy bytes are just those of a tensor like ``reference``.

    The header's text is compared, not evaluated: numpy's own reader would build whatever it describes.
    """
    if array.stype != _NUMPY:
        raise ReplyRefusedError(f"{name} is serialised as {array.stype!r} instead of {_NUMPY!r}")
    dtype = torch.empty(0, dtype=reference.dtype).numpy().dtype
    expected = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {tuple(reference.shape)}, }}"
    found, values = _split_npy(array.data)
    if found != expected:
        raise ReplyRefusedError(f"{name} is {found[:120]!r} instead of {expected!r}")
    size = reference.numel() * reference.element_size()
    if len(values) != size:
        raise ReplyRefusedError(f"{name} has {len(values)} bytes of values instead of {size}")
    return torch.from_numpy(np.frombuffer(values, dtype).reshape(reference.shape).copy())


def _split_npy(data: bytes) -> tuple[str, memoryview]:
    """Split npy bytes (version 1 or 2) into the header's text and the values; an empty text if they are none."""
    if data[:6] == b"\x93NUMPY" and data[6:8] in (b"\x01\x00", b"\x02\x00"):
        start = 10 if data[6] == 1 else 12
        end = start + int.from_bytes(data[8:start], "little")
        if end <= _MAX_HEADER:  # numpy refuses long ones
            return data[start:end].decode("latin1").rstrip(" \n"), memoryview(data)[end:]
    return "", memoryview(b"")
