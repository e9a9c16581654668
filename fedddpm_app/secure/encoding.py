"""The encoding of an update as whole numbers, whose sum over clients is exact and cannot overflow.

A client with n_i of the round's N images sends q_i = round(n_i / N * clip(u_i) / step), where u_i is its change of the
weights. With step = clip / (2^31 - 1 - clients), the sum over clients is below 2^31 whatever they send: the shares
n_i / N add up to at most 1, and each rounding adds less than 1. Rounding is stochastic, so that its error has the mean
0. The decoded mean differs from the weighted mean of the clipped updates by less than clients * step / share, where
share is the part of N that arrived. Metrics and weights that are whole numbers travel in 64 bits.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from fedddpm_app.secure.masks import Vector
from fedddpm_app.weights import Weights, cast_like, digest

CLIPPED = "clipped-share"
_LARGEST_WIDE = float(2**22)  # of a metric, or of the change of a whole number
_WIDE_STEP = 2.0**-40
_PIECE = 2**16  # values, which stay in the processor's cache


class Encoding:
    """The encoding of one round's updates; server and clients have the same.

    Parameters
    ----------
    start : Weights
        The weights that all clients started from.
    metrics : sequence of str
        The names of the metrics whose means are wanted.
    clip : float
        The largest absolute value of a change; larger ones are clipped.
    num_clients : int
        The largest number of vectors in a sum.

    Attributes
    ----------
    step : float
        The distance of two neighbouring values of a change, before its division by the share that arrived.
    """

    def __init__(self, start: Weights, metrics: Sequence[str], clip: float, num_clients: int) -> None:
        self.step = clip / (2**31 - 1 - num_clients)
        self._start, self._clip, self._metrics = start, clip, [*metrics, CLIPPED]
        self._floats = sorted(name for name, tensor in start.items() if tensor.is_floating_point())
        self._others = sorted(start.keys() - set(self._floats))

    @property
    def num_narrow(self) -> int:
        """The length of ``Vector.narrow``."""
        return sum(self._start[name].numel() for name in self._floats)

    @property
    def num_wide(self) -> int:
        """The length of ``Vector.wide``."""
        return sum(self._start[name].numel() for name in self._others) + len(self._metrics)

    def encode(self, weights: Weights, metrics: Mapping[str, float], share: float, seed: int) -> Vector:
        """Return a client's numbers.

        Parameters
        ----------
        weights : Weights
            After training.
        metrics : mapping of str to float
            All named ones.
        share : float
            n_i / N, in (0, 1].
        seed : int
            Determines the rounding.

        Raises
        ------
        ValueError
            If a value is not finite, or a metric is missing.
        """
        random, clipped = torch.Generator().manual_seed(seed), 0
        narrow, at = torch.empty(self.num_narrow, dtype=torch.int32), 0
        for part, start in self._pieces(weights):
            change = _change(part, start)
            clipped += int((change.abs() > self._clip).sum())
            numbers = _round(change.clamp_(-self._clip, self._clip).mul_(share / self.step), random)
            narrow[at : at + len(numbers)] = numbers
            at += len(numbers)
        known = {**metrics, CLIPPED: clipped / max(1, self.num_narrow)}
        if missing := [name for name in self._metrics if not math.isfinite(known.get(name, math.nan))]:
            raise ValueError(f"its metric {missing[0]} is missing, or not a finite number")
        others = [_change(weights[name], self._start[name]) for name in self._others]
        others.append(torch.tensor([float(known[name]) for name in self._metrics], dtype=torch.float64))
        wide = torch.cat(others).clamp_(-_LARGEST_WIDE, _LARGEST_WIDE).mul_(share / _WIDE_STEP)
        return Vector.from_tensors({"narrow": narrow, "wide": _round(wide, random)})

    def told(self, total: int, server_round: int, settings: str) -> bytes:
        """Return the SHA-256 of what a client's numbers depend on besides its images: N, round, settings and weights.

        A server that tells clients different things could have the others send zeros: weights from which nothing is
        learned, a round with a learning rate of zero, or a total beside which their images are none. The sum would
        then be one client's update.
        """
        about = [total, server_round, settings, self.step, *self._metrics, digest(dict(sorted(self._start.items())))]
        return hashlib.sha256(json.dumps(about).encode()).digest()

    def _pieces(self, weights: Weights) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the floating-point weights, flat, in pieces, each with the values that it started from."""
        for name in self._floats:
            flat = weights[name].reshape(-1), self._start[name].reshape(-1)
            yield from zip(*(torch.split(tensor, _PIECE) for tensor in flat), strict=True)

    def decode(self, total: Vector, share: float) -> tuple[Weights, dict[str, float]]:
        """Return the mean weights and the mean metrics of a sum; ``share`` is the sum of the shares n_i / N in it."""
        tensors = total.to_tensors()
        floats = torch.split(tensors["narrow"], [self._start[name].numel() for name in self._floats])
        sizes = [self._start[name].numel() for name in self._others]
        wide = tensors["wide"].double() * (_WIDE_STEP / share)
        *others, metrics = torch.split(wide, [*sizes, len(self._metrics)])
        changes = {name: part.double() * (self.step / share) for name, part in zip(self._floats, floats, strict=True)}
        changes |= zip(self._others, others, strict=True)
        weights = {name: tensor.double() + changes[name].view(tensor.shape) for name, tensor in self._start.items()}
        return cast_like(weights, self._start), dict(zip(self._metrics, map(float, metrics), strict=True))

    def fits(self, metrics: Mapping[str, float], num_clients: int, share: float) -> bool:
        """Return whether the decoded metrics can be those of a sum without masks: one of them is a share."""
        rounding = num_clients * _WIDE_STEP / share
        return -rounding <= metrics[CLIPPED] <= 1.0 + rounding

    def bound(self, num_clients: int, share: float) -> float:
        """Return what the decoded mean of so many vectors differs from the mean of the clipped updates at most."""
        return num_clients * self.step / share


def _change(tensor: Tensor, start: Tensor) -> Tensor:
    change = tensor.double().reshape(-1) - start.double().reshape(-1)
    if not bool(torch.isfinite(change).all()):
        raise ValueError("its weights are not finite")
    return change


def _round(values: Tensor, random: torch.Generator) -> Tensor:
    """Return int64 numbers whose expectation is ``values``, each less than 1 away."""
    draws = torch.rand(values.shape, generator=random, dtype=torch.float64)
    return values.add_(draws).floor_().to(torch.int64)
