"""Carriers of weights in a message's ArrayRecord: the ``transport`` key.

``arrays`` is Flower's format, one Array per tensor. ``flat`` is one Array with a safetensors blob; ``shared-memory``
is one Array that names a file with that blob (see ``shared``). The serialisation type of a record identifies its
carrier. A client answers with the carrier of the request, or with ``flat`` if its file does not fit.
"""

import mmap
import secrets
import weakref
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from flwr.app import Array, ArrayRecord

from fedddpm_app.config import WireDtype
from fedddpm_app.progress import logger
from fedddpm_app.transport.layout import Layout, PayloadError, read
from fedddpm_app.transport.numpy_arrays import NUMPY, read_any_arrays, read_arrays
from fedddpm_app.transport.reference import FileReference
from fedddpm_app.transport.shared import SharedDirectory, map_file, write_file
from fedddpm_app.transport.wire import Wire, get_wire
from fedddpm_app.weights import Weights, norm

FLAT = "fedddpm.flat"
FILE = "fedddpm.file"
_KEY = "weights"


@dataclass(frozen=True)
class Packed:
    """A record to send.

    Attributes
    ----------
    record : ArrayRecord
        The record for the message.
    num_bytes : int
        Bytes of the weights, in the message or in the file.
    file : FileReference or None
        The file to remove after its last reader.
    """

    record: ArrayRecord
    num_bytes: int
    file: FileReference | None = None


@dataclass(frozen=True)
class Expected:
    """The expected content of a client's record.

    Attributes
    ----------
    reference : Weights
        Names, shapes and dtypes.
    dtype : str
        The ``wire-dtype`` of the record.
    base : Weights
        The weights that differences are relative to; None if the record holds no differences.
    """

    reference: Weights
    dtype: WireDtype = "fp32"
    base: Weights | None = None

    @property
    def start(self) -> Weights:
        """The weights that a client's change is measured from."""
        return self.base or self.reference

    @property
    def has_start(self) -> bool:
        """Whether ``start`` has values: a reference may be of meta tensors, which have only shapes."""
        return not any(tensor.is_meta for tensor in self.start.values())

    @cached_property
    def start_norm(self) -> float:
        """The norm of ``start``."""
        return norm(self.start)

    @cached_property
    def wire(self) -> Wire:
        """The encoding of the record."""
        return get_wire(self.dtype)

    @cached_property
    def layout(self) -> Layout:
        """The positions of the tensors in a blob."""
        return Layout(self.wire.like(self.reference))


@dataclass(frozen=True)
class Payload:
    """A received record, checked but not decoded.

    Attributes
    ----------
    sent : Weights
        The encoded weights; views of the message's or the file's memory.
    expected : Expected
        The expectation that they were checked against.
    num_bytes : int
        Bytes received.
    """

    sent: Weights
    expected: Expected
    num_bytes: int

    def decode(self) -> Weights:
        """Return the weights; do not change them, because they may share the message's memory."""
        expected = self.expected
        return expected.wire.decode(self.sent, expected.reference, expected.start)

    def update_norm(self) -> float:
        """Return the L2 norm of the client's change of the weights; NaN or infinite if a value is.

        Call it before ``on_disk``.
        """
        return self.expected.wire.distance(self.sent, self.expected.start)

    def on_disk(self, folder: Path) -> "Payload":
        """Return the same payload with its values in a file of ``folder``; raise ``OSError`` if the disk is full.

        The file is open only during decoding, and it is removed when the payload is garbage-collected.
        """
        path = folder / f"reply-{secrets.token_hex(16)}"
        try:
            with path.open("xb") as file:
                file.writelines(self.expected.layout.pieces(self.sent))
        except OSError:
            path.unlink(missing_ok=True)
            raise
        kept = _OnDisk({}, self.expected, self.num_bytes, path)
        weakref.finalize(kept, path.unlink, missing_ok=True)
        return kept


@dataclass(frozen=True)
class _OnDisk(Payload):
    """A payload whose values are in a file."""

    path: Path

    def decode(self) -> Weights:
        with self.path.open("rb") as file:
            blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return Payload(self.expected.layout.views(blob), self.expected, self.num_bytes).decode()


def pack_arrays(sent: Weights) -> Packed:
    """Pack weights as Flower does, one Array per tensor."""
    record = ArrayRecord(dict(sent))
    return Packed(record, sum(len(array.data) for array in record.values()))


def pack_flat(sent: Weights) -> Packed:
    """Pack weights that a ``Wire`` has encoded, as one Array of bytes."""
    blob = Layout(sent).pack(sent)
    return Packed(_one_array(FLAT, blob), len(blob))


def pack_file(sent: Weights, directory: str, kind: str) -> Packed:
    """Pack weights that a ``Wire`` has encoded, as a file of ``directory``; raise ``OSError`` if there is no room."""
    reference = write_file(directory, kind, Layout(sent).pieces(sent))
    return Packed(_one_array(FILE, reference.to_json()), reference.size, reference)


def receive(record: ArrayRecord, expected: Expected, partition_id: int, shared: SharedDirectory | None) -> Payload:
    """Check a client's record, and take over its file.

    Raises
    ------
    PayloadError
        When the record's names, shapes, dtypes or size differ from ``expected``.
    """
    kind, data = _kind_of(record)
    if kind == NUMPY:
        if expected.dtype != "fp32":
            raise PayloadError(f"it holds arrays, not as wire-dtype = {expected.dtype} requires")
        return Payload(
            read_arrays(record, expected.reference), expected, sum(len(array.data) for array in record.values())
        )
    if kind == FLAT:
        return Payload(expected.layout.views(data), expected, len(data))
    if shared is None:
        raise PayloadError("it names a file, but this run's weights do not travel in files")
    reference = FileReference.from_json(data)
    if reference.size != expected.layout.size:
        raise PayloadError(f"it has {reference.size} bytes instead of {expected.layout.size}")
    return Payload(expected.layout.views(shared.take(reference, partition_id)), expected, reference.size)


def read_record(record: ArrayRecord) -> Weights:
    """Return the tensors of a server's record as they were sent; a client must not change them.

    Raises
    ------
    PayloadError
        When the record is not one that this module packed, or its file cannot be read in this process.
    """
    kind, data = _kind_of(record)
    if kind == NUMPY:
        return read_any_arrays(record)
    return read(data if kind == FLAT else map_file(FileReference.from_json(data)))


def can_read(record: ArrayRecord) -> bool:
    """Return whether this process can read a server's record; a file can be read only on the server's host."""
    try:
        read_record(record)
    except PayloadError:
        return False
    return True


def pack_answer(request: ArrayRecord, sent: Weights, partition_id: int) -> Packed:
    """Pack weights that a client's ``Wire`` has encoded, with the carrier of the request.

    The names of the client's files contain its partition id.
    """
    kind, data = _kind_of(request)
    if kind == NUMPY:
        return pack_arrays(sent)
    if kind == FILE:
        try:
            return pack_file(sent, FileReference.from_json(data).directory, f"up-{partition_id}")
        except OSError as error:
            logger.warning(
                "client %d: no room in shared memory (%s): its weights travel in the message", partition_id, error
            )
    return pack_flat(sent)


def _one_array(kind: str, data: bytes) -> ArrayRecord:
    return ArrayRecord({_KEY: Array(dtype="uint8", shape=(len(data),), stype=kind, data=data)})


def _kind_of(record: ArrayRecord) -> tuple[str, bytes]:
    """Return the serialisation type of a record, and the data of its Array (empty for Flower's arrays)."""
    if len(record) == 1 and _KEY in record and record[_KEY].stype in (FLAT, FILE):
        return record[_KEY].stype, record[_KEY].data
    return NUMPY, b""
