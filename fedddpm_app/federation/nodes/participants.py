"""Clients by partition id: Flower's node ids are random, so a seed chooses from the partitions instead."""

from collections.abc import Container, Iterable, Mapping, Sequence

import numpy as np
from flwr.app import Message

from fedddpm_app.seeding import derive_seed


def sample_partitions(
    partitions: Sequence[int], count: int, seed: int, server_round: int, attempt: int = 0
) -> list[int]:
    """Return ``count`` of the ascending ``partitions`` for a round, without replacement, ascending; 0 means all."""
    if count == 0 or count >= len(partitions):
        return [*partitions]
    indices = (server_round, attempt) if attempt else (server_round,)
    generator = np.random.default_rng(derive_seed(seed, "sample-clients", *indices))
    return sorted(int(p) for p in generator.choice(partitions, size=count, replace=False))


class Participants:
    """The nodes of a run and the partitions that they hold.

    Parameters
    ----------
    node_of : dict of int to int
        Node id by partition id.
    num_workers : int, optional
        The number of processes that the nodes were seen to work in; in a simulation, fewer than the nodes.
    share_memory : bool
        Whether all nodes could read the probe.

    Attributes
    ----------
    node_of : dict of int to int
        The last node that held a partition, even if that node is gone.
    present : list of int
        The partitions whose nodes are connected, in ascending order.
    newcomers : set of int
        Those of them that are held by another node than the one that they belong to, see ``bindings``.
    under_way : int or None
        The number of messages that is just enough to keep the processes busy; None if every node has a process of its
        own.
    """

    def __init__(self, node_of: Mapping[int, int], num_workers: int | None = None, share_memory: bool = False) -> None:
        self.node_of: dict[int, int] = {}
        self.present: list[int] = []
        self.newcomers: set[int] = set()
        self.share_memory = share_memory
        self.under_way = 2 * num_workers + 2 if num_workers and num_workers < len(node_of) else None
        self._partition_of: dict[int, int] = {}
        self.update(node_of)

    @property
    def owned(self) -> list[int]:
        """The partitions that are held by the nodes that they belong to, in ascending order."""
        return [partition for partition in self.present if partition not in self.newcomers]

    def update(self, node_of: Mapping[int, int], newcomers: Iterable[int] = ()) -> None:
        """Update the connected nodes; late replies of a node that is gone are still recognised."""
        self.newcomers = {*newcomers}
        self.node_of = dict(sorted({**self.node_of, **node_of}.items()))
        self.present = sorted(node_of)
        self._partition_of |= {node: partition for partition, node in node_of.items()}

    def partition_of(self, message: Message) -> int | None:
        """Return the partition whose node sent a reply; None for Flower's own error that a node is not available."""
        return self._partition_of.get(message.metadata.src_node_id)

    def sample(
        self, count: int, seed: int, server_round: int, attempt: int = 0, declined: Container[int] = ()
    ) -> list[int]:
        """Sample a round's partitions from the connected ones, without replacement, in ascending order; 0 means all.

        ``attempt`` counts the earlier attempts at the round: a repeated round samples again. Those that have
        ``declined`` are left out.
        """
        willing = [partition for partition in self.present if partition not in declined]
        return sample_partitions(willing, count, seed, server_round, attempt)

    def absent(self, num_clients: int) -> Sequence[int]:
        """Return the partitions below ``num_clients`` whose nodes are not connected."""
        return sorted(set(range(num_clients)) - set(self.present))
