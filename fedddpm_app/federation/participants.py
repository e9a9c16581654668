"""Clients by partition id: Flower's node ids are random, partitions are what a seed can choose from."""

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.app import Message

from fedddpm_app.federation.flower_internals import Run, TaskType
from fedddpm_app.seeding import derive_seed


def is_deployed(run: Run) -> bool:
    """Return whether a run's nodes are SuperNodes of their own, and no simulation."""
    return run.primary_task_type == TaskType.SERVER_APP


class Participants:
    """The nodes of a run and the partitions they hold.

    Parameters
    ----------
    node_of : dict of int to int
        Node id by partition id.
    num_workers : int, optional
        The processes that they were seen to work in: fewer than nodes in a simulation.
    share_memory : bool
        Whether all of them could read the probe.

    Attributes
    ----------
    node_of : dict of int to int
        The node that was last seen to hold a partition, also where it is gone.
    present : list of int
        The partitions whose nodes are connected, in ascending order.
    under_way : int or None
        Messages that keep the processes busy and no more; None where every node has one of its own.
    """

    def __init__(self, node_of: Mapping[int, int], num_workers: int | None = None, share_memory: bool = False) -> None:
        self.node_of: dict[int, int] = {}
        self.present: list[int] = []
        self.share_memory = share_memory
        self.under_way = 2 * num_workers + 2 if num_workers and num_workers < len(node_of) else None
        self._partition_of: dict[int, int] = {}
        self.update(node_of)

    def update(self, node_of: Mapping[int, int]) -> None:
        """Take note of who is connected now; a node that is gone is still known by what it sends late."""
        self.node_of = dict(sorted({**self.node_of, **node_of}.items()))
        self.present = sorted(node_of)
        self._partition_of |= {node: partition for partition, node in node_of.items()}

    def partition_of(self, message: Message) -> int | None:
        """Return the partition whose node sent a reply; None for Flower's own word that a node is not there."""
        return self._partition_of.get(message.metadata.src_node_id)

    def sample(self, count: int, seed: int, server_round: int) -> list[int]:
        """Draw the partitions of a round of those present, without replacement, in ascending order; 0 means all."""
        if count == 0 or count >= len(self.present):
            return list(self.present)
        generator = np.random.default_rng(derive_seed(seed, "sample-clients", server_round))
        return sorted(int(p) for p in generator.choice(self.present, size=count, replace=False))

    def absent(self, num_clients: int) -> Sequence[int]:
        """Return the partitions below ``num_clients`` whose nodes are not connected."""
        return sorted(set(range(num_clients)) - set(self.present))
