"""The images that attacks are tried on: those that a model was trained on, and others of the same kind."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedddpm_app.data.dataset import FederatedDataset
from fedddpm_app.diffusion.images import ImageTensors, concatenate

LEAST = 10  # of each kind: an interval of fewer says nothing


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


def pool_of(data: FederatedDataset, partition_ids: Sequence[int], *, conditional: bool) -> Pool:
    """Return the images for attacks on a model that some clients have trained.

    The others are these clients' held-out images and, where this host has a test split and labels, test images with the
    same shares of the classes: an attack that only knows the clients' classes then finds nothing. With clients that
    differ in more than their classes (``partition`` is "sites" or "natural"), they are the held-out images alone.
    """
    rows = [data.client(partition_id) for partition_id in partition_ids]
    members = data.train.select(torch.cat([each.train for each in rows]))
    others = [data.train.select(torch.cat([each.held_out for each in rows]))]
    test = data.test
    if test is not None and test.labels is not None and members.labels is not None and _differ_in_classes(data):
        others.append(test.select(_alike(members.labels, test.labels, data.config.num_classes)))
    pool = Pool(members, concatenate(others))
    return pool if conditional else Pool(pool.members.without_labels(), pool.others.without_labels())


def _differ_in_classes(data: FederatedDataset) -> bool:
    """Return whether clients differ in nothing but their classes and their numbers of images."""
    return data.config.partition not in ("sites", "natural")


def _alike(labels: Tensor, test: Tensor, num_classes: int) -> Tensor:
    """Return the most rows of ``test`` whose classes have the shares of ``labels``, ascending."""
    wanted, there = (each.bincount(minlength=num_classes).double() for each in (labels, test))
    scale = float((there / wanted)[wanted > 0].min())
    counts = (wanted * scale).floor().long()
    rows = [(test == label).nonzero().flatten()[:count] for label, count in enumerate(counts.tolist())]
    return torch.cat(rows).sort().values


def _spread(images: ImageTensors, count: int) -> ImageTensors:
    if len(images) <= count:
        return images
    return images.select(torch.linspace(0, len(images) - 1, count).round().long())
