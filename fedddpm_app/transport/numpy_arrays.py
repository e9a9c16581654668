"""Flower's arrays, read without trust: npy bytes are compared with the expected bytes, never interpreted."""

import re
from typing import Literal

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedddpm_app.transport.layout import PayloadError
from fedddpm_app.weights import Weights

NUMPY = "numpy.ndarray"
_MAX_HEADER = 4096
_HEADER = re.compile(r"\{'descr': '([<|][fiub]\d)', 'fortran_order': (False|True), 'shape': \(([\d, ]*)\), \}")


def read_arrays(arrays: ArrayRecord, reference: Weights) -> Weights:
    """Return a record's tensors.

    Raises
    ------
    PayloadError
        When names, dtypes or shapes differ from ``reference``.
    """
    if set(arrays) != set(reference):
        odd = sorted(set(arrays) ^ set(reference))[:3]
        raise PayloadError(f"its parameter names differ, for example {', '.join(odd)[:200]}")
    return {name: _read_array(name, arrays[name], tensor) for name, tensor in reference.items()}


def read_any_arrays(arrays: ArrayRecord) -> Weights:
    """Return a record's tensors as their own headers describe them.

    Raises
    ------
    PayloadError
        When an array is not the npy bytes of a number type, or its size differs from its shape.
    """
    return {name: _read_any(name, array) for name, array in arrays.items()}


def _read_any(name: str, array: Array) -> Tensor:
    header, values = _split_npy(array.data)
    found = _HEADER.fullmatch(header) if array.stype == NUMPY else None
    if found is None:
        raise PayloadError(f"{name} is not an array of numbers: {array.stype!r}, {header[:120]!r}")
    try:
        shape = [int(length) for length in re.findall(r"\d+", found[3])]
        order: Literal["C", "F"] = "F" if found[2] == "True" else "C"
        return torch.from_numpy(np.frombuffer(values, found[1]).reshape(shape, order=order).copy())
    except (TypeError, ValueError, OverflowError) as error:
        raise PayloadError(f"{name} cannot be read: {error}") from error


def _read_array(name: str, array: Array, reference: Tensor) -> Tensor:
    """Return an array's values if its npy header is exactly the header of a tensor like ``reference``.

    The header's text is compared and not evaluated, because numpy's reader would build any object that it describes.
    """
    if array.stype != NUMPY:
        raise PayloadError(f"{name} is serialised as {array.stype!r} instead of {NUMPY!r}")
    dtype = torch.empty(0, dtype=reference.dtype).numpy().dtype
    expected = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': {tuple(reference.shape)}, }}"
    found, values = _split_npy(array.data)
    if found != expected:
        raise PayloadError(f"{name} is {found[:120]!r} instead of {expected!r}")
    size = reference.numel() * reference.element_size()
    if len(values) != size:
        raise PayloadError(f"{name} has {len(values)} bytes of values instead of {size}")
    return torch.from_numpy(np.frombuffer(values, dtype).reshape(reference.shape).copy())


def _split_npy(data: bytes) -> tuple[str, memoryview]:
    """Split npy bytes (version 1 or 2) into the header's text and the values; other bytes give an empty text."""
    if data[:6] == b"\x93NUMPY" and data[6:8] in (b"\x01\x00", b"\x02\x00"):
        start = 10 if data[6] == 1 else 12
        end = start + int.from_bytes(data[8:start], "little")
        if end <= _MAX_HEADER:  # numpy refuses longer headers
            return data[start:end].decode("latin1").rstrip(" \n"), memoryview(data)[end:]
    return "", memoryview(b"")
