"""The transport of weights: the server's end, which chooses the carrier.

See ``carriers``, ``wire``, ``layout`` and ``shared``. The server packs records with ``Transport.pack`` and checks
clients' records with ``Transport.receive``, the only place where a client's bytes become tensors. The client's end is
``ClientEnd``.
"""

import shutil

from flwr.app import ArrayRecord

from fedddpm_app.config import TransportConfig, WireDtype
from fedddpm_app.progress import logger
from fedddpm_app.transport.carriers import (
    Expected,
    Packed,
    Payload,
    can_read,
    pack_arrays,
    pack_file,
    pack_flat,
    receive,
)
from fedddpm_app.transport.client_end import ClientEnd
from fedddpm_app.transport.layout import PayloadError
from fedddpm_app.transport.shared import ROOT, SharedDirectory
from fedddpm_app.transport.wire import down_dtype, get_wire
from fedddpm_app.weights import Weights, num_bytes

__all__ = [
    "ClientEnd",
    "Expected",
    "Packed",
    "Payload",
    "PayloadError",
    "Transport",
    "can_read",
]

_SPARE = 4  # further models that must fit into shared memory
_RECORDS = 2  # the largest number of records in a message of our algorithms (SCAFFOLD)


class Transport:
    """The server's end of the transport, from the start of a run to its end.

    Parameters
    ----------
    settings : TransportConfig
        The keys ``transport`` and ``wire-dtype``.
    """

    def __init__(self, settings: TransportConfig) -> None:
        self.settings = settings
        self._shared: SharedDirectory | None = None
        self._full = False
        if settings.transport in ("auto", "shared-memory"):
            try:
                self._shared = SharedDirectory.create()
            except OSError as error:
                self._fall_back(f"there is no memory-backed storage ({error.strerror})")

    @property
    def name(self) -> str:
        """The carrier in use: ``shared-memory``, ``flat`` or ``arrays``."""
        if self._shared is not None and not self._full:
            return "shared-memory"
        return "arrays" if self.settings.transport == "arrays" else "flat"

    def probe(self) -> ArrayRecord | None:
        """Return a record that only clients on this host can read; None without shared memory."""
        if self._shared is not None:
            try:
                return pack_file({}, self._shared.path.name, "down").record
            except OSError as error:
                self._fall_back(f"it cannot be written ({error.strerror})")
        return None

    def settle(self, readable: bool, weights: Weights, under_way: int) -> None:
        """Keep shared memory only if every client could read the probe and all models in transit fit.

        Parameters
        ----------
        readable : bool
            Whether every client could read the probe.
        weights : Weights
            The model's weights.
        under_way : int
            The largest number of replies in transit at the same time.
        """
        if self._shared is None:
            return
        needed = num_bytes(weights) * _RECORDS * (under_way + _SPARE)
        free = shutil.disk_usage(ROOT).free
        if not readable:
            self._fall_back("not every client runs on this host")
        elif needed > free:
            self._fall_back(
                f"{under_way} models in transit need {needed / 1e6:.0f} MB, but {free / 1e6:.0f} MB are free"
            )

    def pack(self, weights: Weights, dtype: WireDtype | None = None) -> Packed:
        """Return a record of weights for the clients, in ``dtype`` or else in the run's ``wire-dtype``."""
        sent = get_wire(dtype or down_dtype(self.settings.wire_dtype)).encode(weights, weights)
        if self._shared is not None and not self._full:
            try:
                return pack_file(sent, self._shared.path.name, "down")
            except OSError as error:
                self._full = True  # files that messages already name are still read
                self._log_reason(f"it is full ({error.strerror})")
        return (pack_arrays if self.settings.transport == "arrays" else pack_flat)(sent)

    def expect(self, reference: Weights, base: Weights | None = None, dtype: WireDtype | None = None) -> Expected:
        """Return the expectation for a client's record like ``reference``; with ``base``, for differences from it.

        ``dtype`` replaces the run's ``wire-dtype``.
        """
        dtype = dtype or self.settings.wire_dtype
        return Expected(reference, dtype if base is not None else down_dtype(dtype), base)

    def receive(self, record: ArrayRecord, expected: Expected, partition_id: int) -> Payload:
        """Check a client's record; raise ``PayloadError`` if it does not match ``expected``."""
        return receive(record, expected, partition_id, self._shared)

    def release(self, packed: Packed) -> None:
        """Remove the file of a sent record, if there is one, after its last reader."""
        if packed.file is not None and self._shared is not None:
            self._shared.remove(packed.file)

    def remove_unread(self, partition_id: int | None = None) -> None:
        """Remove the files of replies that were not read, of one client or of all."""
        if self._shared is not None:
            self._shared.remove_unread(partition_id)

    def close(self) -> None:
        """Remove all files of the transport."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def _fall_back(self, reason: str) -> None:
        """Continue without shared memory."""
        self._log_reason(reason)
        self.close()

    def _log_reason(self, reason: str) -> None:
        """Log why weights travel in messages: as a warning if the config requests shared memory."""
        text = "weights travel in messages, not in shared memory: %s"
        (logger.warning if self.settings.transport == "shared-memory" else logger.info)(text, reason)
