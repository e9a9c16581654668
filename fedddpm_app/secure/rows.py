"""Byte strings of equal lengths as rows of a tensor, and back: keys and shares travel as weights do."""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_rows(items: Sequence[bytes], width: int) -> Tensor:
    """Return uint8 of shape (items, width)."""
    return torch.frombuffer(bytearray(b"".join(items)), dtype=torch.uint8).view(-1, width) if items else _no_rows(width)


def from_rows(rows: Tensor) -> list[bytes]:
    """Return the byte strings of ``to_rows``."""
    return [row.numpy().tobytes() for row in rows]


def rows_like(count: int, width: int) -> Tensor:
    """Return the shape and dtype of ``to_rows`` without values."""
    return torch.empty((count, width), dtype=torch.uint8, device="meta")


def _no_rows(width: int) -> Tensor:
    return torch.empty((0, width), dtype=torch.uint8)
