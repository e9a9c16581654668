"""What is said of nodes: why an answer does not fit, and who comes and goes, in the run's log and its security log."""

from collections.abc import Mapping, Set

from flwr.app import MetricRecord

from fedddpm_app.config import shown
from fedddpm_app.federation.messages.records import NUM_PARTITIONS, PARTITION_ID
from fedddpm_app.federation.security_log import JOINED, LEFT, SecurityLog
from fedddpm_app.progress import logger


def misfit(metrics: MetricRecord, num_clients: int) -> str:
    """Return why a node with these metrics in its answer cannot take part, or an empty text; they are not trusted."""
    partition, nodes = metrics.get(PARTITION_ID), metrics.get(NUM_PARTITIONS, num_clients)
    if not isinstance(partition, int):
        return f"a node reported partition-id = {shown(partition)}, which is not a whole number."
    if nodes != num_clients:
        said = shown(nodes)
        return (
            f"num-clients = {num_clients}, but the nodes have num-partitions = {said}: set num-clients = {said}, or "
            f"--federation-config 'num-supernodes={num_clients}'."
        )
    if not 0 <= partition < num_clients:
        return (
            f"num-clients = {num_clients}, but a node has partition-id = {partition}: give it a number from 0 to "
            f"{num_clients - 1}, or set num-clients to the number of nodes."
        )
    return ""


def warn_of_changes(before: Mapping[int, int], now: Mapping[int, int]) -> None:
    """Warn of the partitions whose nodes are gone, or are connected now; both have the node by partition."""
    for partition in sorted(before.keys() - now.keys()):
        logger.warning("client %d is gone: its node is not connected", partition)
    for partition in sorted(now.keys() - before.keys()):
        logger.warning("client %d is connected, and takes part from now on", partition)


def log_changes(
    log: SecurityLog,
    before: Mapping[int, int],
    now: Mapping[int, int],
    identity: Mapping[int, str],
    newcomers: Set[int],
) -> None:
    """Write which nodes hold partitions now that did not before, and which do not any more; warn of newcomers.

    Parameters
    ----------
    log : SecurityLog
        Where it is written, in one line for all that joined, and one for all that left.
    before, now : mapping of int to int
        Nodes by partition.
    identity : mapping of int to str
        By node, the name by which it is known, see ``bindings``.
    newcomers : set of int
        The partitions whose node is not the one that they belong to.
    """
    gone, new = (
        {partition: node for partition, node in sorted(some.items()) if others.get(partition) != node}
        for some, others in ((before, now), (now, before))
    )
    if gone:
        log.add(LEFT, nodes={p: str(node) for p, node in gone.items()})
    if new:
        identities = {p: identity[node] for p, node in new.items()}
        nodes = {p: str(node) for p, node in new.items()}
        log.add(JOINED, nodes=nodes, identities=identities, newcomers=sorted(new.keys() & newcomers))
    for partition in sorted(new.keys() & newcomers):
        logger.warning(
            "client %d: node %d is not the one that the partition belongs to in this run: it takes part in the rounds, "
            "and is sent nothing of the client's own",
            *(partition, new[partition]),
        )
