"""The images that attacks are tried on: those that a model was trained on, and others of the same kind."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedddpm_app.data.dataset import FederatedDataset
from fedddpm_app.diffusion.images import ImageTensors, concatenate

LEAST = 2  # of each kind


@dataclass(frozen=True)
class Pool:
    """Images for attacks.

    Attributes
    ----------
    members : ImageTensors
        Those that a model was trained on.
    others : ImageTensors
        Those that no client has trained on.
    """

    members: ImageTensors
    others: ImageTensors

    @property
    def is_large_enough(self) -> bool:
        """Whether an attack can be measured."""
        return min(len(self.members), len(self.others)) >= LEAST

    def at_most(self, count: int) -> "Pool":
        """Return at most ``count`` images of each kind, spread evenly."""
        return Pool(_spread(self.members, count), _spread(self.others, count))

    def all(self) -> ImageTensors:
        """Return members, then others."""
        return concatenate([self.members, self.others])


def pool_of(data: FederatedDataset, partition_id: int, *, conditional: bool) -> Pool:
    """Return the images for attacks on a client's own model.

    The others are the client's held-out images and, where this host has labels and a test split, test images with the
    same shares of the classes as the client's: an attack that only knows the client's classes then finds nothing.
    """
    rows = data.client(partition_id)
    members, held_out = data.train.select(rows.train), data.train.select(rows.held_out)
    test = data.test
    if test is None or test.labels is None or members.labels is None:
        others = held_out
    else:
        alike = _alike(members.labels, test.labels, data.config.num_classes)
        others = concatenate([held_out, test.select(alike)])
    return _labelled(Pool(members, others), conditional)


def pool_of_all(data: FederatedDataset, clients: Sequence[int], *, conditional: bool) -> Pool:
    """Return the images for attacks on a model that the clients trained together: also the whole test split."""
    rows = [data.client(partition_id) for partition_id in clients]
    members = data.train.select(torch.cat([each.train for each in rows]))
    others = [data.train.select(torch.cat([each.held_out for each in rows]))]
    if data.test is not None:
        others.append(data.test)
    return _labelled(Pool(members, concatenate(others)), conditional)


def _alike(labels: Tensor, test: Tensor, num_classes: int) -> Tensor:
    """Return the most rows of ``test`` whose classes have the shares of ``labels``, ascending."""
    wanted, there = (each.bincount(minlength=num_classes).double() for each in (labels, test))
    scale = float((there / wanted)[wanted > 0].min())
    counts = (wanted * scale).floor().long()
    rows = [(test == label).nonzero().flatten()[:count] for label, count in enumerate(counts.tolist())]
    return torch.cat(rows).sort().values


def _labelled(pool: Pool, conditional: bool) -> Pool:
    """Return the pool without labels for an unconditional model."""
    return pool if conditional else Pool(pool.members.without_labels(), pool.others.without_labels())


def _spread(images: ImageTensors, count: int) -> ImageTensors:
    if len(images) <= count:
        return images
    return images.select(torch.linspace(0, len(images) - 1, count).round().long())
