"""The records that the server sent last, by name."""

from collections.abc import Container

from fedddpm_app.transport import Packed, Transport
from fedddpm_app.weights import Weights


class Outbox:
    """Packs records. A new record replaces the last record of its name; an unchanged record is packed only once.

    Parameters
    ----------
    transport : Transport
        Packs the records, and removes the files of replaced records.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._sent: dict[str, tuple[object, Packed]] = {}

    def pack(self, name: str, source: object, weights: Weights) -> Packed:
        """Return ``weights`` packed; the same ``source`` object means that the weights are unchanged."""
        last, packed = self._sent.get(name, (None, None))
        if packed is not None and last is source:
            return packed
        if packed is not None:
            self._transport.release(packed)
        packed = self._transport.pack(weights)
        self._sent[name] = (source, packed)
        return packed

    def keep_only(self, names: Container[str]) -> None:
        """Release the records of all other names."""
        for name in [name for name in self._sent if name not in names]:
            self._transport.release(self._sent.pop(name)[1])
