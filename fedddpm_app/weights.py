"""Arithmetic on model weights, by parameter name; only this module combines weights.

``Weights`` maps parameter and buffer names to tensors, as ``state_dict()`` does. Every function
raises ``WeightsMismatchError`` when names, shapes or dtypes differ, and never broadcasts.
"""

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]

_CHUNK = 2**18  # values, whose difference stays in the processor's cache


class WeightsMismatchError(ValueError):
    """Two sets of weights do not describe the same model."""


class ParameterNames:
    """The names, in ``state_dict``, of a model's weights that training changes by gradients.

    A tied parameter has several names there; gradients, control variates and similar records use the first name.

    Parameters
    ----------
    model : nn.Module
        The model; no reference to it is kept.

    Attributes
    ----------
    unique : list of str
        The first name of each parameter.
    """

    def __init__(self, model: nn.Module) -> None:
        first: dict[int, str] = {}
        named = model.named_parameters(remove_duplicate=False)
        self._first = {name: first.setdefault(id(p), name) for name, p in named if p.requires_grad}
        self.unique = list(first.values())

    def __contains__(self, name: object) -> bool:
        return name in self._first

    def replace(self, weights: Weights, parameters: Weights) -> Weights:
        """Return ``weights`` with the parameters replaced by ``parameters``, under all their names."""
        return weights | {name: parameters[first] for name, first in self._first.items()}


def check_match(reference: Weights, other: Weights) -> None:
    """Raise ``WeightsMismatchError`` unless both have the same names, shapes and dtypes."""
    if reference.keys() != other.keys():
        odd = sorted(reference.keys() ^ other.keys())[:3]
        raise WeightsMismatchError(f"parameter names differ, for example {', '.join(odd)}")
    for name, tensor in reference.items():
        mine, theirs = (tuple(tensor.shape), tensor.dtype), (tuple(other[name].shape), other[name].dtype)
        if mine != theirs:
            raise WeightsMismatchError(f"{name} is {theirs[1]} {theirs[0]} instead of {mine[1]} {mine[0]}")


def digest(weights: Weights) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and values of weights on the CPU, whatever their order."""
    found = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def snapshot(model: nn.Module) -> Weights:
    """Return a copy of a model's weights on the CPU, contiguous, independent of the model."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}


def copy(weights: Weights) -> Weights:
    """Return a copy of the weights."""
    return {name: tensor.clone() for name, tensor in weights.items()}


def load_into(model: nn.Module, weights: Weights) -> None:
    """Copy weights into a model in place, on any device."""
    state = model.state_dict()
    check_match(state, weights)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(weights[name])


class RunningMean:
    """``sum_i n_i w_i / sum_i n_i``, updated with each ``w_i`` in the given order, one model in memory at a time.

    The mean of equal weights equals these weights bit for bit (West 1979, updating a weighted mean).

    Attributes
    ----------
    total : float
        ``sum_i n_i`` of the weights folded so far.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self._mean: Weights = {}
        self._like: Weights = {}

    def fold(self, weights: Weights, factor: float) -> None:
        """Add weights ``w_i`` with their factor ``n_i`` > 0, else ``ValueError``."""
        if not factor > 0:
            raise ValueError(f"factor = {factor}: weights are averaged with factors > 0")
        self.total += factor
        if not self._mean:
            self._like = {name: torch.empty_like(tensor, device="meta") for name, tensor in weights.items()}
            self._mean = {name: _summable(tensor).clone() for name, tensor in weights.items()}
            return
        check_match(self._like, weights)
        for name, tensor in self._mean.items():
            tensor.lerp_(_summable(weights[name]), factor / self.total)

    def result(self) -> Weights:
        """Return the mean in the dtypes of the first weights.

        Raises
        ------
        ValueError
            When no weights were folded.
        """
        if not self._mean:
            raise ValueError("there are no weights to average")
        return cast_like(self._mean, self._like)


def weighted_mean(models: Iterable[tuple[Weights, float]]) -> Weights:
    """Return the ``RunningMean`` of at least one pair of weights and factor."""
    mean = RunningMean()
    for weights, factor in models:
        mean.fold(weights, factor)
    return mean.result()


def mean_by_name(models: Iterable[tuple[Weights, float]], start: Weights) -> Weights:
    """Return, for each name in ``start``, the ``RunningMean`` over those weights that have it.

    A name that no weights have keeps its value in ``start``. With weights that all have all names, the result is that
    of ``weighted_mean`` bit for bit.

    Raises
    ------
    WeightsMismatchError
        When weights have a name that ``start`` does not have.
    """
    means: dict[str, RunningMean] = {}
    for weights, factor in models:
        if unknown := sorted(weights.keys() - start.keys())[:3]:
            raise WeightsMismatchError(f"parameter names are not known, for example {', '.join(unknown)}")
        for name, tensor in weights.items():
            means.setdefault(name, RunningMean()).fold({name: tensor}, factor)
    return {name: means[name].result()[name] if name in means else tensor for name, tensor in start.items()}


def num_bytes(weights: Weights) -> int:
    """Return the size of all values in bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in weights.values())


def lerp(start: Weights, end: Weights, amount: float) -> Weights:
    """Return ``start + amount * (end - start)``; integer tensors, such as counters, are taken from ``end``."""
    check_match(start, end)
    return {
        name: torch.lerp(tensor, end[name], amount) if tensor.is_floating_point() else end[name]
        for name, tensor in start.items()
    }


def add_scaled(weights: Weights, other: Weights, factor: float) -> Weights:
    """Return ``weights + factor * other``."""
    check_match(weights, other)
    return {name: torch.add(tensor, other[name], alpha=factor) for name, tensor in weights.items()}


def zeros_like(weights: Weights) -> Weights:
    """Return zeros with the same names, shapes and dtypes."""
    return {name: torch.zeros_like(tensor) for name, tensor in weights.items()}


def select(weights: Weights, names: Iterable[str]) -> Weights:
    """Return the entries with the given names, in the order of ``names``."""
    return {name: weights[name] for name in names}


def cast_like(weights: Weights, reference: Weights) -> Weights:
    """Return ``weights`` in the dtypes of ``reference``; values for integer dtypes are rounded."""
    return {
        name: (tensor.round() if tensor.is_floating_point() and not reference[name].is_floating_point() else tensor).to(
            reference[name].dtype
        )
        for name, tensor in weights.items()
    }


def is_finite(weights: Weights) -> bool:
    """Return whether no value is NaN or infinite."""
    return all(norm < math.inf for norm in tensor_norms(weights))


def tensor_norms(weights: Weights) -> list[float]:
    """Return the L2 norm of each floating-point tensor, reading each value once; NaN or infinite if a value is."""
    parts = [t if t.dtype == torch.float64 else t.float() for t in weights.values() if t.is_floating_point()]
    return [float(norm) for norm in torch._foreach_norm(parts)] if parts else []


def norm(weights: Weights) -> float:
    """Return the L2 norm of all floating-point tensors together."""
    return _norm_of(part for tensor in weights.values() if tensor.is_floating_point() for part in _chunks(tensor))


def distance(weights: Weights, other: Weights) -> float:
    """Return the L2 norm of ``weights - other`` over all floating-point tensors together, reading each value once.

    It is NaN or infinite if a value is, and infinite if a tensor's difference is too large for its dtype.
    """
    return _norm_of(
        mine - theirs
        for name, tensor in weights.items()
        if tensor.is_floating_point()
        for mine, theirs in zip(_chunks(tensor), _chunks(other[name]), strict=True)
    )


def _chunks(tensor: Tensor) -> tuple[Tensor, ...]:
    chunks: tuple[Tensor, ...] = torch.split(tensor.reshape(-1), _CHUNK)
    return chunks


def _norm_of(parts: Iterable[Tensor]) -> float:
    return math.hypot(*(float(torch.linalg.vector_norm(part)) for part in parts))


def _summable(tensor: Tensor) -> Tensor:
    """Return integers and booleans as float64, so that their mean is exact enough for rounding."""
    return tensor if tensor.is_floating_point() else tensor.double()
