"""The encoding of weights on the wire: ``wire-dtype``.

``fp32`` sends weights as they are, ``bf16`` rounds them to bfloat16. ``int8-delta`` is for clients' replies: a client
sends the difference from the weights that it received, as 8-bit numbers with one scale for every block of 256 (the
block's largest value becomes 127), at a quarter of the bytes. The rounding error is added to the client's next
difference (error feedback: Seide et al. 2014; Karimireddy et al. 2019, arXiv 1901.09847), so that it is delayed and
not lost. Norm and time-embedding layers, biases, and tensors that are not floating-point are sent in full.
"""

import functools
import math
from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fedddpm_app.config import WireDtype
from fedddpm_app.weights import Weights, distance

BLOCK = 256
_SCALES = "//scales"  # suffix of a tensor's name; parameter names have no slash
_IN_FULL = ("norm", "time_emb", "class_embedding")
_LARGEST = 127


class Wire(Protocol):
    """An encoding of weights."""

    def like(self, reference: Weights) -> Mapping[str, Tensor]:
        """Return the names, shapes and dtypes (meta tensors) of the encoding of weights like ``reference``."""

    def encode(self, weights: Weights, base: Weights) -> Weights:
        """Return the encoding of ``weights``; both sides have ``base``."""

    def decode(self, sent: Weights, reference: Weights, base: Weights) -> Weights:
        """Return the decoded weights, in the dtypes of ``reference``."""

    def lost(self, weights: Weights, sent: Weights, base: Weights) -> Weights:
        """Return the rounding error to add to the client's next difference; empty if none is added."""

    def distance(self, sent: Weights, base: Weights) -> float:
        """Return the L2 norm of the decoded weights minus ``base``; not finite if a value is not."""


class Whole:
    """Weights as they are, or with float32 cast to another floating-point type."""

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._dtype = dtype

    def like(self, reference: Weights) -> Mapping[str, Tensor]:
        """Return the meta tensors of the encoding."""
        return {name: torch.empty_like(t, dtype=self._sent_as(t), device="meta") for name, t in reference.items()}

    def encode(self, weights: Weights, base: Weights) -> Weights:
        """Cast the weights for sending."""
        return {name: tensor.to(self._sent_as(tensor)) for name, tensor in weights.items()}

    def decode(self, sent: Weights, reference: Weights, base: Weights) -> Weights:
        """Cast the weights back."""
        return {name: sent[name].to(tensor.dtype) for name, tensor in reference.items()}

    def lost(self, weights: Weights, sent: Weights, base: Weights) -> Weights:
        """Return an empty mapping: the rounding error of bfloat16 is not added to the next reply."""
        return {}

    def distance(self, sent: Weights, base: Weights) -> float:
        """Return the distance of the cast weights."""
        return distance(sent, base)

    def _sent_as(self, tensor: Tensor) -> torch.dtype:
        return self._dtype if self._dtype is not None and tensor.dtype == torch.float32 else tensor.dtype


class Int8Delta:
    """Differences as blocks of 8-bit numbers."""

    def like(self, reference: Weights) -> Mapping[str, Tensor]:
        """Return the meta tensors of the encoding."""
        like: dict[str, Tensor] = {}
        for name, tensor in reference.items():
            if not is_quantised(name, tensor):
                like[name] = torch.empty_like(tensor, device="meta")
                continue
            like[name] = torch.empty(tensor.shape, dtype=torch.int8, device="meta")
            like[name + _SCALES] = torch.empty(-(-tensor.numel() // BLOCK), device="meta")
        return like

    def encode(self, weights: Weights, base: Weights) -> Weights:
        """Round the differences from ``base``."""
        sent: Weights = {}
        for name, tensor in weights.items():
            if is_quantised(name, tensor):
                sent[name], sent[name + _SCALES] = quantise(tensor - base[name])
            else:
                sent[name] = tensor
        return sent

    def decode(self, sent: Weights, reference: Weights, base: Weights) -> Weights:
        """Add the rounded differences to ``base``."""
        return {
            name: _decoded(name, sent, base).to(tensor.dtype) if is_quantised(name, tensor) else sent[name]
            for name, tensor in reference.items()
        }

    def lost(self, weights: Weights, sent: Weights, base: Weights) -> Weights:
        """Subtract the decoded weights from the weights."""
        return {
            name: tensor - _decoded(name, sent, base).to(tensor.dtype)
            for name, tensor in weights.items()
            if is_quantised(name, tensor)
        }

    def distance(self, sent: Weights, base: Weights) -> float:
        """Return the norm of the rounded differences, and of the changes of the tensors that are sent in full."""
        in_full = {name: sent[name] for name, tensor in base.items() if not is_quantised(name, tensor)}
        rounded = (
            float(torch.linalg.vector_norm(dequantise(sent[name], sent[name + _SCALES])))
            for name, tensor in base.items()
            if is_quantised(name, tensor)
        )
        return math.hypot(distance(in_full, base), *rounded)


@functools.cache
def get_wire(dtype: WireDtype) -> Wire:
    """Return the encoding for a value of the ``wire-dtype`` key."""
    match dtype:
        case "fp32":
            return Whole()
        case "bf16":
            return Whole(torch.bfloat16)
        case _:
            return Int8Delta()


def down_dtype(dtype: WireDtype) -> WireDtype:
    """Return the server's ``wire-dtype``: it sends no differences, because a client may have no weights yet."""
    return "fp32" if dtype == "int8-delta" else dtype


def is_quantised(name: str, tensor: Tensor) -> bool:
    """Return whether ``int8-delta`` rounds a weight of this name."""
    return tensor.is_floating_point() and tensor.dim() > 1 and not any(part in name for part in _IN_FULL)


def quantise(difference: Tensor) -> tuple[Tensor, Tensor]:
    """Return 8-bit numbers in the shape of ``difference``, and the float32 scale of each block of ``BLOCK``."""
    count = difference.numel()
    blocks = F.pad(difference.reshape(-1).float(), (0, -count % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1) / _LARGEST
    numbers = (blocks / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).round_()
    numbers = numbers.nan_to_num_(0.0).clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return numbers.view(-1)[:count].view(difference.shape), scales


def dequantise(numbers: Tensor, scales: Tensor) -> Tensor:
    """Return the differences that ``quantise`` rounded."""
    count = numbers.numel()
    blocks = F.pad(numbers.reshape(-1), (0, -count % BLOCK)).view(-1, BLOCK)
    return (blocks * scales[:, None]).view(-1)[:count].view(numbers.shape)


def add_residual(weights: Weights, residual: Weights) -> Weights:
    """Return ``weights`` plus the rounding error of the client's last reply."""
    return weights | {name: weights[name] + lost for name, lost in residual.items()}


def _decoded(name: str, sent: Weights, base: Weights) -> Tensor:
    return base[name] + dequantise(sent[name], sent[name + _SCALES])
