"""Clients by partition id: Flower's node ids are random, partitions are what a seed can choose from."""

import time

import numpy as np
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedddpm_app.config import ConfigError
from fedddpm_app.federation.messaging import exchange
from fedddpm_app.federation.records import METRICS, PARTITION_ID, PROBE, SHARES_MEMORY, WORKER
from fedddpm_app.progress import logger
from fedddpm_app.seeding import derive_seed

_POLL_SECONDS = 0.5
_SAY_SECONDS = 10.0


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
    under_way : int or None
        Messages that keep the processes busy and no more; None where every node has one of its own.
    """

    def __init__(self, node_of: dict[int, int], num_workers: int | None = None, share_memory: bool = False) -> None:
        self.node_of = dict(sorted(node_of.items()))
        self.share_memory = share_memory
        self.under_way = 2 * num_workers + 2 if num_workers and num_workers < len(node_of) else None
        self._partition_of = {node: partition for partition, node in node_of.items()}

    def partition_of(self, message: Message) -> int | None:
        """Return the partition whose node sent a reply; None for Flower's own word that a node is not there."""
        return self._partition_of.get(message.metadata.src_node_id)

    def sample(self, count: int, seed: int, server_round: int) -> list[int]:
        """Draw the partitions of a round, without replacement, in ascending order; 0 means all."""
        partitions = list(self.node_of)
        if count in (0, len(partitions)):
            return partitions
        generator = np.random.default_rng(derive_seed(seed, "sample-clients", server_round))
        return sorted(int(p) for p in generator.choice(partitions, size=count, replace=False))


def discover(grid: Grid, num_clients: int, timeout: float, probe: ArrayRecord | None = None) -> Participants:
    """Wait for the run's nodes and ask each for its partition id, and whether it can read ``probe``.

    Raises
    ------
    ConfigError
        When fewer than ``num_clients`` nodes connect in ``timeout`` seconds, or when they do not hold the
        partitions 0 .. ``num_clients`` - 1, one each.
    """
    nodes = _wait_for_nodes(grid, num_clients, timeout)
    content = RecordDict({} if probe is None else {PROBE: probe})
    queries = [Message(content, dst_node_id=node, message_type=MessageType.QUERY) for node in nodes]
    node_of: dict[int, int] = {}
    workers: set[object] = set()
    sharing = 0
    for reply in exchange(grid, queries, timeout):
        if reply.has_error():
            raise ConfigError(f"a node could not tell its partition: {reply.error.reason}")
        told = reply.content.metric_records[METRICS]
        partition = told[PARTITION_ID]
        workers.add(told.get(WORKER))
        sharing += told.get(SHARES_MEMORY) == 1
        if not isinstance(partition, int) or partition in node_of:
            raise ConfigError(f"partition-id = {partition} is held by two nodes: give each node its own.")
        node_of[partition] = reply.metadata.src_node_id
    if sorted(node_of) != list(range(num_clients)):
        raise ConfigError(
            f"num-clients = {num_clients}, but the nodes hold the partitions {sorted(node_of)}: set num-clients to "
            f"the number of nodes, here {len(node_of)}, or --federation-config 'num-supernodes={num_clients}'."
        )
    return Participants(node_of, len(workers), sharing == num_clients)


def _wait_for_nodes(grid: Grid, num_clients: int, timeout: float) -> list[int]:
    began = said = time.monotonic()
    while len(nodes := sorted(grid.get_node_ids())) < num_clients:
        now = time.monotonic()
        if now - began > timeout:
            raise ConfigError(
                f"num-clients = {num_clients}, but after node-timeout = {timeout:.0f} s only {len(nodes)} nodes are "
                f"connected: in a simulation add --federation-config 'num-supernodes={num_clients}'; in a "
                f"deployment start the missing SuperNodes, or set num-clients = {len(nodes)}."
            )
        if now - said > _SAY_SECONDS:
            logger.info("waiting for nodes: %d of %d are connected", len(nodes), num_clients)
            said = now
        time.sleep(_POLL_SECONDS)
    return nodes
