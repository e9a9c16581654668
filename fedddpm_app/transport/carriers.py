"""How weights are carried in a message's ArrayRecord: the ``transport`` key.

``arrays`` is Flower's own, one Array per tensor. ``flat`` is one Array with a safetensors blob; ``shared-memory`` is
one Array that names a file with that blob (see ``shared``). A record tells by its serialisation type which it is, and
a client answers in the one that it was asked in, or in ``flat`` where its file does not fit.
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
from fedddpm_app.transport.numpy_arrays import NUMPY, read_arrays
from fedddpm_app.transport.reference import FileReference
from fedddpm_app.transport.shared import SharedDirectory, map_file, write_file
from fedddpm_app.transport.wire import Wire, get_wire
from fedddpm_app.weights import Weights

FLAT = "fedddpm.flat"
FILE = "fedddpm.file"
_KEY = "weights"


@dataclass(frozen=True)
class Packed:
    """A record to send.

    Attributes
    ----------
    record : ArrayRecord
        For the message.
    num_bytes : int
        Of the weights, wherever they lie.
    file : FileReference or None
        What to remove when nobody reads it any more.
    """

    record: ArrayRecord
    num_bytes: int
    file: FileReference | None = None


@dataclass(frozen=True)
class Expected:
    """What a record that comes should hold.

    Attributes
    ----------
    reference : Weights
        Names, shapes and dtypes.
    dtype : str
        The ``wire-dtype`` that it is written in.
    base : Weights
        What a difference is from.
    """

    reference: Weights
    dtype: WireDtype = "fp32"
    base: Weights | None = None

    @cached_property
    def wire(self) -> Wire:
        """The way of writing."""
        return get_wire(self.dtype)

    @cached_property
    def layout(self) -> Layout:
        """Where the tensors lie in a blob."""
        return Layout(self.wire.like(self.reference))


@dataclass(frozen=True)
class Payload:
    """A record that came, checked but not decoded.

    Attributes
    ----------
    sent : Weights
        As they came; views of the message's or the file's memory.
    expected : Expected
        What they were checked against.
    num_bytes : int
        Of what came.
    """

    sent: Weights
    expected: Expected
    num_bytes: int

    def decode(self) -> Weights:
        """Return the weights; not to be changed, since they may lie in the message's own memory."""
        expected = self.expected
        return expected.wire.decode(self.sent, expected.reference, expected.base or expected.reference)

    def on_disk(self, folder: Path) -> "Payload":
        """Return the same payload with its values in a file of ``folder``; ``OSError`` where there is no room.

        The file is open only while it is decoded, and gone when the payload is let go.
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
    """A payload whose values wait in a file."""

    path: Path

    def decode(self) -> Weights:
        with self.path.open("rb") as file:
            blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return Payload(self.expected.layout.views(blob), self.expected, self.num_bytes).decode()


def pack_arrays(sent: Weights) -> Packed:
    """Pack as Flower does."""
    record = ArrayRecord(dict(sent))
    return Packed(record, sum(len(array.data) for array in record.values()))


def pack_flat(sent: Weights) -> Packed:
    """Pack what a ``Wire`` encoded as one Array of bytes."""
    blob = Layout(sent).pack(sent)
    return Packed(_one_array(FLAT, blob), len(blob))


def pack_file(sent: Weights, directory: str, kind: str) -> Packed:
    """Pack what a ``Wire`` encoded as a file of ``directory``; ``OSError`` where there is no room."""
    reference = write_file(directory, kind, Layout(sent).pieces(sent))
    return Packed(_one_array(FILE, reference.to_json()), reference.size, reference)


def receive(record: ArrayRecord, expected: Expected, partition_id: int, shared: SharedDirectory | None) -> Payload:
    """Check a client's record, and take its file.

    Raises
    ------
    PayloadError
        When it is not what is expected, to the byte.
    """
    kind, data = _kind_of(record)
    if kind == NUMPY:
        if expected.dtype != "fp32":
            raise PayloadError(f"it is written as arrays, not as wire-dtype = {expected.dtype}")
        return Payload(
            read_arrays(record, expected.reference), expected, sum(len(array.data) for array in record.values())
        )
    if kind == FLAT:
        return Payload(expected.layout.views(data), expected, len(data))
    if shared is None:
        raise PayloadError("it names a file, and this run's weights do not travel in files")
    reference = FileReference.from_json(data)
    if reference.size != expected.layout.size:
        raise PayloadError(f"it has {reference.size} bytes instead of {expected.layout.size}")
    return Payload(expected.layout.views(shared.take(reference, partition_id)), expected, reference.size)


def read_record(record: ArrayRecord) -> Weights:
    """Return the tensors of a server's record as they were sent, for a client; not to be changed."""
    kind, data = _kind_of(record)
    if kind == NUMPY:
        return dict(record.to_torch_state_dict())
    return read(data if kind == FLAT else map_file(FileReference.from_json(data)))


def can_read(record: ArrayRecord) -> bool:
    """Return whether this process can read a server's record: a file only on the server's host."""
    try:
        read_record(record)
    except PayloadError:
        return False
    return True


def pack_answer(request: ArrayRecord, sent: Weights, partition_id: int) -> Packed:
    """Pack what a client's ``Wire`` encoded in the way of carrying that it was asked in; its files bear its id."""
    kind, data = _kind_of(request)
    if kind == NUMPY:
        return pack_arrays(sent)
    if kind == FILE:
        try:
            return pack_file(sent, FileReference.from_json(data).directory, f"up-{partition_id}")
        except OSError as error:
            logger.warning(
                "client %d: no room in shared memory (%s): its weights go in the message", partition_id, error
            )
    return pack_flat(sent)


def _one_array(kind: str, data: bytes) -> ArrayRecord:
    return ArrayRecord({_KEY: Array(dtype="uint8", shape=(len(data),), stype=kind, data=data)})


def _kind_of(record: ArrayRecord) -> tuple[str, bytes]:
    """Return which way of carrying a record is of, and the data of its one Array."""
    if len(record) == 1 and _KEY in record and record[_KEY].stype in (FLAT, FILE):
        return record[_KEY].stype, record[_KEY].data
    return NUMPY, b""
