"""The order of the examples in a training: batches of indices, without end."""

from collections.abc import Iterator

import torch
from torch import Tensor


def shuffled_batches(
    count: int, batch_size: int, generator: torch.Generator, device: torch.device | None = None
) -> Iterator[Tensor]:
    """Yield index batches without end, all of one shape, from successive random permutations.

    Parameters
    ----------
    count : int
        Number of examples, >= 1.
    batch_size : int
        Indices per batch; a batch may continue into the next permutation. 0 yields all examples, in order.
    generator : torch.Generator
        On the CPU.
    device : torch.device, optional
        Device of the batches; each permutation is copied there once.
    """
    if count < 1:
        raise ValueError("there are no examples to train on")
    while batch_size == 0:
        yield torch.arange(count, device=device)
    pending = torch.empty(0, dtype=torch.int64, device=device)
    while True:
        while len(pending) < batch_size:
            pending = torch.cat([pending, torch.randperm(count, generator=generator).to(pending.device)])
        yield pending[:batch_size]
        pending = pending[batch_size:]


def poisson_batches(
    count: int, rate: float, generator: torch.Generator, device: torch.device | None = None
) -> Iterator[Tensor]:
    """Yield index batches without end; each index is in a batch with probability ``rate``, independently.

    Parameters
    ----------
    count : int
        Number of examples, >= 1.
    rate : float
        In (0, 1].
    generator : torch.Generator
        On the CPU.
    device : torch.device, optional
        Device of the batches.
    """
    while True:
        chosen = torch.rand(count, generator=generator, dtype=torch.float64) < rate
        yield chosen.nonzero().flatten().to(device)
