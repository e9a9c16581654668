"""Tensors as one contiguous safetensors blob: written in pieces, read as views without a copy.

The format is that of the safetensors library (8 bytes of header length, a JSON header, the values). Here the bytes go
directly between tensors and a file or a message, whereas the library would copy them twice.
"""

import json
import math
import mmap
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedddpm_app import limits
from fedddpm_app.config import ConfigError, printable
from fedddpm_app.weights import Weights

_NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_LONGEST_REASON = 500  # characters; names and headers that another party sent may have any length

Blob = bytes | memoryview | mmap.mmap


class PayloadError(ValueError):
    """Received bytes differ from the expected bytes; the message names the difference, and may quote the bytes."""

    def __init__(self, reason: str) -> None:
        super().__init__(printable(reason[:_LONGEST_REASON]))


class Layout:
    """The position of each tensor in a blob.

    Parameters
    ----------
    like : mapping of str to Tensor
        Names, shapes and dtypes; the values are not read (tensors may be on the meta device).

    Attributes
    ----------
    header : bytes
        The header at the start of the blob.
    size : int
        The size of the blob in bytes.
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self._specs: dict[str, tuple[torch.dtype, torch.Size, int]] = {}
        entries: dict[str, Any] = {}
        end = 0
        # Wide types come first, so that every tensor begins at a multiple of its element size.
        for name in sorted(like, key=lambda name: (-like[name].element_size(), name)):
            tensor = like[name]
            if tensor.dtype not in _NAMES:
                raise ConfigError(f"{name} is {tensor.dtype}, which weights cannot travel in: use another dtype.")
            begin, end = end, end + tensor.numel() * tensor.element_size()
            self._specs[name] = (tensor.dtype, tensor.shape, begin)
            entries[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end

    def pieces(self, tensors: Mapping[str, Tensor]) -> Iterator[Blob]:
        """Yield the blob of ``tensors`` (on any device) in pieces."""
        yield self.header
        for name in self._specs:
            tensor = tensors[name].detach().to("cpu").contiguous()
            if tensor.numel():
                yield tensor.reshape(-1).view(torch.uint8).numpy().data

    def pack(self, tensors: Mapping[str, Tensor]) -> bytes:
        """Return the blob of ``tensors``."""
        return b"".join(self.pieces(tensors))

    def views(self, blob: Blob) -> Weights:
        """Return the tensors of a blob, in the same memory; do not change them.

        Raises
        ------
        PayloadError
            When the blob's header or size differs from this layout.
        """
        content = memoryview(blob)
        start = len(self.header)
        if content.nbytes < start or bytes(content[:start]) != self.header:
            raise PayloadError(f"its tensors differ from the model's: {_difference(content, self.header)}")
        if content.nbytes != self.size:
            raise PayloadError(f"it has {content.nbytes} bytes instead of {self.size}")
        return {
            name: _view(content, dtype, shape, start + begin) for name, (dtype, shape, begin) in self._specs.items()
        }


def read(blob: Blob) -> Weights:
    """Return the tensors of a blob, as its own header describes them, in the same memory.

    Raises
    ------
    PayloadError
        When it is not a blob that this module wrote.
    """
    content = memoryview(blob)
    entries = _entries(content, limits.TENSOR_HEADER_BYTES)
    try:
        like = {
            name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")
            for name, entry in entries.items()
        }
    except (LookupError, TypeError, RuntimeError) as error:
        raise PayloadError(f"its header cannot be read: {error}") from error
    return Layout(like).views(content)


def _view(content: memoryview, dtype: torch.dtype, shape: torch.Size, offset: int) -> Tensor:
    if not math.prod(shape):
        return torch.empty(shape, dtype=dtype)
    with warnings.catch_warnings():  # of memory that cannot be written; nothing writes to it
        warnings.simplefilter("ignore", UserWarning)
        flat = torch.frombuffer(content, dtype=dtype, count=math.prod(shape), offset=offset)
    return flat.view(shape)


def _entries(content: memoryview, largest: int) -> dict[str, Any]:
    """Return the parsed header of a blob, if it has at most ``largest`` bytes."""
    length = int.from_bytes(content[:8], "little")
    if content.nbytes < 8 or not 0 < length <= min(largest, content.nbytes - 8):
        raise PayloadError("it is not a safetensors blob")
    try:
        entries = json.loads(bytes(content[8 : 8 + length]))
    except (ValueError, RecursionError) as error:
        raise PayloadError("its header is not JSON") from error
    if not isinstance(entries, dict):
        raise PayloadError("its header is not a table of tensors")
    return entries


def _difference(content: memoryview, expected: bytes) -> str:
    """Describe how a blob's tensors differ from the tensors of the expected header."""
    try:
        found = _entries(content, len(expected) + limits.ODD_HEADER_BYTES)
    except PayloadError as error:
        return str(error)
    wanted = json.loads(expected[8:])
    odd = sorted(found.keys() ^ wanted.keys())[:3]
    if odd:
        return f"parameter names differ, for example {', '.join(odd)[:200]}"
    name = next((name for name in wanted if found[name] != wanted[name]), None)
    if name is None:
        return "they are in another order"
    return f"{name} is {str(found[name])[:120]} instead of {wanted[name]}"
