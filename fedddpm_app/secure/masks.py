"""Masks: pseudo-random whole numbers that are added to a client's own, modulo 2^32 and 2^64."""

from dataclasses import dataclass

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedddpm_app.weights import Weights

SEED_BYTES = 32
_BLOCK = 2**18  # bytes that stay in the processor's cache
_ZEROS = bytes(_BLOCK)
_NARROW, _WIDE = np.dtype("<u4"), np.dtype("<u8")


@dataclass(frozen=True)
class Vector:
    """The numbers of one client, or their sum.

    Attributes
    ----------
    narrow : array of uint32, shape (D,)
        Modulo 2^32, one for each floating-point weight.
    wide : array of uint64, shape (M,)
        Modulo 2^64, for metrics and for weights that are whole numbers.
    """

    narrow: NDArray[np.uint32]
    wide: NDArray[np.uint64]

    @classmethod
    def zeros(cls, num_narrow: int, num_wide: int) -> "Vector":
        """Return a sum of no vectors."""
        return cls(np.zeros(num_narrow, _NARROW), np.zeros(num_wide, _WIDE))

    @classmethod
    def from_tensors(cls, tensors: Weights) -> "Vector":
        """Return the vector of ``to_tensors``, in the same memory."""
        return cls(tensors["narrow"].numpy().view(_NARROW), tensors["wide"].numpy().view(_WIDE))

    def to_tensors(self) -> Weights:
        """Return the same bits as int32 and int64, which travel as weights do."""
        return {
            "narrow": torch.from_numpy(self.narrow.view("<i4")),
            "wide": torch.from_numpy(self.wide.view("<i8")),
        }

    def add(self, other: "Vector") -> None:
        """Add another vector in place, modulo 2^32 and 2^64."""
        np.add(self.narrow, other.narrow, out=self.narrow)
        np.add(self.wide, other.wide, out=self.wide)


def add_mask(vector: Vector, seed: bytes, *, subtract: bool = False) -> None:
    """Add the mask of a seed in place, or subtract it; a seed of ``SEED_BYTES`` is used for one vector only."""
    stream = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    operate = np.subtract if subtract else np.add
    for part in (vector.wide, vector.narrow):
        count = _BLOCK // part.itemsize
        for start in range(0, len(part), count):
            chunk = part[start : start + count]
            operate(chunk, np.frombuffer(stream.update(_ZEROS[: chunk.nbytes]), part.dtype), out=chunk)
