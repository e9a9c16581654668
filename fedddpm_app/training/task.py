"""The learning task: a model, its loss and the clients' data. Algorithms depend only on this."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Batch = Any  # a batch, in the form that the task's loss takes
LossFn = Callable[[nn.Module, Batch, torch.Generator], Tensor]


class TrainingData(Protocol):
    """The interface of a data set for training: its length, its device, and batches by index."""

    def __len__(self) -> int: ...

    @property
    def device(self) -> torch.device:
        """The device of the batches."""

    def batch(self, index: Tensor) -> Batch:
        """Return the batch at ``index``, int64 of shape (B,)."""


@runtime_checkable
class StreamedData(TrainingData, Protocol):
    """Training data that prepare several batches at a time."""

    def stream(self, order: Iterator[Tensor], steps: int, generator: torch.Generator) -> Iterator[Batch]:
        """Yield ``steps`` batches, at the indices that ``order`` yields; random numbers come from ``generator``."""


class Subset:
    """A part of a data set.

    Parameters
    ----------
    data : TrainingData
        The whole data set.
    index : Tensor
        int64, shape (M,): the examples of the part, in their order.
    """

    def __init__(self, data: TrainingData, index: Tensor) -> None:
        self._data = data
        self._index = index.to(data.device)

    @classmethod
    def spread(cls, data: TrainingData, count: int) -> "Subset":
        """Return ``count`` examples (or all, if there are fewer) spread evenly over ``data``."""
        return cls(data, torch.linspace(0, len(data) - 1, min(count, len(data))).round().long())

    def __len__(self) -> int:
        return len(self._index)

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self._data.device

    def batch(self, index: Tensor) -> Batch:
        """Return the batch at ``index`` of this part."""
        return self._data.batch(self._index[index])


class Task(Protocol):
    """A federated learning problem."""

    @property
    def loss_fn(self) -> LossFn:
        """The training loss, ``(model, batch, generator) -> scalar``."""

    def create_model(self) -> nn.Module:
        """Return a model with the run's initial weights, on the CPU."""

    def train_data(self, partition_id: int) -> TrainingData:
        """Return a client's training data."""

    def held_out_data(self, partition_id: int) -> TrainingData:
        """Return the data of a client that it does not train on; maybe without examples."""

    def pooled_data(self) -> TrainingData:
        """Return the training data of all clients as one data set, for a control; only if they are in one place."""

    def client_sizes(self) -> list[int] | None:
        """Return every client's number of training examples; None if this host does not have all the data."""

    def local_steps(self, partition_id: int) -> int:
        """Return a client's optimiser steps per round."""

    def held_out_loss(self, model: nn.Module, partition_id: int) -> tuple[float, int]:
        """Return a model's loss on a client's held-out examples, and their number."""

    def label_counts(self, partition_id: int) -> list[int]:
        """Return a client's number of examples per class; empty for a task without classes."""

    def class_counts(self, partition_id: int) -> list[int]:
        """Return a client's number of examples per class, also where the model does not use classes.

        Empty for data without labels.
        """
