"""A task from given parts: any model, any loss, and one data set per client."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from fedddpm_app.config import ConfigError, first_line
from fedddpm_app.training.task import Batch, LossFn, TrainingData


class InMemoryTask:
    """A task from given parts; see ``training.task.Task``."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        data: list[TrainingData],
        steps: list[int],
        class_counts: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.loss_fn = loss_fn
        self._class_counts = class_counts
        self._model = model
        self._data = data
        self._steps = steps

    def create_model(self) -> nn.Module:
        """Return a copy of the model."""
        return copy.deepcopy(self._model)

    def train_data(self, partition_id: int) -> TrainingData:
        """Return a client's data set."""
        return self._data[partition_id]

    def held_out_data(self, partition_id: int) -> TrainingData:
        """Raise ``NotImplementedError``: there are no held-out examples."""
        raise NotImplementedError("simulate() has no held-out examples")

    def pooled_data(self) -> TrainingData:
        """Return all clients' data sets as one."""
        return Pooled(self._data)

    def client_sizes(self) -> list[int]:
        """Return the number of examples of every client."""
        return [len(data) for data in self._data]

    def local_steps(self, partition_id: int) -> int:
        """Return a client's optimiser steps per round."""
        return self._steps[partition_id]

    def held_out_loss(self, model: nn.Module, partition_id: int) -> tuple[float, int]:
        """Raise ``NotImplementedError``: there are no held-out examples."""
        raise NotImplementedError("simulate() has no held-out examples")

    def label_counts(self, partition_id: int) -> list[int]:
        """Return an empty list: the task has no classes."""
        return []

    def class_counts(self, partition_id: int) -> list[int]:
        """Return a client's number of examples per class; empty if these numbers are not given."""
        return [] if self._class_counts is None else [*self._class_counts[partition_id]]


class Columns:
    """Tensors with one row per example.

    Parameters
    ----------
    tensors : Tensor, or tuple or dict of Tensor
        Each of shape (N, ...). A batch has the same form.
    what : str
        The name of the data set in errors.
    """

    def __init__(self, tensors: Any, what: str) -> None:
        self._tensors = tensors
        lengths: set[int] = set()
        map_tensors(lambda tensor: lengths.add(len(tensor)), tensors)
        if len(lengths) != 1:
            raise ConfigError(f"{what}: its tensors have {sorted(lengths)} rows; give all tensors the same number.")
        self._length = lengths.pop()

    def __len__(self) -> int:
        return self._length

    @property
    def device(self) -> torch.device:
        """The device of the batches, the CPU."""
        return torch.device("cpu")

    def batch(self, index: Tensor) -> Batch:
        """Return the rows at ``index``."""
        return map_tensors(lambda tensor: tensor[index], self._tensors)


class Examples:
    """Examples by index, such as a torch ``Dataset``; ``default_collate`` makes batches of them.

    Parameters
    ----------
    examples : sequence
        An object with a length that takes indices.
    dtype : torch.dtype
        The dtype of floating-point values in a batch.
    """

    def __init__(self, examples: Any, dtype: torch.dtype) -> None:
        self._examples = examples
        self._dtype = dtype

    def __len__(self) -> int:
        return len(self._examples)

    @property
    def device(self) -> torch.device:
        """The device of the batches, the CPU."""
        return torch.device("cpu")

    def batch(self, index: Tensor) -> Batch:
        """Return the examples at ``index``, collated."""
        return _cast(default_collate([self._examples[i] for i in index.tolist()]), self._dtype)


class Pooled:
    """Concatenated data sets, for losses over all of them.

    Parameters
    ----------
    parts : sequence of TrainingData
        The data sets; their batches must have the same form.
    """

    def __init__(self, parts: Sequence[TrainingData]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def device(self) -> torch.device:
        """The device of the batches, the CPU."""
        return torch.device("cpu")

    def batch(self, index: Tensor) -> Batch:
        """Return the examples at ``index``, from any of the parts."""
        part_of = np.searchsorted(self._ends, index.numpy(), side="right")
        batches = []
        for part in np.unique(part_of):
            start = self._ends[part] - len(self._parts[part])
            batches.append(self._parts[part].batch(index[part_of == part] - int(start)))
        return _concatenate(batches)


class OnDevice:
    """A data set whose batches are moved to a device.

    Parameters
    ----------
    data : TrainingData
        A data set on the CPU.
    device : torch.device
        The device of the batches.
    """

    def __init__(self, data: TrainingData, device: torch.device) -> None:
        self._data = data
        self._device = device

    def __len__(self) -> int:
        return len(self._data)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self._device

    def batch(self, index: Tensor) -> Batch:
        """Return the batch at ``index``."""
        return map_tensors(lambda tensor: tensor.to(self._device), self._data.batch(index.cpu()))


def on_device(data: TrainingData, device: torch.device) -> TrainingData:
    """Return data whose batches are on ``device``; for the CPU, ``data`` itself."""
    return data if device.type == "cpu" else OnDevice(data, device)


def as_training_data(dataset: Any, dtype: torch.dtype, what: str = "client_datasets") -> TrainingData:
    """Turn a user's data set into batches by index.

    Parameters
    ----------
    dataset : Tensor, ndarray, tuple, dict, TensorDataset, or sequence
        A tensor or array (N, ...), or a tuple or dict of tensors and arrays with the same N: batches have the same
        form (a number is one row). A ``TensorDataset``: batches are tuples. Any other object with a length and
        indices, such as a torch ``Dataset`` or a list of examples: ``default_collate`` makes the batches.
    dtype : torch.dtype
        The dtype of floating-point values.
    what : str
        The name of the data set in errors.

    Raises
    ------
    ConfigError
        For any other object, and for a data set without examples.
    """
    if isinstance(dataset, TensorDataset):
        dataset = dataset.tensors
    data: TrainingData
    if isinstance(dataset, Tensor | np.ndarray | tuple | dict):
        try:
            tensors = _to_tensors(dataset)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{what} cannot be made tensors ({first_line(error)}): give numbers.") from error
        data = Columns(_cast(map_tensors(torch.atleast_1d, tensors), dtype), what)
    elif hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__"):
        data = Examples(dataset, dtype)
    else:
        raise ConfigError(
            f"{what}: a {type(dataset).__name__} cannot be read by index; give a tensor, a tuple of tensors, "
            "or a data set with a length."
        )
    if not len(data):
        raise ConfigError(f"{what} has no examples: give at least one.")
    return data


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Apply ``function`` to every tensor of a nested tuple, list or dict, and keep its form."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        items = [map_tensors(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def _to_tensors(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_to_tensors(item) for item in value)
    if isinstance(value, dict):
        return {key: _to_tensors(item) for key, item in value.items()}
    return torch.as_tensor(value)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, value)


def _concatenate(batches: list[Batch]) -> Batch:
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches)
    if isinstance(first, dict):
        return {key: _concatenate([batch[key] for batch in batches]) for key in first}
    return type(first)(_concatenate(list(items)) for items in zip(*batches, strict=True))
