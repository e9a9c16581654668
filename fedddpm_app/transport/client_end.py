"""The client's end of the transport."""

import torch
from flwr.app import ArrayRecord

from fedddpm_app.config import WireDtype
from fedddpm_app.transport.carriers import Packed, pack_answer, read_record
from fedddpm_app.transport.wire import add_residual, down_dtype, get_wire
from fedddpm_app.weights import Weights


class ClientEnd:
    """Reads the records of one message, and packs the answer with the same carrier.

    Parameters
    ----------
    request : ArrayRecord
        The message's weights.
    dtype : str
        The run's ``wire-dtype``.
    partition_id : int
        The client's partition id.
    """

    def __init__(self, request: ArrayRecord, dtype: WireDtype, partition_id: int) -> None:
        self._request = request
        self._dtype = dtype
        self._partition_id = partition_id

    def unpack(self, record: ArrayRecord | None = None) -> Weights:
        """Return the weights of a record, by default of the request; do not change them.

        Raises
        ------
        PayloadError
            When the record cannot be read in this process.
        """
        sent = read_record(self._request if record is None else record)
        rounded = torch.bfloat16 if self._dtype == "bf16" else None
        return {name: tensor.float() if tensor.dtype == rounded else tensor for name, tensor in sent.items()}

    def pack(self, weights: Weights, dtype: WireDtype | None = None) -> Packed:
        """Pack weights as they are, not as differences, in ``dtype`` or else in the run's ``wire-dtype``."""
        sent = get_wire(dtype or down_dtype(self._dtype)).encode(weights, weights)
        return pack_answer(self._request, sent, self._partition_id)

    def pack_trained(self, weights: Weights, base: Weights, residual: Weights) -> tuple[Packed, Weights]:
        """Pack trained weights, as differences with ``int8-delta``.

        Parameters
        ----------
        weights : Weights
            The weights after training.
        base : Weights
            The weights before training; the server has the same.
        residual : Weights
            The rounding error of the client's last reply; empty if it is unknown.

        Returns
        -------
        tuple of Packed and Weights
            The answer, and its rounding error.
        """
        wire = get_wire(self._dtype)
        weights = add_residual(weights, residual)
        sent = wire.encode(weights, base)
        return pack_answer(self._request, sent, self._partition_id), wire.lost(weights, sent, base)
