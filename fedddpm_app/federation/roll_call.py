"""The connected nodes: new nodes are asked for their partition, at the start of a run and before every phase.

A site's SuperNode may start late, be killed, and come back with its old node id or with a new one.
"""

import time

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedddpm_app.config import ConfigError, shown
from fedddpm_app.federation.errors import RoundFailedError
from fedddpm_app.federation.flower_internals import ErrorCode
from fedddpm_app.federation.participants import Participants
from fedddpm_app.federation.reasons import reason_of
from fedddpm_app.federation.records import METRICS, PARTITION_ID, PROBE, SHARES_MEMORY, WORKER
from fedddpm_app.progress import logger

_FIRST_POLL_SECONDS = 0.01
_LONGEST_POLL_SECONDS = 0.5
_LOG_SECONDS = 10.0  # between messages while nodes are awaited
_TTL_SECONDS = 60.0  # of a query; a node that has not answered by then is queried again
_ANSWER_SECONDS = 20.0  # for the answer of a new node, which may have to start a process
_GONE = (ErrorCode.NODE_UNAVAILABLE, ErrorCode.MESSAGE_UNAVAILABLE)


class RollCall:
    """Keeps track of a run's connected nodes, and of the partitions that they hold.

    Parameters
    ----------
    grid : Grid
        Flower's connection to the nodes.
    num_clients : int
        Partitions are 0 .. ``num_clients`` - 1.
    timeout : float
        Seconds to wait for nodes: at the start for all of them, later for ``min_replies``.
    probe : ArrayRecord, optional
        A record that every node tries to read, to find out whether weights can travel in files.
    """

    def __init__(self, grid: Grid, num_clients: int, timeout: float, probe: ArrayRecord | None = None) -> None:
        self._grid = grid
        self._num_clients = num_clients
        self._timeout = timeout
        self._content = RecordDict({} if probe is None else {PROBE: probe})
        self._started = False  # afterwards errors are only warnings: a new node does not end a run
        self._online: set[int] = set()
        self._queried: set[int] = set()  # online nodes that were asked for their partition
        self._pending: dict[str, int] = {}  # node by the id of its message, until it answers
        self._silent: set[int] = set()  # did not answer once: they are queried again, and not awaited
        self._partition_of: dict[int, int] = {}  # partition by node, in the order of their answers
        self._workers: set[object] = set()
        self._sharing = 0

    def start(self, min_available: int) -> Participants:
        """Wait for all nodes; after the time limit, continue with at least ``min_available`` of them; 0 means all.

        Raises
        ------
        ConfigError
            If fewer nodes connect, or if they do not each hold one partition of the run.
        """
        self._wait(self._num_clients, self._timeout)
        found, needed = self._by_partition(), min_available or self._num_clients
        if len(found) < needed:
            raise ConfigError(self._too_few(len(found), needed))
        self._started = True
        sharing = self._sharing == len(self._partition_of) == self._num_clients  # a later node may be on another host
        participants = Participants(found, len(self._workers), sharing)
        for partition in participants.absent(self._num_clients):
            logger.warning("client %d is not connected: the run starts without it", partition)
        return participants

    def update(self, participants: Participants, min_replies: int) -> None:
        """Update the participants with the nodes that are gone, are back or are new, and log each change.

        Raises
        ------
        RoundFailedError
            If fewer than ``min_replies`` clients are connected, and the others do not come back within the time limit.
        """
        self._read_answers()
        self._query_new_nodes()
        if self._online & set(self._pending.values()) - self._silent:
            self._wait(self._num_clients, _ANSWER_SECONDS)
            self._silent |= set(self._pending.values())
        if len(self._by_partition()) < min_replies:
            logger.warning("%d clients are connected: waiting for more", len(self._by_partition()))
            self._wait(min_replies, self._timeout)
        before = {partition: participants.node_of[partition] for partition in participants.present}
        now = self._by_partition()
        participants.update(now)
        for partition in sorted(before.keys() - now.keys()):
            logger.warning("client %d is gone: its node is not connected", partition)
        for partition in sorted(now.keys() - before.keys()):
            logger.warning("client %d is connected, and takes part from now on", partition)
        if len(now) < min_replies:
            raise RoundFailedError(
                f"{len(now)} clients are connected after node-timeout = {self._timeout:.0f} s, but min-replies = "
                f"{min_replies}: start the missing SuperNodes, or use a smaller min-replies."
            )

    def _wait(self, wanted: int, timeout: float) -> None:
        """Query nodes and read answers until ``wanted`` partitions are held and all nodes answered, or time is over."""
        deadline = time.monotonic() + timeout
        last_log, pause, complete = time.monotonic(), _FIRST_POLL_SECONDS, False
        while True:
            self._query_new_nodes()
            self._read_answers()
            now, known = time.monotonic(), len(self._by_partition())
            if known >= wanted and not complete:  # a dead node that is still listed does not delay the others
                complete, deadline = True, min(deadline, now + _ANSWER_SECONDS)
            if now > deadline or ((complete or self._started) and not set(self._pending.values()) - self._silent):
                return
            if now - last_log > _LOG_SECONDS:
                logger.info("waiting for nodes: %d of %d have reported their partition", known, wanted)
                last_log = now
            time.sleep(pause)
            pause = min(_LONGEST_POLL_SECONDS, pause * 2)

    def _query_new_nodes(self) -> None:
        """Query the nodes that are new, are back, or did not answer."""
        self._online = set(self._grid.get_node_ids())
        self._queried &= self._online
        for node in sorted(self._online - self._queried):
            self._partition_of.pop(node, None)
            message = Message(self._content, dst_node_id=node, message_type=MessageType.QUERY, ttl=_TTL_SECONDS)
            self._pending.update({pushed: node for pushed in self._grid.push_messages([message]) if pushed})
        self._queried |= self._online

    def _read_answers(self) -> None:
        """Read the answers that have arrived."""
        for reply in list(self._grid.pull_messages(set(self._pending))) if self._pending else []:
            node = self._pending.pop(reply.metadata.reply_to_message_id)
            if not reply.has_error():
                self._silent.discard(node)
                self._register(node, reply.content.metric_records.get(METRICS, MetricRecord()))
            elif reply.error.code in _GONE:
                self._queried.discard(node)
            else:
                self._refuse(f"a node could not report its partition: {reason_of(reply.error)}")

    def _register(self, node: int, metrics: MetricRecord) -> None:
        """Register a node by the metrics in its answer, which are not trusted."""
        partition = metrics.get(PARTITION_ID)
        if not isinstance(partition, int):
            return self._refuse(f"a node reported partition-id = {shown(partition)}, which is not a whole number.")
        self._workers.add(str(metrics.get(WORKER)))
        self._sharing += metrics.get(SHARES_MEMORY) == 1
        self._partition_of[node] = partition
        held = [self._partition_of[other] for other in self._online if other in self._partition_of]
        if held.count(partition) > 1:  # a dead node may still be listed: the second one then replaces it
            self._refuse(f"partition-id = {partition} is held by two nodes: give each node a different one.")
        if not 0 <= partition < self._num_clients:
            self._refuse(
                f"num-clients = {self._num_clients}, but the nodes hold the partitions {sorted(held)}: set num-clients "
                f"to the number of nodes, here {len(held)}, or --federation-config "
                f"'num-supernodes={self._num_clients}'."
            )
        return None

    def _refuse(self, reason: str) -> None:
        if not self._started:
            raise ConfigError(reason)
        logger.warning("%s", reason)

    def _by_partition(self) -> dict[int, int]:
        """Return the connected nodes by partition; if two nodes hold the same one, the node that answered first."""
        known: dict[int, int] = {}
        for node, partition in self._partition_of.items():
            if node in self._online and 0 <= partition < self._num_clients:
                known.setdefault(partition, node)
        return known

    def _too_few(self, found: int, needed: int) -> str:
        key = "num-clients" if needed == self._num_clients else "min-available-nodes"
        num_silent = len(self._online & set(self._pending.values()))
        silent = f" ({num_silent} more do not answer: is their SuperExec running?)" if num_silent else ""
        return (
            f"{key} = {needed}, but after node-timeout = {self._timeout:.0f} s only {found} nodes are connected{silent}"
            f": in a simulation add --federation-config 'num-supernodes={self._num_clients}'; in a deployment start "
            f"the missing SuperNodes, or set {key} = {max(1, found)}."
        )
